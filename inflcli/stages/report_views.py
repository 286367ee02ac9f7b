"""What a report shows of each query, gathered from the artifacts as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.attribution import AttributionReader
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader, Source
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.influence.topk import RunningTop
from inflcli.report.model import (
    NEGATIVE,
    POSITIVE,
    TOKENS,
    Distribution,
    Histogram,
    LayerProfile,
    ProfileTop,
    QueryView,
    SequenceText,
    SequenceView,
    SourceView,
)
from inflcli.report.tokens import TokenText, Units
from inflcli.retrieval.copies import near_duplicates, shared_runs
from inflcli.stages.report_compare import Ranks
from inflcli.stages.report_distribution import Counter
from inflcli.stages.report_histogram import Bins
from inflcli.stages.report_parts import Parts
from inflcli.statistics.positive import Positive

_SIGNS = (POSITIVE, NEGATIVE)
_PROFILED = (50, 500)
"""Sequences of each sign that a layer profile is summed over."""
_COPIED = 10
"""Characters, spaces not counted, from which on a copied run is one."""


@dataclass(frozen=True)
class _Ranked:
    """One query's top sequences of both signs, strongest first."""

    ids: NDArray[np.int64]
    """[2, K], -1 where there are fewer."""
    scores: NDArray[np.float32]
    """[2, K]"""
    layers: NDArray[np.float32]
    """By depth group, [2, K, G]."""

    def of(self, side: int) -> NDArray[np.intp]:
        """The ranks whose scores have the sign: of few sequences a list may hold both."""
        return np.flatnonzero((self.ids[side] >= 0) & (_SIGNS[side] * self.scores[side] > 0))


@dataclass(frozen=True)
class _Read:
    """A sequence of the corpus."""

    text: SequenceText
    units: Units
    tokens: list[int]


