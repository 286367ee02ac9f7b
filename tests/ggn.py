"""The exact Gauss-Newton Hessian of a tiny language model, by torch.func, in float64.

The loss of a sequence is its cross-entropy summed over the predicted tokens; the GGN is the mean
over sequences of J^T H J, with J the Jacobian of the logits with respect to the tracked weights
and H = diag(p) - p p^T at each position. Nothing of the package is used.

A module's parameters are the matrix [P, M] of its DW: the weight as [outputs, inputs], then the
bias as a last column. Vectors over several modules are the flattened matrices one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D


def keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Llama's norm compute in the model's own type: transformers' rounds to float32, and
    forward and reverse mode then differ by 1e-8."""

    def forward(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return norm.weight * x * scale

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


class GaussNewton:
    """The GGN of the model in `folder`, restricted to the linear modules `names`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.model.requires_grad_(False)
        self.names = list(names)
        self.shapes = [self._matrix(name).shape for name in self.names]

    @property
    def size(self) -> int:
        return sum(shape.numel() for shape in self.shapes)

    def product(self, sequences: Sequence[Sequence[int]], v: Tensor) -> Tensor:
        """G v for v [D]: a JVP into the logits, the softmax's Hessian, a VJP back."""
        total = torch.zeros_like(v)
        for tokens in sequences:
            logits, pushed = jvp(self._logits(tokens), (torch.zeros_like(v),), (v,))
            p = torch.softmax(logits, -1)
            curved = p * (pushed - (p * pushed).sum(-1, keepdim=True))
            total += vjp(self._logits(tokens), torch.zeros_like(v))[1](curved)[0]
        return total / len(sequences)

    def matrix(self, sequences: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """G [D, D], from explicit Jacobians by reverse mode; positions from `first` on count."""
        start = torch.zeros(self.size, dtype=torch.float64)
        total = torch.zeros(self.size, self.size, dtype=torch.float64)
        for tokens in sequences:
            run = self._logits(tokens, first)
            p = torch.softmax(run(start), -1).detach()
            jacobian = jacrev(run, chunk_size=256)(start)  # [T, V, D]
            mean = (jacobian * p[..., None]).sum(1, keepdim=True)
            root = ((jacobian - mean) * p.sqrt()[..., None]).flatten(0, 1)
            total += root.T @ root
        return total / len(sequences)

    def _logits(self, tokens: Sequence[int], first: int = 0) -> Callable[[Tensor], Tensor]:
        """Logits [T - 1, V] at the predicted positions as a function of a step from the weights."""
        ids = torch.tensor([list(tokens)])

        def run(step: Tensor) -> Tensor:
            weights = self._weights(step)
            arguments = {"input_ids": ids, "use_cache": False}
            with sdpa_kernel(SDPBackend.MATH):  # the one with a forward-mode derivative
                return functional_call(self.model, weights, (), arguments).logits[0, first:-1]

        return run

    def _matrix(self, name: str) -> Tensor:
        module = self.model.get_submodule(name)
        weight = module.weight
        weight = weight.T if isinstance(module, Conv1D) else weight
        return weight if module.bias is None else torch.cat([weight, module.bias[:, None]], 1)

    def _weights(self, step: Tensor) -> dict[str, Tensor]:
        parts = step.split([shape.numel() for shape in self.shapes])
        weights = {}
        for name, shape, part in zip(self.names, self.shapes, parts, strict=True):
            module = self.model.get_submodule(name)
            matrix = self._matrix(name) + part.view(shape)
            if module.bias is not None:
                matrix, weights[f"{name}.bias"] = matrix[:, :-1], matrix[:, -1]
            weights[f"{name}.weight"] = matrix.T if isinstance(module, Conv1D) else matrix
        return weights
