"""Forward and backward passes of a log-likelihood, with the logits in chunks.

Every gradient in this programme is that of a log-probability, summed over predicted tokens:
`g = d/d(output) sum_t log p(y_t | x_<=t)`. (With the loss, both sides of an influence change sign
and the product is the same; the curvature is even in g.)

Where the output head is a plain linear map, the model runs with the head skipped, and the gradient
with respect to the final hidden states comes from `(onehot(y) - softmax(h Wᵀ)) W` in chunks of
positions: [tokens, vocabulary] never exists for more than a chunk, and no graph is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inflcli.ekfac.capture import Capture
from inflcli.model.batches import Batch
from inflcli.model.labels import Labels, SampledLabels, sample
from inflcli.model.load import LoadedModel
from inflcli.model.precision import products
from inflcli.model.tracked import TrackedModule

Consumer = Callable[[TrackedModule, Tensor, Tensor], None]
_CHUNK_ELEMENTS = 1 << 24
"""Logits held at once (64 MiB in float32)."""


@dataclass
class Passes:
    """Runs batches through a model. Build with `for_model`, which finds out about its head."""

    model: LoadedModel
    modules: Sequence[TrackedModule]
    head: nn.Linear | None
    """The output head when the logits are exactly its output; None takes the model's own logits."""
    precision: str = "exact"
    """Of the matrix products in the consumer (`model.precision`)."""

    @classmethod
    def for_model(
        cls, model: LoadedModel, modules: Sequence[TrackedModule], precision: str = "exact"
    ) -> Passes:
        head = _plain_head(model)
        if head is not None and any(
            model.network.get_submodule(module.name) is head for module in modules
        ):
            head = None  # a tracked head must see its gradient like any other module
        return cls(model, modules, head, precision)

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def run(self, batch: Batch, labels: Sequence[Labels], consume: Consumer) -> Tensor:
        """One forward, and one backward for each entry of `labels`.

        `consume(module, a, g)` is called once a module and backward. Returns the log-probability
        of the last labels, [B, T], 0 where nothing is predicted. Cost: the forward, and the
        backward through activations down to the lowest tracked module.
        """

        def at_precision(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            # Of a model that is spread over several devices, all arrives on the first.
            device = self.model.device
            with products(self.precision, device):
                consume(module, a.to(device), g.to(device))

        if self.model.lockstep and len(labels) > 1:
            # A sharded layer's weights are gone after its backward: a graph serves once.
            return [self.run(batch, [kind], consume) for kind in labels][-1]
        capture = Capture(self.model.network, self.modules, at_precision, batch.tokens.shape)
        with torch.enable_grad(), capture:
            top = self.forward(batch.tokens)
            for number, kind in enumerate(labels):
                again = number + 1 < len(labels)
                capture.keep_inputs = again
                gradient, log_p = self.gradient_at_top(top.detach(), batch, kind)
                top.backward(gradient, retain_graph=again)
        return log_p

    def log_probabilities(self, batch: Batch, labels: Labels) -> Tensor:
        """Forward only: log p of every predicted token, [B, T]."""
        with torch.no_grad():
            return self.gradient_at_top(self.forward(batch.tokens), batch, labels)[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states before the head [B, T, D], or the logits [B, T, V] without a plain head."""
        network = self.model.network
        if self.head is None:
            return network(input_ids=tokens, use_cache=False).logits
        with _skip_head(self.head) as hidden:
            network(input_ids=tokens, use_cache=False)
        return hidden[0]

    def gradient_at_top(self, top: Tensor, batch: Batch, labels: Labels) -> tuple[Tensor, Tensor]:
        """d(sum log p)/d(top), zero where nothing is predicted, and log p [B, T]."""
        flat = top.reshape(-1, top.shape[-1])
        rows = batch.rows.to(flat.device)
        sampled = isinstance(labels, SampledLabels)
        drawn = labels.uniforms(batch) if sampled else labels.targets(batch)  # type: ignore[union-attr]
        drawn = drawn.flatten().to(flat.device)[rows]
        gradient = torch.zeros_like(flat)
        log_p = torch.zeros(flat.shape[0], dtype=self.model.statistics_dtype, device=flat.device)
        step = max(1, _CHUNK_ELEMENTS // self.model.vocabulary)
        with torch.no_grad():
            for part, given in zip(rows.split(step), drawn.split(step), strict=True):
                hidden = flat[part]
                logits = (hidden if self.head is None else self.head(hidden)).to(log_p.dtype)
                powers, total, target, log_p[part] = _softmax(logits, given, sampled)
                gradient[part] = self._slope(powers, total, target, flat.dtype)
        return gradient.view_as(top), log_p.view(batch.tokens.shape)

    # What products with the Gauss-Newton Hessian need (`ekfac.gauss_newton.Differentiable`).

    def repeated(self, batch: Batch, times: int) -> Batch:
        """The batch so many times, one after the other."""
        tokens, predicted = (x.repeat(times, 1) for x in (batch.tokens, batch.predicted))
        return Batch(tokens, predicted, np.tile(batch.ids, times))

    def sequences(self, batch: Batch) -> int:
        return len(batch.ids)

    def top(self, batch: Batch) -> Tensor:
        return self.forward(batch.tokens)

    def curvature_at_top(self, top: Tensor, tangents: Tensor, batch: Batch) -> Tensor:
        """Wᵀ H W u of each tangent u of the top, [K, B, T, D], with H = diag(p) - p pᵀ at every
        predicted position and zero elsewhere; W is the head, or the identity without a plain one.

        Cost: 2 K + 1 products with W at the predicted positions, in chunks of them.
        """
        flat, moved = top.flatten(0, 1), tangents.flatten(1, 2)
        curved, head = torch.zeros_like(moved), self.head
        element = self.model.statistics_dtype
        # p and every u beside each other.
        step = max(1, _CHUNK_ELEMENTS // ((len(tangents) + 1) * self.model.vocabulary))
        with torch.no_grad():
            for part in batch.rows.to(flat.device).split(step):
                logits, u = flat[part], moved[:, part]
                if head is not None:
                    logits, u = head(logits), u @ head.weight.T  # a bias does not move
                p, u = logits.to(element).softmax(-1), u.to(element)
                u = (p * (u - (p * u).sum(-1, keepdim=True))).to(flat.dtype)
                curved[:, part] = u if head is None else u @ head.weight
        return curved.view_as(tangents)

    def _slope(self, powers: Tensor, total: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
        """`onehot(y) - powers / total` [n, V], or its product with the head's weight [n, D]."""
        if self.head is None:
            slope = powers.div_(total.unsqueeze(-1)).neg_()
            ones = torch.ones_like(target, dtype=slope.dtype).unsqueeze(-1)
            return slope.scatter_add_(-1, target.unsqueeze(-1), ones).to(dtype)
        weight, total = self.head.weight, total.unsqueeze(-1)
        if dtype != powers.dtype:  # sums of powers may be past float16's range
            return weight[target] - powers.div_(total).to(dtype) @ weight
        # Dividing [n, D] costs less than dividing [n, V], and the onehot's product is a lookup.
        return weight[target] - (powers @ weight) / total


def _softmax(logits: Tensor, given: Tensor, sampled: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(logits - max) [n, V] in place of `logits`, its sums [n], the labels and their log p [n].

    `given` are the labels y, or the uniform numbers to draw them with.
    """
    logits -= logits.amax(-1, keepdim=True)
    # The true label's logit is read before exp(): a probability may underflow, its log may not.
    chosen = None if sampled else logits.gather(-1, given.unsqueeze(-1))
    powers = logits.exp_()
    target, total = sample(powers, given) if sampled else (given, powers.sum(-1))
    if chosen is None:
        chosen = powers.gather(-1, target.unsqueeze(-1)).log()
    return powers, total, target, chosen.squeeze(-1) - total.log()


@contextmanager
def _skip_head(head: nn.Module) -> Iterator[list[Tensor]]:
    """Let the model run its head on no position, and hand out what the head would have read."""
    hidden: list[Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden.append(arguments[0])
        return (arguments[0][:, :0],)

    handle = head.register_forward_pre_hook(hook)
    try:
        yield hidden
    finally:
        handle.remove()


def _plain_head(model: LoadedModel) -> nn.Linear | None:
    """The output head, if the logits equal its output (no soft cap, scale or projection after)."""
    network = model.network
    head = network.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or head.weight.is_meta:  # offloaded while it does not run
        return None
    tokens = torch.arange(4, device=model.device).remainder(model.vocabulary)[None]
    with torch.no_grad():
        logits = network(input_ids=tokens, use_cache=False).logits
        with _skip_head(head) as hidden:
            network(input_ids=tokens, use_cache=False)
        same = torch.allclose(head(hidden[0]).to(logits), logits, rtol=1e-3, atol=1e-3)
    return head if same else None
