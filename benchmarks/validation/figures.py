"""The paper's accuracy claims at our scale: a table with a verdict on each, and the figures.

    python benchmarks/validation/figures.py --readme README.md

Reads what lies in `results/` (`small.py`, `demo.py`, `retraining.py` write it) and leaves out what
does not. A verdict follows from the figures by the rule beside it in `claims`, which was written
down before any of them was known; what has no results is not tested.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = (
    "<!-- validation: written by benchmarks/validation/figures.py -->",
    "<!-- /validation -->",
)
SMALL = {
    "diabetes": "Diabetes",
    "friedman": "Friedman #1",
    "digits": "Digits",
    "digits-wide": "Digits, 256 wide",
}
RANKED = {"demo": "Demo model", "smollm2": "SmolLM2-135M"}
"""Of rank_curves.py's results."""
DEMO = ("exact", "pbrf")
"""Parts of demo.py that hold estimators against a ground truth."""
EKFAC, GRADIENT, LISSA, KFAC = "EK-FAC", "gradient dot", "LiSSA", "K-FAC"
SHAMPOO, REFINED = "EC-Shampoo", "EK-FAC, refined"
DEMO_NAMES = {
    "gradient": GRADIENT,
    "cosine": "gradient cosine",
    "lissa": LISSA,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "ec-shampoo": SHAMPOO,
    "refined": REFINED,
    "cg": "sampled Gauss-Newton",
    "ekfac-auto": "EK-FAC, `--damping auto`",
    "states-the-fact": "whether it states the fact",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    **{f"blocks-{count}": f"EK-FAC, {count} blocks" for count in (2, 4, 8)},
}
TITLES = {"pbrf": "the PBRF", "exact": "the exact solve"}
NOISE = 0.01
"""Of two mean correlations, what counts as the same."""


@dataclass(frozen=True)
class Task:
    """One problem's estimators: mean and worst Pearson by ground truth, and seconds."""

    name: str
    title: str
    pearson: dict[str, dict[str, tuple[float, float]]]
    """By truth (pbrf, exact) and estimator: mean and least over queries."""
    by_query: dict[str, dict[str, list[float]]]
    seconds: dict[str, float]
    queries: int
    points: int

    @property
    def truth(self) -> str:
        """What it is judged by: the PBRF where there is one."""
        return "pbrf" if self.pearson["pbrf"] else "exact"


def tasks() -> list[Task]:
    found = []
    for name, title in SMALL.items():
        raw = _read(name)
        if raw is not None:
            found.append(_small(name, title, raw))
    for part in DEMO:
        raw = _read(f"demo-{part}")
        if raw is not None:
            found.append(_demo(part, f"Demo model ({raw['fitted']} sequences)", raw))
    return found


def _small(name: str, title: str, raw: dict[str, Any]) -> Task:
    pearson: dict[str, dict[str, tuple[float, float]]] = {"pbrf": {}, "exact": {}}
    by_query: dict[str, dict[str, list[float]]] = {"pbrf": {}, "exact": {}}
    seconds = {}
    for row in raw["estimators"]:
        estimator = REFINED if row["name"] == "EK-FAC + 10 CG steps" else row["name"]
        for truth in pearson:
            one = row[truth]
            pearson[truth][estimator] = one["pearson_mean"], one["pearson_min"]
            by_query[truth][estimator] = one["pearson"]
        seconds[estimator] = statistics.median(row["totals"])
    queries = len(by_query["pbrf"][EKFAC])
    return Task(name, title, pearson, by_query, seconds, queries, raw["problem"].get("points", 0))


def _demo(part: str, title: str, raw: dict[str, Any]) -> Task:
    pearson: dict[str, dict[str, tuple[float, float]]] = {"pbrf": {}, "exact": {}}
    by_query: dict[str, dict[str, list[float]]] = {"pbrf": {}, "exact": {}}
    for name, row in raw["estimators"].items():
        for truth, key in (("pbrf", "pbrf"), ("exact", "ggn")):
            one = row["against"].get(key)
            if one is not None:
                found = one["pearson"]
                pearson[truth][DEMO_NAMES[name]] = found["mean"], found["min"]
                by_query[truth][DEMO_NAMES[name]] = found["by_query"]
    seconds = {
        DEMO_NAMES[name]: sum(row["seconds"].values()) for name, row in raw["estimators"].items()
    }
    queries, points = len(raw["queries"]), len(raw["points"])
    return Task(part, title, pearson, by_query, seconds, queries, points)


