"""The benchmark's results as Markdown tables, put into the README, and as one figure.

    python benchmarks/figure.py results... --readme README.md --figure benchmarks/bench.png

Every number is a median over rounds of ratios within one round (see `bench.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

KINDS = {
    "fit": "fit (against two passes)",
    "precondition, rank 32": "precondition, `--rank 32`",
    "precondition, full rank": "precondition, `--rank full`",
    "precondition": "precondition, default",
    "scan": "scan",
    "scan, token scores": "scan with token scores",
}
TOOLS = ("inflcli", "kronfluence", "bergson")
COLOURS = {"inflcli": "#2a6f97", "kronfluence": "#c9ada7", "bergson": "#9a8c98"}
BEGIN, END = "<!-- bench: written by benchmarks/figure.py -->", "<!-- /bench -->"


class Result:
    """One file of results; figures are [rounds] and combined round by round."""

    def __init__(self, path: Path) -> None:
        self.raw: dict[str, Any] = json.loads(path.read_text())
        self.name, self.jobs = self.raw["shape"], self.raw["jobs"]
        self.some = min(16, max(self.queries()))

    def queries(self) -> list[int]:
        labels = [label.split() for label in self.jobs if label.startswith("inflcli: scan")]
        return sorted({int(words[2]) for words in labels}) or [16]

    def seconds(self, label: str, part: str | None = None) -> list[float] | None:
        answers = self.jobs.get(label, [])
        if not answers or any("error" in answer for answer in answers):
            return None
        return [answer["parts"][part] if part else answer["seconds"] for answer in answers]

    def peak(self, label: str) -> int | None:
        """The largest of all rounds: memory that a process kept hides in later ones."""
        answers = self.jobs.get(label, [])
        if not answers or any("error" in answer for answer in answers):
            return None
        return max(answer["peak_bytes"] for answer in answers)

    def work(self, tool: str, kind: str) -> list[float] | None:
        """Seconds of a tool's part in one of KINDS."""
        if kind == "fit":
            return self.seconds(f"{tool}: fit")
        stage = "precondition" if kind.startswith("precondition") else "scan"
        of = kind.removeprefix(stage)
        if tool == "inflcli":
            return self.seconds(f"inflcli: {stage} {self.some} queries{of}")
        if of == ", rank 32" and tool == "bergson" or of == ", full rank" and tool != "bergson":
            return None
        tokens = of if of == ", token scores" else ""
        return self.seconds(f"{tool}: score {self.some} queries{tokens}", stage)

    def usual(self, kind: str) -> list[float] | None:
        """Seconds of kronfluence as its examples and defaults have it, which is not its fastest."""
        labels = {
            "fit": "fit with its examples' sampling",
            "scan, token scores": f"score {self.some} queries, token scores, full rank",
        }
        if kind not in labels:
            return None
        part = None if kind == "fit" else "scan"
        return self.seconds(f"kronfluence: {labels[kind]}", part)

    def plain(self, kind: str) -> list[float]:
        """Seconds of the activations-only passes that a kind of work is measured by."""
        once = self.seconds("plain: plain activations") or []
        return [2 * value for value in once] if kind == "fit" else once


def ratio(above: list[float] | None, below: list[float] | None) -> float | None:
    if not above or not below:
        return None
    # What was done once stands against the same round of the other.
    return statistics.median(a / b for a, b in zip(above, below, strict=False))


def shown(value: float | None, unit: str = "×") -> str:
    return "–" if value is None else f"{value:.2f}{unit}"


