"""Dense linear algebra for tiny networks, in float64: Jacobians by torch.func, explicit matrices.

Nothing of the package is used but the types that its tests hand to it. A vector over several
modules is their matrices [P, M], the bias as the last column, flattened one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


class Dense:
    """A network's derivatives by the matrices of the linear modules `names`."""

    def __init__(self, network: nn.Module, names: Sequence[str], kind: str) -> None:
        self.network, self.names, self.kind = network, list(names), kind
        self.shapes = [self._matrix(name).shape for name in self.names]
        self.size = sum(shape.numel() for shape in self.shapes)

    def _matrix(self, name: str) -> Tensor:
        module = self.network.get_submodule(name)
        weight = module.weight.detach()
        return (
            weight if module.bias is None else torch.cat([weight, module.bias.detach()[:, None]], 1)
        )

    def matrices(self, vectors: Tensor) -> dict[str, Tensor]:
        """[K, D] as [K, P, M] by module."""
        parts = vectors.split([shape.numel() for shape in self.shapes], dim=1)
        return {
            name: part.view(-1, *shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def flat(self, matrices: Mapping[str, Tensor]) -> Tensor:
        """[K, P, M] by module as [K, D]."""
        return torch.cat([matrices[name].flatten(1) for name in self.names], 1)

    def each(self, damping: Mapping[str, float]) -> Tensor:
        """λ of every parameter, [D]."""
        return torch.cat(
            [
                torch.full((shape.numel(),), damping[name], dtype=torch.float64)
                for name, shape in zip(self.names, self.shapes, strict=True)
            ]
        )

    def outputs(self, step: Tensor, inputs: Tensor) -> Tensor:
        """The outputs [B, C] with the weights a step [D] away."""
        weights = {}
        for name, matrix in self.matrices(step[None]).items():
            matrix = self._matrix(name) + matrix[0]
            if self.network.get_submodule(name).bias is not None:
                matrix, weights[f"{name}.bias"] = matrix[:, :-1], matrix[:, -1]
            weights[f"{name}.weight"] = matrix
        return functional_call(self.network, weights, (inputs,))

    def log_prob(self, step: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """[B], a Gaussian's without its constant."""
        outputs = self.outputs(step, inputs)
        if self.kind == "gaussian":
            return -0.5 * (outputs - targets).square().sum(-1)
        return outputs.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def gradients(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """∇ log p [B, D]."""
        return jacrev(self.log_prob)(self._zero(), *batch)

    def ggn(self, inputs: Tensor) -> Tensor:
        """E[Jᵀ H J] [D, D]."""
        jacobian = jacrev(self.outputs)(self._zero(), inputs)  # [B, C, D]
        curved = jacobian
        if self.kind == "categorical":
            p = self.outputs(self._zero(), inputs).softmax(-1)
            hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
            curved = hessian @ jacobian
        return torch.einsum("bcd,bce->de", jacobian, curved) / len(inputs)

    def scores(self, g: Tensor, damping: Tensor, queries, points) -> Tensor:
        """∇fᵀ (G + λI)⁻¹ ∇log p, [K, N], for λ [D]."""
        solved = torch.linalg.solve(g + torch.diag(damping), self.gradients(queries).T)
        return solved.T @ torch.cat([self.gradients(batch) for batch in points]).T

    def _zero(self) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64)


def every(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All batches as one."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return inputs, targets
