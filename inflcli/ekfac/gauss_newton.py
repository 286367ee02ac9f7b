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
from torch.nn.attention import SDPBackend, sdpa_kernel

from inflcli.ekfac.capture import Capture, Linear, set_moving

Matrices = dict[str, Tensor]
"""By module, [K, P, M]."""
_POSITIONS = 512
"""Of a backward pass: with less, a processor waits for the programme."""


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

    def curvature_at_top(self, top: Tensor, tangents: Tensor, batch: Any) -> Tensor:
        """H u, brought back to the top, of each u of `tangents` [K, B, ..., D]; zero where nothing
        is predicted."""


def gauss_newton_sum(model: Differentiable, batch: Any, vectors: Mapping[str, Tensor]) -> Matrices:
    """The sum over a batch's sequences of Jᵀ H J v, for K vectors, in their type.

    The passes are in the network's type. Cost: a forward pass in forward mode, one for the graph,
    and for each vector what moves in the former, a backward through activations, and the products
    V a and gᵀ a of every module. A batch of few positions goes through the graph so many times over
    that the backward passes of several vectors are one. Raises NotImplementedError where an
    operator of the network has no forward mode.
    """
    # Each of a norm near 1 by a power of two, which rounds nothing: half types hold few powers.
    sizes = _norms(vectors)
    scale = torch.where(sizes > 0, torch.frexp(sizes).mantissa / sizes, 1.0)

    def along(vector: Matrices, scale: Tensor) -> Tensor:
        """J v [B, ..., D] of one of them."""

        def push(module: Linear, a: Tensor) -> Tensor:
            v = vector[module.name]
            return a @ (v * scale.to(v)).to(a).mT

        def run(_: Tensor) -> Tensor:
            with set_moving(model.network, model.modules, push):
                return model.top(batch)

        # The step itself moves nothing: `set_moving` does, within the level that jvp makes.
        tangent: Tensor = torch.func.jvp(run, (torch.zeros(()),), (torch.ones(()),))[1]
        return tangent

    # Of the attention kernels only the plain one has a forward mode.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        tangents = torch.vmap(along)(dict(vectors), scale)
    found = {name: torch.empty_like(v) for name, v in vectors.items()}
    count, of_batch = len(tangents), model.sequences(batch)
    fold = min(count, max(1, _POSITIONS // max(1, tangents[0, ..., 0].numel())))

    def consume(module: Linear, a: Tensor, g: Tensor) -> None:
        part = found[module.name][first : first + fold]
        a, g = (x.reshape(fold, -1, x.shape[-1])[: len(part)].to(part) for x in (a, g))
        torch.bmm(g.mT, a, out=part).div_(scale[first : first + fold].to(part)[:, None, None])

    shape = torch.Size((fold * of_batch, -1))
    capture = Capture(model.network, model.modules, consume, shape)
    with frozen(model.network), torch.enable_grad(), capture:
        top = model.top(model.repeated(batch, fold) if fold > 1 else batch)
        curved = model.curvature_at_top(top.detach()[:of_batch], tangents, batch)
        del tangents
        for first in range(0, count, fold):
            capture.keep_inputs = first + fold < count
            some, slopes = curved[first : first + fold].flatten(0, 1), torch.zeros_like(top)
            slopes[: len(some)] = some
            top.backward(slopes, retain_graph=capture.keep_inputs)
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