def kinds_table(results: list[Result]) -> list[str]:
    """What each kind of work costs in plain passes, and how the peers compare."""
    lines = [
        "| model | work | inflcli, in plain passes | kronfluence / inflcli | bergson / inflcli |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for kind, name in KINDS.items():
            ours = result.work("inflcli", kind)
            if ours is None:
                continue
            costs = shown(ratio(ours, result.plain(kind)))
            if kind.startswith("precondition"):
                costs = f"{statistics.median(ours):.1f} s"
            peers = [shown(ratio(result.work(tool, kind), ours)) for tool in TOOLS[1:]]
            usual = result.usual(kind)
            if usual:
                peers[0] += f" ({shown(ratio(usual, ours))})"
            lines.append(f"| {result.name} | {name} | {costs} | {' | '.join(peers)} |")
    return lines


def scans_table(results: list[Result]) -> list[str]:
    """Scans by number of queries: cost, agreement with full rank, bytes."""
    lines = [
        "| model | scan of | in plain passes | Pearson with full rank, min / mean "
        "| peak memory over the plain pass's | queries on disk |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        plain, memory = result.plain("scan"), result.peak("plain: plain activations")
        for label, answers in result.jobs.items():
            if not label.startswith("inflcli: scan") or "token" in label:
                continue
            what = label.removeprefix("inflcli: scan ")
            found = result.raw["agreement"].get(label)
            agrees = f"{found['min']:.4f} / {found['mean']:.4f}" if found else "–"
            before = f"inflcli: precondition {what}"
            disk = result.jobs.get(before, [{}])[0].get("disk_bytes")
            stored = "" if disk is None else f"{disk / 2**20:.0f} MiB"
            peak = result.peak(label)
            more = "–" if peak is None or memory is None else f"{(peak - memory) / 2**20:+.0f} MiB"
            routes = " ".join(f"{route} {n}" for route, n in answers[0].get("routes", {}).items())
            cost = shown(ratio(result.seconds(label), plain))
            lines.append(
                f"| {result.name} | {what} ({routes}) | {cost} | {agrees} | {more} | {stored} |"
            )
    return lines


def draw(results: list[Result], path: Path) -> None:
    """Cost of each kind of work in plain passes, by tool; one panel a model, four in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = min(4, len(results))
    down = -(-len(results) // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(3.2 * across, 3.2 * down), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, result in zip(axes.flat, results, strict=False):
        kinds = [k for k in ("fit", "scan", "scan, token scores") if result.work("inflcli", k)]
        for place, tool in enumerate(TOOLS):
            values = [ratio(result.work(tool, kind), result.plain(kind)) or 0 for kind in kinds]
            spots = [index + (place - 1) * 0.27 for index in range(len(kinds))]
            bars = axis.bar(spots, values, 0.25, color=COLOURS[tool], label=tool)
            axis.bar_label(bars, [f"{v:.1f}" if v else "" for v in values], fontsize=7)
        axis.axhline(1, color="#444", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(kinds)), [k.split(", ")[-1] for k in kinds], fontsize=8)
        axis.set_title(result.name, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", labelsize=7)
    figure.supylabel("time, in plain passes (fit: in two)", fontsize=8)
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


def draw_curves(paths: list[Path], target: Path) -> None:
    """1 - Pearson, worst and mean query, against bytes a query; one panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(paths), figsize=(4.2 * len(paths), 3.2), squeeze=False, layout="constrained"
    )
    for axis, path in zip(axes[0], paths, strict=True):
        rows = [row for row in json.loads(path.read_text())["rows"] if not row["max_rank"]]
        for key, label, colour in (
            ("rank", "one rank (--rank)", "#9a8c98"),
            ("keep", "allocated (--keep)", "#2a6f97"),
        ):
            chosen = [row for row in rows if row[key] is not None]
            sizes = [row["bytes_a_query"] / 1e6 for row in chosen]
            for which, line in (("min", "-"), ("mean", ":")):
                lost = [1 - row[f"pearson_{which}"] for row in chosen]
                name = f"{label}, {'worst query' if which == 'min' else 'mean'}"
                axis.plot(sizes, lost, line, marker="o", ms=3, color=colour, label=name)
            for row, size in zip(chosen, sizes, strict=True):
                spot = (size, 1 - row["pearson_min"])
                axis.annotate(f"{row[key]:g}", spot, (2, 3), textcoords="offset points", fontsize=6)
        axis.axhline(0.01, color="#444", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", yscale="log", xlabel="MB a query")
        axis.set_title(path.stem.removeprefix("rank-"), fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("1 − Pearson with full rank")
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(target, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a figure of the benchmark's results.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="of rank_curves.py")
    parser.add_argument("--curves-figure", type=Path)
    options = parser.parse_args()
    if options.curves:
        draw_curves(options.curves, options.curves_figure)
    results = [Result(path) for path in options.results]
    text = "\n".join([*kinds_table(results), "", *scans_table(results)])
    print(text)
    if options.readme:
        whole = options.readme.read_text()
        head, rest = whole.split(BEGIN)
        tail = rest.split(END)[1]
        options.readme.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
