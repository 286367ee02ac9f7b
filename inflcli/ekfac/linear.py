"""A network of linear modules with a likelihood, as EK-FAC sees it: gradients, and their products.

    model = LinearModel(network, Gaussian())            # or Categorical(): every nn.Linear of it
    curvature = fit(model, batches)                     # batches of (inputs, targets)
    inverse = curvature.inverse(damping_factor=0.1)
    queries = inverse.solve(model.gradients(measured))  # (G + λI)⁻¹ ∇ log p
    scores = influences(model, queries, batches)        # [Q, N]

A score is the influence on the sum of the query's log-probabilities of adding an example to the
training data (Eqs. 24, 25): positive if it raises it. Axes: B examples in a batch, of one or
several positions; a module's gradient is one matrix DW [P, M] an example, its bias the last column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inflcli.ekfac.capture import Capture
from inflcli.ekfac.gauss_newton import Matrices, frozen
from inflcli.ekfac.likelihood import Likelihood

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] as the network takes them, and targets as the likelihood takes them."""


@dataclass(frozen=True)
class LinearModule:
    """One tracked module. M = `inputs`, the bias column counted; P = `outputs`."""

    name: str
    inputs: int
    outputs: int
    bias: bool


class LinearModel:
    """A network whose linear modules are tracked, and the likelihood of its outputs.

    `modules` are the names of modules; every nn.Linear unless said otherwise. transformers' Conv1D
    is one, too. `forward(network, inputs)` gives the outputs; the network's own call unless said
    otherwise. Raises ValueError for a module that is not linear, or where there is none.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        *,
        modules: Sequence[str] | None = None,
        forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        names = modules
        if names is None:
            names = [name for name, module in network.named_modules() if _is_linear(module)]
        if not names:
            raise ValueError("the network has no linear module to track")
        self.network, self.likelihood = network, likelihood
        self.modules = [_described(name, network.get_submodule(name)) for name in names]
        self.forward = forward or (lambda network, inputs: network(inputs))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the network gives."""
        return self.forward(self.network, inputs)

    def log_prob(self, batch: Batch) -> Tensor:
        """log p of every example, [B]."""
        with torch.no_grad():
            return self.likelihood.log_prob(self.outputs(batch[0]), batch[1])

    def run(
        self,
        batch: Batch,
        consume: Callable[[LinearModule, Tensor, Tensor], None],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A forward and an activations-only backward pass of log p.

        `consume(module, a, g)` gets a [B, T, M] and g [B, T, P]. With a `generator` the targets are
        drawn from the network's own distribution. Returns log p [B].
        """
        inputs, targets = batch
        capture = Capture(self.network, self.modules, consume, torch.Size((len(inputs), -1)))
        with frozen(self.network), torch.enable_grad(), capture:
            outputs = self.outputs(inputs)
            with torch.no_grad():
                if generator is not None:
                    targets = self.likelihood.sample(outputs, targets, generator)
                slope = self.likelihood.slope(outputs, targets)
                log_p = self.likelihood.log_prob(outputs, targets)
            outputs.backward(slope)
        return log_p

    def gradients(self, batch: Batch) -> Matrices:
        """∇ log p of every example: DW [B, P, M] by module. Cost: a pass, and T M P MACs each."""
        found: Matrices = {}

        def consume(module: LinearModule, a: Tensor, g: Tensor) -> None:
            found[module.name] = g.mT @ a

        self.run(batch, consume)
        return {module.name: found[module.name] for module in self.modules}

    # What products with the Gauss-Newton Hessian need (`Differentiable`).

    def repeated(self, batch: Batch, times: int) -> Batch:
        inputs, targets = (x.repeat(times, *[1] * (x.dim() - 1)) for x in batch)
        return inputs, targets

    def sequences(self, batch: Batch) -> int:
        return len(batch[0])

    def top(self, batch: Batch) -> Tensor:
        return self.outputs(batch[0])

    def curvature_at_top(self, top: Tensor, tangents: Tensor, batch: Batch) -> Tensor:
        return self.likelihood.curvature(top, batch[1], tangents)


def influences(
    model: LinearModel, queries: Mapping[str, Tensor], batches: Iterable[Batch]
) -> Tensor:
    """Σ over modules of <V_q, DW_n>, [Q, N]: queries [Q, P, M] by module, preconditioned or not.

    Cost: a pass, T M P MACs an example to form its gradient, Q M P to score it.
    """
    found = []
    for batch in batches:
        scores = torch.zeros(len(batch[0]), len(next(iter(queries.values()))))
        scores = scores.to(model.device, torch.float64)

        def consume(module: LinearModule, a: Tensor, g: Tensor, scores: Tensor = scores) -> None:
            gradients = (g.mT @ a).flatten(1)
            scores += (gradients @ queries[module.name].to(gradients).flatten(1).T).double()

        model.run(batch, consume)
        found.append(scores)
    return torch.cat(found).T


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _described(name: str, module: nn.Module) -> LinearModule:
    if not _is_linear(module):
        raise ValueError(f"module {name} is a {type(module).__name__}, which is not linear")
    weight, bias = module.weight, module.bias is not None
    assert isinstance(weight, Tensor)
    # Conv1D keeps its weight as [inputs, outputs], Linear as [outputs, inputs].
    shape = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
    return LinearModule(name, shape[1] + bias, shape[0], bias)
