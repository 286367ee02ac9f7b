"""What a report shows of each query, gathered from the artifacts as plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.attribution import EFFECTS, AttributionReader
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader, Source
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.report.model import (
    NEGATIVE,
    POSITIVE,
    TOKENS,
    Distribution,
    Histogram,
    LayerProfile,
    QueryView,
    SequenceText,
    SequenceView,
    SourceView,
)
from inflcli.report.tokens import TokenText, Units
from inflcli.stages.report_distribution import Counter
from inflcli.statistics.positive import Positive

_BINS = 60
_SIGNS = (POSITIVE, NEGATIVE)
_SPURIOUS = 2 / 3
"""Of the 2-norm of a sequence's token influences over their 1-norm."""


@dataclass
class Views:
    """Builds the view of every query. Holds one query's scores at a time."""

    corpus: CorpusReader
    queries: QueriesReader
    scan: ScanReader
    attribution: AttributionReader | None
    candidates: CandidateReader | None
    tokens: TokenText
    top_k: int
    dataset_size: int | None
    skip_spurious: bool
    _texts: dict[int, tuple[SequenceText, Units]] = field(default_factory=dict)

    def build(self, advance: Callable[[int], None]) -> list[QueryView]:
        """All queries, in their order; `advance` is told of each."""
        ids, scores = self.scan.top()
        attributed = self.attribution.sequences() if self.attribution else None
        histograms, distributions = self._distributions(scores)
        views = []
        for number, query in enumerate(self.queries.queries):
            parts = None
            if self.attribution is not None and attributed is not None:
                parts = _Parts.read(self.attribution, number, attributed[number])
            both = [
                self._sequences(number, sign, ids[number, side], scores[number, side], parts)
                for side, sign in enumerate(_SIGNS)
            ]
            views.append(self._query(query, both, histograms[number], distributions[number]))
            advance(1)
        return views

    def _query(
        self,
        query: dict[str, Any],
        both: list[list[SequenceView]],
        histogram: Histogram | None,
        distribution: Distribution | None,
    ) -> QueryView:
        start, all_ids = query["completion_start"], query["tokens"]
        units = self.tokens.units(all_ids[start:])
        predicted = [None] * (len(all_ids) - start - len(query["token_log_p"]))
        return QueryView(
            id=str(query["id"]),
            prompt=query["prompt"],
            completion=query["completion"],
            completion_units=units.texts,
            unit_log_p=_sum_known([*predicted, *query["token_log_p"]], units),
            log_p=query["log_p"],
            kept_energy=query["kept_energy"],
            merged=query["merged"],
            metadata=query.get("metadata") or {},
            positive=both[0],
            negative=both[1],
            histogram=histogram,
            distribution=distribution,
            profile=LayerProfile(
                self.scan.group_names, *(_pooled(views, self.scan.group_names) for views in both)
            ),
        )

    def _sequences(
        self,
        query: int,
        sign: int,
        ids: NDArray[np.int64],
        scores: NDArray[np.float32],
        parts: _Parts | None,
    ) -> list[SequenceView]:
        """The top sequences of one sign. The scan's list of few sequences may hold both signs."""
        keep = (ids >= 0) & (sign * scores > 0)
        ids, scores = ids[keep], scores[keep]
        spurious = set() if parts is None else parts.spurious()
        skipped = list(spurious) if self.skip_spurious else []
        shown_ranks = np.flatnonzero(~np.isin(ids, skipped))[: self.top_k]
        ids, scores = ids[shown_ranks], scores[shown_ranks]
        groups = self.scan.layer_scores(query, ids) if len(ids) else np.zeros((0, 0), np.float32)
        ranks = self._candidate_ranks(query)
        views = []
        for place, number in enumerate(ids.tolist()):
            text, units = self._text(number)
            length = sum(units.counts)
            shown = {} if parts is None else parts.of(number, length)
            found, effects = shown.pop(TOKENS, None), shown
            score = float(scores[place])
            views.append(
                SequenceView(
                    text=text,
                    sign=sign,
                    rank=int(shown_ranks[place]) + 1,
                    score=score,
                    nats=None if self.dataset_size is None else score / self.dataset_size,
                    influence=None if found is None else units.pool(found),
                    groups=[float(value) for value in groups[place]],
                    tfidf_rank=ranks.get(number),
                    effects={name: units.pool(values) for name, values in effects.items()},
                    spurious=number in spurious,
                )
            )
        return views

    def _candidate_ranks(self, query: int) -> dict[int, int]:
        if self.candidates is None:
            return {}
        ids = self.candidates.ids[query]
        return {number: rank for rank, number in enumerate(ids[ids >= 0].tolist(), 1)}

    def _text(self, number: int) -> tuple[SequenceText, Units]:
        """A sequence's text; kept, since queries often share their top sequences."""
        if number not in self._texts:
            length = int(self.corpus.lengths[number])
            units = self.tokens.units(self.corpus.take([number])[0, :length].tolist())
            places = [*units.unit_of_token(), len(units.texts)]
            sources = [_source(source, places) for source in self.corpus.sources(number)]
            text = SequenceText(number, units.texts, units.counts, units.special, sources)
            self._texts[number] = (text, units)
        return self._texts[number]

    def _distributions(
        self, top_scores: NDArray[np.float32]
    ) -> tuple[list[Histogram | None], list[Distribution | None]]:
        """Every query's, in one reading of the scores. The histogram's ends are the top scores."""
        queries, most = range(len(top_scores)), self.corpus.n_sequences
        bins = [_Bins.around(top_scores[query]) for query in queries]
        counters = [Counter(Positive(most)) for _ in queries]
        for first, scores in self.scan.chunks():
            numbers = np.arange(first, first + scores.shape[1])
            for query, row in enumerate(scores):
                ids = [] if self.candidates is None else self.candidates.ids[query]
                candidates = np.isin(numbers, ids)
                counters[query].add(row, candidates)
                counter = bins[query]
                if counter is not None:
                    counter.add(row, candidates)
        filtered = self.candidates is not None
        histograms = [None if one is None else one.histogram(filtered) for one in bins]
        return histograms, [counter.distribution() for counter in counters]


