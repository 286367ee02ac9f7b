"""Batches of token sequences, grouped so that little is padding.

Sequences are padded on the right: in a causal model nothing before the padding sees it, so a
sequence's values do not depend on its neighbours in the batch, and no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflcli.shapes import SEQUENCES, round_up

TOKENS_A_BATCH = 4096
_MOST_UNITS = 8192


@dataclass(frozen=True)
class Batch:
    """`tokens` [B, T] int64 on the device, `predicted` [B, T] bool on the CPU: positions whose
    *successor* counts in the loss, `ids` [B]: the sequences' numbers in the corpus."""

    tokens: Tensor
    predicted: Tensor
    ids: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Predicted tokens in the batch."""
        return int(self.predicted.sum())

    @cached_property
    def rows(self) -> Tensor:
        """Predicted positions among the B · T of the batch, on the device."""
        return self.predicted.flatten().nonzero().squeeze(-1).to(self.tokens.device)

    @cached_property
    def extents(self) -> list[int]:
        """Positions of each sequence up to its last predicted one: beyond them g is zero."""
        position = torch.arange(1, self.predicted.shape[1] + 1)
        return [int(last) for last in (self.predicted * position).amax(1)]


def plan_batches(
    ids: NDArray[np.int64],
    lengths: NDArray[np.int32],
    batch_size: int | None,
    tokens: int = TOKENS_A_BATCH,
) -> list[NDArray[np.int64]]:
    """Cut `ids` into batches of sequences of similar length, longest first.

    `lengths` are those of `ids`. Without a batch size a batch holds about `tokens` tokens, and one
    sequence at least. The order is fixed, so that a resumed run adds in the same order.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches, first = [], 0
    while first < len(order):
        longest = max(int(lengths[order[first]]), 1)
        size = batch_size or _usual_size(longest, tokens)
        batches.append(ids[order[first : first + size]])
        first += size
    return batches


def _usual_size(longest: int, tokens: int) -> int:
    """Sequences of about so many tokens together; lengths and sizes are few, as are shapes then."""
    size = max(1, tokens // round_up(longest))
    return size - size % SEQUENCES if size > SEQUENCES else size


def plan_units(
    ids: NDArray[np.int64], lengths: NDArray[np.int32], size: int | None
) -> list[NDArray[np.int64]]:
    """Cut `ids` into units of work, in the order of `plan_batches`.

    A unit holds `size` sequences, or about a batch; in a large corpus several, so that there are
    at most 8,192.
    """
    batches = plan_batches(ids, lengths, size)
    count = max(1, -(-len(batches) // _MOST_UNITS))
    return [
        np.concatenate(batches[first : first + count]) for first in range(0, len(batches), count)
    ]


def make_batch(
    ids: NDArray[np.int64],
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int32],
    device: torch.device,
    first_predicted: NDArray[np.int64] | None = None,
) -> Batch:
    """Build a batch from `tokens` [B, T], cut to the longest of `lengths` [B].

    Position t is predicted when t + 1 is within the sequence, and, with `first_predicted` [B],
    when t + 1 is at or after that token (the completion's first).
    """
    longest = max(int(lengths.max()), 1)
    position = np.arange(longest)[None, :]
    predicted = position + 1 < lengths[:, None]
    if first_predicted is not None:
        predicted &= position + 1 >= first_predicted[:, None]
    return Batch(
        torch.from_numpy(np.ascontiguousarray(tokens[:, :longest])).to(device),
        torch.from_numpy(predicted),
        ids,
    )


def read_batches(
    plans: Iterable[NDArray[np.int64]],
    take: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    lengths: NDArray[np.int32],
    device: torch.device,
) -> Iterator[Batch]:
    """Read planned batches through `take(ids) -> tokens [B, T]`, one ahead of their use.

    `lengths` is the corpus's.
    """

    def read(ids: NDArray[np.int64]) -> Batch:
        return make_batch(ids, take(ids), lengths[ids], device)

    with ThreadPoolExecutor(1) as pool:
        following = None
        for ids in plans:
            current, following = following, pool.submit(read, ids)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()
