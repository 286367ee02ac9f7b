"""The tail of a query's positive scores, as a power law and as its rivals.

The survival function of a power law of density exponent α from x_min on is (x / x_min)^-(α - 1).
The tail is fixed beforehand, as a share of the scores, so that x_min is its smallest; α is then the
maximum of the likelihood, 1 + n / sum of log(x / x_min), with a standard error of (α - 1) / √n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SHARE, FEWEST = 1e-4, 50
"""Of the positive scores, and so many at least."""
SAMPLES = 1000
RIVALS = {
    "exponential": stats.expon,
    "Weibull": stats.weibull_min,
    "exponentiated Weibull": stats.exponweib,
    "Rayleigh": stats.rayleigh,
    "Gumbel": stats.gumbel_r,
    "generalised extreme value": stats.genextreme,
}


@dataclass(frozen=True)
class PowerLaw:
    """That of the `count` highest scores."""

    alpha: float
    x_min: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of α."""
        return (self.alpha - 1.0) / math.sqrt(self.count)


@dataclass(frozen=True)
class Rival:
    """Another distribution, fitted to the same tail."""

    ks: float
    log_likelihood_ratio: float
    """Of the power law to it, a value: positive where the power law is likelier."""
    p_value: float
    """Of the sign of that ratio (Vuong): small where it is no accident."""


@dataclass(frozen=True)
class TailFit:
    """The power law that fits the highest scores best, and how well it does."""

    law: PowerLaw
    ks: float
    """Largest difference of the cumulative distributions."""
    p_value: float
    """Share of samples of the fitted law that are farther from theirs than the scores are from
    it; below 0.1 the power law is ruled out."""
    rivals: Mapping[str, Rival]


@dataclass(frozen=True)
class Effort:
    """Sequences to scan: about so many, from `low` to `high`."""

    sequences: float
    low: float
    high: float


def fit_power_law(tail: NDArray[np.float64]) -> PowerLaw:
    """By maximum likelihood, from the smallest value on."""
    x_min = float(tail.min())
    power, *_ = stats.pareto.fit(tail, floc=0.0, fscale=x_min)
    return PowerLaw(float(power) + 1.0, x_min, len(tail))


def goodness(tail: NDArray[np.float64], samples: int, seed: int = 0) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance to the fitted power law, and its bootstrap p-value."""
    found = stats.goodness_of_fit(
        stats.pareto,
        tail,
        known_params={"loc": 0.0, "scale": float(tail.min())},
        statistic="ks",
        n_mc_samples=samples,
        rng=np.random.default_rng(seed),
    )
    return float(found.statistic), float(found.pvalue)


def fit_tail(tail: NDArray[np.float64], *, samples: int = SAMPLES, seed: int = 0) -> TailFit | None:
    """Fit the tail of a query's scores; None where it has fewer than `FEWEST`, or all are alike.

    Cost: `samples` fits of the power law, and a numerical one of each rival; 0.2 s for 50 scores.
    """
    if len(tail) < FEWEST or tail.min() == tail.max():
        return None
    law = fit_power_law(tail)
    likelihoods = stats.pareto.logpdf(tail, law.alpha - 1.0, scale=law.x_min)
    rivals = {name: _rival(kind, likelihoods, tail) for name, kind in RIVALS.items()}
    return TailFit(law, *goodness(tail, samples, seed), rivals)


def search_effort(law: PowerLaw, scanned: int, value: float, wanted: int = 10) -> Effort:
    """How many sequences hold `wanted` scores of at least `value`, by the tail of `scanned`.

    The interval is what α's standard error, twice in either direction, leaves open. `value` is
    meant to lie in the tail; below it, the tail's smallest stands in.
    """
    share = law.count / scanned

    def needed(alpha: float) -> float:
        above = stats.pareto.sf(max(value, law.x_min), max(alpha - 1.0, 1e-6), scale=law.x_min)
        return wanted / (share * float(above))

    alphas = (law.alpha + step * law.error for step in (0.0, -2.0, 2.0))
    return Effort(*map(needed, alphas))


def _rival(
    kind: stats.rv_continuous, likelihoods: NDArray[np.float64], tail: NDArray[np.float64]
) -> Rival:
    """`likelihoods` are the logarithms of the power law's densities."""
    # In units of its spread: the optimiser's first steps are of size one.
    scale = float(tail.std())
    moved = (tail - tail.min()) / scale
    # What lives above a bound does so from x_min on, as the power law; Gumbel's has none.
    bounded = kind.name not in ("gumbel_r", "genextreme")
    if bounded:
        # No density at the bound itself, where the smallest value lies.
        moved = np.maximum(moved, 1e-9)
    # The optimiser tries shapes at which densities are not numbers, and leaves them.
    with np.errstate(all="ignore"):
        parameters = kind.fit(moved, floc=0.0) if bounded else kind.fit(moved)
    ratio = likelihoods - (kind.logpdf(moved, *parameters) - math.log(scale))
    mean, spread = float(ratio.mean()), float(ratio.std())
    distance = stats.kstest(moved, kind.cdf, args=parameters).statistic
    certainty = math.erfc(abs(mean) * math.sqrt(len(tail) / 2.0) / spread) if spread else 1.0
    return Rival(float(distance), mean, certainty)
