"""The benchmark's results: what was meant and what was found, all tables, and one figure.

    python benchmarks/figure.py --readme README.md --tables benchmarks/RESULTS.md \\
      --figure benchmarks/bench.png

Every number is a median over rounds of ratios within one round (see `bench.py`). Reads what lies in
`results/`, of each kind of device apart.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shapes import SHAPES

HERE = Path(__file__).parent
DEVICES = {
    "cpu": "a processor with matrix units (AMX)",
    "cpu-without-amx": "a processor without matrix units (AVX-512)",
    "cuda": "a GPU",
}
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
        self.device = path.stem.removeprefix(f"{self.name}-")

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


Row = tuple[str, str, str]
"""What was measured, the bar, what was found."""


def bars(results: dict[str, Result]) -> Iterator[Row]:
    """What was meant and what was found, of one kind of device, as far as it was measured."""
    small = results["llama-256x4"]
    wide = results.get("llama-576x12", results.get("llama-576x12-part"))
    widest = results.get("llama-2048x1", results.get("llama-2048x1-part"))
    some, many = "inflcli: scan 16 queries", "inflcli: scan 1024 queries"

    def cost(result: Result, label: str, bar: float, name: str) -> Row:
        return _at_most(name, ratio(result.seconds(label), result.plain("scan")), bar)

    def faster(result: Result, tool: str, kind: str, bar: float, what: str) -> Row:
        found = ratio(result.work(tool, kind), result.work("inflcli", kind))
        return _at_least(f"{what}, beside {tool}", found, bar, "×", result)

    def alike(label: str, name: str) -> Row:
        return _at_least(name, small.raw["agreement"][label]["min"], 0.99, "")

    fit = ratio(small.work("inflcli", "fit"), small.plain("fit"))
    yield _at_most("fit, in two plain passes", fit, 1.5)
    for result, bar in ((small, 1.7), (widest, 2.5)):
        for tool in TOOLS[1:] if result else ():
            yield faster(result, tool, "fit", bar, "fit")
    if wide:
        yield faster(wide, "kronfluence", "precondition, rank 32", 4, "precondition at rank 32")
        yield faster(wide, "bergson", "precondition, full rank", 4, "precondition at full rank")
        ours = wide.peak(f"inflcli: precondition {wide.some} queries") or math.nan
        theirs = wide.peak(f"bergson: score {wide.some} queries") or math.nan
        what = "memory of precondition, of bergson's for it and its scan"
        yield _at_most(what, ours / theirs, 0.25, "", wide)
    yield cost(small, some, 1.2, "scan of 16 queries, in plain passes")
    yield alike(some, "its Pearson with full rank, worst query")
    yield cost(small, f"{some}, token scores", 1.4, "the same with token scores")
    usual = ratio(small.usual("scan, token scores"), small.work("inflcli", "scan, token scores"))
    yield _at_least("the same, beside kronfluence's default", usual, 5, "×", small)
    yield faster(small, "bergson", "scan, token scores", 3, "the same")
    yield cost(small, many, 4, "scan of 1,024 queries, in plain passes")
    yield alike(many, "its Pearson with full rank, worst query")
    within = [fits for result in results.values() for fits in memory(result)]
    found = f"{sum(within)} of {len(within)}"
    yield "scans whose memory is the plain pass's, the queries' and 20 %, or less", "all", found
    picks = [pick for result in results.values() if (pick := picked(result))]
    yield _at_most("time of the routes taken, of the fastest forced, worst model", max(picks), 1.1)


def memory(result: Result) -> Iterator[bool]:
    """Of each scan by the routes that were chosen: whether it kept to its memory."""
    plain = result.peak("plain: plain activations")
    for label in result.jobs:
        what = label.removeprefix("inflcli: scan ")
        stored = result.jobs.get(f"inflcli: precondition {what}")
        peak = result.peak(label)
        if what != label and stored and plain and peak:
            yield peak <= 1.2 * plain + stored[0]["disk_bytes"]


def picked(result: Result) -> float | None:
    """Seconds of the routes chosen over those of the fastest that was forced."""
    label = f"inflcli: scan {result.some} queries"
    forced = [result.seconds(f"{label}, {route}") for route in ("dense", "factored")]
    found = [one for one in (ratio(result.seconds(label), each) for each in forced) if one]
    return max(found, default=None)


def _at_most(
    name: str, found: float | None, bar: float, unit: str = "×", result: Result | None = None
) -> Row:
    return _row(name, f"at most {bar:g}{unit}", found, unit, found is None or found <= bar, result)


def _at_least(
    name: str, found: float | None, bar: float, unit: str, result: Result | None = None
) -> Row:
    return _row(name, f"at least {bar:g}{unit}", found, unit, found is None or found >= bar, result)


def _row(
    name: str, bar: str, found: float | None, unit: str, met: bool, result: Result | None
) -> Row:
    what = "–" if found is None else f"{found:.3g}{unit}"
    what = what if met else f"**{what}**"
    if result is not None and not result.name.startswith("llama-256x4"):
        name = f"{name}, {result.name.removesuffix('-part')}"
        what += " (a part)" if result.name.endswith("-part") else ""
    return name, bar, what


def bars_table(devices: dict[str, list[Result]]) -> list[str]:
    """A column for each kind of device; bold is missed."""
    columns = [
        {(name, bar): found for name, bar, found in bars({r.name: r for r in results})}
        for results in devices.values()
    ]
    lines = [
        f"| | bar | {' | '.join(DEVICES[device] for device in devices)} |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for name, bar in columns[0]:
        found = " | ".join(column.get((name, bar), "–") for column in columns)
        lines.append(f"| {name} | {bar} | {found} |")
    return lines


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


def read_results() -> dict[str, list[Result]]:
    """What was measured, by kind of device, each in the order of the shapes."""
    found: dict[str, list[Result]] = {}
    for device in DEVICES:
        paths = [HERE / "results" / f"{shape}-{device}.json" for shape in SHAPES]
        results = [Result(path) for path in paths if path.is_file()]
        if results:
            # Parts are measured with the smaller models.
            small = [one for one in results if "256x4" in one.name or one.name.endswith("-part")]
            found[device] = small + [one for one in results if one not in small]
    return found


def tables(devices: dict[str, list[Result]]) -> str:
    """All that was measured, a chapter each."""
    lines = ["# The benchmark's results", "", "Written by `benchmarks/figure.py`; see the README."]
    for device, results in devices.items():
        machine = results[0].raw["machine"]
        lines += ["", f"## {DEVICES[device][:1].upper()}{DEVICES[device][1:]}", ""]
        lines += [f"{machine.get('gpu') or machine['processor']}, {machine['cores']} cores.", ""]
        lines += [*kinds_table(results), "", *scans_table(results)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a figure of the benchmark's results.")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="of rank_curves.py")
    parser.add_argument("--curves-figure", type=Path)
    options = parser.parse_args()
    if options.curves:
        draw_curves(options.curves, options.curves_figure)
    devices = read_results()
    on_cpus = {name: results for name, results in devices.items() if name.startswith("cpu")}
    text = "\n".join(bars_table(on_cpus))
    print(text)
    if options.tables:
        options.tables.write_text(tables(devices))
    if options.readme:
        whole = options.readme.read_text()
        head, rest = whole.split(BEGIN)
        tail = rest.split(END)[1]
        options.readme.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")
    if options.figure:
        draw(next(iter(devices.values())), options.figure)


if __name__ == "__main__":
    main()
