"""A run that is given again what lies below the tracked modules is the run itself."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from oracle import relative
from tiny_problems import language
from torch import nn

from inflcli.ekfac import GaussNewton, gauss_newton
from inflcli.ekfac.capture import moved
from inflcli.validation.replay import Replay, Replayed, at_start

LAST = "model.layers.1.mlp.down_proj"


def pushed(problem, names):
    """The tracked modules moved along some direction."""
    torch.manual_seed(1)
    modules = [module for module in problem.model.modules if module.name in names]
    steps = {one.name: torch.randn(one.outputs, one.inputs).double() for one in modules}
    return moved(
        problem.model.network, modules, lambda one, a: a @ steps[one.name].mT, torch.tensor(0.1)
    )


@contextmanager
def no_folds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gauss_newton, "_POSITIONS", 0)
        yield


def counted(network, kind):
    """How often the forward of each module of a kind runs: by name."""
    runs = {}

    def counting(name, module):
        before = type(module).forward

        def forward(*arguments, **named):
            runs[name] = runs.get(name, 0) + 1
            return before(module, *arguments, **named)

        return forward

    for name, module in network.named_modules():
        if type(module).__name__ == kind:
            module.forward = counting(name, module)
    return runs


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_outputs_are_the_same_and_lower_layers_do_not_run(tiny_model, kind):
    last = {"llama": LAST, "gpt2": "transformer.h.1.mlp.c_proj"}[kind]
    problem = language(tiny_model(kind), [last])
    inputs = problem.points[0][0]
    lower = {"llama": "LlamaAttention", "gpt2": "GPT2Attention"}[kind]
    upper = {"llama": "LlamaMLP", "gpt2": "GPT2MLP"}[kind]
    attention = counted(problem.model.network, lower)
    mlp = counted(problem.model.network, upper)
    start = Replay(problem.model.network, [last], lambda: problem.model.outputs(inputs))
    with torch.no_grad(), pushed(problem, [last]):
        expected = problem.model.outputs(inputs)
        attention.clear(), mlp.clear()
        with start.again():
            found = problem.model.outputs(inputs)
        # The last layer's MLP runs as far as its tracked module asks; nothing else does.
        assert attention == {} and len(mlp) == 1
        assert torch.equal(found, expected)
        assert not torch.equal(found, start.outputs)
        assert start.bytes > start.outputs.nbytes
        # Without it everything runs again, by the forward that each module had.
        assert torch.equal(problem.model.outputs(inputs), expected)
        assert len(attention) == len(mlp) == 2


def test_nothing_above_a_tracked_module_is_kept(tiny_model):
    """Of two tracked modules the lower one decides."""
    first = "model.layers.0.mlp.down_proj"
    problem = language(tiny_model("llama"), [first, LAST])
    inputs = problem.points[0][0]
    start = Replay(problem.model.network, [LAST, first], lambda: problem.model.outputs(inputs))
    with torch.no_grad(), pushed(problem, [first]):
        expected = problem.model.outputs(inputs)
        with start.again():
            assert torch.equal(problem.model.outputs(inputs), expected)
    assert not torch.equal(expected, start.outputs)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_products_are_the_same_with_room_for_none_some_and_all(tiny_model, kept):
    problem = language(tiny_model("llama"), [LAST])
    network, batches = problem.model.network, [problem.fitted[0], problem.points[0]]
    vectors = {LAST: torch.randn(3, *network.get_submodule(LAST).weight.shape).double()}
    expected = GaussNewton(problem.model, lambda: batches).product(vectors)
    attention = counted(network, "LlamaAttention")
    starts = [at_start(problem.model, batch) for batch in batches]
    room = sum(one.bytes - one.outputs.nbytes for one in starts[:kept])
    # A pass of its own for each vector, so that the batch is not repeated.
    model = Replayed(problem.model, batches, room)
    attention.clear()
    with no_folds():
        found = GaussNewton(model, lambda: batches).product(vectors)
    assert relative(found[LAST], expected[LAST]) < 1e-12
    # A forward pass for the tangents and one for the graph of each batch that is not kept.
    assert attention.get("model.layers.0.self_attn", 0) == 2 * (2 - kept)


class Twice(nn.Module):
    """`shared` runs below the tracked module and above it, and `below`'s output is written to."""

    def __init__(self):
        super().__init__()
        self.shared, self.below = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tracked = nn.Linear(3, 3)

    def forward(self, x):
        return self.shared(self.tracked(self.below(self.shared(x)).add_(1.0)))


def test_what_runs_twice_or_is_written_to_is_computed():
    torch.manual_seed(0)
    network, x = Twice(), torch.randn(4, 3)
    start = Replay(network, ["tracked"], lambda: network(x))
    with torch.no_grad():
        network.tracked.weight += 1
        expected = network(x)
        for _ in range(2):
            with start.again():
                assert torch.equal(network(x), expected)
