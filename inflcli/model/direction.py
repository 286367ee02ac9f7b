"""What a sequence's log-probabilities do when the weights move along a direction.

With W + ε V for the weights of every tracked module, two derivatives at ε = 0, by token t:

    outputs[b, t] = d/dε log p(y_t | x_≤t)                            (Eq. 36 of the paper)
    inputs[b, t]  = d/ds_t d/dε sum over t' of log p(y_t' | x_≤t')    (Eq. 38)

where the embedding of token t is scaled by 1 + s_t. They need no V but its products V a: a module
gives W a + ε V a. The first comes of a forward pass in forward mode, for all tokens at once, the
second of a backward pass through a backward pass, both exactly; where an operator has no forward
mode, by central differences at two steps, which also say how far off they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from inflcli.ekfac.capture import moved
from inflcli.model.batches import Batch
from inflcli.model.labels import TrueLabels
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule

Push = Callable[[TrackedModule, Tensor], Tensor]
"""A module and its inputs a [..., M], with a trailing 1 for its bias, to V a [..., P]."""
_RELATIVE_STEP = 0.02
"""Of a central difference: ε V a over W a, in the module where it is largest."""
_TINY = 1e-30


@dataclass(frozen=True)
class Effects:
    """By token, [B, T]; `outputs` are zero where nothing is predicted."""

    outputs: Tensor
    inputs: Tensor
    error: float
    """Estimated, relative to the largest; 0 in forward mode."""


def effects(passes: Passes, batch: Batch, push: Push) -> Effects:
    """Both derivatives along V. Cost: two forward passes and two backward ones, each through twice
    the work of a plain one; or five of each, by differences."""
    try:
        return exactly(passes, batch, push)
    except NotImplementedError:
        return by_differences(passes, batch, push)


def exactly(passes: Passes, batch: Batch, push: Push) -> Effects:
    """The same exactly. Raises NotImplementedError where an operator has no forward mode."""
    # Of the attention kernels only the plain one has a forward mode and a second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), forward_ad.dual_level():
            step = forward_ad.make_dual(torch.zeros(()), torch.ones(()))
            with moved(passes.model.network, passes.modules, push, step):
                top = passes.forward(batch.tokens)
            gradient, log_p = passes.gradient_at_top(top, batch, TrueLabels())
            gradient, turned = forward_ad.unpack_dual(gradient)
            outputs = forward_ad.unpack_dual(log_p).tangent
        step = torch.zeros((), requires_grad=True)
        pushed = moved(passes.model.network, passes.modules, push, step)
        with torch.enable_grad(), pushed, _leaf(passes.model.network) as leaves:
            top = passes.forward(batch.tokens)
            (along,) = torch.autograd.grad(top, step, gradient, create_graph=True)
        # The gradient at the top depends on the embeddings as well.
        (slope,) = torch.autograd.grad([along, top], leaves, [torch.ones(()), turned])
    return Effects(outputs, (slope * leaves[0].detach()).sum(-1), 0.0)


def by_differences(passes: Passes, batch: Batch, push: Push) -> Effects:
    """The same by central differences at ε and ε/2, extrapolated to ε = 0."""
    ratios: list[float] = []
    _run(passes, batch, push, torch.zeros(()), ratios)
    step = _RELATIVE_STEP / max(*ratios, _TINY)
    wide, narrow = (_difference(passes, batch, push, step / n) for n in (1, 2))
    best = [(4 * fine - coarse) / 3 for coarse, fine in zip(wide, narrow, strict=True)]
    errors = [
        float((one - fine).abs().max() / (one.abs().max() + _TINY))
        for one, fine in zip(best, narrow, strict=True)
    ]
    return Effects(best[0], best[1], max(errors))


def _difference(passes: Passes, batch: Batch, push: Push, step: float) -> tuple[Tensor, Tensor]:
    """Derivatives [B, T] of both kinds by (f(ε) - f(-ε)) / 2ε."""
    (above, up, embedded), (below, down, _) = (
        _run(passes, batch, push, torch.tensor(sign * step)) for sign in (1, -1)
    )
    return (above - below) / (2 * step), ((up - down) * embedded).sum(-1) / (2 * step)


def _run(
    passes: Passes, batch: Batch, push: Push, step: Tensor, ratios: list[float] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """With weights W + step V: log p [B, T], the gradient of its sum at the embeddings [B, T, D],
    and these. `ratios` gets |V a| / |W a| of every module."""
    pushed = moved(passes.model.network, passes.modules, push, step, ratios)
    with pushed, _leaf(passes.model.network) as leaves, torch.enable_grad():
        top = passes.forward(batch.tokens)
        gradient, log_p = passes.gradient_at_top(top, batch, TrueLabels())
        (slope,) = torch.autograd.grad(top, leaves, gradient)
    return log_p, slope, leaves[0].detach()


@contextmanager
def _leaf(network: nn.Module) -> Iterator[list[Tensor]]:
    """Let the graph begin at the tokens' embeddings, and hand them out."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = network.get_input_embeddings().register_forward_hook(hook)  # type: ignore[operator]
    try:
        yield leaves
    finally:
        handle.remove()
