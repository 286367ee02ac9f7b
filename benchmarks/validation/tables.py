"""The results section's tables, as lines of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import measured
from claims import claims
from measured import DEMO_NAMES, TITLES, Task


def table(found: list[Task]) -> list[str]:
    """All of them, each after an empty line but the first."""
    judged = [
        [claim, source, text or "–", _word(held)] for claim, source, (text, held) in claims(found)
    ]
    lines = [
        *_markdown(["claim", "of", "found", ""], judged),
        *_correlations(found),
        *_lds_table(),
        *_removal_table(),
        *_noise_table(),
        *_blocks_table(),
        *_labels_table(),
    ]
    return lines[1:]


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    written = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return ["", written[0], "|" + " --- |" * len(heads), *written[1:]]


def _correlations(found: list[Task]) -> list[str]:
    heads = [f"{task.title}, {TITLES[task.truth]}" for task in found]
    rows = []
    for name in list(dict.fromkeys(name for task in found for name in task.seconds)):
        cells = [task.pearson[task.truth].get(name) for task in found]
        rows.append([name, *(f"{one[0]:.3f} ({one[1]:.3f})" if one else "–" for one in cells)])
    rows.append(["points scored", *(str(task.points) for task in found)])
    return _markdown(["Pearson, mean (worst query)", *heads], rows)


def _word(held: list[bool]) -> str:
    if not held:
        return "not tested"
    if all(held):
        return "reproduced"
    return "**not reproduced**" + (f" (in {sum(held)} of {len(held)})" if any(held) else "")


def _lds_table() -> list[str]:
    rows = []
    for name, row in measured.lds().items():
        less = row.get("ekfac_minus_this")
        more = (f"{less['mean']:+.3f}", _span(less["interval"])) if less else ("", "")
        title = DEMO_NAMES.get(name, name)
        rows.append([title, f"{row['mean']:.3f}", _span(row["interval"]), *more])
    heads = ["demo, retrained on halves", "LDS", "95 %", "EK-FAC better by", "95 %"]
    return _markdown(heads, rows) if rows else []


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _removal_table() -> list[str]:
    """Means over queries, and their standard errors."""
    rises = measured.rises()
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
    cells = [
        [
            f"{statistics.fmean(of[s]):+.1f} ± {statistics.stdev(of[s]) / len(of[s]) ** 0.5:.1f}"
            for s in sizes
        ]
        for of in rows.values()
    ]
    return _markdown(heads, [[name, *row] for name, row in zip(rows, cells, strict=True)])


def _noise_table() -> list[str]:
    raw = measured.read("demo-noise")
    if raw is None:
        return []
    heads = ["demo: sequences of a fit", "scores of two fits, Pearson, mean (worst)"]
    heads += ["with the other half's largest fit", "log Λ of a fit's halves", "covariances' cosine"]
    rows = [
        [
            f"{row['sequences']:,}",
            *(_spread(row[which]) for which in ("between", "with_largest")),
            *(
                f"{statistics.fmean(fit[which]['median'] for fit in row['factors']):.3f}"
                for which in ("corrected", "covariances")
            ),
        ]
        for row in raw["sizes"]
    ]
    return _markdown(heads, rows)


def _spread(values: list[float | None]) -> str:
    return f"{measured.mean(values):.3f} ({measured.least(values):.3f})"


def _blocks_table() -> list[str]:
    raw = measured.read("demo-blocks")
    if raw is None:
        return []
    sizes = {count: of["eigenvectors"] / 2**20 for count, of in raw["bytes"].items()}
    cells = (f"{size:.1f} MiB" for size in sizes.values())
    return _markdown(["demo: blocks O", *sizes], [["eigenvectors", *cells]])


def _labels_table() -> list[str]:
    raw = measured.read("demo-labels")
    if raw is None:
        return []
    rows = raw["label_samples"]
    heads = ["demo: label samples of a sequence", *(str(row["samples"]) for row in rows)]
    cells = (_spread(row["pearson"]) for row in rows)
    return _markdown(heads, [["EK-FAC's Pearson with the exact solve, mean (worst)", *cells]])
