"""Invariant: every number of a report is the artifacts' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import GROUPS, TOP, documents, make_run, read_json_lines, read_page

from inflcli.artifacts.attribution import EFFECTS, OUTPUTS, AttributionReader
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import ReportConfig, Runtime
from inflcli.model.resolve import load_tokenizer
from inflcli.report.model import RunView, SequenceView
from inflcli.stages.report import report

SIZE = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("numbers") / "run", tiny_tokenizer)


@pytest.fixture(scope="module")
def out(run: Path) -> Path:
    config = ReportConfig(("html", "jsonl"), TOP, SIZE)
    report(run, run / "report", config, Runtime())
    return run / "report"


@pytest.fixture(scope="module")
def view(run: Path) -> RunView:
    done = report(run, None, ReportConfig(("terminal",), TOP, SIZE), Runtime())
    assert done.view is not None
    return done.view


def _all(view: RunView) -> list[tuple[int, SequenceView]]:
    return [(n, s) for n, query in enumerate(view.queries) for s in query.sequences]


def test_sequences_are_the_highest_and_the_lowest(run: Path, view: RunView) -> None:
    scan = ScanReader.open(run / "scan")
    for number, query in enumerate(view.queries):
        scores = scan.scores(number)
        order = np.argsort(scores[~np.isnan(scores)])
        known = np.flatnonzero(~np.isnan(scores))[order]
        best = [int(s) for s in known[::-1][:TOP] if scores[s] > 0]
        worst = [int(s) for s in known[:TOP] if scores[s] < 0]
        assert [s.text.sequence for s in query.positive] == best
        assert [s.text.sequence for s in query.negative] == worst
        for sequence in query.sequences:
            assert sequence.score == scores[sequence.text.sequence]
            assert sequence.nats == pytest.approx(sequence.score / SIZE)


def test_parts_add_up_to_the_score(view: RunView) -> None:
    for _, sequence in _all(view):
        assert sequence.influence is not None
        assert len(sequence.influence) == len(sequence.text.units)
        size = sum(map(abs, sequence.influence))
        assert sum(sequence.influence) == pytest.approx(sequence.score, abs=1e-5 * size)
        assert sum(sequence.groups) == pytest.approx(sequence.score, rel=1e-4, abs=1e-2)


def test_text_and_sources_are_the_corpus_s(run: Path, view: RunView, tiny_tokenizer: Path) -> None:
    corpus, tokenizer = CorpusReader.open(run / "corpus"), load_tokenizer(tiny_tokenizer)
    texts = [json.loads(line)["text"] for line in (run / "documents.jsonl").open()]
    for _, sequence in _all(view):
        number = sequence.text.sequence
        length = int(corpus.lengths[number])
        assert sequence.text.text == tokenizer.decode(corpus.take([number])[0, :length])
        for source in sequence.text.sources:
            told = "".join(sequence.text.units[source.start : source.stop])
            whole = texts[int(source.document_id.removeprefix("set/"))]
            assert told == whole[source.char_start : source.char_end]


def test_candidate_ranks_are_the_filter_s(run: Path, view: RunView) -> None:
    candidates = CandidateReader.open(run / "candidates")
    for number, sequence in _all(view):
        found = np.flatnonzero(candidates.ids[number] == sequence.text.sequence)
        assert sequence.tfidf_rank == (int(found[0]) + 1 if len(found) else None)


def test_the_histogram_counts_every_scanned_sequence_once(run: Path, view: RunView) -> None:
    scan, candidates = ScanReader.open(run / "scan"), CandidateReader.open(run / "candidates")
    for number, query in enumerate(view.queries):
        scores = scan.scores(number)
        known = scores[~np.isnan(scores)]
        histogram = query.histogram
        assert histogram is not None and histogram.candidates is not None
        assert histogram.total == len(known) == view.scanned
        assert (histogram.positive, histogram.negative) == ((known > 0).sum(), (known < 0).sum())
        assert 0.0 in np.round(histogram.edges, 9)
        assert min(histogram.edges) <= known.min() and known.max() <= max(histogram.edges)
        signs = [sum(c for c, low in zip(histogram.counts, histogram.edges[:-1], strict=True)
                     if (low >= -1e-9) == plus) for plus in (True, False)]  # fmt: skip
        assert signs == [histogram.positive, histogram.negative]
        ids = candidates.ids[number]
        scanned = [i for i in ids[ids >= 0] if not np.isnan(scores[i])]
        assert sum(histogram.candidates) == len(scanned)


def test_the_influence_by_group_is_that_of_its_modules(run: Path, view: RunView) -> None:
    """The three modules of the fixture are three layers, and so three groups."""
    reader = AttributionReader.open(run / "attribution")
    for number, sequence in _all(view):
        rank = np.flatnonzero(reader.sequences()[number] == sequence.text.sequence)[0]
        stored = reader.token_scores(number)[rank]
        assert sequence.by_group is not None
        assert sequence.by_group.sum(axis=1) == pytest.approx(stored.sum(axis=1), rel=1e-4)
        if max(sequence.text.token_counts) == 1:
            length = len(sequence.text.units)
            np.testing.assert_allclose(sequence.by_group, stored[:, :length], rtol=1e-6)


def test_the_profile_is_the_sum_over_the_top_sequences(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """Of more sequences than the scan's lists hold."""
    run = make_run(tmp_path / "run", tiny_tokenizer, documents(1300))
    view = report(run, None, ReportConfig(("terminal",), TOP, None), Runtime()).view
    assert view is not None
    group = ScanReader.open(run / "scan").group
    for number, query in enumerate(view.queries):
        scores, layers = group["scores"][number], group["layer_scores"][number]
        order = np.argsort(np.where(np.isnan(scores), 0, -scores), kind="stable")
        assert list(query.profile.names) == GROUPS
        assert [top.count for top in query.profile.tops] == [50, 500]
        for top in query.profile.tops:
            for sums, chosen in ((top.positive, order), (top.negative, order[::-1])):
                assert sums == pytest.approx(layers[chosen[: top.count]].sum(0), rel=1e-4)


