"""`inflcli plan` needs no more than a config unless it calibrates, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import call, contents, refuse
from pipeline import Pipeline

STAGES = [
    "prepare", "fit-factors", "precondition", "tfidf-filter", "scan", "attribute", "report",
]  # fmt: skip
IMAGINED = ("--sequences", 1000, "--seq-len", 32, "--n-queries", 5)


@pytest.fixture
def config_alone(tiny_model, tmp_path):
    """A model folder without weights and without a tokenizer."""
    folder = tmp_path / "config-alone"
    folder.mkdir()
    shutil.copy(tiny_model("gpt2") / "config.json", folder)
    return folder


def test_a_config_is_enough(config_alone, tiny_queries):
    options = ("--model", config_alone, "--no-calibrate", "--json")
    done = call("plan", *options, *IMAGINED)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["stage"] for row in found["stages"]] == STAGES
    for row in found["stages"]:
        # What runs no model is not counted in FLOPs.
        light = row["stage"] in ("prepare", "tfidf-filter", "report")
        keys = ("seconds", "memory", "disk") if light else ("flops", "seconds", "memory", "disk")
        assert min(row[key] for key in keys) > 0, row
    assert found["calibrated"] is False
    of_file = call("plan", *options, "--sequences", 9, "--seq-len", 8, "--queries", tiny_queries)
    assert json.loads(of_file.stdout)["queries"] == 3


def test_a_gpu_that_is_not_here(config_alone):
    if_here = call("plan", "--model", config_alone, *IMAGINED, "--device", "cuda")
    assert if_here.exit_code in (0, 2)
    options = ("--model", config_alone, *IMAGINED, "--device", "cuda:7", "--no-calibrate")
    refuse(call("plan", *options), 2, "--max-memory", "how much memory")
    done = call("plan", *options, "--max-memory", 40, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["device"] == "cuda"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n-queries", 5), ("--corpus", "--sequences")),
        (("--sequences", 5, "--seq-len", 8), ("--queries", "--n-queries")),
        (("--sequences", 5, "--n-queries", 5), ("--seq-len",)),
        (("--corpus", "c", "--sequences", 5, "--n-queries", 5), ("--corpus", "--sequences")),
        (("--sequences", 5, "--seq-len", 100, "--n-queries", 5), ("100", "64")),
        ((*IMAGINED, "--rank", 3, "--keep", 0.9), ("--rank", "--keep")),
        ((*IMAGINED, "--modules", "nothing"), ("--modules nothing",)),
        ((*IMAGINED, "--curvature", "exact"), ("--curvature",)),
    ],
)
def test_what_cannot_be_planned(config_alone, options, words):
    refuse(call("plan", "--model", config_alone, "--no-calibrate", *options), 2, *words)


def test_it_fits_eighty_columns(config_alone, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = call("plan", "--model", config_alone, "--no-calibrate", *IMAGINED, "--max-memory", 1)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    rows = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in STAGES]
    assert rows == STAGES
    table = [line for line in lines if line.split()[:1] and line.split()[0] in (*STAGES, "all")]
    assert all(len(line) <= 80 for line in table)
    assert "rough" in done.stdout


@pytest.mark.parametrize("curvature", ["ekfac", "ec-shampoo", "kfac", "identity"])
def test_a_calibrated_plan_leaves_nothing(tiny_model, tiny_text, tiny_queries, tmp_path, curvature):
    chain = Pipeline(tiny_model("llama-bias"), tmp_path / "run")
    chain.prepare(tiny_text)
    before = contents(tmp_path), contents(chain.model)
    done = call(
        "plan", "--model", chain.model, "--corpus", chain.run / "corpus", "--queries",
        tiny_queries, "--run", chain.run, "--device", "cpu", "--curvature", curvature, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (contents(tmp_path), contents(chain.model)) == before
    found = json.loads(done.stdout)
    assert found["calibrated"] and found["seconds_planning"] > 0
    wanted = {"scan", "attribute", "queries"}
    if curvature != "identity":
        wanted |= {"covariance", "eigenvectors"}
    if curvature in ("ekfac", "ec-shampoo"):
        wanted.add("corrected")
    speeds = found["rates"]["speed"]
    assert all(speeds[kind] > 0 for kind in wanted)
    assert all(0 < one <= 16 for one in found["columns"].values())
