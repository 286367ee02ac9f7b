"""Products with the exact Gauss-Newton Hessian, G = E[Jᵀ H J] over sequences.

J is the Jacobian of a sequence's outputs with respect to the tracked weights, H the Hessian of its
negative log-likelihood in the outputs. A vector is a matrix V [P, M] for every tracked module; K of
them are multiplied together, as [K, P, M] by module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from inflcli.ekfac.capture import Capture, Linear, moved

Matrices = dict[str, Tensor]
"""By module, [K, P, M]."""


class Differentiable(Protocol):
    """What products need of a model; a batch is what its methods take, and nothing else reads it.

    `top` is where the model's own part ends: its outputs, or hidden states that a head reads.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def modules(self) -> Sequence[Linear]: ...

    def repeated(self, batch: Any, times: int) -> Any:
        """The batch so many times, one after the other."""

    def sequences(self, batch: Any) -> int:
        """How many sequences a batch has."""

    def top(self, batch: Any) -> Tensor:
        """Run the network: [B, ..., D]."""

    def curvature_at_top(self, top: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        """H u, brought back to the top, of `tangent` [B, ..., D]; zero where nothing is
        predicted."""


def gauss_newton_sum(model: Differentiable, batch: Any, vectors: Mapping[str, Tensor]) -> Matrices:
    """The sum over a batch's sequences of Jᵀ H J v, for K vectors, in their type.

    The passes are in the network's type. Cost, a vector: a forward pass in forward mode, which is
    two, a plain one, a backward through activations, and the products V a and gᵀ a of every module.
    All vectors' passes are one batch, K times as large. Raises NotImplementedError where an
    operator of the network has no forward mode.
    """
    count = len(next(iter(vectors.values())))
    many = model.repeated(batch, count)
    # Each of a norm near 1 by a power of two, which rounds nothing: half types hold few powers.
    sizes = _norms(vectors)
    scale = torch.where(sizes > 0, torch.frexp(sizes).mantissa / sizes, 1.0)

    def push(module: Linear, a: Tensor) -> Tensor:
        v = vectors[module.name]
        v = (v * scale.to(v)[:, None, None]).to(a)
        # What moves a is the network's own doing: here it stands still.
        rows = forward_ad.unpack_dual(a).primal.reshape(count, -1, a.shape[-1])
        return (rows @ v.mT).view(*a.shape[:-1], v.shape[1])

    # Of the attention kernels only the plain one has a forward mode.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), forward_ad.dual_level():
        step = forward_ad.make_dual(*(make(()) for make in (torch.zeros, torch.ones)))
        with moved(model.network, model.modules, push, step):
            top, tangent = forward_ad.unpack_dual(model.top(many))
        curved = torch.zeros_like(top)
        if tangent is not None:
            curved = model.curvature_at_top(top, tangent, many)
    found: Matrices = {}

    def consume(module: Linear, a: Tensor, g: Tensor) -> None:
        a, g = (x.reshape(count, -1, x.shape[-1]).to(vectors[module.name]) for x in (a, g))
        found[module.name] = (g.mT @ a).div_(scale.to(g)[:, None, None])

    shape = torch.Size((count * model.sequences(batch), -1))
    capture = Capture(model.network, model.modules, consume, shape)
    with frozen(model.network), torch.enable_grad(), capture:
        model.top(many).backward(curved)
    return found


class GaussNewton:
    """G of a model over batches, read again for every product: `batches()` begins anew."""

    def __init__(self, model: Differentiable, batches: Callable[[], Iterable[Any]]) -> None:
        self.model, self.batches = model, batches

    def product(self, vectors: Mapping[str, Tensor]) -> Matrices:
        """G v for K vectors. Cost: `gauss_newton_sum` of every batch."""
        total, count = {name: torch.zeros_like(v) for name, v in vectors.items()}, 0
        for batch in self.batches():
            count += self.model.sequences(batch)
            for name, part in gauss_newton_sum(self.model, batch, vectors).items():
                total[name] += part
        return {name: value.div_(max(count, 1)) for name, value in total.items()}


def _norms(vectors: Mapping[str, Tensor]) -> Tensor:
    """[K] float64."""
    parts = [torch.linalg.vector_norm(v.flatten(1), dim=1).double() for v in vectors.values()]
    return torch.stack(parts).square().sum(0).sqrt()


class frozen:
    """No weight of the network wants a gradient within; what did before does again after."""

    def __init__(self, network: nn.Module) -> None:
        self._wanted = [value for value in network.parameters() if value.requires_grad]
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for value in self._wanted:
            value.requires_grad_(False)
            self._stack.callback(value.requires_grad_, True)

    def __exit__(self, *error: object) -> None:
        self._stack.close()
