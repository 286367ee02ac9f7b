"""What is kept of a chunk of preconditioned queries, over all modules at once.

The chunk's gradients are held as the rows that they are formed from, so that every module's
matrices exist only a few at a time, and can be formed again where a query needs a higher rank.
Refined ones come as matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inflcli.config import PreconditionConfig
from inflcli.ekfac import LowRank, allocate, energy, truncate
from inflcli.ekfac.inverse import Preconditioned
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common

FIRST_RANK = 64
_MATRIX_BYTES = 1 << 23
"""Matrices worked on together: more leave the cache, and are no faster."""
_TOKENS_A_CHUNK = 4096
Held = tuple[TrackedModule, Preconditioned]
"""A module, and its V of a chunk of queries."""


@dataclass(frozen=True)
class Compressed:
    """What one module keeps of a chunk of n queries."""

    matrices: dict[str, Tensor]
    """`left` [P, K] and `right` [M, K], or `dense` [n, P, M]."""
    owner: Tensor | None
    """[K]: the query that a column belongs to."""
    ranks: list[int]
    found: list[int]
    """The components that those kept are the first of, by query."""
    kept: list[float]
    """The energy kept, by query."""
    energy: list[float]
    """‖V‖², by query."""


@dataclass
class Candidates:
    """The leading components found so far of one module's V, by query."""

    module: TrackedModule
    gradients: Preconditioned
    limit: int
    """No query keeps more of them."""
    single: bool
    """Whether they are found in float32."""
    found: dict[int, LowRank] = field(default_factory=dict)
    energy: dict[int, float] = field(default_factory=dict)

    def find(self, rows: Sequence[int], rank: int) -> None:
        """Find min(rank, limit) components of the queries `rows`. Raises NumericalFault."""
        for part, v in matrices(self.module, self.gradients, rows):
            whole = energy(v)
            common.require_finite(whole, "preconditioned query", self.module.name)
            components = truncate(v, min(rank, self.limit), single=self.single)
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
        left, right = self.gradients.rotate_factors_back(left, right)
        owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
        found = [len(self.found[q].energies) for q in count]
        kept = [float(self.found[q].energies[: ranks[q]].sum()) for q in count]
        energies = [self.energy[q] for q in count]
        tensors = {"left": left, "right": right}
        return Compressed(tensors, owner, list(ranks), found, kept, energies)


def _candidates(
    module: TrackedModule, gradients: Preconditioned, config: PreconditionConfig
) -> Candidates:
    return Candidates(module, gradients, _limit(module, config), config.precision != "exact")


def matrices(
    module: TrackedModule, gradients: Preconditioned, rows: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """V in its basis of the queries `rows`, a few at a time."""
    step = max(1, _MATRIX_BYTES // (module.parameters * gradients.like.element_size()))
    for first in range(0, len(rows), step):
        part = list(rows[first : first + step])
        yield part, gradients.preconditioned(part)


def compress(held: list[Held], config: PreconditionConfig) -> Iterator[tuple[str, Compressed]]:
    """Compress a chunk of queries, module by module; empties `held`, to free what is done with.

    Raises NumericalFault naming a module whose V is not finite.
    """
    if config.keep is not None:
        found = [_candidates(module, gradients, config) for module, gradients in held]
        held.clear()
        yield from _allocated(found, config.keep)
    while held:
        module, gradients = held.pop(0)
        if config.rank is None:
            yield module.name, _whole(module, gradients)
        else:
            candidates = _candidates(module, gradients, config)
            count = gradients.count
            candidates.find(range(count), candidates.limit)
            yield module.name, candidates.keep([candidates.limit] * count)


def compress_again(
    held: list[Held],
    config: PreconditionConfig,
    before: Sequence[Mapping[str, Mapping[str, int]]],
) -> Iterator[tuple[str, Compressed]]:
    """Compress some modules of a chunk to the bytes that `compress` gave; empties `held`.

    `before` has, by query and module, its `rank` and of how many components `found` that is.
    """
    while held:
        module, gradients = held.pop(0)
        if config.rank is None and config.keep is None:
            yield module.name, _whole(module, gradients)
            continue
        found = [query[module.name]["found"] for query in before]
        candidates = _candidates(module, gradients, config)
        for count in sorted(set(found)):
            # Those that more were found of took part: rounding depends on who is multiplied along.
            candidates.find([row for row, own in enumerate(found) if own >= count], count)
        yield module.name, candidates.keep([query[module.name]["rank"] for query in before])


def _limit(module: TrackedModule, config: PreconditionConfig) -> int:
    """The highest rank that a module's size and the settings allow."""
    size = min(module.inputs, module.outputs)
    wanted = config.rank if config.keep is None else config.max_rank
    return min(wanted or size, size)


def _allocated(found: list[Candidates], share: float) -> Iterator[tuple[str, Compressed]]:
    """Keep `share` of every query's energy, at the fewest numbers.

    More components are found where all that are known would be kept. A higher rank there lowers
    no other module's need, so this ends, with the allocation that all components would give.
    """
    count = found[0].gradients.count
    sizes = [candidates.module.inputs + candidates.module.outputs for candidates in found]
    wanting, rank = [list(range(count)) for _ in found], FIRST_RANK
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
    for taken in ranks:
        candidates = found.pop(0)
        yield candidates.module.name, candidates.keep(taken)


def _whole(module: TrackedModule, gradients: Preconditioned) -> Compressed:
    """Every V as it is, in the model's coordinates."""
    count = gradients.count
    dense, energies = gradients.like.new_empty(count, module.outputs, module.inputs), []
    for part, v in matrices(module, gradients, range(count)):
        dense[part[0] : part[-1] + 1] = gradients.rotate_back(v)
        energies += energy(v).tolist()
    ranks = [min(module.inputs, module.outputs)] * count
    return Compressed({"dense": dense}, None, ranks, ranks, energies, energies)


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
    each_kept = [
        module.parameters
        if config.rank is None and config.keep is None
        else _limit(module, config) * (module.inputs + module.outputs)
        for module in modules
    ]
    # With a share of the energy all modules' components are held until it is known which are kept.
    kept = sum(each_kept) if config.keep is not None else max(each_kept)
    rows = tokens * sum(module.inputs + module.outputs for module in modules)
    # Up to three modules' are rotated back, and waiting to be written, and the file's bytes.
    each = element * (rows + kept + 3 * max(each_kept))
    largest = max(module.parameters for module in modules) * element
    # The exact truncation works on copies in float64.
    at_work = 5 * max(_MATRIX_BYTES, largest)
    fitting = int((memory - at_work) // each)
    return max(1, min(fitting, _TOKENS_A_CHUNK // tokens))
