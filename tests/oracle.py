"""Brute-force EK-FAC by plain autograd, in float64, without the package's capture or formulas.

A delta of zeros is added to each module's output: the gradient with respect to it is g. Weight
gradients come from autograd on the weights themselves, one sequence at a time. Everything is
explicit loops over sequences and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


@dataclass
class Seen:
    """One sequence through the model: per module a [T, M], g [T, P] and DW [P, M]."""

    a: dict[str, Tensor] = field(default_factory=dict)
    g: dict[str, Tensor] = field(default_factory=dict)
    dw: dict[str, Tensor] = field(default_factory=dict)


class Oracle:
    """Brute force for one model and a list of module names."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.names = names

    def labels(self, tokens: list[int], seed: int, stream: int, sequence: int) -> Tensor:
        """Pseudo-labels [T-1] by explicit inversion of each position's distribution function."""
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens])).logits[0]
        key = np.array([(seed << 16) + stream, sequence], dtype=np.uint64)
        uniforms = np.random.Generator(np.random.Philox(key=key)).random(len(tokens))
        drawn = []
        for position in range(len(tokens) - 1):
            p = torch.softmax(logits[position], -1).numpy()
            drawn.append(int(np.argmax(np.cumsum(p) > uniforms[position])))
        return torch.tensor(drawn)

    def see(self, tokens: list[int], labels: Tensor, first: int = 0) -> Seen:
        """Gradients of sum log p(labels[t]) over positions t from `first` on."""
        seen, deltas, handles = Seen(), {}, []
        for name in self.names:
            handles.append(self._watch(name, seen, deltas))
        try:
            logits = self.model(torch.tensor([tokens])).logits[0, :-1]
        finally:
            for handle in handles:
                handle.remove()
        log_p = torch.log_softmax(logits, -1)
        total = sum(log_p[t, labels[t]] for t in range(first, len(labels)))
        weights = []
        for name in self.names:
            module = self.model.get_submodule(name)
            weights += [module.weight] + ([module.bias] if module.bias is not None else [])
        wanted = [deltas[name] for name in self.names] + weights
        gradients = list(torch.autograd.grad(total, wanted))
        for name in self.names:
            seen.g[name] = gradients.pop(0).flatten(0, -2)
        for name in self.names:
            module = self.model.get_submodule(name)
            dw = gradients.pop(0)
            dw = dw.T if isinstance(module, Conv1D) else dw
            if module.bias is not None:
                dw = torch.cat([dw, gradients.pop(0)[:, None]], 1)
            seen.dw[name] = dw
        return seen

    def _watch(self, name: str, seen: Seen, deltas: dict[str, Tensor]):
        module = self.model.get_submodule(name)

        def hook(target, arguments, output):
            a = arguments[0].detach().flatten(0, -2)
            if target.bias is not None:
                a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
            seen.a[name] = a
            deltas[name] = torch.zeros_like(output, requires_grad=True)
            return output + deltas[name]

        return module.register_forward_hook(hook)


@dataclass
class Curvature:
    """Brute-force factors of one module."""

    a: Tensor
    s: Tensor
    q_a: Tensor
    q_s: Tensor
    corrected: Tensor

    def solve(self, v: Tensor, factor: float) -> Tensor:
        """(G + λI)⁻¹ V, λ = factor · mean Λ, by the dense Kronecker matrix."""
        q = torch.kron(self.q_s, self.q_a)
        damping = factor * self.corrected.mean()
        g = q @ torch.diag(self.corrected.flatten()) @ q.T
        full = g + damping * torch.eye(len(g), dtype=g.dtype)
        return torch.linalg.solve(full, v.flatten()).view_as(v)


def curvature(first: list[Seen], second: list[Seen], name: str) -> Curvature:
    """A, S from the first pass' sequences, Λ from the second's."""
    rows_a = torch.cat([seen.a[name][:-1] for seen in first])
    rows_g = torch.cat([seen.g[name][:-1] for seen in first])
    a = sum(torch.outer(row, row) for row in rows_a) / len(rows_a)
    s = sum(torch.outer(row, row) for row in rows_g) / len(rows_g)
    q_a, q_s = torch.linalg.eigh(a)[1], torch.linalg.eigh(s)[1]
    corrected = sum((q_s.T @ seen.dw[name] @ q_a) ** 2 for seen in second) / len(second)
    return Curvature(a, s, q_a, q_s, corrected)


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())
