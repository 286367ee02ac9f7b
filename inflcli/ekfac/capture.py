"""What linear modules read and give while a network runs, by hooks that leave it as it was.

`Capture` hands out (a, g): what a module read, and the gradient with respect to what it gave. It
hooks *output tensors*. With every parameter frozen the graph starts at the outputs of the lowest
tracked modules, so no weight gradient is formed and the backward stops there. `moved` lets the
weights move along a direction. Axes: a [B, T, M] with a trailing 1 where the module has a bias,
g [B, T, P].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class Linear(Protocol):
    """What is to be known of a linear module."""

    @property
    def name(self) -> str: ...

    @property
    def bias(self) -> bool: ...


M = TypeVar("M", bound=Linear)
_TINY = 1e-30


class Capture(Generic[M]):
    """Calls `consume(module, a, g)` as each module's gradient arrives in the backward pass.

    Inputs are freed as they are consumed, unless `keep_inputs` is set because the same graph is
    run backwards again. On leaving the context every hook is gone. `shape` is (B, T): modules
    that see their tokens flattened to [B · T, ·] are unfolded to it.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Sequence[M],
        consume: Callable[[M, Tensor, Tensor], None],
        shape: torch.Size,
    ) -> None:
        self._network, self._modules, self._consume = network, modules, consume
        self._shape = shape
        self._inputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.keep_inputs = False

    def __enter__(self) -> Self:
        for module in self._modules:
            target = self._network.get_submodule(module.name)
            self._handles.append(target.register_forward_hook(self._forward_hook(module)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()

    def held(self) -> list[Tensor]:
        """The inputs that wait for their gradients."""
        return list(self._inputs.values())

    def _forward_hook(self, module: M) -> Callable[..., Tensor | None]:
        def hook(target: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            self._inputs[module.name] = arguments[0].detach()
            if output.requires_grad:
                output.register_hook(lambda gradient: self._arrived(module, gradient))
                return None
            # Nothing below is tracked: the graph begins here, as a leaf. A leaf keeps its
            # gradient in .grad, so it is taken and dropped there.
            leaf = output.detach().requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(lambda tensor: self._at_leaf(module, tensor))
            return leaf

        return hook

    def _at_leaf(self, module: M, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        self._arrived(module, gradient)

    def _arrived(self, module: M, gradient: Tensor) -> None:
        kept = self._inputs
        inputs = kept[module.name] if self.keep_inputs else kept.pop(module.name)
        inputs, gradient = (x.reshape(*self._shape, x.shape[-1]) for x in (inputs, gradient))
        with torch.no_grad():
            self._consume(module, _with_bias(module, inputs), gradient)


@contextmanager
def moved(
    network: nn.Module,
    modules: Sequence[M],
    push: Callable[[M, Tensor], Tensor],
    step: Tensor,
    ratios: list[float] | None = None,
) -> Iterator[None]:
    """Let every module give W a + step V a. `ratios` gets |V a| / |W a|.

    `push` takes a module and its inputs a [..., M], a trailing 1 for its bias, to V a [..., P].
    """

    def hook(module: M) -> Callable[..., Tensor]:
        def add(target: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            more = push(module, _with_bias(module, arguments[0]))
            if ratios is not None:
                ratios.append(float(more.detach().norm() / (output.detach().norm() + _TINY)))
            return output + step * more

        return add

    with _hooked(network, modules, hook):
        yield


@contextmanager
def set_moving(
    network: nn.Module, modules: Sequence[M], push: Callable[[M, Tensor], Tensor]
) -> Iterator[None]:
    """Within a level of forward mode, let every module's output move by V a beside what its input
    does: the derivative at a step of 0, where outputs are what they were.

    `push` is that of `moved`; where it is called for many V by `torch.vmap`, the outputs themselves
    are computed once.
    """

    def hook(module: M) -> Callable[..., Tensor]:
        def add(target: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # What moves a is the network's own doing: here it stands still.
            a = forward_ad.unpack_dual(arguments[0]).primal
            more = push(module, _with_bias(module, a))
            still, moving = forward_ad.unpack_dual(output)
            return forward_ad.make_dual(still, more if moving is None else moving + more)

        return add

    with _hooked(network, modules, hook):
        yield


@contextmanager
def _hooked(
    network: nn.Module, modules: Sequence[M], hook: Callable[[M], Callable[..., Tensor]]
) -> Iterator[None]:
    with ExitStack() as hooks:
        for module in modules:
            target = network.get_submodule(module.name)
            hooks.callback(target.register_forward_hook(hook(module)).remove)
        yield


def _with_bias(module: Linear, a: Tensor) -> Tensor:
    return nn.functional.pad(a, (0, 1), value=1.0) if module.bias else a
