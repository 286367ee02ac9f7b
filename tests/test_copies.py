"""Invariant: copied runs are all that the text repeats of the query, found by trying every pair of
places; near-duplicates are those of a Jaccard similarity counted out by hand."""

from __future__ import annotations

import random

import pytest

from inflcli.retrieval.copies import near_duplicates, shared_runs


@pytest.mark.parametrize("seed", range(40))
def test_runs_cover_what_is_copied_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    text, query = (draw.choices("abcd", k=draw.randrange(40)) for _ in range(2))
    runs = shared_runs(text, query)
    inside = "".join(query)
    for start, stop in runs:
        assert stop - start >= 3
        assert "".join(text[start:stop]) in inside
        assert stop == len(text) or "".join(text[start : stop + 1]) not in inside
    assert all(one[1] <= other[0] for one, other in zip(runs, runs[1:], strict=False))
    # Whatever else is in the query lies partly in a run: between two runs nothing was left.
    covered = {place for start, stop in runs for place in range(start, stop)}
    for place in range(len(text) - 2):
        if "".join(text[place : place + 3]) in inside:
            assert covered & {place, place + 1, place + 2}


def test_a_long_run_is_one() -> None:
    query = list("the capital of Kenya is Nairobi")
    assert shared_runs(["x", *query, "x"], query) == [(1, 1 + len(query))]
    assert shared_runs(["x"], query) == shared_runs([], query) == shared_runs(query, []) == []


def test_near_duplicates_are_folded_under_the_first() -> None:
    words = [f"w{number}" for number in range(104)]
    one_changed = [*words[:50], "other", *words[51:]]
    # 100 runs of five, 5 of them changed: 95 of 105 in common. Three changes: 85 of 115.
    three_changed = ["other" if place in (20, 50, 80) else word for place, word in enumerate(words)]
    texts = [words, ["alone"], one_changed, three_changed, words[:40], ["alone"], []]
    assert near_duplicates(texts) == [0, 1, 0, 3, 4, 1, 6]
    assert near_duplicates(texts, 85 / 115) == [0, 1, 0, 0, 4, 1, 6]
    assert near_duplicates([]) == []
