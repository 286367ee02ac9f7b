"""The results section's tables, as lines of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import measured
from claims import claims
from measured import DEMO_NAMES, TITLES, Task


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
    rows = measured.lds()
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
    lines = ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, of in rows.items():
        cells = [
            f"{statistics.fmean(of[s]):+.1f} ± {statistics.stdev(of[s]) / len(of[s]) ** 0.5:.1f}"
            for s in sizes
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _noise_table() -> list[str]:
    raw = measured.read("demo-noise")
    if raw is None:
        return []
    heads = ["demo: sequences of a fit", "scores of two fits, Pearson, mean (worst)"]
    heads += ["with the other half's largest fit", "log Λ of a fit's halves", "covariances' cosine"]
    lines = ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in raw["sizes"]:
        cells = [f"{row['sequences']:,}"]
        cells += [
            f"{measured.mean(row[which]):.3f} ({measured.least(row[which]):.3f})"
            for which in ("between", "with_largest")
        ]
        cells += [
            f"{statistics.fmean(fit[which]['median'] for fit in row['factors']):.3f}"
            for which in ("corrected", "covariances")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _blocks_table() -> list[str]:
    raw = measured.read("demo-blocks")
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
    raw = measured.read("demo-labels")
    if raw is None:
        return []
    rows = raw["label_samples"]
    cells = [
        f"{measured.mean(row['pearson']):.3f} ({measured.least(row['pearson']):.3f})"
        for row in rows
    ]
    return [
        "",
        "| demo: label samples of a sequence | "
        + " | ".join(str(row["samples"]) for row in rows)
        + " |",
        "| --- |" + " --- |" * len(rows),
        f"| EK-FAC's Pearson with the exact solve, mean (worst) | {' | '.join(cells)} |",
    ]