def _read(name: str) -> dict[str, Any] | None:
    path = HERE / "results" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


# ---- claims ---------------------------------------------------------------------------------

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


def _lds() -> dict[str, dict[str, Any]]:
    """By estimator, in the order of its mean."""
    raw = _read("lds-demo")
    rows: dict[str, dict[str, Any]] = {} if raw is None else raw.get("lds", {}).get("lds", {})
    return dict(sorted(rows.items(), key=lambda row: -row[1]["mean"]))


def _lds_order(names: Sequence[str], sign: str) -> Verdict:
    rows = _lds()
    if not set(names) <= set(rows):
        return "", []
    values = [rows[name]["mean"] for name in names]
    text = f" {sign} ".join(
        f"{name} {value:.3f}" for name, value in zip(names, values, strict=True)
    )
    return text, [all(one >= other - NOISE for one, other in pairwise(values))]


def _removal() -> Verdict:
    """Of the largest number of paragraphs that were left out."""
    rises = _rises()
    if "ekfac" not in rises:
        return "", []
    size = max(rises["ekfac"])
    means = {name: statistics.fmean(found[size]) for name, found in rises.items()}
    text = ", ".join(f"{name} {mean:+.2f}" for name, mean in means.items())
    others = [means[name] for name in ("gradient", "random") if name in means]
    return f"{text} nats without {size}", [all(means["ekfac"] > one for one in others)]


def _rises() -> dict[str, dict[int, list[float]]]:
    """Rises of the queries' losses by estimator and size, of random paragraphs last."""
    raw = _read("lds-demo")
    rises = [] if raw is None else raw.get("topk", {}).get("rises", [])
    found: dict[str, dict[int, list[float]]] = {}
    for one in rises:
        found.setdefault(one["estimator"], {}).setdefault(one["size"], []).append(one["rise"])
    for one in rises:
        if one["estimator"] == rises[0]["estimator"]:  # the same with every estimator
            random = found.setdefault("random", {})
            random.setdefault(one["size"], []).append(one["random_mean"])
    return found


def _ranked() -> dict[str, list[tuple[int, float, float]]]:
    """By title: rank, and mean and least Pearson with full rank's scores over queries."""
    found = {}
    for name, title in SMALL.items():
        raw = _read(name)
        rows = [] if raw is None else [(row["rank"], row.get("full_rank")) for row in raw["ranks"]]
        kept = [(rank, of["pearson_mean"], of["pearson_min"]) for rank, of in rows if of]
        if kept:
            found[title] = kept
    for name, title in RANKED.items():
        path = HERE.parent / "results" / f"rank-{name}.json"
        if path.is_file():
            found[title] = [
                (row["rank"], row["pearson_mean"], row["pearson_min"])
                for row in json.loads(path.read_text())["rows"]
                if row["rank"] is not None
            ]
    return found


def _low_rank(rank: int, bar: float) -> Verdict:
    least = {title: one[2] for title, rows in _ranked().items() for one in rows if one[0] == rank}
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