def test_a_profile_of_few_sequences_is_one(view: RunView) -> None:
    for query in view.queries:
        (top,) = query.profile.tops
        assert top.count == max(query.histogram.positive, query.histogram.negative)


def test_near_duplicates_are_folded_and_copies_found(tmp_path: Path, tiny_tokenizer: Path) -> None:
    text = "An ordinary day in the village, as any other there was, and nothing more to be told. "
    same = [f"{text}The end of tale {number}." for number in range(5)]
    copy = "They say that the old house is by the river."
    texts = [{"id": f"{place}", "text": one} for place, one in enumerate([*same, copy])]
    texts.append({"id": "last", "text": "Not scanned, as the last one."})
    run = make_run(tmp_path / "run", tiny_tokenizer, texts, per_line=True, seq_len=100)
    view = report(run, None, ReportConfig(("terminal",), 20, None), Runtime()).view
    assert view is not None
    first, second = view.queries
    for query in view.queries:
        for side in (query.positive, query.negative):
            mine = [one for one in side if one.text.text.startswith("An ordinary")]
            for head, *others in filter(None, [mine]):
                assert head.duplicate_of is None
                assert list(head.duplicates) == [other.rank for other in others]
                assert {other.duplicate_of for other in others} <= {head.rank}
    (shown,) = [one for one in first.sequences if one.text.text.startswith("They say")]
    ((start, stop),) = shown.copied
    assert "".join(shown.text.units[start:stop]).endswith("house is by the river.")
    assert not any(sequence.copied for sequence in second.sequences)


def test_queries_are_shown_in_full(run: Path, view: RunView) -> None:
    asked = QueriesReader.open(run / "queries").queries
    for query, stored in zip(view.queries, asked, strict=True):
        assert (query.id, query.prompt, query.completion) == (
            stored["id"],
            stored["prompt"],
            stored["completion"],
        )
        assert "".join(query.completion_units) == stored["completion"]
        known = [value for value in query.unit_log_p if value is not None]
        assert sum(known) == pytest.approx(stored["log_p"])


def test_page_and_json_lines_say_the_same(out: Path, view: RunView) -> None:
    lines = [line for line in read_json_lines(out / "report.jsonl") if line["kind"] == "sequence"]
    queries = read_page((out / "index.html").read_text())["queries"]
    entries = [one for query in queries for sign in ("positive", "negative") for one in query[sign]]
    assert len(lines) == len(entries) == len(_all(view))
    for line, entry in zip(lines, entries, strict=True):
        assert line["sequence"] == entry["n"]
        assert line["score"] == pytest.approx(entry["score"], rel=1e-3)
        told, strongest = entry["shadings"]["tokens"], max(map(abs, line["influence"]))
        assert line["influence"] == pytest.approx(told, abs=1e-3 * strongest)
        groups = np.array(line["influence_by_group"])
        assert entry["values"] == pytest.approx(groups, abs=np.abs(groups).max() / 31)
        assert groups.sum(axis=0) == pytest.approx(line["influence"], abs=1e-5 * strongest)
        assert line["nats"] == pytest.approx(entry["nats"], rel=1e-3)


