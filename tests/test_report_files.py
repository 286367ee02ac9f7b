"""Invariant: every file format holds the same sequences, and figures are what their names say."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from pyarrow import parquet
from report_fixtures import GROUPS, TOP, element, make_run, read_json_lines

from inflcli.config import ReportConfig, Runtime
from inflcli.stages.report import report

KINDS = ("survival", "concentration", "layers", "tokens")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("files") / "run", tiny_tokenizer, counterfactual=True)
    config = ReportConfig(("html", "jsonl", "parquet", "figures"), TOP, 1000)
    report(run, run / "report", config, Runtime())
    return run / "report"


def test_the_table_has_what_the_lines_have(out: Path) -> None:
    lines = [line for line in read_json_lines(out / "report.jsonl") if line["kind"] == "sequence"]
    rows = parquet.read_table(out / "report.parquet").to_pylist()
    assert len(rows) == len(lines) > 0
    for row, line in zip(rows, lines, strict=True):
        for name in ("query", "sign", "rank", "sequence", "score", "nats", "tfidf_rank",
                     "spurious", "duplicate_of", "tokens"):  # fmt: skip
            assert row[name] == line[name], name
        assert row["documents"] == [source["document_id"] for source in line["sources"]]
        for name in ("groups", "influence", "output_tokens", "input_tokens"):
            assert row[name] == pytest.approx(line[name], rel=1e-6)


def test_the_page_carries_the_table_without_texts(out: Path) -> None:
    carried = base64.b64decode(element((out / "index.html").read_text(), "parquet"))
    table, whole = (
        parquet.read_table(io.BytesIO(carried)),
        parquet.read_table(out / "report.parquet"),
    )
    assert "tokens" not in table.column_names and "influence" not in table.column_names
    assert table.equals(whole.select(table.column_names))


def test_runs_of_other_ranks_make_a_curve(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Of those that differ in their rank alone."""
    runs = [
        make_run(tmp_path / f"rank-{rank}", tiny_tokenizer, rank=rank, seed=rank)
        for rank in (8, 16)
    ]
    whole = make_run(tmp_path / "whole", tiny_tokenizer)
    config, others = ReportConfig(("figures",), TOP), [whole, *runs]
    report(whole, tmp_path / "out", config, Runtime(), compared=others)
    drawn = (tmp_path / "out" / "figures" / "low-rank.svg").read_text()
    assert "kB a query" in drawn and drawn.count("<use") >= 4  # two points of two lines, and ticks
    report(whole, tmp_path / "alone", config, Runtime(), compared=[whole])
    assert not (tmp_path / "alone" / "figures" / "low-rank.svg").exists()


def test_each_query_has_its_figures(out: Path) -> None:
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {
        f"query-{number}-{kind}.{form}"
        for number in (1, 2)
        for kind in KINDS
        for form in ("png", "svg")
    }
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    drawn = (out / "figures" / "query-1-tokens.svg").read_text()
    assert all(group in drawn for group in GROUPS)
    assert "TF-IDF candidates" in (out / "figures" / "query-1-concentration.svg").read_text()
