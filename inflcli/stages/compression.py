"""What is kept of a chunk of preconditioned queries, over all modules at once.

The chunk's gradients are held as the rows that they are formed from, so that every module's
matrices exist only a few at a time, and can be formed again where a query needs a higher rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inflcli.config import PreconditionConfig
from inflcli.ekfac import LowRank, allocate, energy, truncate
from inflcli.ekfac.inverse import RotatedGradients
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

_FIRST_RANK = 32
_MATRIX_BYTES = 1 << 24
"""Matrices worked on together: more leave the cache, and are no faster."""
_TOKENS_A_CHUNK = 4096


@dataclass(frozen=True)
class Compressed:
    """What one module keeps of a chunk of n queries."""

    tensors: dict[str, Tensor]
    """`left` [P, K], `right` [M, K] and `owner` [K], or `dense` [n, P, M]."""
    ranks: list[int]
    kept: list[float]
    """The energy kept, by query."""
    energy: list[float]
    """‖V‖², by query."""


@dataclass
class Candidates:
    """The leading components found so far of one module's V, by query."""

    module: TrackedModule
    gradients: RotatedGradients
    limit: int
    """No query keeps more of them."""
    found: dict[int, LowRank] = field(default_factory=dict)
    energy: dict[int, float] = field(default_factory=dict)

    def find(self, rows: Sequence[int], rank: int) -> None:
        """Find min(rank, limit) components of the queries `rows`. Raises NumericalFault."""
        for part, v in matrices(self.module, self.gradients, rows):
            whole = energy(v)
            common.require_finite(whole, "preconditioned query", self.module.name)
            components = truncate(v, min(rank, self.limit))
            for place, row in enumerate(part):
                self.found[row], self.energy[row] = components[place], float(whole[place])

    def exhausted(self, ranks: Sequence[int]) -> list[int]:
        """The queries that would keep all that was found, and might keep more."""
        return [
            row
            for row, rank in enumerate(ranks)
            if rank == len(self.found[row].energies) < self.limit
        ]

    def keep(self, ranks: Sequence[int]) -> Compressed:
        """Keep the first ranks[q] components of query q."""
        count = range(len(ranks))
        left = torch.cat([self.found[q].left[:, : ranks[q]] for q in count], 1)
        right = torch.cat([self.found[q].right[:, : ranks[q]] for q in count], 1)
        left, right = self.gradients.inverse.rotate_factors_back(left, right)
        owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
        kept = [float(self.found[q].energies[: ranks[q]].sum()) for q in count]
        tensors = {"left": left, "right": right, "owner": owner}
        return Compressed(tensors, list(ranks), kept, [self.energy[q] for q in count])


def matrices(
    module: TrackedModule, gradients: RotatedGradients, rows: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """V in the eigenbasis of the queries `rows`, a few at a time."""
    step = max(1, _MATRIX_BYTES // (module.parameters * gradients.a.element_size()))
    for first in range(0, len(rows), step):
        part = list(rows[first : first + step])
        yield part, gradients.preconditioned(part)


def compress(
    held: list[tuple[TrackedModule, RotatedGradients]], config: PreconditionConfig
) -> dict[str, Compressed]:
    """Compress a chunk of queries, by module; empties `held`, to free what is done with.

    Raises NumericalFault naming a module whose V is not finite.
    """
    compressed, found = {}, []
    while held:
        module, gradients = held.pop(0)
        count = gradients.a.shape[0]
        candidates = Candidates(module, gradients, _limit(module, config))
        if config.keep is not None:
            found.append(candidates)
        elif config.rank is not None:
            candidates.find(range(count), candidates.limit)
            compressed[module.name] = candidates.keep([candidates.limit] * count)
        else:
            compressed[module.name] = _whole(module, gradients)
    return compressed if config.keep is None else _allocated(found, count, config.keep)


def _limit(module: TrackedModule, config: PreconditionConfig) -> int:
    """The highest rank that a module's size and the settings allow."""
    size = min(module.inputs, module.outputs)
    wanted = config.rank if config.keep is None else config.max_rank
    return min(wanted or size, size)


def _allocated(found: list[Candidates], count: int, share: float) -> dict[str, Compressed]:
    """Keep `share` of every query's energy, at the fewest numbers.

    More components are found where all that are known would be kept. A higher rank there lowers
    no other module's need, so this ends, with the allocation that all components would give.
    """
    sizes = [candidates.module.inputs + candidates.module.outputs for candidates in found]
    wanting, rank = [list(range(count)) for _ in found], _FIRST_RANK
    while any(wanting):
        for candidates, rows in zip(found, wanting, strict=True):
            candidates.find(rows, rank)
        by_query = [
            allocate(
                [candidates.found[query].energies for candidates in found],
                sizes,
                share * sum(candidates.energy[query] for candidates in found),
            )
            for query in range(count)
        ]
        ranks = [list(of_module) for of_module in zip(*by_query, strict=True)]
        wanting = [one.exhausted(taken) for one, taken in zip(found, ranks, strict=True)]
        rank *= 2
    return {one.module.name: one.keep(taken) for one, taken in zip(found, ranks, strict=True)}


def _whole(module: TrackedModule, gradients: RotatedGradients) -> Compressed:
    """Every V as it is, outside of the eigenbasis."""
    parts, energies = [], []
    for _, v in matrices(module, gradients, range(gradients.a.shape[0])):
        parts.append(gradients.inverse.rotate_back(v))
        common.require_finite(parts[-1], "preconditioned query", module.name)
        energies += energy(v).tolist()
    rank = min(module.inputs, module.outputs)
    return Compressed({"dense": torch.cat(parts)}, [rank] * len(energies), energies, energies)


def queries_a_chunk(
    modules: Sequence[TrackedModule],
    tokens: int,
    config: PreconditionConfig,
    element: int,
    memory: float,
) -> int:
    """How many queries of up to `tokens` tokens fit into `memory` bytes; one at least.

    Counted are their rows and what may be kept of them, for all modules; `element` is the bytes
    of a number.
    """
    kept = 0
    for module in modules:
        size = module.inputs + module.outputs
        if config.rank is None and config.keep is None:
            kept += module.parameters
        else:
            kept += _limit(module, config) * size
    rows = tokens * sum(module.inputs + module.outputs for module in modules)
    # What is kept exists up to three times: as found, rotated back, and as the file's bytes.
    each = element * (rows + 3 * kept)
    largest = max(module.parameters for module in modules) * element
    # The exact truncation works on copies in float64.
    at_work = 5 * max(_MATRIX_BYTES, largest)
    fitting = int((memory - at_work) // each)
    return max(1, min(fitting, _TOKENS_A_CHUNK // tokens))