def test_counterfactual_attributions_are_shown_as_they_are(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    run = make_run(tmp_path / "run", tiny_tokenizer, counterfactual=True)
    report(run, run / "report", ReportConfig(("html", "jsonl"), TOP, None), Runtime())
    reader = AttributionReader.open(run / "attribution")
    view = report(run, None, ReportConfig(("terminal",), TOP, None), Runtime()).view
    assert view is not None
    assert list(view.shadings) == ["tokens", *EFFECTS]
    lines = [
        line
        for line in read_json_lines(run / "report" / "report.jsonl")
        if line["kind"] == "sequence"
    ]
    shown = _all(view)
    assert len(lines) == len(shown) > 0
    for line, (number, sequence) in zip(lines, shown, strict=True):
        rank = np.flatnonzero(reader.sequences()[number] == sequence.text.sequence)[0]
        length = sum(sequence.text.token_counts)
        for name in EFFECTS:
            stored = reader.effects(name, number)[rank, :length]
            assert sum(sequence.effects[name]) == pytest.approx(float(stored.sum()), rel=1e-4)
            assert np.abs(stored).max() > 0
            assert line[name] == list(sequence.effects[name])
        assert sum(sequence.effects[OUTPUTS]) == pytest.approx(sequence.score, rel=1e-4)
    data = read_page((run / "report" / "index.html").read_text())
    for query, told in zip(view.queries, data["queries"], strict=True):
        assert told["strongest"] == {name: query.strongest(name) for name in view.shadings}
        for sequence, entry in zip(query.positive, told["positive"], strict=True):
            for name in view.shadings:
                told_values, values = entry["shadings"][name], sequence.shadings[name]
                assert np.abs(told_values - values).max() <= entry["w"][name]


def test_what_few_tokens_carry_is_marked_and_can_be_skipped(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """By ‖·‖₂ / ‖·‖₁ > 2/3, recomputed here from the artifact."""
    run = make_run(tmp_path / "run", tiny_tokenizer, evenness=0.02)
    reader = AttributionReader.open(run / "attribution")
    scan = ScanReader.open(run / "scan")

    def shown(**settings: bool) -> dict[tuple[int, int], SequenceView]:
        config = ReportConfig(("terminal",), 3, None, **settings)
        view = report(run, None, config, Runtime()).view
        assert view is not None
        return {(number, one.text.sequence): one for number, one in _all(view)}

    flagged = set()
    for query, sequences in enumerate(reader.sequences()):
        by_token = reader.token_scores(query).sum(axis=1, dtype=np.float64)
        for sequence, values in zip(sequences.tolist(), by_token, strict=True):
            size = np.abs(values).sum()
            if sequence >= 0 and np.sqrt((values**2).sum()) > 2 / 3 * size:
                flagged.add((query, sequence))
    usual, fewer = shown(), shown(skip_spurious=True)
    assert {key for key, one in usual.items() if one.spurious} == flagged & set(usual)
    assert flagged & set(usual) and set(usual) - flagged
    assert not flagged & set(fewer)
    # Those that are left keep their ranks, and others move up into view.
    assert set(fewer) - set(usual)
    for query, sequence in fewer:
        scores = scan.scores(query)
        one = fewer[query, sequence]
        better = (scores > one.score).sum() if one.sign > 0 else (scores < one.score).sum()
        assert one.rank == better + 1


def test_the_distribution_is_that_of_all_scores(tmp_path: Path, tiny_tokenizer: Path) -> None:
    run = make_run(tmp_path / "run", tiny_tokenizer, documents(400), top=100)
    view = report(run, None, ReportConfig(("terminal",), 5, None), Runtime()).view
    assert view is not None
    scan, candidates = ScanReader.open(run / "scan"), CandidateReader.open(run / "candidates")
    for number, query in enumerate(view.queries):
        scores = scan.scores(number).astype(np.float64)
        known = scores[~np.isnan(scores)]
        positive = np.sort(known[known > 0])
        found = query.distribution
        assert found is not None
        assert found.scanned == len(known)
        assert found.survival[0] == (positive[-1], 1)
        assert all(count == (positive >= score).sum() for score, count in found.survival)
        for share, part in found.concentration:
            whole = positive[::-1][: int(share * len(known))].sum()
            assert whole - 1e-2 * positive.sum() <= part * positive.sum()
            assert part * positive.sum() <= whole + positive[-1]
        assert found.tail is not None
        assert found.tail.x_min == positive[-50]
        assert found.tail.count == 50
        law = 1 + 50 / np.log(positive[-50:] / positive[-50]).sum()
        assert found.tail.alpha == pytest.approx(law)
        assert len(found.tail.rivals) == 6
        # Five candidates a query, one of them none: fewer than the ten that are compared.
        assert (candidates.ids[number] >= 0).sum() < 10
        assert found.effort is None
