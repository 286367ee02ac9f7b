"""Tail fits recover what samples were drawn from, and rule out what they were not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from inflcli.statistics.positive import Positive
from inflcli.statistics.tail import RIVALS, fit_power_law, fit_tail, goodness, search_effort


def draws(alpha: float, x_min: float, count: int, seed: int) -> np.ndarray:
    """By inversion of the survival function (x / x_min)^-(α - 1)."""
    return np.sort(x_min * np.random.default_rng(seed).random(count) ** (-1 / (alpha - 1)))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("count", [50, 2000])
def test_alpha_is_within_two_standard_errors(alpha, count):
    """In 95 of 100 samples; 88 of 100 is as few as is likely once in 500 such tests."""
    fits = [fit_power_law(draws(alpha, 7.0, count, seed)) for seed in range(100)]
    assert sum(abs(fit.alpha - alpha) < 2 * fit.error for fit in fits) >= 88


def test_alpha_is_the_likelihood_s_maximum():
    tail = draws(2.5, 3.0, 300, 0)
    law = fit_power_law(tail)
    assert law.x_min == tail[0]
    assert law.alpha == pytest.approx(1 + 300 / np.log(tail / tail[0]).sum())
    assert law.error == pytest.approx((law.alpha - 1) / np.sqrt(300))
    below = 1 - (tail / tail[0]) ** -(law.alpha - 1)
    steps = np.arange(301) / 300
    ks = max((below - steps[:-1]).max(), (steps[1:] - below).max())
    assert goodness(tail, samples=1)[0] == pytest.approx(ks)


def test_p_values_are_uniform_under_the_null():
    values = [goodness(draws(2.5, 1.0, 80, seed), samples=200)[1] for seed in range(200)]
    assert stats.kstest(values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("kind", [stats.expon(1.0), stats.rayleigh(1.0), stats.gumbel_r(5.0)])
def test_other_distributions_are_ruled_out(kind):
    tail = np.sort(kind.rvs(3000, random_state=np.random.default_rng(0)))
    tail = tail[tail > 0.5][-2000:]
    fit = fit_tail(tail, samples=50)
    assert fit.p_value < 0.1
    assert min(rival.log_likelihood_ratio for rival in fit.rivals.values()) < 0


def test_rivals_are_told_apart():
    """The ratio is positive against all of them on a power law, beyond accident on most."""
    fit = fit_tail(draws(2.2, 4.0, 3000, 1), samples=10)
    assert set(fit.rivals) == set(RIVALS)
    assert fit.p_value > 0.1
    light = [fit.rivals[name] for name in ("exponential", "Rayleigh", "Gumbel")]
    assert all(rival.log_likelihood_ratio > 0 and rival.p_value < 0.01 for rival in light)
    assert all(rival.ks > fit.ks for rival in light)


def test_too_few_or_alike():
    assert fit_tail(np.linspace(1, 2, 49)) is None
    assert fit_tail(np.ones(60)) is None


def test_effort_is_that_of_drawing():
    """Of a million scores whose top 10,000 are a power law: how many for ten above a value."""
    truth = 10 / (0.01 * (400.0 / 10.0) ** -1.5)
    laws = [fit_power_law(draws(2.5, 10.0, 10**4, seed)) for seed in range(100)]
    efforts = [search_effort(law, 10**6, 400.0) for law in laws]
    assert sum(effort.low < truth < effort.high for effort in efforts) >= 88
    assert np.median([effort.sequences for effort in efforts]) == pytest.approx(truth, rel=0.05)
    # A value of the tail's own: as many as were scanned, about.
    tail = draws(2.5, 10.0, 10**4, 3)
    assert search_effort(laws[3], 10**6, tail[-10]).sequences == pytest.approx(10**6, rel=0.5)


def test_a_pass_in_chunks_is_that_over_all():
    draw = np.random.default_rng(0)
    scores = (draw.standard_t(2, 300_000) * 50).astype(np.float32)
    scores[::7] = np.nan
    found = Positive(len(scores))
    for chunk in np.array_split(scores, 37):
        found.add(chunk)
    known = scores[~np.isnan(scores)].astype(np.float64)
    positive = np.sort(known[known > 0])
    assert (found.scanned, found.count) == (len(known), len(positive))
    assert found.tail().tolist() == positive[-50:].tolist()
    for value, count in found.survival():
        assert count == (positive >= value).sum()
    shares = np.array([0.0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0])
    exact = [positive[::-1][: round(share * len(known))].sum() / positive.sum() for share in shares]
    assert np.allclose(found.concentration(shares), exact, atol=2e-3)
    assert found.concentration(shares)[-1] == 1


def test_the_tail_is_a_share_where_that_is_more():
    scores = np.arange(1, 1_000_001, dtype=np.float64)
    found = Positive(2 * len(scores))
    found.add(-scores)
    for chunk in np.array_split(scores[::-1], 11):
        found.add(chunk)
    assert found.tail().tolist() == scores[-100:].tolist()
    nothing = Positive(10)
    nothing.add(-scores[:10])
    assert nothing.survival() == []
    assert np.isnan(nothing.concentration(np.array([0.5]))).all()
