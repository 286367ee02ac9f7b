"""What a report shows, as plain data.

A *unit* is one or more tokens that make whole characters together (byte-level tokenizers cut
characters); nearly always it is one token. All per-token lists run over units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

POSITIVE, NEGATIVE = 1, -1


@dataclass(frozen=True)
class SourceView:
    """A stretch of a document within a sequence: units `start`:`stop`."""

    document_id: str
    title: str | None
    file: str
    line: int
    char_start: int
    char_end: int
    start: int
    stop: int


@dataclass(frozen=True)
class SequenceText:
    """A training sequence as it is shown; the same for every query that has it."""

    sequence: int
    units: Sequence[str]
    token_counts: Sequence[int]
    """Tokens a unit."""
    special: frozenset[int]
    """Units that are special tokens, such as the end-of-text between documents."""
    sources: Sequence[SourceView]

    @property
    def text(self) -> str:
        return "".join(self.units)


@dataclass(frozen=True)
class SequenceView:
    """A training sequence as one query sees it."""

    text: SequenceText
    sign: int
    rank: int
    """From 1, within its sign."""
    score: float
    nats: float | None
    """The score over the number of training sequences, where that is known."""
    influence: Sequence[float] | None
    """The score's parts by unit, the one whose *successor* is predicted; None: not attributed."""
    groups: Sequence[float]
    """The score's parts by depth group."""
    tfidf_rank: int | None
    """From 1; None when it is not among the query's candidates, or there are none."""

    def source_influence(self, source: SourceView) -> float | None:
        """What the units of one source add to the score."""
        if self.influence is None:
            return None
        return sum(self.influence[source.start : source.stop])

    def main_source(self) -> SourceView | None:
        """The source that carries most of the score, else the longest."""
        if not self.text.sources:
            return None
        if self.influence is None:
            return max(self.text.sources, key=lambda source: source.stop - source.start)
        return max(
            self.text.sources, key=lambda source: self.sign * (self.source_influence(source) or 0)
        )


@dataclass(frozen=True)
class Histogram:
    """Counts of scores between `edges`; zero is one of the edges."""

    edges: Sequence[float]
    counts: Sequence[int]
    candidates: Sequence[int] | None
    """How many of each bin are TF-IDF candidates of the query."""
    positive: int
    negative: int

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class LayerProfile:
    """Scores by depth group, lowest first, summed over the shown sequences of each sign."""

    names: Sequence[str]
    positive: Sequence[float]
    negative: Sequence[float]


@dataclass(frozen=True)
class QueryView:
    id: str
    prompt: str
    completion: str
    completion_units: Sequence[str]
    """The completion's tokens; the first may begin with characters of the prompt."""
    unit_log_p: Sequence[float | None]
    """None where nothing came before, so nothing was predicted."""
    log_p: float
    kept_energy: float
    """Share of the preconditioned query's squared norm that its compression kept."""
    merged: bool
    metadata: dict[str, Any]
    positive: Sequence[SequenceView]
    negative: Sequence[SequenceView]
    histogram: Histogram | None
    """None when nothing was scanned."""
    profile: LayerProfile

    @property
    def sequences(self) -> list[SequenceView]:
        return [*self.positive, *self.negative]

    @property
    def strongest(self) -> float:
        """Largest absolute influence of a unit in this view; 0 without attribution."""
        parts = (abs(v) for view in self.sequences for v in view.influence or ())
        return max(parts, default=0.0)


@dataclass(frozen=True)
class Fact:
    """One line of the provenance."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class StageRecord:
    """How one artifact was made."""

    stage: str
    path: str
    fingerprint: str
    version: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Provenance:
    facts: Sequence[Fact]
    stages: Sequence[StageRecord]
    caveats: Sequence[str]
    command: str
    """That of the report itself."""


@dataclass(frozen=True)
class RunView:
    title: str
    queries: Sequence[QueryView]
    group_names: Sequence[str]
    scanned: int
    """Sequences with a score."""
    corpus_size: int
    dataset_size: int | None
    candidates: int | None
    """TF-IDF candidates a query at most; None without the filter."""
    attributed: bool
    provenance: Provenance
    version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
