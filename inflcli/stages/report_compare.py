"""Other runs beside the one that is reported: how far they agree, and what only one found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inflcli.errors import BadInput
from inflcli.report.model import (
    ComparedRun,
    ComparisonView,
    Fact,
    FoundView,
    QueryView,
    SequenceText,
    SequenceView,
)
from inflcli.report.text import one_line
from inflcli.stages.report_provenance import COMPRESSION, FULL, facts
from inflcli.stages.report_run import Run
from inflcli.statistics.agreement import agreement

_TOP = 100
_TOLD = 10
"""Sequences that only one run has among its first."""
_TEXT = 200
_CORRELATION = "Compression correlation"
_USUAL = ("Queries", "Corpus", "Scanned", "Scoring", "Attribution")
"""Facts of a run that are no difference of method."""


@dataclass(frozen=True)
class Ranks:
    """One query in the reported run and in another: ranks [N] from 1, by positive influence.

    Counted among the sequences that both scored; 0 for the others.
    """

    here: NDArray[np.int64]
    there: NDArray[np.int64]
    comparison: ComparisonView

    def of(self, view: SequenceView) -> int | None:
        """The other run's rank of a sequence, counted from the end of its sign."""
        rank = int(self.there[view.text.sequence])
        if rank == 0:
            return None
        return rank if view.sign > 0 else self.comparison.count + 1 - rank


@dataclass(frozen=True)
class Other:
    """A run that is compared."""

    name: str
    run: Run

    @classmethod
    def open(cls, folder: Path, reported: Run) -> Other:
        """Raises BadInput when it scanned another corpus, or has none of the queries."""
        other = Run.open(folder)
        corpora = {run.corpus.artifact.manifest.fingerprint for run in (reported, other)}
        if len(corpora) > 1:
            raise BadInput(
                f"{folder} is a run over another corpus",
                "sequences are compared by their number: scan the same corpus with both",
            )
        if not set(other.queries.ids) & set(reported.queries.ids):
            raise BadInput(f"{folder} has none of the queries of this run, by their ids")
        return cls(folder.resolve().name, other)

    def described(self, reported: Run) -> ComparedRun:
        """Its name, and what its provenance says otherwise than that of the reported run."""
        mine = {fact.label: fact for fact in facts(reported.artifacts)}
        return ComparedRun(
            self.name,
            [
                Fact(fact.label, fact.value, fact.note)
                for fact in facts(self.run.artifacts)
                if fact.label not in _USUAL and fact.value != _value(mine.get(fact.label))
            ],
            statistics.fmean(query["bytes"] for query in self.run.queries.queries),
        )

    def ranks(self, reported: Run, read: Callable[[int], SequenceText]) -> Iterator[Ranks | None]:
        """For each query of the reported run; None where this one has not got it.

        Cost: both runs' scores are read and sorted.
        """
        places = {name: place for place, name in enumerate(self.run.queries.ids)}
        shared = [place for place, name in enumerate(reported.queries.ids) if name in places]
        mine = reported.scan.each_scores(shared)
        theirs = self.run.scan.each_scores([places[reported.queries.ids[q]] for q in shared])
        for name in reported.queries.ids:
            yield _compare(next(mine), next(theirs), read) if name in places else None


def agreements(
    runs: Sequence[ComparedRun], queries: Sequence[QueryView], known: Sequence[Fact]
) -> list[Fact]:
    """How far each compared run's scores agree, for the panel that says what to trust.

    `known` are the reported run's facts: if it is compressed, one at full rank tells the cost.
    """
    found = []
    compressed = any(fact.label == COMPRESSION and fact.value != FULL for fact in known)
    for place, run in enumerate(runs):
        both = [query.comparisons[place] for query in queries]
        pearson = [one.pearson for one in both if one is not None and one.pearson is not None]
        if pearson:
            mean = statistics.fmean(pearson)
            what = f"Pearson {min(pearson):.4f} at least, {mean:.4f} on average"
            differ = [(fact.label, fact.value) for fact in run.differences]
            if differ == [(COMPRESSION, FULL)]:
                count = max(one.count for one in both if one is not None)
                note = f"with {run.name}, at full rank, over {count:,} sequences"
                found.append(Fact(_CORRELATION, what, note))
                continue
            note = "; ".join(f"{label}: {value}" for label, value in differ)
            found.append(Fact(f"Agreement with {run.name}", what, note or "the same settings"))
    if compressed and not any(fact.label == _CORRELATION for fact in found):
        found.append(Fact(_CORRELATION, "not measured", "make report COMPARE=full-rank does"))
    return found


def _value(fact: Fact | None) -> str | None:
    return None if fact is None else fact.value


def _compare(
    one: NDArray[np.float32], other: NDArray[np.float32], read: Callable[[int], SequenceText]
) -> Ranks:
    both = ~(np.isnan(one) | np.isnan(other))
    here, there = _ranks(one, both), _ranks(other, both)
    found = agreement(one, other, _TOP)
    high = np.flatnonzero(both & ((here <= found.k) | (there <= found.k)))
    high = high[np.argsort(here[high])]

    def only(rank: NDArray[np.int64], elsewhere: NDArray[np.int64]) -> Sequence[FoundView]:
        mine = high[(rank[high] <= found.k) & (elsewhere[high] > found.k)]
        mine = mine[np.argsort(rank[mine])][:_TOLD].tolist()
        return [_found(read(n), int(rank[n]), int(elsewhere[n])) for n in mine]

    points = [(int(n), int(here[n]), int(there[n])) for n in high]
    comparison = ComparisonView(
        found.count,
        _known(found.pearson),
        _known(found.spearman),
        found.overlap if found.k else 0.0,
        found.k,
        points,
        only(here, there),
        only(there, here),
    )
    return Ranks(here, there, comparison)


def _ranks(scores: NDArray[np.float32], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """From 1, highest first; 0 for what is not counted."""
    numbers = np.flatnonzero(counted)
    order = np.argsort(-scores[numbers], kind="stable")
    ranks = np.zeros(len(scores), np.int64)
    ranks[numbers[order]] = np.arange(1, len(numbers) + 1)
    return ranks


def _found(text: SequenceText, rank: int, other: int) -> FoundView:
    source = text.sources[0].document_id if text.sources else f"sequence {text.sequence}"
    return FoundView(text.sequence, rank, other, source, one_line(text.text[:_TEXT]))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
