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


def sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF sampling. `probabilities` [n, V] (need not sum to 1), `uniforms` [n].

    Returns int64 [n]. Cost: one cumulative sum over V and a binary search, a tenth of
    torch.multinomial's.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    wanted = uniforms.to(cumulative.dtype).unsqueeze(-1) * total
    # In float32 a number just below 1 rounds to 1, which lies past every label.
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    # right=True: a label of probability zero at the front is never drawn by u = 0.
    found = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
    return found.clamp_(max=probabilities.shape[-1] - 1)


def _uniform_row(seed: int, stream: int, sequence: int, length: int) -> np.ndarray:
    key = np.array([(seed << 16) + stream, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)
