"""Without the points that a query repeats its loss rises by more than without random ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from retraining_fixtures import RECIPE, make_llama
from tiny import VOCABULARY

from inflcli.validation.bank import Bank
from inflcli.validation.points import Sequences, log_probs
from inflcli.validation.removal import RANDOM, measure_removals, plan_removals, wanted_models
from inflcli.validation.retraining import train

N, COPIES = 30, 4
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(0, VOCABULARY, (N, 8))
ASKED = DRAW.integers(0, VOCABULARY, (2, 8))
"""Query q stands N/2 q to N/2 q + COPIES - 1 of the data."""
for query in range(2):
    TOKENS[query * 15 : query * 15 + COPIES] = ASKED[query]
DATA = Sequences(TOKENS, np.full(N, 8))
QUERIES = Sequences(ASKED, np.full(2, 8), np.full(2, 4))
COPIED = np.zeros((2, N))
for query in range(2):
    COPIED[query, query * 15 : query * 15 + COPIES] = 1.0
OTHERS = np.tile(np.arange(N) % 15 - 15.0, (2, 1))
"""An estimator that puts the copies of both last."""
LEARNS = replace(RECIPE, epochs=8)


@pytest.fixture
def bank(tmp_path) -> Bank:
    return Bank(tmp_path, make_llama, DATA, QUERIES)


def test_copies_count_for_more_than_random_points(bank):
    scores = {"copies": COPIED, "others": OTHERS}
    plan = plan_removals(scores, [0, 1], [COPIES], draws=3)
    found = measure_removals(bank, plan, [LEARNS])
    assert [(one.estimator, one.query, one.size) for one in found] == [
        (name, query, COPIES) for name in scores for query in (0, 1)
    ]
    for one in found[:2]:
        assert one.rise > one.random_mean + 3 * one.random_deviation
        assert one.rise > 1.0
    for copies, others in zip(found[:2], found[2:], strict=True):
        assert others.rise < copies.rise
        assert others.random_mean == copies.random_mean


def test_a_rise_is_the_difference_of_two_models(bank):
    """By hand, of two seeds."""
    recipes = [RECIPE, replace(RECIPE, seed=1)]
    plan = plan_removals({"copies": COPIED}, [1], [COPIES], draws=2, seed=3)
    found = measure_removals(bank, plan, recipes)

    @cache
    def log_p(removed, recipe) -> float:
        left = [i for i in range(N) if i not in removed]
        return log_probs(train(make_llama, DATA, left, recipe), QUERIES)[1]

    def rise(removed) -> float:
        return sum(log_p((), r) - log_p(tuple(removed), r) for r in recipes) / 2

    for one in found:
        assert one.rise == pytest.approx(rise(range(15, 15 + one.size)), abs=1e-9)
        drawn = [r.removed for r in plan if r.estimator == RANDOM and r.size == one.size]
        random = [rise(removed) for removed in drawn]
        assert one.random_mean == pytest.approx(np.mean(random), abs=1e-9)
        assert one.random_deviation == pytest.approx(np.std(random, ddof=1), abs=1e-9)


def test_shared_sets_are_trained_once(bank):
    plan = plan_removals({"one": COPIED, "same": 2 * COPIED}, [0, 1], [3], draws=2)
    assert len(wanted_models(N, plan, [RECIPE])) == 1 + 2 + 4
    measure_removals(bank, plan, [RECIPE])
    assert len(list(bank.folder.iterdir())) == 1 + 2 + 2


def test_the_plan_takes_the_highest_scores():
    scores = np.random.default_rng(1).normal(size=(3, N))
    plan = plan_removals({"a": scores}, [2], [1, 5], draws=2)
    tops = {one.size: set(one.removed) for one in plan if one.estimator == "a"}
    assert tops == {size: set(np.argsort(scores[2])[-size:].tolist()) for size in (1, 5)}
    random = [one for one in plan if one.estimator == RANDOM]
    assert [(one.query, one.size) for one in random] == [(None, 1), (None, 5)] * 2
    assert set(random[0].removed) < set(random[1].removed)
    assert random[1].removed != random[3].removed


def test_what_makes_no_sense_is_refused():
    for scores, sizes, draws in (
        ({RANDOM: COPIED}, [3], 2),
        ({"a": COPIED, "b": COPIED[:, 1:]}, [3], 2),
        ({}, [3], 2),
        ({"a": COPIED}, [N], 2),
        ({"a": COPIED}, [0], 2),
        ({"a": COPIED}, [], 2),
        ({"a": COPIED}, [3], 1),
    ):
        with pytest.raises(ValueError):
            plan_removals(scores, [0], sizes, draws=draws)
