"""Copies: what a text shares word for word with another, and which texts are nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import takewhile

FEWEST = 3
"""Tokens in a row that make a copied run."""
Shingles = set[tuple[Hashable, ...]]
_SHINGLE = 5
_ALIKE = 0.8


def shared_runs(
    text: Sequence[Hashable], query: Sequence[Hashable], fewest: int = FEWEST
) -> list[tuple[int, int]]:
    """Where `text` repeats `query`: half-open runs of at least `fewest` tokens, in order.

    Each begins where the one before ended or later, and is the longest that begins there. Cost:
    the text's length, times how often a run's beginning is in the query.
    """
    starts = defaultdict(list)
    for place in range(len(query) - fewest + 1):
        starts[tuple(query[place : place + fewest])].append(place)
    runs, place = [], 0
    while place + fewest <= len(text):
        found = starts.get(tuple(text[place : place + fewest]), [])
        length = max((_common(text, place, query, other) for other in found), default=0)
        if length:
            runs.append((place, place + length))
        place += length or 1
    return runs


def near_duplicates(texts: Sequence[Sequence[Hashable]], alike: float = _ALIKE) -> list[int]:
    """For each text the number of the first that it nearly equals, its own if there is none.

    Two are near-duplicates when the sets of their runs of five tokens have a Jaccard similarity
    of at least `alike`; a text is compared with those that stand for themselves. Cost: quadratic
    in the texts.
    """
    sets = [_shingles(text) for text in texts]
    first: list[int] = []
    for number, mine in enumerate(sets):
        heads = (other for other in range(number) if first[other] == other)
        first.append(next((h for h in heads if _similar(mine, sets[h], alike)), number))
    return first


def _common(one: Sequence[Hashable], i: int, other: Sequence[Hashable], j: int) -> int:
    pairs = zip(one[i:], other[j:], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shingles(text: Sequence[Hashable]) -> Shingles:
    """A text too short for a run of five is one run."""
    last = max(len(text) - _SHINGLE, 0)
    return {tuple(text[place : place + _SHINGLE]) for place in range(last + 1)}


def _similar(
    one: set[tuple[Hashable, ...]], other: set[tuple[Hashable, ...]], alike: float
) -> bool:
    # The smaller set over the larger bounds the similarity, and costs nothing.
    small, large = sorted((len(one), len(other)))
    if small < alike * large:
        return False
    shared = len(one & other)
    return shared >= alike * (small + large - shared)
