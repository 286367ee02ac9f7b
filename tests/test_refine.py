"""Refined queries are the exact solution of (G + λI) x = ∇f over the corpus that they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, contents
from ggn import keep_float64
from oracle import relative
from pipeline import Pipeline
from refining import MODULES, Dense, refinements, refining

from inflcli.artifacts.corpus import CorpusReader
from inflcli.errors import NumericalFault
from inflcli.model.passes import Passes

DAMPING = {"damping_factor": 2.0}
EXACTLY = {**DAMPING, "refine": 200, "refine_tolerance": 1e-8, "refine_sequences": None}
CORPUS = {"refine_corpus": "few"}


@pytest.fixture(scope="module", params=MODULES)
def base(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory):
    """Everything in float64, with a plain run of EK-FAC."""
    with pytest.MonkeyPatch.context() as patch:
        keep_float64(patch)
        folder = tmp_path_factory.mktemp(request.param)
        name = request.param
        pipeline = refining(tiny_model(name), folder, tiny_text, MODULES[name])
        pipeline.precondition(tiny_queries, "plain", **DAMPING)
        yield pipeline


@pytest.fixture(scope="module")
def exact(base, tiny_queries) -> tuple[Dense, Path]:
    folder = base.precondition(tiny_queries, "exact", **CORPUS, **EXACTLY)
    return Dense(base, folder), folder


def test_the_dense_solution(exact):
    dense, _ = exact
    found, expected = dense.given(), dense.answer()
    assert len(found) == 3
    for one, wanted in zip(found, expected, strict=True):
        assert relative(one, wanted) < 1e-6
        assert float(torch.cosine_similarity(one, wanted, dim=0)) > 0.999


def test_ekfac_is_another(exact, base):
    """What is reached was not there before."""
    dense, _ = exact
    plain = dense.given(base.run / "plain")
    assert min(relative(*pair) for pair in zip(plain, dense.answer(), strict=True)) > 0.05


def test_residuals_fall_and_are_what_they_are_said_to_be(exact, base):
    dense, folder = exact
    plain, found = dense.residual(dense.given(base.run / "plain")), dense.residual(dense.given())
    for row, one in enumerate(refinements(folder)):
        assert np.all(np.diff(one["residuals"]) <= 1e-15)
        assert one["residuals"][0] == one["residual_before"]
        assert one["residuals"][-1] == one["residual_after"] <= 1e-8
        assert len(one["residuals"]) == one["steps"] + 1 < 200
        assert one["residual_before"] == pytest.approx(float(plain[row]), rel=1e-6)
        assert float(found[row]) < 2e-8


@pytest.mark.parametrize("steps", [1, 4])
def test_after_some_steps(exact, base, tiny_queries, steps):
    dense, _ = exact
    settings = {**EXACTLY, "refine": steps}
    folder = base.precondition(tiny_queries, f"steps-{steps}", **CORPUS, **settings)
    found = dense.residual(dense.given(folder))
    for row, one in enumerate(refinements(folder)):
        assert one["steps"] == steps
        assert one["residual_after"] == pytest.approx(float(found[row]), rel=1e-6)


def test_it_stops_itself(base, tiny_queries, capsys):
    settings = {**EXACTLY, "refine_tolerance": 0.02}
    folder = base.precondition(tiny_queries, "stopped", **CORPUS, **settings)
    found = refinements(folder)
    assert max(one["residuals"][-1] for one in found) <= 0.02
    assert max(one["residuals"][-2] for one in found) > 0.02
    assert "not reached" not in capsys.readouterr().err


def test_it_says_what_was_not_reached(base, tiny_queries, capsys):
    settings = {**EXACTLY, "refine": 2, "refine_tolerance": 1e-3}
    folder = base.precondition(tiny_queries, "short", **CORPUS, **settings)
    said, found = capsys.readouterr().err, refinements(folder)
    assert "not reached by 3 of 3 queries" in said
    for number, one in enumerate(found):
        assert f"'q{number}' ({one['residual_after']:.1e})" in said
    summary = json.loads((folder / "manifest.json").read_text())["details"]["refinement"]
    after = [one["residual_after"] for one in found]
    assert summary["residual_after"]["worst"] == max(after)
    assert summary["residual_after"]["median"] == sorted(after)[1]
    count = CorpusReader.open(base.run / "few").n_sequences
    assert (summary["steps"], summary["sequences"], summary["reached"]) == (2, count, 0)


def test_no_step_is_a_plain_run(base, tiny_queries):
    options = ("--model", base.model, "--factors", base.run / "factors", "--queries", tiny_queries)
    options += ("--damping-factor", 2)
    more = ("--rank", "full", "--dtype", "float64", "--batch-size", 7, "--device", "cpu")
    for name, refine in (("none", ()), ("zero", ("--refine", 0, "--refine-corpus", "nowhere"))):
        done = call("precondition", *options, "--out", base.run / name, *more, *refine)
        assert done.exit_code == 0, done.output
    found, none, plain = (contents(base.run / name) for name in ("zero", "none", "plain"))
    manifests = [
        json.loads((base.run / name / "manifest.json").read_text())
        for name in ("zero", "none", "plain")
    ]
    for files in (found, none, plain):
        del files["manifest.json"]
    assert found == none == plain
    assert not any(key.startswith("refine") for key in manifests[0]["config"])
    assert len({one["fingerprint"] for one in manifests}) == 1


def test_neumann_converges_to_the_same(exact, base, tiny_queries):
    dense, _ = exact
    settings = {**EXACTLY, "refine": 2000, "refine_tolerance": 1e-2, "refine_solver": "neumann"}
    folder = base.precondition(tiny_queries, "neumann", **CORPUS, **settings)
    assert float(dense.residual(dense.given(folder)).max()) <= 1.001e-2
    for one in refinements(folder):
        assert one["residual_after"] <= 1e-2


def test_minibatches_do_not_diverge(exact, base, tiny_queries):
    """One sequence a step: over all of them the answer is nearer than EK-FAC's."""
    dense, _ = exact
    settings = {**EXACTLY, "refine": 30, "refine_sequences": 1, "refine_solver": "neumann"}
    folder = base.precondition(tiny_queries, "minibatches", **CORPUS, **settings)
    expected = dense.answer()
    for found, plain, wanted in zip(
        dense.given(folder), dense.given(base.run / "plain"), expected, strict=True
    ):
        assert relative(found, wanted) < relative(plain, wanted)
    assert np.isfinite([one["residuals"] for one in refinements(folder)]).all()


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_what_is_not_finite_is_a_numerical_fault(base, tiny_queries, monkeypatch, solver):
    right, settings = Passes.curvature_at_top, {**EXACTLY, "refine_solver": solver}
    monkeypatch.setattr(Passes, "curvature_at_top", lambda *given: right(*given) * float("inf"))
    with pytest.raises(NumericalFault, match="the refinement failed"):
        base.precondition(tiny_queries, f"broken-{solver}", **CORPUS, **settings)


def test_queries_one_by_one(exact, base: Pipeline, tiny_queries):
    """How many are solved for together changes no answer, after the same steps."""
    dense, _ = exact
    settings = {**EXACTLY, "refine": 5}
    found, expected = (
        dense.given(one.precondition(tiny_queries, f"of-{size}", **CORPUS, **settings))
        for size, one in ((1, base.with_batches(1)), (7, base))
    )
    assert relative(found, expected) < 1e-9
