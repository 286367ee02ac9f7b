"""Capture of (a, g): what a module read, and the gradient with respect to what it gave.

A context manager that hooks *output tensors* and leaves the model as it was. With every parameter
frozen the graph starts at the outputs of the lowest tracked modules, so no weight gradient is
formed and the backward stops there. Axes: a [B, T, M] with a trailing 1 where the module has a
bias, g [B, T, P].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from inflcli.model.tracked import TrackedModule

Consumer = Callable[[TrackedModule, Tensor, Tensor], None]


class Capture:
    """Calls `consume(module, a, g)` as each module's gradient arrives in the backward pass.

    Inputs are freed as they are consumed, unless `keep_inputs` is set because the same graph is
    run backwards again. On leaving the context every hook is gone. `shape` is (B, T): modules
    that see their tokens flattened to [B · T, ·] are unfolded to it.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Sequence[TrackedModule],
        consume: Consumer,
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

    def _forward_hook(self, module: TrackedModule) -> Callable[..., Tensor | None]:
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

    def _at_leaf(self, module: TrackedModule, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        self._arrived(module, gradient)

    def _arrived(self, module: TrackedModule, gradient: Tensor) -> None:
        kept = self._inputs
        inputs = kept[module.name] if self.keep_inputs else kept.pop(module.name)
        inputs, gradient = (x.reshape(*self._shape, x.shape[-1]) for x in (inputs, gradient))
        if module.bias:
            inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        with torch.no_grad():
            self._consume(module, inputs, gradient)
