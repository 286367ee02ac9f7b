"""Invariant: a text of the user's own is scored and attributed as if it were in the corpus, and the
folder is a run that a report shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline import CPU, SEQ_LEN, Pipeline, scores
from typer.testing import CliRunner

from inflcli.artifacts.attribution import AttributionReader
from inflcli.cli import app
from inflcli.config import AttributeConfig
from inflcli.stages.attribute_sequences import attribute_sequences

MINE = (3, 0, 5)


@pytest.fixture(scope="module")
def run(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama"), tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    return pipeline


@pytest.fixture(scope="module")
def mine(run: Pipeline, tiny_text: Path) -> Path:
    """Some documents of the corpus, in a file of their own."""
    lines = tiny_text.read_text().splitlines()
    (run.run / "mine.jsonl").write_text("".join(lines[number] + "\n" for number in MINE))
    out = run.run / "mine"
    attribute_sequences(
        str(run.model), run.run / "queries", run.run / "mine.jsonl", out,
        AttributeConfig(dtype="float32"), CPU, seq_len=SEQ_LEN, top_k=None,
    )  # fmt: skip
    return out


def test_scores_are_those_of_the_same_texts_in_the_corpus(run: Pipeline, mine: Path) -> None:
    found, meant = scores(mine / "scan"), scores(run.run / "scan")[:, MINE]
    np.testing.assert_allclose(found, meant, rtol=1e-4, atol=1e-5 * np.abs(meant).max())


def test_all_of_them_are_attributed(mine: Path) -> None:
    reader = AttributionReader.open(mine / "attribution")
    for query, numbers in enumerate(reader.sequences()):
        assert set(numbers.tolist()) == set(range(len(MINE)))
        sums = reader.token_scores(query).sum(axis=(1, 2))
        np.testing.assert_allclose(sums, reader.scores()[query], rtol=1e-3, atol=1e-3)


def test_the_folder_is_a_run(run: Pipeline, mine: Path) -> None:
    done = CliRunner().invoke(
        app, ["report", "--run", str(mine), "--out", str(mine / "report"), "--format", "jsonl"]
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (mine / "report" / "report.jsonl").open()]
    shown = {line["sequence"] for line in lines if line["kind"] == "sequence"}
    assert shown == set(range(len(MINE)))


def test_a_corpus_or_sequences_but_not_both(run: Pipeline, tmp_path: Path) -> None:
    usual = ["attribute", "--model", str(run.model), "--queries", str(run.run / "queries")]
    usual += ["--out", str(tmp_path / "out")]
    for more, said in (
        ([], "--corpus is missing"),
        (["--corpus", "c"], "--scan is missing"),
        (["--sequences", "x", "--corpus", "c"], "--sequences goes without"),
    ):
        done = CliRunner().invoke(app, [*usual, *more])
        assert done.exit_code == 2 and said in done.stderr
