"""Tiny validation problems in float64: networks of a hidden layer, and a language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from inflcli.ekfac import IGNORED, Categorical, Gaussian, LinearModel
from inflcli.ekfac.linear import Batch
from inflcli.validation import Problem


def network(inputs: int, hidden: int, outputs: int, seed: int = 0, bias: bool = True) -> nn.Module:
    """Two linear modules, `0` and `2`, with a tanh between. Only the first may lack its bias."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(inputs, hidden, bias), nn.Tanh(), nn.Linear(hidden, outputs))
    return made.double().eval()


def batches(
    count: int, size: int, inputs: int, target: Callable[[int], Tensor], seed: int
) -> list[Batch]:
    """`count` examples in batches of `size`."""
    torch.manual_seed(seed)
    x = torch.randn(count, inputs, dtype=torch.float64)
    return list(zip(x.split(size), target(count).split(size), strict=True))


def regression() -> Problem:
    """15 fitted examples of 3 numbers, 7 points (two of them fitted), 3 queries, 2 outputs."""

    def target(count: int) -> Tensor:
        return torch.randn(count, 2, dtype=torch.float64)

    fitted = batches(15, 4, 3, target, 1)
    points = [(fitted[0][0][:2], fitted[0][1][:2]), *batches(5, 5, 3, target, 2)]
    model = LinearModel(network(3, 5, 2), Gaussian())
    return Problem(model, fitted, points, batches(3, 3, 3, target, 3)[0])


def classifier() -> Problem:
    """The same with three classes, and no bias in the first module."""

    def target(count: int) -> Tensor:
        return torch.randint(3, (count,))

    fitted = batches(15, 4, 3, target, 1)
    points = [(fitted[0][0][:2], fitted[0][1][:2]), *batches(5, 5, 3, target, 2)]
    model = LinearModel(network(3, 5, 3, bias=False), Categorical())
    return Problem(model, fitted, points, batches(3, 3, 3, target, 3)[0])


def language(folder: Path, modules: list[str]) -> Problem:
    """A language model: 4 fitted sequences, 5 points, 2 queries with prompts, of 5 to 7 tokens."""
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model = LinearModel(
        made, Categorical(), modules=modules, forward=lambda network, ids: network(ids).logits
    )
    torch.manual_seed(5)

    def some(count: int, length: int, prompt: int = 0) -> Batch:
        ids = torch.randint(made.config.vocab_size, (count, length))
        targets = ids.roll(-1, 1)
        targets[:, -1] = IGNORED
        targets[:, :prompt] = IGNORED
        return ids, targets

    return Problem(model, [some(4, 6)], [some(5, 7)], some(2, 5, prompt=2))
