"""The LDS is 1 for the truth, -1 for its negative, and not to be told from 0 for noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from inflcli.validation.lds import lds, noise, subsets

N, K, M = 50, 6, 40
DRAW = np.random.default_rng(0)
TRUTH = DRAW.normal(size=(K, N))
SUBSETS = subsets(N, M, seed=3)
LINEAR = np.stack([TRUTH[:, ids].sum(1) for ids in SUBSETS]) - 7.0
"""Outputs [M, K] of models that are linear in which points they have."""


def noisy(size: float, seed: int) -> np.ndarray:
    return LINEAR + size * LINEAR.std() * np.random.default_rng(seed).normal(size=(M, K))


def test_the_truth_has_one_and_its_negative_minus_one():
    # A rising function of the outputs is ranked the same.
    for outputs in (LINEAR, np.exp(LINEAR)):
        for sign in (1, -1):
            result = lds(sign * TRUTH, SUBSETS, outputs, resamples=100)
            assert result.per_query == pytest.approx(np.full(K, sign), abs=1e-12)
            assert result.mean == pytest.approx(sign)
            assert result.interval == pytest.approx((sign, sign))


def test_noise_is_not_told_from_zero():
    other = np.random.default_rng(1).normal(size=(K, N))
    for over in ("both", "subsets"):
        result = lds(other, SUBSETS, LINEAR, over=over)
        assert abs(result.mean) < 0.2
        low, high = result.interval
        assert low < 0 < high


def test_the_interval_covers_what_more_models_would_say():
    """Of 95 % intervals from 40 noisy models each, most hold the LDS that 1,600 such models have,
    and they are as wide as the LDS of 40 models varies; over subsets only, as the queries stay."""
    many = subsets(N, 40 * M, seed=4)
    outputs = np.stack([TRUTH[:, ids].sum(1) for ids in many])
    outputs += 2.0 * outputs.std() * np.random.default_rng(5).normal(size=outputs.shape)
    expected = lds(TRUTH, many, outputs, resamples=2).mean
    assert 0.2 < expected < 0.8
    held, widths, means = 0, [], []
    for part in range(40):
        rows = slice(part * M, (part + 1) * M)
        result = lds(TRUTH, many[rows], outputs[rows], over="subsets", resamples=100, seed=part)
        held += result.interval[0] <= expected <= result.interval[1]
        widths.append(result.interval[1] - result.interval[0])
        means.append(result.mean)
    assert held >= 33
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(means), rel=0.3)


def test_each_query_is_spearman_over_subsets():
    outputs = noisy(1.0, 2).round(0)  # with ties
    result = lds(TRUTH, SUBSETS, outputs)
    for k in range(K):
        predicted = [TRUTH[k, ids].sum() for ids in SUBSETS]
        expected = stats.spearmanr(predicted, outputs[:, k]).statistic
        assert result.per_query[k] == pytest.approx(expected, abs=1e-12)
    assert result.mean == pytest.approx(result.per_query.mean())


@pytest.mark.parametrize("over", ["both", "subsets", "queries"])
def test_replicates_are_means_over_drawn_subsets_and_queries(over):
    """By scipy, on the columns and rows that were drawn, repeated."""
    outputs = noisy(1.0, 2).round(0)
    found = lds(TRUTH, SUBSETS, outputs, over=over, resamples=5, seed=11)
    predicted = np.stack([TRUTH[:, ids].sum(1) for ids in SUBSETS], axis=1)
    draw = np.random.default_rng(11)
    columns = rows = None
    if over != "queries":
        columns = draw.multinomial(M, np.full(M, 1 / M), size=5)
    if over != "subsets":
        rows = draw.multinomial(K, np.full(K, 1 / K), size=5)
    for index, value in enumerate(found.replicates):
        some = np.arange(M) if columns is None else np.repeat(np.arange(M), columns[index])
        asked = np.arange(K) if rows is None else np.repeat(np.arange(K), rows[index])
        each = [stats.spearmanr(predicted[k, some], outputs[some, k]).statistic for k in asked]
        assert value == pytest.approx(np.mean(each), abs=1e-12)


def test_what_tells_nothing_apart_counts_as_zero():
    outputs = LINEAR.copy()
    outputs[:, 0] = 3.0
    scores = TRUTH.copy()
    scores[1] = 1.0
    result = lds(scores, SUBSETS, outputs)
    assert result.per_query[:2].tolist() == [0.0, 0.0]
    assert result.per_query[2:] == pytest.approx(np.ones(K - 2))


def test_a_difference_is_paired():
    """Two estimators that err alike are told apart, though their intervals overlap."""
    outputs = noisy(1.5, 6)
    rough = TRUTH + 0.35 * np.random.default_rng(7).normal(size=TRUTH.shape)
    one, other = lds(TRUTH, SUBSETS, outputs), lds(rough, SUBSETS, outputs)
    difference, (low, high) = one.minus(other)
    assert difference == pytest.approx(one.mean - other.mean)
    assert low < difference < high
    assert high - low < 0.7 * (one.interval[1] - one.interval[0])
    with pytest.raises(ValueError):
        one.minus(lds(TRUTH, SUBSETS, outputs, seed=1))


def test_subsets_are_random_parts():
    assert SUBSETS.shape == (M, 25)
    assert all(len(set(ids)) == 25 and (np.diff(ids) > 0).all() for ids in SUBSETS)
    assert len({tuple(ids) for ids in SUBSETS}) == M
    assert np.array_equal(SUBSETS[:7], subsets(N, 7, seed=3))
    assert not np.array_equal(SUBSETS, subsets(N, M, seed=4))
    # A point is in half of them, give or take four deviations.
    counts = np.bincount(SUBSETS.ravel(), minlength=N)
    assert np.abs(counts - M / 2).max() < 4 * np.sqrt(M / 4)
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(ValueError):
            subsets(N, 3, share)


@pytest.mark.parametrize("repeats", [2, 4])
def test_the_ceiling_is_what_the_expected_output_reaches(repeats):
    """Outputs are linear and as much noise again: two seeds agree by about a half, and the linear
    part has the LDS that the ceiling says against their mean."""
    many = subsets(N, 2000, seed=8)
    linear = np.stack([TRUTH[:, ids].sum(1) for ids in many])
    spread = linear.std(0)
    draw = np.random.default_rng(9)
    outputs = np.stack([linear + spread * draw.normal(size=linear.shape) for _ in range(repeats)])
    found = noise(outputs)
    assert found.between == pytest.approx(0.5, abs=0.04)
    reached = lds(TRUTH, many, outputs.mean(0), resamples=2).mean
    assert found.ceiling == pytest.approx(reached, abs=0.03)
    assert found.per_query.shape == (K,)


def test_noise_between_seeds_is_their_spearman():
    outputs = np.stack([noisy(1.0, seed) for seed in (10, 11)])
    for k, value in enumerate(noise(outputs).per_query):
        assert value == pytest.approx(stats.spearmanr(*outputs[:, :, k]).statistic, abs=1e-12)
    opposite = noise(np.stack([LINEAR, -LINEAR]))
    assert opposite.between == pytest.approx(-1) and opposite.ceiling == 0


def test_wrong_shapes_are_refused():
    bad = LINEAR.copy()
    bad[0, 0] = np.nan
    for scores, some, outputs in (
        (TRUTH, SUBSETS[:-1], LINEAR),
        (TRUTH[:-1], SUBSETS, LINEAR),
        (TRUTH, SUBSETS[:2], LINEAR[:2]),
        (TRUTH, SUBSETS, bad),
    ):
        with pytest.raises(ValueError):
            lds(scores, some, outputs)
    with pytest.raises(ValueError):
        lds(TRUTH, SUBSETS, LINEAR, over="points")
    for outputs in (LINEAR, LINEAR[None], np.stack([LINEAR, LINEAR])[:, :2]):
        with pytest.raises(ValueError):
            noise(outputs)
