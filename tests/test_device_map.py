"""A model that accelerate spreads over devices gives the scores of a model on one.

With one CPU there is nothing to spread over but the disk: what does not fit the memory that the
CPU is said to have lies there while it does not run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, refuse
from pipeline import CPU, Pipeline, scores

from inflcli.artifacts.attribution import EFFECTS, AttributionReader
from inflcli.model import parallel
from inflcli.model.load import load_model


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    pipeline.attribute(counterfactual=True)
    return pipeline


def effects(folder: Path) -> np.ndarray:
    """Both counterfactual attributions of all queries."""
    reader = AttributionReader.open(folder)
    queries = range(len(reader.sequences()))
    return np.stack([reader.effects(name, query) for name in EFFECTS for query in queries])


def test_the_whole_chain(whole, tiny_queries):
    """As the commands run it; 1e-6 relative."""
    shared = ["--model", whole.model, "--dtype", "float64", "--device-map", "auto"]
    corpus, run = ["--corpus", whole.run / "corpus"], whole.run / "spread"
    exact = ["--precision", "exact"]
    stages = [
        ["fit-factors", *corpus, *exact],
        ["precondition", "--factors", run / "fit-factors", "--queries", tiny_queries, *exact],
        ["scan", "--queries", run / "precondition", *corpus, *exact],
        ["attribute", "--queries", run / "precondition", *corpus, "--scan", run / "scan",
         "--counterfactual"],
    ]  # fmt: skip
    for name, *options in stages:
        more = ["--rank", "full"] if name == "precondition" else []
        done = call(name, *shared, *options, *more, "--out", run / name)
        assert done.exit_code == 0, done.output
    assert np.allclose(scores(run / "scan"), scores(whole.run / "scan"), rtol=1e-6)
    found, expected = effects(run / "attribute"), effects(whole.run / "attribution")
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_layers_on_disk(whole, monkeypatch, tmp_path):
    """Gradients pass through layers whose weights are not there when the backward begins."""
    plain = load_model(str(whole.model), device="cpu", dtype="float64").network

    def offloading(folder, config, dtype):
        from transformers import AutoModelForCausalLM

        layers = {f"model.layers.{number}": "disk" for number in range(2)}
        others = {f"model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
        return AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, offload_folder=tmp_path / "weights",
            device_map={**others, **layers, "lm_head": "cpu"},
        )  # fmt: skip

    monkeypatch.setattr("inflcli.model.load.load_spread", offloading)
    from dataclasses import replace

    runtime = replace(CPU, placement="auto")
    offloaded = replace(whole, runtime=runtime)
    out = offloaded.scan("offloaded")
    assert sum(value.is_meta for value in load_model(
        str(whole.model), device="cpu", dtype="float64", placement="auto"
    ).network.parameters()) > len(list(plain.parameters())) / 2  # fmt: skip
    assert np.allclose(scores(out), scores(whole.run / "scan"), rtol=1e-6)
    expected = effects(whole.run / "attribution")
    found = effects(offloaded.attribute("offloaded-attribution", counterfactual=True))
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_accelerate_is_asked_for(whole, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(Exception, match="needs accelerate"):
        parallel.load_spread(whole.model, None, torch.float32)


def test_other_maps_are_refused(whole):
    command = ["scan", "--model", whole.model, "--queries", "q", "--corpus", "c", "--out", "o"]
    refuse(call(*command, "--device-map", "balanced"), 2, "--device-map balanced is not auto")
    refuse(call(*command, "--fsdp"), 2, "torchrun")
