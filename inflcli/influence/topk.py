"""Running top-k of both signs over a stream of scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class RunningTop:
    """The k highest scores a query, and their sequence numbers; ties go to the lower number.

    `scores` [Q, k], -inf where fewer were seen; `ids` [Q, k], -1 there.
    """

    scores: NDArray[np.float32]
    ids: NDArray[np.int64]

    @classmethod
    def empty(cls, queries: int, k: int) -> RunningTop:
        return cls(np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64))

    def update(self, first: int, scores: NDArray[np.float32]) -> None:
        """Add scores [Q, n] of the sequences from number `first` on, in ascending order.

        NaN marks what was not scanned. Cost: a sort of k + n a query.
        """
        k = self.ids.shape[1]
        fresh = np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)
        scanned = ~np.isnan(scores)
        values = np.concatenate([self.scores, np.where(scanned, scores, -np.inf)], axis=1)
        numbers = np.concatenate([self.ids, np.where(scanned, fresh, -1)], axis=1)
        # Stable, with the earlier numbers in front: ties keep the lower number.
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        self.scores = np.take_along_axis(values, order, axis=1)
        self.ids = np.take_along_axis(numbers, order, axis=1)