def table(found: list[Task]) -> list[str]:
    lines = [
        "| claim | of | found | |",
        "| --- | --- | --- | --- |",
    ]
    for claim, source, (text, held) in claims(found):
        lines.append(f"| {claim} | {source} | {text or '–'} | {_word(held)} |")
    heads = [f"{task.title}, {TITLES[task.truth]}" for task in found]
    lines += ["", f"| Pearson, mean (worst query) | {' | '.join(heads)} |"]
    lines.append("| --- |" + " --- |" * len(found))
    for name in list(dict.fromkeys(name for task in found for name in task.seconds)):
        cells = [task.pearson[task.truth].get(name) for task in found]
        shown = [f"{one[0]:.3f} ({one[1]:.3f})" if one else "–" for one in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines.append("| points scored | " + " | ".join(str(task.points) for task in found) + " |")
    return [
        *lines,
        *_lds_table(),
        *_removal_table(),
        *_noise_table(),
        *_blocks_table(),
        *_labels_table(),
    ]


def _word(held: list[bool]) -> str:
    if not held:
        return "not tested"
    if all(held):
        return "reproduced"
    return "**not reproduced**" + (f" (in {sum(held)} of {len(held)})" if any(held) else "")


def _lds_table() -> list[str]:
    rows = _lds()
    if not rows:
        return []
    lines = ["", "| demo, retrained on halves | LDS | 95 % | EK-FAC better by | 95 % |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        less = row.get("ekfac_minus_this")
        more = (f"{less['mean']:+.3f}", _span(less["interval"])) if less else ("", "")
        lines.append(
            f"| {DEMO_NAMES.get(name, name)} | {row['mean']:.3f} | {_span(row['interval'])} "
            f"| {more[0]} | {more[1]} |"
        )
    return lines


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _removal_table() -> list[str]:
    """Means over queries, and their standard errors."""
    rises = _rises()
    if not rises:
        return []
    sizes = list(next(iter(rises.values())))
    count = len(next(iter(rises.values()))[sizes[0]])
    rows = {DEMO_NAMES.get(name, f"{name} ones"): of for name, of in rises.items()}
    for other in ("gradient", "refined"):
        if "ekfac" in rises and other in rises:
            less = {s: [a - b for a, b in zip(rises["ekfac"][s], rises[other][s], strict=True)]
                    for s in sizes}  # fmt: skip
            rows[f"EK-FAC less {DEMO_NAMES[other]}"] = less
    heads = [f"demo: rise of {count} queries' loss, nats"]
    heads += [f"without the top {size}" for size in sizes]
    lines = ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, of in rows.items():
        cells = [
            f"{statistics.fmean(of[s]):+.1f} ± {statistics.stdev(of[s]) / len(of[s]) ** 0.5:.1f}"
            for s in sizes
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _noise_table() -> list[str]:
    raw = _read("demo-noise")
    if raw is None:
        return []
    heads = ["demo: sequences of a fit", "scores of two fits, Pearson, mean (worst)"]
    heads += ["with the other half's largest fit", "log Λ of a fit's halves", "covariances' cosine"]
    lines = ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in raw["sizes"]:
        cells = [f"{row['sequences']:,}"]
        cells += [
            f"{_mean(row[which]):.3f} ({_least(row[which]):.3f})"
            for which in ("between", "with_largest")
        ]
        cells += [
            f"{statistics.fmean(fit[which]['median'] for fit in row['factors']):.3f}"
            for which in ("corrected", "covariances")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _blocks_table() -> list[str]:
    raw = _read("demo-blocks")
    if raw is None:
        return []
    sizes = {count: of["eigenvectors"] / 2**20 for count, of in raw["bytes"].items()}
    lines = [
        "",
        "| demo: blocks O | " + " | ".join(sizes) + " |",
        "| --- |" + " --- |" * len(sizes),
    ]
    cells = (f"{size:.1f} MiB" for size in sizes.values())
    return [*lines, f"| eigenvectors | {' | '.join(cells)} |"]


def _labels_table() -> list[str]:
    raw = _read("demo-labels")
    if raw is None:
        return []
    rows = raw["label_samples"]
    cells = [f"{_mean(row['pearson']):.3f} ({_least(row['pearson']):.3f})" for row in rows]
    return [
        "",
        "| demo: label samples of a sequence | "
        + " | ".join(str(row["samples"]) for row in rows)
        + " |",
        "| --- |" + " --- |" * len(rows),
        f"| EK-FAC's Pearson with the exact solve, mean (worst) | {' | '.join(cells)} |",
    ]


# ---- figures --------------------------------------------------------------------------------


def draw_correlations(found: list[Task], path: Path) -> None:
    """Figure 6 (above) and Figure 7 (below), three tasks side by side."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for task in found for name in task.seconds))
    across = min(3, len(found))
    down = -(-len(found) // across)
    figure, axes = pyplot.subplots(
        2 * down, across, figsize=(3 * across + 1.8, 5.4 * down), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for one in axes.flat:
        one.set_axis_off()
    for place, task in enumerate(found):
        row, column = divmod(place, across)
        truth = task.truth
        above, below = axes[2 * row][column], axes[2 * row + 1][column]
        for height, name in enumerate(names):
            if name in task.pearson[truth]:
                above.barh(height, task.pearson[truth][name][0], 0.6, color="#2a6f97")
                values = [one for one in task.by_query[truth][name] if one is not None]
                above.plot(values, [height] * len(values), ".", color="#b3261e", markersize=3)
            if name in task.seconds:
                below.barh(height, max(task.seconds[name], 1e-3), 0.6, color="#c9ada7")
        above.set(title=task.title, xlabel=f"Pearson with {TITLES[truth]}")
        above.axvline(0, color="black", linewidth=0.6)
        below.set(xscale="log", xlabel=f"seconds, {task.queries} measurements")
        for one in (above, below):
            one.set_axis_on()
    for row_of in axes:
        row_of[0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_costs(found: list[Task], path: Path) -> None:
    """Figure 30, Figure 3, and split-half noise against the size of a fit."""
    from matplotlib import pyplot

    figure, (blocks, ranks, noise) = pyplot.subplots(
        1, 3, figsize=(10.5, 3.2), layout="constrained"
    )
    counts = (1, 2, 4, 8)
    for task in found:
        truth = task.truth
        names = [EKFAC, *(f"EK-FAC, {count} blocks" for count in counts[1:])]
        values = [task.pearson[truth].get(name, (None,))[0] for name in names]
        if None not in values:
            blocks.plot(counts, values, "o-", label=task.title)
    blocks.set(xlabel="diagonal blocks", ylabel="Pearson, mean", xscale="log", title="Figure 30")
    blocks.set_xticks(counts, map(str, counts))
    blocks.minorticks_off()
    for title, rows in _ranked().items():
        # Full rank leaves rounding only.
        left = [(rank, 1 - mean) for rank, mean, _ in rows if 1 - mean > 1e-9]
        ranks.plot(*zip(*left, strict=True), "o-", label=title)
    ranks.set(xlabel="rank of a query", xscale="log", yscale="log", title="Figure 3")
    ranks.set_ylabel("1 - Pearson with full rank, mean")
    steps = (1, 2, 4, 8, 16, 32, 64)
    ranks.set_xticks(steps, map(str, steps))
    ranks.minorticks_off()
    blocks.set_ylim(0, 1.45)  # with room for the legend
    blocks.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    raw = _read("demo-noise")
    noise.set_axis_off()
    if raw is not None:
        noise.set_axis_on()
        sizes = [row["sequences"] for row in raw["sizes"]]
        noise.plot(sizes, [_mean(row["between"]) for row in raw["sizes"]], "o-", label="mean")
        noise.plot(sizes, [_least(row["between"]) for row in raw["sizes"]], "o-", label="worst")
        noise.set(xscale="log", xlabel="sequences of a fit", title="Split halves, demo")
        noise.set_ylabel("Pearson of two fits' scores")
        noise.set_xticks(sizes, map(str, sizes))
        noise.minorticks_off()
    for axes in (blocks, ranks, noise):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _mean(values: list[float | None]) -> float:
    return statistics.fmean(one for one in values if one is not None)


def _least(values: list[float | None]) -> float:
    return min(one for one in values if one is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--readme", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    found = tasks()
    lines = table(found)
    print("\n".join(lines))
    draw_correlations(found, HERE / "correlations.png")
    draw_costs(found, HERE / "costs.png")
    text = options.readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    inside = "\n".join([BEGIN, "", *lines, "", END])
    options.readme.write_text(before + inside + after)


if __name__ == "__main__":
    main()
