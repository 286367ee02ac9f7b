"""Targets of a pass: the true next tokens, or pseudo-labels from the model's own softmax.

Pseudo-labels come from one uniform number per position, drawn by a counter-based generator keyed
with the seed and the sequence's number: the same sequence gets the same labels in whatever batch,
order or shard it is met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inflcli.model.batches import Batch


@dataclass(frozen=True)
class TrueLabels:
    """The corpus's own next tokens."""

    def targets(self, batch: Batch) -> Tensor:
        """The successor of every position, [B, T]; meaningless where nothing is predicted."""
        return torch.roll(batch.tokens, -1, dims=1)


@dataclass(frozen=True)
class SampledLabels:
    """Labels drawn from the model's softmax. `stream` tells independent draws apart."""

    seed: int
    stream: int

    def uniforms(self, batch: Batch) -> Tensor:
        """One number in [0, 1) for every position, float64 [B, T]."""
        length = batch.tokens.shape[1]
        rows = [_uniform_row(self.seed, self.stream, int(i), length) for i in batch.ids]
        return torch.from_numpy(np.stack(rows)).to(batch.tokens.device)


Labels = TrueLabels | SampledLabels

_BLOCK = 64


def sample(probabilities: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling. `probabilities` [n, V] (need not sum to 1), `uniforms` [n].

    Returns labels int64 [n], and the probabilities' sums [n]. The vocabulary is searched in two
    steps, block by block and then within one: the cumulative sums are over V / 64 and 64 numbers,
    so the cost is that of the sum over V, where torch.multinomial takes more than a forward pass.
    """
    count, vocabulary = probabilities.shape
    whole = vocabulary - vocabulary % _BLOCK
    body = probabilities[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    rest = probabilities[:, whole:].sum(-1, keepdim=True)
    cumulative = torch.cat([body, rest], dim=1).cumsum(-1)
    total = cumulative[:, -1]
    wanted = uniforms.to(total.dtype) * total
    block = _search(cumulative, wanted)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = probabilities.gather(1, places.clamp(max=vocabulary - 1))
    inside = torch.where(places < vocabulary, inside, 0.0).cumsum(-1)
    found = block * _BLOCK + _search(inside, wanted - before.squeeze(1))
    return found.squeeze(1).clamp_(max=vocabulary - 1), total


def _search(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """The first place [n, 1] at which `cumulative` [n, m] exceeds `wanted` [n].

    Rounding can put `wanted` on or past the end (a uniform just below 1 rounds to 1, a block's sum
    is not the sum of its parts to the last bit): it is pulled below the end, so that a label of
    probability zero is drawn neither at the front nor at the back.
    """
    end = cumulative[:, -1]
    below = torch.nextafter(end, torch.zeros_like(end))
    wanted = torch.minimum(wanted, below).clamp(min=0.0).unsqueeze(1)
    found = torch.searchsorted(cumulative, wanted, right=True)
    return found.clamp_(max=cumulative.shape[1] - 1)  # NaN is past every end; it is found out later


def _uniform_row(seed: int, stream: int, sequence: int, length: int) -> np.ndarray:
    key = np.array([(seed << 16) + stream, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)
