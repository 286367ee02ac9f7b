"""Which part of a long sequence to show first: the stretch that holds most of its influence."""

from __future__ import annotations

from collections.abc import Sequence


def excerpt(
    units: Sequence[str], influence: Sequence[float] | None, budget: int
) -> tuple[int, int]:
    """Units `start`:`stop` of at most about `budget` characters around the strongest stretch.

    Half of the budget is placed where the squared influences (squares, so that a peak is not left
    out for many small values) sum highest; the rest goes to both its sides as context. Without
    influences the beginning is taken. Cost: O(units).
    """
    sizes = [len(unit) for unit in units]
    if sum(sizes) <= budget:
        return 0, len(units)
    if influence is None:
        return 0, _grow(sizes, 0, 0, budget)[1]
    start, stop = _densest(sizes, [value * value for value in influence], budget // 2)
    left = (budget - sum(sizes[start:stop])) // 2
    start, _ = _grow_back(sizes, start, left)
    stop = _grow(sizes, start, stop, budget)[1]
    start, _ = _grow_back(sizes, start, budget - sum(sizes[start:stop]))
    return _word_start(units, start, stop), stop


def _densest(sizes: Sequence[int], weights: Sequence[float], budget: int) -> tuple[int, int]:
    best, found, first, size, weight = -1.0, (0, 1), 0, 0, 0.0
    for last, (add_size, add_weight) in enumerate(zip(sizes, weights, strict=True)):
        size, weight = size + add_size, weight + add_weight
        while size > budget and first < last:
            size, weight = size - sizes[first], weight - weights[first]
            first += 1
        if weight > best:
            best, found = weight, (first, last + 1)
    return found


def _grow(sizes: Sequence[int], start: int, stop: int, budget: int) -> tuple[int, int]:
    size = sum(sizes[start:stop])
    while stop < len(sizes) and (size + sizes[stop] <= budget or stop == start):
        size += sizes[stop]
        stop += 1
    return start, stop


def _grow_back(sizes: Sequence[int], start: int, room: int) -> tuple[int, int]:
    while start > 0 and sizes[start - 1] <= room:
        start -= 1
        room -= sizes[start]
    return start, room


def _word_start(units: Sequence[str], start: int, stop: int) -> int:
    """The next unit that begins a word, if one is near; the excerpt should not begin inside one."""
    if start == 0:
        return 0
    for step in range(min(4, stop - start)):
        if units[start + step][:1].isspace():
            return start + step
    return start
