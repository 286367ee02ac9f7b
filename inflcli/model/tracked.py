"""Which linear modules are tracked, and how they lie in depth.

Found from the module tree, not from a list of architectures: the decoder layers are the longest
`ModuleList` that holds linear modules; within a layer everything below an attention block is
`attention`, every other linear module is `mlp`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inflcli.errors import BadInput

DEPTH_GROUPS = 9
THIRDS = ("lower", "middle", "upper")
_PROBE = 5
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class TrackedModule:
    """One linear module. M = `inputs` (the bias column counted), P = `outputs`."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    layer: int
    """Index of the decoder layer; -1 for a module outside the layers."""
    shares_input_with: str
    """The first module that reads the same tensor with the same bias column; they share one A. The
    module itself where each has a basis of its own."""

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs


def find_tracked(network: nn.Module, wanted: str, *, share: bool = True) -> list[TrackedModule]:
    """The tracked modules in the order in which the model runs them.

    `wanted` is mlp, attention, all, or comma-separated shell patterns over module names. Without
    `share` no module shares its input with another.
    Raises BadInput when none is found, or when one does not run once a pass on one row a token.
    """
    layers = decoder_layers(network)
    linear = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    chosen = [pair for pair in linear if _wanted(pair[0], wanted, layers)]
    if not chosen:
        some = ", ".join(name for name, _ in linear[:4]) or "none"
        raise BadInput(
            f"--modules {wanted} matches no linear module of this model",
            f"its linear modules are: {some}{', ...' if len(linear) > 4 else ''}",
        )
    shared = _shared_inputs(network, chosen)
    return [
        TrackedModule(name, *_shape(module), _layer(name, layers), shared[name] if share else name)
        for name, module in sorted(chosen, key=lambda pair: list(shared).index(pair[0]))
    ]


def share_tracked(network: nn.Module, modules: Sequence[TrackedModule]) -> float:
    """Tracked parameters over all of the model's parameters."""
    tracked = sum(module.parameters for module in modules)
    return tracked / sum(value.numel() for value in network.parameters())


def depth_group(module: TrackedModule, modules: Sequence[TrackedModule]) -> int:
    """Which of at most 9 groups by depth, 0 the lowest. Layers are split as evenly as can be."""
    layers = sorted({item.layer for item in modules})
    groups = min(DEPTH_GROUPS, len(layers))
    return layers.index(module.layer) * groups // len(layers)


def group_names(modules: Sequence[TrackedModule]) -> list[str]:
    """A name for every depth group: its layers, as `layers 0-2`."""
    members: dict[int, list[int]] = {}
    for module in modules:
        members.setdefault(depth_group(module, modules), []).append(module.layer)
    return [_span(members[group]) for group in sorted(members)]


def select_layers(modules: Sequence[TrackedModule], spec: str | None) -> list[TrackedModule]:
    """Restrict modules to a third (lower, middle, upper), to layers `i-j`, or to a pattern.

    Raises BadInput when nothing is left.
    """
    if spec is None:
        return list(modules)
    layers = sorted({module.layer for module in modules})
    span = re.fullmatch(r"(\d+)(?:-(\d+))?", spec)
    if spec in THIRDS:
        third = THIRDS.index(spec)
        kept = [m for m in modules if layers.index(m.layer) * 3 // len(layers) == third]
    elif span:
        low, high = int(span[1]), int(span[2] or span[1])
        kept = [m for m in modules if low <= m.layer <= high]
    else:
        kept = [m for m in modules if fnmatch.fnmatch(m.name, spec)]
    if not kept:
        raise BadInput(
            f"--layers {spec} leaves no tracked module", f"tracked layers: {_span(layers)}"
        )
    return kept


def _span(layers: Sequence[int]) -> str:
    low, high = min(layers), max(layers)
    if high < 0:
        return "outside the layers"
    return f"layer {low}" if low == high else f"layers {low}-{high}"


def decoder_layers(network: nn.Module) -> str:
    """Path of the decoder's list of layers; "" when there is none."""
    best, size = "", 0
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > size:
            inner = (type(part) for part in module.modules())
            if any(issubclass(kind, (nn.Linear, Conv1D)) for kind in inner):
                best, size = name, len(module)
    return best


def _wanted(name: str, wanted: str, layers: str) -> bool:
    inside = bool(layers) and name.startswith(layers + ".")
    if wanted == "all":
        return inside
    if wanted in ("mlp", "attention"):
        below = name.removeprefix(layers + ".")
        return inside and bool(_ATTENTION.search(below)) == (wanted == "attention")
    return any(fnmatch.fnmatch(name, pattern.strip()) for pattern in wanted.split(","))


def _layer(name: str, layers: str) -> int:
    if layers and name.startswith(layers + "."):
        return int(name.removeprefix(layers + ".").split(".")[0])
    return -1


def _shape(module: nn.Module) -> tuple[int, int, bool]:
    bias = module.bias is not None
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    # Conv1D keeps its weight as [inputs, outputs], Linear as [outputs, inputs].
    inputs, outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
    return inputs + bias, outputs, bias


def _shared_inputs(network: nn.Module, chosen: Sequence[tuple[str, nn.Module]]) -> dict[str, str]:
    """Run a few tokens through the model: who runs when, and who reads the same tensor."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if name in seen:
                raise BadInput(f"module {name} runs more than once a pass; it cannot be tracked")
            if arguments[0].shape[:-1] not in ((1, _PROBE), (_PROBE,)):  # OPT flattens tokens
                shape = list(arguments[0].shape)
                raise BadInput(
                    f"module {name} reads {shape} for {_PROBE} tokens: not one row a token"
                )
            seen[name] = arguments[0]

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in chosen]  # type: ignore[arg-type]
    try:
        device = next(network.parameters()).device
        with torch.no_grad():
            tokens = torch.zeros(1, _PROBE, dtype=torch.long, device=device)
            network(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, _ in chosen if name not in seen]
    if missing:
        raise BadInput(f"module {missing[0]} does not run in a forward pass; leave it out")
    bias = {name: module.bias is not None for name, module in chosen}
    first: dict[tuple[int, bool], str] = {}
    return {name: first.setdefault((id(seen[name]), bias[name]), name) for name in seen}
