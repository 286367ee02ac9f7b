"""`report`: what the stages of a run found, for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inflcli import __version__, console
from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import ReportConfig, Runtime
from inflcli.errors import InflcliError
from inflcli.report import figures, html, jsonl, markdown, table
from inflcli.report.model import RunView
from inflcli.stages import common
from inflcli.stages.report_compare import Other, agreements
from inflcli.stages.report_parts import shadings
from inflcli.stages.report_provenance import provenance
from inflcli.stages.report_run import Run
from inflcli.stages.report_views import Views

STAGE = "report"
TERMINAL = "terminal"
_RENDERERS: dict[str, tuple[str, Callable[[RunView], str | bytes | dict[str, bytes]]]] = {
    "html": ("index.html", html.render),
    "markdown": ("report.md", markdown.render),
    "jsonl": ("report.jsonl", jsonl.render),
    "parquet": ("report.parquet", table.render),
    "figures": (figures.FOLDER, figures.render),
}
"""The file of each format, or its folder."""
FORMATS = (*_RENDERERS, TERMINAL)


@dataclass(frozen=True)
class Reported:
    """What `report` did: the artifact's result, its files, and the data where it was needed."""

    result: dict[str, Any] | None
    """None when no file was asked for."""
    files: Sequence[Path]
    view: RunView | None
    """None when the artifact was up to date and no terminal table was asked for."""


@common.exclusively
def report(
    folder: Path,
    out: Path | None,
    config: ReportConfig,
    runtime: Runtime,
    tokenizer: str | None = None,
    compared: Sequence[Path] = (),
) -> Reported:
    """Render the run in `folder` to `out`, and gather its data when a terminal is to show it.

    Cost: one reading of all scores, and of the attributions. Raises MissingArtifact,
    StaleArtifact, BadInput.
    """
    run = Run.open(folder)
    to_files = tuple(name for name in _RENDERERS if name in config.formats)
    others = [Other.open(other, run) for other in compared]
    gather = _Gather(run, others, config, tokenizer, folder.resolve().name, runtime.command)
    if not to_files or out is None:
        return Reported(None, (), gather.view())
    # The order in which formats were named, and the terminal, leave no trace in the files.
    identity = Identity(
        STAGE,
        replace(config, formats=to_files).identity(),
        {
            **{name: artifact.as_input() for name, artifact in run.artifacts.items()},
            **{
                f"compared {number} {name}": artifact.as_input()
                for number, other in enumerate(others, 1)
                for name, artifact in other.run.artifacts.items()
                if name in ("queries", "scan")
            },
        },
    )
    writer = ArtifactWriter.begin(
        out, identity, overwrite=runtime.overwrite, command=runtime.command
    )
    paths = [out / _RENDERERS[name][0] for name in to_files]
    if writer is None:
        shown = gather.view() if TERMINAL in config.formats else None
        return Reported(common.up_to_date(out, STAGE), paths, shown)
    try:
        view = gather.view()
    except InflcliError:
        writer.abandon()
        raise
    artifact = _write(writer, view, to_files)
    counts = artifact.manifest.counts
    summary = f"{counts['queries']} queries, {counts['sequences']} sequences shown"
    return Reported(common.result(artifact, fresh=False, summary=summary), paths, view)


def _write(writer: ArtifactWriter, view: RunView, formats: Sequence[str]) -> Artifact:
    for name in formats:
        file, render = _RENDERERS[name]
        content = render(view)
        for path, part in content.items() if isinstance(content, dict) else [(file, content)]:
            place = writer.folder / path
            place.parent.mkdir(exist_ok=True)
            files.write_bytes(place, part.encode("utf-8") if isinstance(part, str) else part)
    counts = {
        "queries": len(view.queries),
        "sequences": sum(len(query.sequences) for query in view.queries),
    }
    return writer.finish(counts=counts, details={"formats": list(formats)})


@dataclass(frozen=True)
class _Gather:
    """Turns the artifacts into plain data, once, when it is needed."""

    run: Run
    others: Sequence[Other]
    config: ReportConfig
    tokenizer: str | None
    title: str
    command: Sequence[str]

    def view(self) -> RunView:
        run = self.run
        views = Views(
            run.corpus,
            run.queries,
            run.scan,
            run.attribution,
            run.candidates,
            run.token_text(self.tokenizer),
            self.config.top_k,
            self.config.dataset_size,
            self.config.skip_spurious,
        )
        views.compared = [other.ranks(run, views.read) for other in self.others]
        with console.progress("report", len(run.queries.ids), unit="queries") as meter:
            queries = views.build(meter.advance)
        filtered = None if run.candidates is None else int(run.candidates.ids.shape[1])
        compared = [other.described(run) for other in self.others]
        known = provenance(run.artifacts, queries, self.command)
        return RunView(
            title=self.title,
            queries=queries,
            group_names=run.scan.group_names,
            scanned=int(run.scan.artifact.manifest.counts["sequences"]),
            corpus_size=run.corpus.n_sequences,
            dataset_size=self.config.dataset_size,
            candidates=filtered,
            shadings=shadings(run.attribution),
            provenance=replace(
                known, facts=[*known.facts, *agreements(compared, queries, known.facts)]
            ),
            compared=compared,
            version=__version__,
        )
