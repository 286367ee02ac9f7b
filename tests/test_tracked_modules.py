"""The tracked modules are found from the model itself, on every shape, and selected by depth."""

from __future__ import annotations

import pytest
import torch
from tiny import SHAPES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from inflcli.ekfac.capture import Capture
from inflcli.errors import BadInput
from inflcli.model.batches import make_batch
from inflcli.model.labels import TrueLabels
from inflcli.model.load import load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import (
    TrackedModule,
    depth_group,
    find_tracked,
    group_names,
    select_layers,
    share_tracked,
)

# Below layer 0: the MLP's modules and the attention's, in the order in which they run; groups of
# modules that read the same tensor are in brackets.
GATED = ("model.layers.0", "[mlp.gate_proj mlp.up_proj] mlp.down_proj",
         "[self_attn.q_proj self_attn.k_proj self_attn.v_proj] self_attn.o_proj")  # fmt: skip
EXPECTED = {
    "llama": GATED,
    "llama-bias": GATED,
    "gpt2": ("transformer.h.0", "mlp.c_fc mlp.c_proj", "attn.c_attn attn.c_proj"),
    "neox": (
        "gpt_neox.layers.0",
        "mlp.dense_h_to_4h mlp.dense_4h_to_h",
        "attention.query_key_value attention.dense",
    ),
    "opt": (
        "model.decoder.layers.0",
        "fc1 fc2",
        "[self_attn.q_proj self_attn.k_proj self_attn.v_proj] self_attn.out_proj",
    ),
}


def expected(shape: str, kind: str) -> tuple[list[str], dict[str, str]]:
    """Names in layer 0, and for each the first module that reads the same tensor."""
    prefix, *kinds = EXPECTED[shape]
    names, first, inside = [], {}, ""
    for word in kinds[("mlp", "attention").index(kind)].split():
        name = f"{prefix}.{word.strip('[]')}"
        inside = name if word.startswith("[") else inside
        first[name] = inside or name
        inside = "" if word.endswith("]") else inside
        names.append(name)
    return names, first


@pytest.fixture(params=SHAPES)
def shape(request) -> str:
    return request.param


@pytest.fixture
def network(shape, tiny_model) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model(shape)).eval()


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_mlp_and_attention(network, shape, kind):
    found = find_tracked(network, kind)
    names, first = expected(shape, kind)
    lower = [module for module in found if module.layer == 0]
    upper = [module for module in found if module.layer == 1]
    # gate and up read one tensor, so their order is the model's own business.
    assert sorted(m.name for m in lower) == sorted(names)
    assert [m.name for m in upper] == [m.name.replace(".0.", ".1.") for m in lower]
    assert found == lower + upper
    leaders = {leader: [n for n in names if first[n] == leader] for leader in first.values()}
    for module in lower:
        together = {m.name for m in lower if m.shares_input_with == module.shares_input_with}
        assert together == set(leaders[first[module.name]])
        assert module.shares_input_with in together


def test_all_is_mlp_and_attention(network):
    parts = find_tracked(network, "mlp") + find_tracked(network, "attention")
    every = find_tracked(network, "all")
    assert {m.name for m in every} == {m.name for m in parts}
    # In the order in which they run: attention before the MLP, layer by layer.
    assert [m.layer for m in every] == sorted(m.layer for m in every)


def test_shapes_and_biases(network):
    for module in find_tracked(network, "all"):
        target = network.get_submodule(module.name)
        outputs = target.nf if isinstance(target, Conv1D) else target.out_features
        inputs = target.nx if isinstance(target, Conv1D) else target.in_features
        assert module.bias == (target.bias is not None)
        assert (module.outputs, module.inputs) == (outputs, inputs + module.bias)
        assert module.parameters == sum(p.numel() for p in target.parameters())


def test_share_of_the_parameters(network):
    modules = find_tracked(network, "mlp")
    tracked = {id(p) for m in modules for p in network.get_submodule(m.name).parameters()}
    every = {id(p): p.numel() for p in network.parameters()}  # tied weights count once
    share = sum(size for key, size in every.items() if key in tracked) / sum(every.values())
    assert 0.1 < share < 0.5
    assert share_tracked(network, modules) == pytest.approx(share)


def test_patterns(network, shape):
    names = [module.name for module in find_tracked(network, "mlp")]
    assert [m.name for m in find_tracked(network, names[2])] == [names[2]]
    last = names[0].rpartition(".")[2]
    assert [m.name for m in find_tracked(network, f"*.{last}")] == [
        name for name in names if name.endswith(f".{last}")
    ]
    both = find_tracked(network, f"{names[-1]}, {names[0]}")
    assert [m.name for m in both] == [names[0], names[-1]]
    head = [m for m in find_tracked(network, "*") if m.layer == -1]
    assert len(head) == 1


