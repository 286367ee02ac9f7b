"""A network on the same batches again and again, while only its tracked modules' weights move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inflcli.ekfac import LinearModel
from inflcli.ekfac.linear import Batch, LinearModule

ROOM = 1 << 30
"""Bytes that are kept unless said otherwise."""


class Replay:
    """What modules gave on a batch before the first tracked module began, to be given again.

    `run` runs the network on the batch, once. Within `again()` a run on the same batch computes
    nothing in those modules: of a model whose last layer alone is tracked, nothing below that. A
    module that ran twice is computed as before, and so is one whose output was changed in place.
    """

    def __init__(self, network: nn.Module, names: Collection[str], run: Callable[[], Any]) -> None:
        calls: Counter[nn.Module] = Counter()
        given: dict[nn.Module, tuple[Any, list[int]]] = {}
        begun = False

        def begin(*_: object) -> None:
            nonlocal begun
            begun = True

        def keep(module: nn.Module, _: object, output: Any) -> None:
            calls[module] += 1
            if not begun and (tensors := _tensors(output)) is not None:
                given[module] = output, [one._version for one in tensors]

        with ExitStack() as hooks, torch.no_grad():
            for name in names:
                target = network.get_submodule(name)
                hooks.callback(target.register_forward_pre_hook(begin).remove)
            for module in _without(network, "", names):
                hooks.callback(module.register_forward_hook(keep).remove)
            self.outputs: Any = run()
            """What `run` gave; may be set to None."""
        self._given = {
            module: output
            for module, (output, versions) in given.items()
            if calls[module] == 1 and versions == [one._version for one in _tensors(output) or []]
        }

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        kept = [*self._given.values(), self.outputs]
        return sum(one.nbytes for output in kept for one in _tensors(output) or [])

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, output in self._given.items():
                own = vars(module).get("forward")  # of a wrapper, instead of its class's
                module.forward = _giving(output)
                stack.callback(_give_back, module, own)
            yield


def _giving(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def _give_back(module: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own


def _tensors(output: Any) -> list[Tensor] | None:
    """Those that a module gave; None of what is neither a tensor nor some in a tuple."""
    parts = output if isinstance(output, tuple) else (output,)
    if not all(one is None or isinstance(one, Tensor) for one in parts):
        return None
    return [one for one in parts if one is not None]


def _without(module: nn.Module, prefix: str, names: Collection[str]) -> Iterator[nn.Module]:
    """The largest modules that have no tracked one in them, and are none."""
    for name, child in module.named_children():
        path = prefix + name
        if path in names:
            continue
        # Lists do not run themselves.
        lists = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if lists or any(one.startswith(f"{path}.") for one in names):
            yield from _without(child, f"{path}.", names)
        else:
            yield child


class Replayed:
    """A model for Gauss-Newton products (`Differentiable`) with what lies below the tracked modules
    computed once for each of `batches`, as far as `room` bytes hold it. Cost: a pass over these.
    """

    def __init__(self, model: LinearModel, batches: Sequence[Batch], room: float = ROOM) -> None:
        self._model = model
        # By identity: products hand on the very batches that they are given.
        self._starts: dict[int, tuple[Batch, Replay]] = {}
        for batch in batches:
            start = at_start(model, batch)
            start.outputs = None
            room -= start.bytes
            if room < 0:
                break
            self._starts[id(batch)] = batch, start

    @property
    def network(self) -> nn.Module:
        return self._model.network

    @property
    def modules(self) -> Sequence[LinearModule]:
        return self._model.modules

    def repeated(self, batch: Batch, times: int) -> Batch:
        return self._model.repeated(batch, times)

    def sequences(self, batch: Batch) -> int:
        return self._model.sequences(batch)

    def top(self, batch: Batch) -> Tensor:
        known = self._starts.get(id(batch))
        if known is None:
            return self._model.top(batch)
        with known[1].again():
            return self._model.top(batch)

    def curvature_at_top(self, top: Tensor, tangents: Tensor, batch: Batch) -> Tensor:
        return self._model.curvature_at_top(top, tangents, batch)


def at_start(model: LinearModel, batch: Batch) -> Replay:
    """The model on a batch, with the weights that it has."""
    names = [module.name for module in model.modules]
    return Replay(model.network, names, lambda: model.outputs(batch[0]))
