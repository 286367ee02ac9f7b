"""Invariant: what a report says of another run are that run's own ranks, over what both scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import QUERIES, documents, make_run, read_json_lines, read_page
from scipy import stats

from inflcli.artifacts.scan import ScanReader
from inflcli.config import ReportConfig, Runtime
from inflcli.errors import BadInput
from inflcli.report.model import RunView
from inflcli.stages.report import report

COUNT = 230


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> tuple[Path, Path]:
    folder, texts = tmp_path_factory.mktemp("runs"), documents(COUNT)
    return (
        make_run(folder / "one", tiny_tokenizer, texts, per_line=True, seq_len=200),
        make_run(
            folder / "other", tiny_tokenizer, texts, QUERIES[1:], seed=5, per_line=True, seq_len=200
        ),
    )


@pytest.fixture(scope="module")
def view(runs: tuple[Path, Path]) -> RunView:
    config = ReportConfig(("terminal",), 20, None)
    done = report(runs[0], None, config, Runtime(), compared=[runs[1]])
    assert done.view is not None
    return done.view


def _ranks(run: Path, query: int) -> np.ndarray:
    scores = ScanReader.open(run / "scan").scores(query)
    return stats.rankdata(-np.where(np.isnan(scores), -np.inf, scores), "ordinal")


def test_ranks_are_the_other_run_s(runs: tuple[Path, Path], view: RunView) -> None:
    first, second = view.queries
    assert all(list(one.ranks_there) == [None] for one in first.sequences)
    ranks = _ranks(runs[1], 0)
    for one in second.positive:
        assert one.ranks_there == [ranks[one.text.sequence]]
    for one in second.negative:
        assert one.ranks_there == [COUNT - ranks[one.text.sequence]]  # one was not scanned


def test_agreement_is_scipy_s(runs: tuple[Path, Path], view: RunView) -> None:
    assert view.queries[0].comparisons == [None]
    (found,) = view.queries[1].comparisons
    assert found is not None
    one, other = (
        ScanReader.open(runs[0] / "scan").scores(1),
        ScanReader.open(runs[1] / "scan").scores(0),
    )
    both = ~np.isnan(one)
    assert found.count == both.sum() == COUNT - 1
    assert found.pearson == pytest.approx(stats.pearsonr(one[both], other[both])[0])
    assert found.spearman == pytest.approx(stats.spearmanr(one[both], other[both])[0])


def test_the_agreement_stands_among_the_facts(view: RunView) -> None:
    (fact,) = [one for one in view.provenance.facts if one.label == "Agreement with other"]
    (found,) = view.queries[1].comparisons
    assert found is not None
    assert fact.value.startswith(f"Pearson {found.pearson:.4f} at least")


def test_what_only_one_found_is_not_among_the_other_s_first(
    runs: tuple[Path, Path], view: RunView
) -> None:
    here, there = _ranks(runs[0], 1), _ranks(runs[1], 0)
    (found,) = view.queries[1].comparisons
    assert found is not None and found.k == 100
    tops = set(np.flatnonzero(here <= 100)) | set(np.flatnonzero(there <= 100))
    assert {number for number, _, _ in found.points} == tops
    assert all((here[n], there[n]) == (x, y) for n, x, y in found.points)
    shared = sum(x <= 100 and y <= 100 for _, x, y in found.points)
    assert found.overlap == pytest.approx(shared / 100)
    for rows, mine, other in (
        (found.only_here, here, there),
        (found.only_there, there, here),
    ):
        missed = [n for n in np.argsort(mine)[:100] if other[n] > 100][:10]
        assert [row.sequence for row in rows] == missed
        assert all(
            (row.rank, row.other) == (mine[row.sequence], other[row.sequence]) for row in rows
        )


def test_page_and_lines_have_it(runs: tuple[Path, Path], view: RunView) -> None:
    out = runs[0] / "compared"
    config = ReportConfig(("html", "jsonl"), 20, None)
    report(runs[0], out, config, Runtime(), compared=[runs[1]])
    entries = read_page((out / "index.html").read_text())["queries"][1]["positive"]
    assert [one["there"] for one in entries] == [
        list(v.ranks_there) for v in view.queries[1].positive
    ]
    lines = read_json_lines(out / "report.jsonl")
    (query,) = [line for line in lines if line["kind"] == "query" and line["query"] == "second"]
    assert json.dumps(query["comparisons"][0]["points"]) == json.dumps(
        [list(point) for point in view.queries[1].comparisons[0].points]
    )
    again = report(runs[0], out, config, Runtime(), compared=[runs[1]])
    assert again.result is not None and again.result["fresh"]


def test_another_corpus_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, tiny_tokenizer: Path
) -> None:
    other = make_run(tmp_path / "other", tiny_tokenizer)
    with pytest.raises(BadInput, match="another corpus"):
        report(runs[0], None, ReportConfig(("terminal",)), Runtime(), compared=[other])
