"""Capturing activations and gradients leaves the model as it was, and costs no more than it must.

No hook, flag, gradient or output changes, also when a consumer fails; no weight gradient is formed;
the backward pass ends at the lowest tracked module; inputs are freed as they are consumed.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import SHAPES, VOCABULARY
from torch import Tensor, nn

from inflcli.ekfac import capture
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import SampledLabels, TrueLabels
from inflcli.model.load import LoadedModel, load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked

CPU = torch.device("cpu")
LABELS = {
    "true labels": [TrueLabels()],
    "two samples": [SampledLabels(0, 0), SampledLabels(0, 1)],
}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Stop(Exception):
    """Raised by a consumer."""


@pytest.fixture(params=SHAPES)
def model(request, tiny_model) -> LoadedModel:
    return load_model(str(tiny_model(request.param)), device="cpu", dtype="float32")


@pytest.fixture
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, 9))
    return make_batch(np.arange(3), tokens, np.array([9, 5, 2], np.int32), CPU)


def state(model: LoadedModel, batch: Batch) -> dict[str, object]:
    """All that a capture might leave behind."""
    network = model.network
    parts = dict(network.named_modules())
    with torch.no_grad():
        logits = network(input_ids=batch.tokens, use_cache=False).logits
    return {
        "hooks": {n: [len(getattr(m, kind)) for kind in _HOOKS] for n, m in parts.items()},
        "forwards": {n: "forward" in vars(m) for n, m in parts.items()},
        "types": {n: type(m) for n, m in parts.items()},
        "training": {n: m.training for n, m in parts.items()},
        "flags": {n: p.requires_grad for n, p in network.named_parameters()},
        "gradients": [n for n, p in network.named_parameters() if p.grad is not None],
        "weights": {n: p.detach().numpy().tobytes() for n, p in network.state_dict().items()},
        "output": logits.numpy().tobytes(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("wanted", ["mlp", "all", "*"])
def test_the_model_is_left_as_it_was(model, batch, labels, wanted):
    before, seen = state(model, batch), []
    modules = find_tracked(model.network, wanted)
    passes = Passes.for_model(model, modules)
    assert state(model, batch) == before
    passes.run(batch, labels, lambda module, a, g: seen.append(module.name))
    assert sorted(seen) == sorted(m.name for m in modules for _ in labels)
    assert state(model, batch) == before


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("fatal", [0, 2])
def test_the_model_is_left_as_it_was_after_an_error(model, batch, labels, fatal):
    before, seen = state(model, batch), []
    passes = Passes.for_model(model, find_tracked(model.network, "mlp"))

    def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
        if len(seen) == fatal:
            raise Stop
        seen.append(module.name)

    with pytest.raises(Stop):
        passes.run(batch, labels, consume)
    assert state(model, batch) == before


def test_the_model_is_left_as_it_was_after_an_error_in_the_forward(model, batch):
    before = state(model, batch)
    passes = Passes.for_model(model, find_tracked(model.network, "mlp"))
    broken = Batch(batch.tokens + VOCABULARY, batch.predicted, batch.ids)
    with pytest.raises(IndexError):
        passes.run(broken, [TrueLabels()], lambda module, a, g: None)
    assert state(model, batch) == before


def watch(module: nn.Module, seen: list[str], name: str) -> Callable[[], None]:
    """Note when a gradient reaches the output of `module`."""

    def hook(target: nn.Module, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if first.requires_grad:
            seen.append(f"graph {name}")
            first.register_hook(lambda gradient: seen.append(f"gradient {name}"))

    return module.register_forward_hook(hook).remove


def test_the_backward_ends_at_the_lowest_tracked_module(model, batch):
    """Below it there is no graph at all; above it, gradients arrive. No weight gets a gradient."""
    every = find_tracked(model.network, "mlp")
    modules = [module for module in every if module.layer == 1]
    below = model.network.get_submodule(every[0].name)
    above = model.network.get_submodule(modules[-1].name)
    seen: list[str] = []
    remove = [
        watch(model.network.get_input_embeddings(), seen, "embedding"),
        watch(below, seen, "below"),
        watch(above, seen, "above"),
    ]
    arrived: list[str] = []
    Passes.for_model(model, modules).run(
        batch, [TrueLabels()], lambda module, a, g: arrived.append(module.name)
    )
    for handle in remove:
        handle()
    assert arrived[-1] == modules[0].name
    assert set(seen) == {"graph above", "gradient above"}


@pytest.fixture
def captures(monkeypatch) -> list[capture.Capture]:
    """Every capture that is entered from here on."""
    entered: list[capture.Capture] = []
    enter = capture.Capture.__enter__

    def spy(self: capture.Capture) -> capture.Capture:
        entered.append(self)
        return enter(self)

    monkeypatch.setattr(capture.Capture, "__enter__", spy)
    return entered


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_inputs_are_freed_as_they_are_consumed(model, batch, labels, captures):
    """In the last backward pass nothing that a module read outlives its consumption, but for the
    tensors that others still wait for."""
    kept: list[int] = []
    modules = find_tracked(model.network, "mlp")
    alive: list[weakref.ref[Tensor]] = []

    def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
        kept.append(len(captures[-1]._inputs))
        alive.extend((weakref.ref(a), weakref.ref(g)))

    Passes.for_model(model, modules).run(batch, labels, consume)
    count = len(modules)
    assert kept[-count:] == list(range(count - 1, -1, -1))
    assert kept[:-count] == [count] * (count * (len(labels) - 1))
    gc.collect()
    assert [ref() for ref in alive if ref() is not None] == []
    assert captures[-1]._inputs == {}


def test_inputs_are_freed_after_an_error(model, batch, captures):
    def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
        raise Stop

    with pytest.raises(Stop):
        Passes.for_model(model, find_tracked(model.network, "mlp")).run(
            batch, [TrueLabels()], consume
        )
    assert captures[-1]._inputs == {}
