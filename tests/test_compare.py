"""Two scans are compared by the numbers that scipy gives, over the sequences that both scored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import call
from pipeline import Pipeline, scores
from scipy import stats

from inflcli.artifacts.scan import ScanReader
from inflcli.errors import BadInput
from inflcli.stages.compare import compare


@pytest.fixture(scope="module")
def run(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama"), tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit()
    for name, settings in (("whole", {}), ("rank-1", {"rank": 1})):
        pipeline.precondition(tiny_queries, f"queries-{name}", **settings)
        pipeline.scan(name, f"queries-{name}")
    pipeline.scan("part", "queries-whole", start=5, stop=25)
    return pipeline


def test_the_numbers_are_scipy_s(run):
    found = compare(run.run / "whole", run.run / "rank-1", 10)
    one, other = scores(run.run / "whole"), scores(run.run / "rank-1")
    ids = ScanReader.open(run.run / "whole").query_ids
    assert [row["query"] for row in found["queries"]] == ids
    for row, first, second in zip(found["queries"], one, other, strict=True):
        assert row["count"] == len(first)
        assert row["pearson"] == pytest.approx(np.corrcoef(first, second)[0, 1])
        assert row["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic)
        tops = [set(np.argsort(-values)[:10]) for values in (first, second)]
        assert row["overlap"] == len(tops[0] & tops[1]) / 10
    assert 0 < found["mean"]["pearson"] < 1
    assert found["mean"]["overlap"] == np.mean([row["overlap"] for row in found["queries"]])


def test_a_scan_with_itself(run):
    found = compare(run.run / "whole", run.run / "whole", 1000)
    assert found["mean"] == pytest.approx({"pearson": 1, "spearman": 1, "overlap": 1})
    assert found["queries"][0]["k"] == found["queries"][0]["count"]


def test_only_what_both_scored(run):
    found = compare(run.run / "part", run.run / "whole", 5)
    assert [row["count"] for row in found["queries"]] == [20] * len(found["queries"])
    assert found["mean"] == pytest.approx({"pearson": 1, "spearman": 1, "overlap": 1})


def test_other_queries_are_named(run, tmp_path, tiny_queries):
    lines = tiny_queries.read_text().splitlines()
    one, new = json.loads(lines[0]), {"id": "new", "prompt": "The sun", "completion": " is old"}
    asked = tmp_path / "queries.jsonl"
    asked.write_text("".join(json.dumps(query) + "\n" for query in (new, one)))
    run.precondition(asked, "queries-other")
    run.scan("other", "queries-other")
    found = compare(run.run / "whole", run.run / "other", 5)
    assert [row["query"] for row in found["queries"]] == [str(one["id"])]
    assert found["queries"][0]["pearson"] == pytest.approx(1)
    assert found["only_second"] == ["new"]
    assert len(found["only_first"]) == len(lines) - 1


def test_another_corpus_is_refused(run, tiny_text):
    run.prepare(tiny_text, "other-corpus", seq_len=12)
    run.scan("elsewhere", "queries-whole", "other-corpus")
    with pytest.raises(BadInput, match="different corpora"):
        compare(run.run / "whole", run.run / "elsewhere", 5)


def test_the_command(run):
    paths = [str(run.run / name) for name in ("whole", "rank-1")]
    shown = call("compare", *paths)
    assert "Spearman" in shown.stdout and "mean" in shown.stdout
    told = json.loads(call("compare", *paths, "--json", "--top-k", "10").stdout)
    assert told == compare(run.run / "whole", run.run / "rank-1", 10)