def shadings(attribution: AttributionReader | None) -> list[str]:
    """The attributions that there are, token influence first."""
    if attribution is None:
        return []
    return [TOKENS, *(name for name in EFFECTS if name in attribution.group)]


@dataclass(frozen=True)
class _Parts:
    """One query's attributions: `ids` [ranks] and, by shading, values [ranks, token]."""

    ids: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]

    @classmethod
    def read(cls, attribution: AttributionReader, query: int, ids: NDArray[np.int64]) -> _Parts:
        values = {TOKENS: attribution.token_scores(query).sum(axis=1, dtype=np.float64)}
        for name in EFFECTS:
            found = attribution.effects(name, query)
            if found is not None:
                values[name] = found.astype(np.float64)
        return cls(ids, values)

    def spurious(self) -> set[int]:
        """The sequences of which few tokens carry most of the influence."""
        sizes = np.abs(self.values[TOKENS])
        few = np.linalg.norm(sizes, axis=1) > _SPURIOUS * sizes.sum(axis=1)
        return set(self.ids[few & (self.ids >= 0)].tolist())

    def of(self, sequence: int, length: int) -> dict[str, list[float]]:
        """By shading, the value of each token of a sequence; none when it was not attributed."""
        found = np.flatnonzero(self.ids == sequence)
        if len(found) == 0:
            return {}
        return {name: rows[found[0], :length].tolist() for name, rows in self.values.items()}


@dataclass
class _Bins:
    """Counts scores in bins of one width, zero being an edge."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    candidates: NDArray[np.int64]
    signs: NDArray[np.int64]

    @classmethod
    def around(cls, top: NDArray[np.float32]) -> _Bins | None:
        """Bins over what `top` [2, K], the top scores of both signs, spans; None if nothing."""
        known = top[np.isfinite(top)].astype(np.float64)
        if len(known) == 0:
            return None
        low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
        width = (high - low) / _BINS or 1.0
        first, last = int(np.floor(low / width)), int(np.ceil(high / width))
        edges = np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * width
        zeros = np.zeros(len(edges) - 1, np.int64)
        return cls(edges, zeros, zeros.copy(), np.zeros(2, np.int64))

    def add(self, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> None:
        """Scores [n], NaN where nothing was scanned, and which are candidates of the filter."""
        scanned = ~np.isnan(scores)
        values = scores[scanned].astype(np.float64)
        self.counts += self._count(values)
        self.signs += [(values > 0).sum(), (values < 0).sum()]
        self.candidates += self._count(values[candidates[scanned]])

    def _count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        # Clipped: the ends are float32 scores, and rounding must not push one out of its bin.
        inside = np.clip(values, self.edges[0], self.edges[-1])
        return np.histogram(inside, self.edges)[0].astype(np.int64)

    def histogram(self, filtered: bool) -> Histogram:
        return Histogram(
            self.edges.tolist(),
            self.counts.tolist(),
            self.candidates.tolist() if filtered else None,
            int(self.signs[0]),
            int(self.signs[1]),
        )


def _source(source: Source, places: Sequence[int]) -> SourceView:
    title = source.metadata.get("title")
    return SourceView(
        document_id=str(source.document_id),
        title=title if isinstance(title, str) and title.strip() else None,
        file=source.file,
        line=source.line,
        char_start=source.char_start,
        char_end=source.char_end,
        start=places[source.token_start],
        stop=places[source.token_end],
    )


def _sum_known(values: Sequence[float | None], units: Units) -> list[float | None]:
    """Sums by unit; None for a unit of which nothing is known."""
    pairs = zip(units.unit_of_token(), values, strict=True)
    by_unit = [[value for _, value in group] for _, group in groupby(pairs, lambda pair: pair[0])]
    known = [[value for value in part if value is not None] for part in by_unit]
    return [sum(part) if part else None for part in known]


def _pooled(views: Sequence[SequenceView], names: Sequence[str]) -> list[float]:
    return [sum(view.groups[place] for view in views) for place in range(len(names))]
