"""Removing what an estimator calls most influential, and training again.

A query's loss is its negative log p. It should rise by more without the k points that raise its log
p most, by an estimator's scores, than without k random ones. Random sets are the same for all
queries, smaller ones are parts of larger ones, and sets that estimators share are trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inflcli.validation.bank import Bank, Progress, Wanted
from inflcli.validation.points import Ids
from inflcli.validation.retraining import Recipe

RANDOM = "random"


@dataclass(frozen=True)
class Removal:
    """A set of points to leave out."""

    estimator: str
    """`random` for a random set."""
    query: int | None
    """None for a random set, which serves all."""
    size: int
    removed: tuple[int, ...]
    """Sorted."""


def plan_removals(
    scores: Mapping[str, NDArray[np.floating]],
    queries: Sequence[int],
    sizes: Sequence[int],
    *,
    draws: int = 3,
    seed: int = 0,
) -> list[Removal]:
    """The sets to leave out: of each of `queries` the points of the k highest of an estimator's
    scores [K, N], for each k of `sizes`, and `draws` random sets of each size.

    Raises ValueError for scores of different shapes, sizes that leave nothing, fewer than two draws
    (there is no deviation then), and an estimator called `random`.
    """
    shapes = {values.shape for values in scores.values()}
    if len(shapes) != 1 or RANDOM in scores:
        raise ValueError(f"scores of shapes {shapes} by {', '.join(scores) or 'no estimator'}")
    ((_, points),) = shapes
    if not sizes or not 0 < min(sizes) <= max(sizes) < points:
        raise ValueError(f"sizes {list(sizes)} are not all within 1 and {points - 1}")
    if draws < 2:
        raise ValueError("the deviation of random sets takes two draws at least")
    plan = []
    for draw in range(draws):
        order = np.random.default_rng((seed, draw)).permutation(points)
        plan += [Removal(RANDOM, None, size, _sorted(order[:size])) for size in sizes]
    for name, values in scores.items():
        for query in queries:
            order = np.argsort(-values[query], kind="stable")
            plan += [Removal(name, query, size, _sorted(order[:size])) for size in sizes]
    return plan


@dataclass(frozen=True)
class Rise:
    """By how much a query's loss rises without an estimator's top k points, nats."""

    estimator: str
    query: int
    size: int
    rise: float
    random_mean: float
    """Of the same query's rise without as many random points, over draws."""
    random_deviation: float
    """Standard deviation over draws."""


def wanted_models(points: int, plan: Sequence[Removal], recipes: Sequence[Recipe]) -> list[Wanted]:
    """The members that `measure_removals` needs: for each recipe all points, then each set's."""
    every = np.arange(points)
    kept = [every, *(np.delete(every, one.removed) for one in plan)]
    return [(ids, recipe) for recipe in recipes for ids in kept]


def measure_removals(
    bank: Bank,
    plan: Sequence[Removal],
    recipes: Sequence[Recipe],
    progress: Callable[[Progress], None] | None = None,
) -> list[Rise]:
    """The rise of every query and estimator of the plan, the mean over `recipes` (several seeds).

    Trains what the bank lacks. Cost: a model for each distinct set and recipe.
    """
    wanted = wanted_models(len(bank.data), plan, recipes)
    found = np.array([one.queries for one in bank.fill(wanted, progress)])
    by_recipe = found.reshape(len(recipes), 1 + len(plan), -1)
    rises = (by_recipe[:, :1] - by_recipe[:, 1:]).mean(0)  # [sets, K]
    random = {
        size: rises[[one.estimator == RANDOM and one.size == size for one in plan]]
        for size in {one.size for one in plan}
    }
    return [
        Rise(
            one.estimator, one.query, one.size, float(rise[one.query]),
            float(random[one.size][:, one.query].mean()),
            float(random[one.size][:, one.query].std(ddof=1)),
        )
        for one, rise in zip(plan, rises, strict=True)
        if one.query is not None
    ]  # fmt: skip


def _sorted(ids: Ids) -> tuple[int, ...]:
    return tuple(sorted(int(one) for one in ids))
