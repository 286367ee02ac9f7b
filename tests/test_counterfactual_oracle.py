"""Both counterfactual attributions are the derivatives that they say they are.

Against autograd in float64, one token at a time and without forward mode: gradients on the weights
themselves, and of their products with V on a scale that every embedding is multiplied by.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SHAPES
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from inflcli.model import direction
from inflcli.model.batches import Batch, make_batch
from inflcli.model.load import LoadedModel, load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked

LENGTHS = np.array([11, 7, 2], np.int32)


@pytest.fixture(params=SHAPES)
def model(request, tiny_model) -> LoadedModel:
    return load_model(str(tiny_model(request.param)), device="cpu", dtype="float64")


@pytest.fixture
def modules(model) -> list[TrackedModule]:
    return find_tracked(model.network, "all")


@pytest.fixture
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(5, 290, (len(LENGTHS), LENGTHS.max()))
    return make_batch(np.arange(len(LENGTHS)), tokens, LENGTHS, torch.device("cpu"))


@pytest.fixture
def v(modules) -> dict[str, Tensor]:
    """A direction, [P, M] a module."""
    draw = torch.Generator().manual_seed(1)
    return {
        m.name: torch.randn(m.outputs, m.inputs, generator=draw, dtype=torch.float64)
        for m in modules
    }


@pytest.fixture
def push(v) -> direction.Push:
    return lambda module, a: a @ v[module.name].T


@pytest.fixture
def expected(model, modules, batch, v) -> tuple[Tensor, Tensor]:
    """Outputs and inputs [B, T]."""
    found = [torch.zeros(batch.tokens.shape, dtype=torch.float64) for _ in range(2)]
    for row, length in enumerate(LENGTHS):
        for kind, values in zip(
            found, _one(model, modules, batch.tokens[row, :length], v), strict=True
        ):
            kind[row, : len(values)] = values
    return found[0], found[1]


def _one(
    model: LoadedModel, modules: list[TrackedModule], tokens: Tensor, v: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of one sequence: outputs [T - 1], inputs [T]."""
    scale = torch.ones(len(tokens), dtype=torch.float64, requires_grad=True)
    weights, directions = [], []
    for module in modules:
        target = model.network.get_submodule(module.name)
        whole = v[module.name]
        columns = whole[:, :-1] if module.bias else whole
        weights.append(target.weight)
        directions.append(columns.T if isinstance(target, Conv1D) else columns)
        if module.bias:
            weights.append(target.bias)
            directions.append(whole[:, -1])
    embedding = model.network.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda m, given, out: out * scale[:, None])
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = model.network(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        log_p = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0]
        along = []
        for one in log_p:
            slopes = torch.autograd.grad(one, weights, create_graph=True)
            along.append(sum((s * d).sum() for s, d in zip(slopes, directions, strict=True)))
        (inputs,) = torch.autograd.grad(sum(along), scale)
        return torch.stack(along).detach(), inputs
    finally:
        handle.remove()
        for weight in weights:
            weight.requires_grad_(False)


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


def test_exact_derivatives(model, modules, batch, push, expected):
    found = direction.exactly(Passes.for_model(model, modules), batch, push)
    # The norms of transformers' Llama compute in float32, whatever the model's type.
    bar = 1e-6 if "Llama" in type(model.network).__name__ else 1e-12
    assert off(found.outputs, expected[0]) < bar
    assert off(found.inputs, expected[1]) < bar
    assert found.error == 0


def test_differences_know_how_far_off_they_are(model, modules, batch, push, expected):
    found = direction.by_differences(Passes.for_model(model, modules), batch, push)
    largest = max(off(found.outputs, expected[0]), off(found.inputs, expected[1]))
    assert largest < 1e-3
    assert largest < found.error


def test_an_operator_without_forward_mode(model, modules, batch, push, expected, monkeypatch):
    """Differences take over, by themselves."""

    class Plain(torch.autograd.Function):
        """Its input, with a backward and nothing else."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope

    # Behind what the leaf's hook cuts off.
    layer = model.network.get_submodule(modules[-1].name)
    handle = layer.register_forward_hook(lambda m, given, out: Plain.apply(out))
    try:
        found = direction.effects(Passes.for_model(model, modules), batch, push)
    finally:
        handle.remove()
    assert found.error > 0
    assert off(found.outputs, expected[0]) < 1e-3
