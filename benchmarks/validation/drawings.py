"""The results section's figures."""

from __future__ import annotations

import statistics
from pathlib import Path

import measured
from measured import DEMO_NAMES, EKFAC, TITLES, Task

BAR, PALE, MARK = ("#2a6f97", "#c9ada7", "#b3261e")


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
                above.barh(height, task.pearson[truth][name][0], 0.6, color=BAR)
                values = [one for one in task.by_query[truth][name] if one is not None]
                above.plot(values, [height] * len(values), ".", color=MARK, markersize=3)
            if name in task.seconds:
                below.barh(height, max(task.seconds[name], 1e-3), 0.6, color=PALE)
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

    figure, (blocks, memory, ranks, noise) = pyplot.subplots(
        1, 4, figsize=(12, 3.2), layout="constrained", width_ratios=(3, 1.6, 3, 3)
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
    raw = measured.read("demo-blocks")
    if raw is not None:
        sizes = [raw["bytes"][str(count)]["eigenvectors"] / 2**20 for count in counts]
        memory.bar(list(map(str, counts)), sizes, color=PALE)
    memory.set(xlabel="diagonal blocks", ylabel="MiB of eigenvectors, demo", title="Figure 30")
    for title, rows in measured.ranked().items():
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
    raw = measured.read("demo-noise")
    noise.set_axis_off()
    if raw is not None:
        noise.set_axis_on()
        sizes = [row["sequences"] for row in raw["sizes"]]
        noise.plot(
            sizes, [measured.mean(row["between"]) for row in raw["sizes"]], "o-", label="mean"
        )
        noise.plot(
            sizes, [measured.least(row["between"]) for row in raw["sizes"]], "o-", label="worst"
        )
        noise.set(xscale="log", xlabel="sequences of a fit", title="Split halves, demo")
        noise.set_ylabel("Pearson of two fits' scores")
        noise.set_xticks(sizes, map(str, sizes))
        noise.minorticks_off()
    for axes in (blocks, ranks, noise):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_retraining(path: Path) -> None:
    """LDS by estimator, and the rise of a query's loss without its top paragraphs."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    rows = measured.lds()
    for place, row in enumerate(rows.values()):
        low, high = row["interval"]
        left.barh(place, row["mean"], 0.6, color=BAR)
        left.plot([low, high], [place, place], color=MARK, linewidth=1.2)
    names = [DEMO_NAMES.get(name, name).replace("`", "") for name in rows]
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    left.set(xlabel="LDS, mean and 95 %", title="Retrained on random halves", xlim=(0, 1))
    rises = measured.rises()
    for place, of in enumerate(rises.values()):
        for step, (size, values) in enumerate(of.items()):
            right.barh(
                place + 0.38 * (step - (len(of) - 1) / 2),
                statistics.fmean(values),
                0.34,
                xerr=statistics.stdev(values) / len(values) ** 0.5,
                ecolor=MARK,
                color=(BAR, PALE)[step % 2],
                label=None if place else f"without {size}",
            )
    right.set_yticks(range(len(rises)), [DEMO_NAMES.get(name, name) for name in rises])
    right.invert_yaxis()
    right.axvline(0, color="black", linewidth=0.6)
    right.set(xlabel="nats that a query's loss rises", title="Retrained without the top")
    if rises:
        right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
