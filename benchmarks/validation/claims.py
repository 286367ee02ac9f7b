"""The paper's accuracy claims and ours, each with the rule by which it is judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import measured
from measured import EKFAC, GRADIENT, LISSA, REFINED, Task

NOISE = 0.01
"""Of two mean correlations, what counts as the same."""

Verdict = tuple[str, list[bool]]
"""What was found, and whether the claim held for each of the problems that it was asked of."""


def _over_tasks(found: list[Task], judge: Callable[[Task], tuple[str, bool] | None]) -> Verdict:
    rows = [(task.title, judge(task)) for task in found]
    known = [(title, one) for title, one in rows if one is not None]
    text = "; ".join(f"{title} {one[0]}" for title, one in known)
    return text, [one[1] for _, one in known]


def _pair(first: str, second: str, truth: str, margin: float) -> Callable[[Task], Any]:
    """Whether the first's mean Pearson is at least the second's and `margin` more."""

    def judge(task: Task) -> tuple[str, bool] | None:
        values = task.pearson[truth]
        if first not in values or second not in values:
            return None
        one, other = values[first][0], values[second][0]
        return f"{one:.3f} / {other:.3f}", one >= other + margin

    return judge


def _faster(task: Task) -> tuple[str, bool] | None:
    if EKFAC not in task.seconds or LISSA not in task.seconds:
        return None
    ours, theirs = task.seconds[EKFAC], task.seconds[LISSA]
    return f"{ours:.2f} / {theirs:.2f} s ({theirs / ours:.0f}×)", theirs >= 10 * ours


def _blocks(task: Task) -> tuple[str, bool] | None:
    truth = task.truth
    names = [EKFAC, *(f"EK-FAC, {count} blocks" for count in (2, 4, 8))]
    values = [task.pearson[truth][name][0] for name in names if name in task.pearson[truth]]
    if len(values) < 4:
        return None
    return " / ".join(f"{one:.3f}" for one in values), values[0] - values[-1] <= 0.05


def _bar(name: str, bar: float) -> Callable[[Task], Any]:
    def judge(task: Task) -> tuple[str, bool] | None:
        values = task.pearson["exact"]
        if name not in values or task.name != "exact":
            return None
        return f"{values[name][0]:.3f}", values[name][0] >= bar

    return judge


def _lds_order(names: Sequence[str], sign: str) -> Verdict:
    rows = measured.lds()
    if not set(names) <= set(rows):
        return "", []
    values = [rows[name]["mean"] for name in names]
    text = f" {sign} ".join(
        f"{name} {value:.3f}" for name, value in zip(names, values, strict=True)
    )
    return text, [all(one >= other - NOISE for one, other in pairwise(values))]


def _removal() -> Verdict:
    """Of the largest number of paragraphs that were left out."""
    rises = measured.rises()
    if "ekfac" not in rises:
        return "", []
    size = max(rises["ekfac"])
    means = {name: statistics.fmean(found[size]) for name, found in rises.items()}
    text = ", ".join(f"{name} {mean:+.2f}" for name, mean in means.items())
    others = [means[name] for name in ("gradient", "random") if name in means]
    return f"{text} nats without {size}", [all(means["ekfac"] > one for one in others)]


def _low_rank(rank: int, bar: float) -> Verdict:
    least = {
        title: one[2] for title, rows in measured.ranked().items() for one in rows if one[0] == rank
    }
    text = "; ".join(f"{title} {value:.4f}" for title, value in least.items())
    return text, [value >= bar for value in least.values()]


def claims(found: list[Task]) -> Iterator[tuple[str, str, Verdict]]:
    """What was claimed, by which figure or bar, and what came out."""
    yield (
        "EK-FAC is nearer to the PBRF than the gradient dot product, by 0.05",
        "Figure 6",
        _over_tasks(found, _pair(EKFAC, GRADIENT, "pbrf", 0.05)),
    )
    yield (
        f"EK-FAC is as near to the PBRF as LiSSA, within {NOISE}",
        "Figure 6",
        _over_tasks(found, _pair(EKFAC, LISSA, "pbrf", -NOISE)),
    )
    yield (
        "ten measurements by EK-FAC take a tenth of LiSSA's time, fitting included",
        "Figure 7",
        _over_tasks(found, _faster),
    )
    yield (
        "eight diagonal blocks lose at most 0.05 (O = 1 / 2 / 4 / 8)",
        "Figure 30",
        _over_tasks(found, _blocks),
    )
    yield (
        "queries of rank 32 score as those of full rank: Pearson 0.99, the worst query's",
        "Figure 3",
        _low_rank(32, 0.99),
    )
    yield (
        "EK-FAC's Pearson with the exact solve is 0.9 on the demo",
        "ours",
        _over_tasks(found, _bar(EKFAC, 0.9)),
    )
    yield (
        "refined EK-FAC's is 0.99",
        "ours",
        _over_tasks(found, _bar(REFINED, 0.99)),
    )
    yield (
        "LDS: refined ≥ EC-Shampoo ≥ EK-FAC ≥ K-FAC ≥ gradient dot product",
        "ours",
        _lds_order(("refined", "ec-shampoo", "ekfac", "kfac", "gradient"), "≥"),
    )
    yield (
        "LDS: EK-FAC with `--damping auto` is as good as with 0.1 of the mean",
        "ours",
        _lds_order(("ekfac-auto", "ekfac"), "/"),
    )
    yield (
        "a query's loss rises more without EK-FAC's top paragraphs than the gradient's, or random",
        "ours",
        _removal(),
    )
