"""What a report shows, as plain data.

A *unit* is one or more tokens that make whole characters together (byte-level tokenizers cut
characters); nearly always it is one token. All per-token lists run over units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, NEGATIVE = 1, -1
SPURIOUS, SPURIOUS_MEANS = "†", "one token or two carry most of the influence"
TOKENS = "tokens"
"""The shading by token influence; the others bear the names of the counterfactual attributions."""


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
    effects: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The counterfactual attributions by unit, as far as there are any."""
    spurious: bool = False
    """Whether one token or two carry most of the influence, which often says little."""
    by_group: NDArray[np.float32] | None = None
    """`influence` by depth group, [group, unit]."""
    copied: Sequence[tuple[int, int]] = ()
    """Half-open runs of units that repeat the query word for word."""
    duplicate_of: int | None = None
    """The rank of the first sequence of its sign that it nearly equals; None if there is none."""
    duplicates: Sequence[int] = ()
    """The ranks of those that nearly equal it, where it is the first."""
    ranks_there: Sequence[int | None] = ()
    """Its rank in each compared run, by the same sign; None where that did not scan it."""

    @property
    def alike(self) -> str:
        """What is to be said of its near-duplicates; empty without any."""
        ranks = ", ".join(map(str, self.duplicates))
        return f"and {len(self.duplicates)} nearly the same: {ranks}" if ranks else ""

    @property
    def shadings(self) -> dict[str, Sequence[float]]:
        """All attributions by unit, token influence first; empty if it was not attributed."""
        return {} if self.influence is None else {TOKENS: self.influence, **self.effects}

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
class RivalView:
    """A distribution other than the power law, fitted to the same tail."""

    name: str
    ks: float
    log_likelihood_ratio: float
    """Of the power law to it, a value; positive where the power law is likelier."""
    p_value: float
    """Of that ratio's sign."""


@dataclass(frozen=True)
class TailView:
    """A power law, with survival function (x / x_min)^-(α - 1), of the `count` highest scores."""

    count: int
    alpha: float
    error: float
    """Standard error of α."""
    x_min: float
    ks: float
    p_value: float
    """By bootstrap; below 0.1 the power law is ruled out."""
    rivals: Sequence[RivalView]


@dataclass(frozen=True)
class EffortView:
    """How many sequences a scan would have to see for ten scores of at least `score`."""

    score: float
    """The tenth best of the TF-IDF candidates."""
    sequences: float
    low: float
    high: float


@dataclass(frozen=True)
class Distribution:
    """Of all positive scores of a query."""

    scanned: int
    survival: Sequence[tuple[float, int]]
    """Scores, descending, and how many are at least as high."""
    concentration: Sequence[tuple[float, float]]
    """A share of the sequences, and the part of the positive influence that the top of it has."""
    curve: Sequence[tuple[float, float]]
    """The same at even steps of the share's logarithm, from one sequence to all."""
    candidates: tuple[float, float] | None
    """The share of the sequences that are TF-IDF candidates, and their part; None without any."""
    tail: TailView | None
    """None where there are too few positive scores."""
    effort: EffortView | None
    """None without a filter or a tail."""


@dataclass(frozen=True)
class ProfileTop:
    """Scores by depth group, summed over the `count` top sequences of each sign."""

    count: int
    positive: Sequence[float]
    negative: Sequence[float]


@dataclass(frozen=True)
class LayerProfile:
    """Where in the model the influence sits; depth groups from the lowest."""

    names: Sequence[str]
    tops: Sequence[ProfileTop]
    """Of growing numbers of sequences."""


@dataclass(frozen=True)
class ComparedRun:
    """Another run, held against the one that is reported."""

    name: str
    differences: Sequence[Fact]
    """What its provenance says otherwise."""
    bytes: float
    """Of a query on disk, on average."""

    @property
    def only_compressed_otherwise(self) -> bool:
        return [fact.label for fact in self.differences] == ["Compression"]


@dataclass(frozen=True)
class FoundView:
    """A sequence that one run ranks high, and another does not."""

    sequence: int
    rank: int
    """In the run that found it."""
    other: int
    """In the run that did not."""
    source: str
    text: str
    """Its beginning."""


@dataclass(frozen=True)
class ComparisonView:
    """A query in two runs, over the sequences that both scored; ranks are by positive influence."""

    count: int
    pearson: float | None
    """None where it is not defined."""
    spearman: float | None
    overlap: float
    """The share of the one's top `k` that are among the other's."""
    k: int
    points: Sequence[tuple[int, int, int]]
    """Sequence, rank here, rank there, of what is in the top `k` of either."""
    only_here: Sequence[FoundView]
    only_there: Sequence[FoundView]


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
    distribution: Distribution | None
    """None when no score is positive."""
    profile: LayerProfile
    comparisons: Sequence[ComparisonView | None] = ()
    """With each compared run; None where that has no query of this id."""

    @property
    def sequences(self) -> list[SequenceView]:
        return [*self.positive, *self.negative]

    def strongest(self, shading: str = TOKENS) -> float:
        """Largest absolute value of a unit in this view; 0 without attribution."""
        parts = (abs(v) for view in self.sequences for v in view.shadings.get(shading, ()))
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
    shadings: Sequence[str]
    """The attributions that there are, token influence first; empty without any."""
    provenance: Provenance
    compared: Sequence[ComparedRun] = ()
    version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
