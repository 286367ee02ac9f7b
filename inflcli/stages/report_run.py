"""The artifacts of a run folder, opened together and checked to belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.folder import Artifact, partial_path
from inflcli.artifacts.manifest import FILE_NAME
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.errors import BadInput, StaleArtifact
from inflcli.model.resolve import load_tokenizer, resolve_folder
from inflcli.report.tokens import TokenText
from inflcli.stages.freshness import Unknown, place

Reader = TypeVar("Reader")

# What must be as it was when the artifact was made. The corpus of the factors is not among it: a
# curvature may well be fitted on other text than is scanned.
_MADE_FROM = {
    "queries": ("precondition", ("factors",)),
    "candidates": ("tfidf-filter", ("corpus",)),
    "scan": ("scan", ("queries", "corpus", "candidates")),
    "attribution": ("attribute", ("scan", "queries", "corpus")),
}


@dataclass(frozen=True)
class Run:
    """What a run folder holds; corpus, queries and scan are always there."""

    corpus: CorpusReader
    queries: QueriesReader
    scan: ScanReader
    factors: FactorsReader | None
    candidates: CandidateReader | None
    attribution: AttributionReader | None

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Corpus, factors and queries that are not in `folder` are looked for where they were.

        Raises MissingArtifact, CorruptArtifact, StaleArtifact naming what does not fit.
        """
        scan = ScanReader.open(folder / "scan")
        queries = QueriesReader.open(_shared(folder, "queries", scan.artifact))
        run = cls(
            CorpusReader.open(_shared(folder, "corpus", scan.artifact)),
            queries,
            scan,
            _optional(_shared(folder, "factors", queries.artifact), FactorsReader.open),
            _optional(folder / "candidates", CandidateReader.open),
            _optional(folder / "attribution", AttributionReader.open),
        )
        run._require_fresh()
        return run

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Those that are there, by name, in the pipeline's order."""
        readers = {
            "corpus": self.corpus,
            "factors": self.factors,
            "queries": self.queries,
            "candidates": self.candidates,
            "scan": self.scan,
            "attribution": self.attribution,
        }
        return {name: reader.artifact for name, reader in readers.items() if reader is not None}

    def _require_fresh(self) -> None:
        found = self.artifacts
        for name, (command, sources) in _MADE_FROM.items():
            artifact = found.get(name)
            for source in sources:
                # A scan without the filter records no candidates; they may still lie beside it.
                known = artifact is not None and source in artifact.manifest.inputs
                if artifact is None or not known or source not in found:
                    continue
                mend = f"make it again: inflcli {command} ... --overwrite"
                artifact.require_input(source, found[source].as_input(), mend)
        if self.candidates is not None:
            # tfidf-filter reads the query file itself, not the preconditioned queries.
            of_file = self.queries.artifact.manifest.inputs["queries"]
            mend = "filter again: inflcli tfidf-filter ... --overwrite"
            self.candidates.artifact.require_input("queries", of_file, mend)

    def token_text(self, tokenizer: str | None) -> TokenText:
        """The corpus's tokenizer, or `tokenizer` where it lies now; it must be the same.

        Raises BadInput when it is not to be had, StaleArtifact when it has changed.
        """
        name = tokenizer or self.corpus.tokenizer
        try:
            folder = resolve_folder(name, weights=False)
        except BadInput as error:
            if tokenizer is not None:
                raise
            hint = "say where it lies now with --tokenizer"
            raise BadInput(f"the corpus's tokenizer: {error.message}", hint) from error
        if fingerprint.of_tokenizer(folder, name).fingerprint != self.corpus.tokenizer_fingerprint:
            raise StaleArtifact(
                f"{self.corpus.artifact.path} was tokenised with another tokenizer than {name}'s",
                "name the one that made it with --tokenizer, or run inflcli prepare again",
            )
        return TokenText(load_tokenizer(folder))


def _shared(folder: Path, name: str, made_from_it: Artifact) -> Path:
    """The artifact `name` of a run, or that which several runs share."""
    own = folder / name
    if own.exists() or partial_path(own).is_dir():
        return own
    try:
        return place(made_from_it.manifest.inputs[name].path, made_from_it.path)
    except Unknown:
        return own


def _optional(path: Path, opener: Callable[[Path], Reader]) -> Reader | None:
    """Open what a run need not have; an unfinished one is as good as none."""
    if (path / FILE_NAME).is_file():
        return opener(path)
    if partial_path(path).is_dir():
        console.warn(f"{path} is not finished; the report goes without it")
    return None