@pytest.mark.parametrize("wanted", ["*.absent", "MLP", ""])
def test_nothing_found(network, wanted):
    with pytest.raises(BadInput, match="matches no linear module") as caught:
        find_tracked(network, wanted)
    assert "its linear modules are: " in caught.value.hint


class Odd(nn.Module):
    """A model of one layer whose linear modules run as a test wants."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Module()])
        self.layers[0].first = nn.Linear(4, 4)
        self.layers[0].second = nn.Linear(4, 4)
        self.kind = kind

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        layer, x = self.layers[0], self.embedding(input_ids)
        if self.kind == "pooled":
            x = x.mean(1)
        if self.kind == "flat":
            x = x.flatten(0, 1)
        y = layer.first(x)
        if self.kind == "twice":
            y = layer.first(y)
        return y if self.kind == "idle" else layer.second(y)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("twice", "layers.0.first runs more than once"),
        ("idle", "layers.0.second does not run"),
        ("pooled", "layers.0.first reads .* not one row a token"),
    ],
)
def test_a_module_that_cannot_be_tracked(kind, words):
    with pytest.raises(BadInput, match=words):
        find_tracked(Odd(kind), "mlp")
    assert len(find_tracked(Odd("plain"), "mlp")) == 2


def test_tokens_that_the_model_flattens_are_unfolded():
    torch.manual_seed(0)
    network, tokens = Odd("flat").requires_grad_(False), torch.tensor([[1, 2, 0], [4, 3, 3]])
    modules, seen = find_tracked(network, "mlp"), {}
    out = torch.randn(6, 4)
    with Capture(network, modules, lambda m, a, g: seen.update({m.name: (a, g)}), tokens.shape):
        network(tokens, use_cache=False).backward(out)
    a, g = seen["layers.0.first"]
    assert torch.equal(a, nn.functional.pad(network.embedding(tokens), (0, 1), value=1.0))
    assert torch.allclose(g, (out @ network.layers[0].second.weight).view(2, 3, 4))


def test_captured_tensors_have_the_tracked_shapes(shape, tiny_model):
    """[B, T, M] and [B, T, P], on every shape."""
    model = load_model(str(tiny_model(shape)), device="cpu", dtype="float32")
    modules, seen = find_tracked(model.network, "all"), {}
    batch = make_batch(
        torch.arange(3).numpy(),
        torch.randint(0, 300, (3, 8)).numpy(),
        torch.tensor([8, 6, 3], dtype=torch.int32).numpy(),
        torch.device("cpu"),
    )
    passes = Passes.for_model(model, modules)
    passes.run(batch, [TrueLabels()], lambda m, a, g: seen.update({m.name: (a.shape, g.shape)}))
    assert seen == {m.name: ((3, 8, m.inputs), (3, 8, m.outputs)) for m in modules}


def deep(layers: int) -> list[TrackedModule]:
    """Two modules a layer."""
    return [
        TrackedModule(f"layers.{layer}.{part}", 4, 4, False, layer, f"layers.{layer}.{part}")
        for layer in range(layers)
        for part in ("up", "down")
    ]


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [(1, [1]), (2, [1, 1]), (9, [1] * 9), (12, [2, 1, 1] * 3), (30, [4, 3, 3] * 3)],
)
def test_depth_groups(layers, sizes):
    modules = deep(layers)
    groups = [depth_group(module, modules) for module in modules]
    assert groups == [number for number, size in enumerate(sizes) for _ in range(2 * size)]
    names, first = [], 0
    for size in sizes:
        last = first + size - 1
        names.append(f"layer {first}" if size == 1 else f"layers {first}-{last}")
        first += size
    assert group_names(modules) == names


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (None, range(12)),
        ("lower", range(4)),
        ("middle", range(4, 8)),
        ("upper", range(8, 12)),
        ("5", [5]),
        ("3-6", range(3, 7)),
        ("10-99", [10, 11]),
    ],
)
def test_layers(spec, layers):
    assert [m.layer for m in select_layers(deep(12), spec)] == sorted([*layers] * 2)


def test_layers_by_pattern():
    names = [module.name for module in select_layers(deep(12), "*.up")]
    assert names == [f"layers.{layer}.up" for layer in range(12)]


@pytest.mark.parametrize("spec", ["12", "13-20", "absent", "6-3", ""])
def test_layers_that_leave_nothing(spec):
    with pytest.raises(BadInput, match="leaves no tracked module") as caught:
        select_layers(deep(12), spec)
    assert "layers 0-11" in caught.value.hint