@dataclass
class Views:
    """Builds the view of every query. Holds one query's attributions at a time."""

    corpus: CorpusReader
    queries: QueriesReader
    scan: ScanReader
    attribution: AttributionReader | None
    candidates: CandidateReader | None
    tokens: TokenText
    top_k: int
    dataset_size: int | None
    skip_spurious: bool
    compared: Sequence[Iterator[Ranks | None]] = ()
    """Of each compared run, what it says of each query."""
    _texts: dict[int, _Read] = field(default_factory=dict)

    def build(self, advance: Callable[[int], None]) -> list[QueryView]:
        """All queries, in their order; `advance` is told of each."""
        attributed = self.attribution.sequences() if self.attribution else None
        histograms, distributions, tops = self._distributions()
        shown = {n for top in tops for side in (0, 1) for n in self._shown(top, side).tolist()}
        for number in sorted(shown):  # so that a chunk is decoded once
            self._read(number)
        views = []
        for number, query in enumerate(self.queries.queries):
            parts = None
            if self.attribution is not None and attributed is not None:
                parts = Parts.read(self.attribution, number, attributed[number], self.scan.group_of)
            both = [self._sequences(number, side, tops[number], parts) for side in (0, 1)]
            profile = self._profile(tops[number])
            view = self._query(query, both, histograms[number], distributions[number], profile)
            others = [next(ranks) for ranks in self.compared]
            views.append(_beside(view, others) if others else view)
            advance(1)
        return views

    def _query(
        self,
        query: dict[str, Any],
        both: list[list[SequenceView]],
        histogram: Histogram | None,
        distribution: Distribution | None,
        profile: LayerProfile,
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
            profile=profile,
        )

    def _sequences(
        self, query: int, side: int, top: _Ranked, parts: Parts | None
    ) -> list[SequenceView]:
        """The top sequences of one sign."""
        ranks, spurious = top.of(side), set() if parts is None else parts.spurious()
        if self.skip_spurious:
            ranks = ranks[~np.isin(top.ids[side, ranks], list(spurious))]
        ranks = ranks[: self.top_k]
        filtered = self._candidate_ranks(query)
        views = []
        for rank in ranks.tolist():
            number, score = int(top.ids[side, rank]), float(top.scores[side, rank])
            read = self._read(number)
            view = SequenceView(
                text=read.text,
                sign=_SIGNS[side],
                rank=rank + 1,
                score=score,
                nats=None if self.dataset_size is None else score / self.dataset_size,
                influence=None,
                groups=top.layers[side, rank].tolist(),
                tfidf_rank=filtered.get(number),
                spurious=number in spurious,
                copied=self._copied(query, read),
            )
            views.append(view if parts is None else _attributed(view, read, parts))
        return self._folded(views)

    def _shown(self, top: _Ranked, side: int) -> NDArray[np.int64]:
        """The sequences of a sign that are shown, if none is skipped."""
        return top.ids[side, top.of(side)[: self.top_k]]

    def _folded(self, views: list[SequenceView]) -> list[SequenceView]:
        """With each near-duplicate told of the first of its kind, and the other way round."""
        heads = near_duplicates([self._read(view.text.sequence).tokens for view in views])
        members: dict[int, list[int]] = {}
        for view, head in zip(views, heads, strict=True):
            if views[head] is not view:
                members.setdefault(head, []).append(view.rank)
        return [
            replace(
                view,
                duplicate_of=None if head == place else views[head].rank,
                duplicates=members.get(place, []),
            )
            for place, (view, head) in enumerate(zip(views, heads, strict=True))
        ]

    def _copied(self, query: int, read: _Read) -> list[tuple[int, int]]:
        """The units of a text that repeat the query, if that is more than a few characters."""
        unit = read.units.unit_of_token()
        runs = shared_runs(read.tokens, self.queries.queries[query]["tokens"])
        spans = [(unit[start], unit[stop - 1] + 1) for start, stop in runs]
        return [
            (start, stop)
            for start, stop in spans
            if len("".join("".join(read.text.units[start:stop]).split())) >= _COPIED
        ]

    def _profile(self, top: _Ranked) -> LayerProfile:
        ranks = [top.of(side) for side in (0, 1)]
        most = max(map(len, ranks))
        counts = [
            count for place, count in enumerate(_PROFILED) if not place or most > _PROFILED[0]
        ]
        tops = []
        for count in counts:
            sums = [
                top.layers[side, mine[:count]].sum(axis=0, dtype=np.float64).tolist()
                for side, mine in enumerate(ranks)
            ]
            tops.append(ProfileTop(min(count, most), sums[0], sums[1]))
        return LayerProfile(self.scan.group_names, tops)

    def _candidate_ranks(self, query: int) -> dict[int, int]:
        if self.candidates is None:
            return {}
        ids = self.candidates.ids[query]
        return {number: rank for rank, number in enumerate(ids[ids >= 0].tolist(), 1)}

    def read(self, number: int) -> SequenceText:
        """A sequence's text."""
        return self._read(number).text

    def _read(self, number: int) -> _Read:
        """A sequence's text; kept, since queries often share their top sequences."""
        if number not in self._texts:
            length = int(self.corpus.lengths[number])
            tokens = self.corpus.take([number])[0, :length].tolist()
            units = self.tokens.units(tokens)
            places = [*units.unit_of_token(), len(units.texts)]
            sources = [_source(source, places) for source in self.corpus.sources(number)]
            text = SequenceText(number, units.texts, units.counts, units.special, sources)
            self._texts[number] = _Read(text, units, tokens)
        return self._texts[number]

    def _distributions(
        self,
    ) -> tuple[list[Histogram | None], list[Distribution | None], list[_Ranked]]:
        """Every query's, in one reading of the scores. The histogram's ends are the top scores."""
        top_scores, most = self.scan.top()[1], self.corpus.n_sequences
        queries = range(len(top_scores))
        bins = [Bins.around(top_scores[query]) for query in queries]
        counters = [Counter(Positive(most)) for _ in queries]
        k = min(max(*_PROFILED, self.top_k), most)
        highest, lowest = (RunningTop.empty(len(queries), k) for _ in _SIGNS)
        for first, scores in self.scan.chunks():
            highest.update(first, scores)
            lowest.update(first, -scores)
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
        ids = np.stack([highest.ids, lowest.ids], axis=1)
        scores = np.stack([highest.scores, -lowest.scores], axis=1)
        layers = self.scan.layer_scores(ids.reshape(len(ids), -1)).reshape(*ids.shape, -1)
        tops = [_Ranked(*found) for found in zip(ids, scores, layers, strict=True)]
        return histograms, [counter.distribution() for counter in counters], tops


def _beside(view: QueryView, others: Sequence[Ranks | None]) -> QueryView:
    """With its place in other runs."""

    def placed(sequences: Sequence[SequenceView]) -> list[SequenceView]:
        return [
            replace(one, ranks_there=[None if ranks is None else ranks.of(one) for ranks in others])
            for one in sequences
        ]

    return replace(
        view,
        positive=placed(view.positive),
        negative=placed(view.negative),
        comparisons=[None if ranks is None else ranks.comparison for ranks in others],
    )


def _attributed(view: SequenceView, read: _Read, parts: Parts) -> SequenceView:
    """With what was attributed to its tokens, if anything was."""
    row, length = parts.row(view.text.sequence), len(read.tokens)
    if row is None:
        return view
    pooled = {
        name: read.units.pool(values[row, :length]).tolist()
        for name, values in parts.values.items()
    }
    return replace(
        view,
        influence=pooled.pop(TOKENS),
        effects=pooled,
        by_group=read.units.pool(parts.groups[row, :, :length]).astype(np.float32),
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
