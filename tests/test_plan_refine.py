"""A plan knows what a refinement adds to precondition: FLOPs as torch counts them, and bytes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from commands import call, refuse
from pipeline import Pipeline
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from inflcli.ekfac import gauss_newton_sum
from inflcli.model.batches import make_batch
from inflcli.model.load import LoadedModel
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked
from inflcli.stages.planning.outline import read_outline
from inflcli.stages.planning.refining import product_flops
from inflcli.stages.planning.task import Reading
from inflcli.stages.refine import VECTORS, fit_into

IMAGINED = ("--sequences", 1000, "--seq-len", 32, "--n-queries", 5, "--no-calibrate", "--json")


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_product(tiny_model, shape):
    """Within 15 %: the plan counts attention's backward pass as a kernel does it."""
    folder, width, queries = tiny_model(shape), 24, 3
    network = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    network.requires_grad_(False).eval()
    model = LoadedModel(network, folder, torch.device("cpu"), torch.float32, 64)
    modules = find_tracked(network, "mlp")
    passes = Passes.for_model(model, modules)
    tokens = np.random.default_rng(0).integers(0, 300, (2, width))
    batch = make_batch(np.arange(2), tokens, np.full(2, width, np.int32), model.device)
    vectors = {m.name: torch.ones(queries, m.outputs, m.inputs) for m in modules}
    with FlopCounterMode(display=False) as counter:
        gauss_newton_sum(passes, batch, vectors)
    outline = read_outline(folder, "mlp", width)
    reading = Reading(2.0, 2.0 * width, float(batch.count))
    expected = counter.get_total_flops() / queries
    found = product_flops(outline, modules, reading, queries)
    assert found == pytest.approx(expected, rel=0.15)


@pytest.fixture
def planned(tiny_model, tmp_path):
    """`precondition`'s row of a plan from a config alone."""
    folder = tmp_path / "config-alone"
    folder.mkdir()
    shutil.copy(tiny_model("gpt2") / "config.json", folder)

    def plan(*options):
        done = call("plan", "--model", folder, *IMAGINED, *options)
        assert done.exit_code == 0, done.output
        return next(
            row for row in json.loads(done.stdout)["stages"] if row["stage"] == "precondition"
        )

    return plan


def test_it_grows_with_steps_and_sequences(planned):
    plain, few, many = planned(), planned("--refine", 4), planned("--refine", 9)
    assert "refine" not in plain["parts"]
    assert planned("--refine", 0) == plain
    ratio = (many["flops"] - plain["flops"]) / (few["flops"] - plain["flops"])
    assert ratio == pytest.approx(2.0)  # ten products a query for five
    assert many["parts"]["refine"] == pytest.approx(2 * few["parts"]["refine"])
    assert few["seconds"] > plain["seconds"]
    assert few["memory"] > plain["memory"]
    assert few["disk"] == plain["disk"]
    short = planned("--refine", 9, "--refine-sequences", 64)
    whole = planned("--refine", 9, "--refine-sequences", "all")
    assert short["flops"] < many["flops"] < whole["flops"]
    assert planned("--refine", 9, "--refine-solver", "neumann")["flops"] > many["flops"]


def test_a_calibrated_plan(tiny_model, tiny_text, tiny_queries, tmp_path):
    chain = Pipeline(tiny_model("llama-bias"), tmp_path / "run")
    chain.prepare(tiny_text)
    done = call(
        "plan", "--model", chain.model, "--corpus", chain.run / "corpus", "--queries",
        tiny_queries, "--run", chain.run, "--device", "cpu", "--refine", 5, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["rates"]["speed"]["refine"] > 0
    assert found["sampled"]["refine tokens"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--refine-solver", "cg"), "--refine-solver goes with --refine"),
        (("--refine", 2, "--refine-solver", "lu"), "lu"),
        (("--refine", 2, "--refine-sequences", "x"), "x"),
    ],
)
def test_what_cannot_be_planned(tiny_model, options, words):
    refuse(call("plan", "--model", tiny_model("gpt2"), *IMAGINED, *options), 2, words)


MODULES = [TrackedModule(f"m{i}", 100, 50, False, i, f"m{i}") for i in range(4)]


@pytest.mark.parametrize("memory", [0.0, 1e6, 3e6, 1e7, 1e9])
def test_what_is_chosen_fits(memory):
    """Unless one query and one sequence do not."""
    width, a_token, each = 64, 1000.0, VECTORS * 4 * 20_000
    sizes = fit_into(memory, MODULES, width, 4, a_token)
    taken = sizes.queries * each + sizes.tokens * a_token
    assert sizes.tokens >= sizes.queries * width
    assert sizes.queries <= 4096 // width
    if sizes.queries > 1 or sizes.tokens > width:
        assert taken <= memory
    if memory == 1e9:
        assert (sizes.queries, sizes.tokens) == (8, 4096)
