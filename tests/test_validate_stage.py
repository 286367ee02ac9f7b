"""`validate` scores its points as the pipeline does, agrees with a dense solve, and loses no piece
of its work when it is stopped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ggn import GaussNewton, keep_float64
from oracle import relative
from pipeline import CPU, Pipeline

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import read_damping_factors
from inflcli.artifacts.files import read_tensors
from inflcli.artifacts.scan import ScanReader
from inflcli.config import ESTIMATORS, ValidateConfig
from inflcli.corpus.queries import encode_query, read_queries
from inflcli.errors import BadInput, StaleArtifact
from inflcli.model.resolve import load_tokenizer
from inflcli.stages import validate as stage
from inflcli.stages import validate_truths
from inflcli.validation.bank import Bank

MODULE = "model.layers.1.mlp.down_proj"
FITTED = 12


@pytest.fixture(scope="module")
def made(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    """A pipeline with factors of one module of the tiny Llama, and scans of all its points."""
    run = Pipeline(tiny_model("llama"), tmp_path_factory.mktemp("run"))
    run.prepare(tiny_text)
    run.fit(modules=MODULE, max_sequences=FITTED)
    for curvature in ("ekfac", "kfac", "identity"):
        run.precondition(tiny_queries, out=f"queries-{curvature}", curvature=curvature)
        run.scan(out=f"scan-{curvature}", queries=f"queries-{curvature}")
    return run


def validated(made: Pipeline, queries: Path, out: str = "validation", **settings: Any):
    config = ValidateConfig(**{"points": None, **settings})
    corpus, factors = made.run / "corpus", made.run / "factors"
    model = str(made.model)
    return stage.validate(model, corpus, factors, queries, made.run / out, config, CPU)


def scores(folder: Path, kind: str, name: str, points: list[int]) -> np.ndarray:
    """[K, N] in the corpus's order."""
    found = read_tensors(folder / kind / f"{name}.safetensors")["scores"].numpy()
    return found[:, np.argsort(points)]


@pytest.mark.parametrize(("name", "curvature"), [("gradient", "identity"), ("ekfac", "ekfac")])
def test_estimates_are_the_pipelines_scores(made, tiny_queries, name, curvature):
    out = f"scores-{name}"
    found = validated(made, tiny_queries, out, estimators=(name,), truths=())
    ours = scores(made.run / out, "estimates", name, found["validation"]["points"])
    reader = ScanReader.open(made.run / f"scan-{curvature}")
    theirs = np.stack([reader.scores(query) for query in range(len(ours))])
    known = sorted(found["validation"]["points"])
    assert relative(torch.from_numpy(ours), torch.from_numpy(theirs[:, known]).double()) < 1e-5


def test_the_damping_that_the_halves_chose(made, tiny_queries):
    """Of all estimators alike, and not a tenth of the mean."""
    given = validated(made, tiny_queries, "tenth", estimators=("kfac", "ekfac"))
    chosen = validated(
        made, tiny_queries, "chosen", estimators=("kfac", "ekfac"), damping="auto",
        damping_factor=None,
    )  # fmt: skip
    factor = read_damping_factors(made.run / "factors")[MODULE]
    before, after = (one["validation"]["damping"][MODULE] for one in (given, chosen))
    assert factor != 0.1 and after == pytest.approx(before / 0.1 * factor)
    for name in ("kfac", "ekfac"):
        details = chosen["validation"]["estimators"][name]["details"]
        assert details["damping"][MODULE] == pytest.approx(after)


def test_the_exact_solve_is_a_dense_one(made, tiny_queries, monkeypatch):
    keep_float64(monkeypatch)
    found = validated(made, tiny_queries, "exact", estimators=("gradient", "refined"), refine=30)
    about = found["validation"]
    ggn, corpus = GaussNewton(made.model, [MODULE]), CorpusReader.open(made.run / "corpus")
    usable = np.flatnonzero(corpus.lengths >= 2)
    chosen = np.sort(np.random.default_rng(0).choice(usable, FITTED, replace=False))
    sequences = [corpus.take([one])[0][: corpus.lengths[one]].tolist() for one in chosen]
    matrix = ggn.matrix(sequences) + about["damping"][MODULE] * torch.eye(ggn.size).double()
    points = about["points"]
    dot = scores(made.run / "exact", "estimates", "gradient", points)
    exact = scores(made.run / "exact", "truths", "ggn", points)
    texts = [corpus.take([one])[0][: corpus.lengths[one]].tolist() for one in sorted(points)]
    gradients = torch.stack([gradient(ggn, tokens) for tokens in texts])
    asked = torch.stack([gradient(ggn, *query) for query in encoded(made, tiny_queries)])
    assert relative(asked @ gradients.T, torch.from_numpy(dot)) < 1e-8
    solved = torch.linalg.solve(matrix, gradients.T)
    assert relative(asked @ solved, torch.from_numpy(exact)) < 1e-4
    against = about["estimators"]["refined"]["against"]["ggn"]["pearson"]
    assert against["min"] > 0.9999


def gradient(ggn: GaussNewton, tokens: list[int], first: int = 1) -> torch.Tensor:
    """∇ log p of the tokens from `first` on, flattened."""

    def log_p(step: torch.Tensor) -> torch.Tensor:
        rows = torch.log_softmax(ggn._logits(tokens)(step), -1)
        labels = torch.tensor(tokens[1:])
        return rows.gather(1, labels[:, None])[first - 1 :].sum()

    return torch.func.grad(log_p)(torch.zeros(ggn.size, dtype=torch.float64))


def encoded(made: Pipeline, queries: Path) -> list[tuple[list[int], int]]:
    """Each query's tokens, and the first that is predicted."""
    text = load_tokenizer(made.model)
    found = [encode_query(q, text, bos=False, max_tokens=None) for q in read_queries(queries)]
    return [(one.tokens, max(one.completion_start, 1)) for one in found]


def test_every_estimator_and_ground_truth(made, tiny_queries):
    settings = {"truths": ("ggn", "pbrf", "lds", "topk"), "points": 10, "subsets": 4}
    small = {"epochs": 1, "depth": 10, "refine": 2, "removals": (2,)}
    found = validated(made, tiny_queries, "all", **settings, **small)["validation"]
    assert list(found["estimators"]) == list(ESTIMATORS)
    assert len(found["points"]) == 10
    for name, estimate in found["estimators"].items():
        assert set(estimate["against"]) == {"ggn", "pbrf", "lds", "topk"}, name
        assert sum(estimate["seconds"].values()) > 0
        for truth in ("ggn", "pbrf"):
            assert len(estimate["against"][truth]["pearson"]["by_query"]) == 3
    # Both solve the same system, one of them with small steps of the weights.
    exact = scores(made.run / "all", "truths", "ggn", found["points"])
    response = scores(made.run / "all", "truths", "pbrf", found["points"])
    for one, other in zip(exact, response, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999


def test_a_stopped_run_goes_on(made, tiny_queries, monkeypatch):
    names = ("gradient", "ekfac", "refined")
    whole = validated(made, tiny_queries, "whole", estimators=names, refine=2)["validation"]
    usual, asked = stage.Estimates.make, []

    def make(self: Any, name: str) -> Any:
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return usual(self, name)

    monkeypatch.setattr(stage.Estimates, "make", make)
    with pytest.raises(KeyboardInterrupt):
        validated(made, tiny_queries, "stopped", estimators=names, refine=2)
    found = validated(made, tiny_queries, "stopped", estimators=names, refine=2)["validation"]
    assert asked == [*names, names[2]]
    for name in names:
        points = found["points"]
        ours = scores(made.run / "stopped", "estimates", name, points)
        theirs = scores(made.run / "whole", "estimates", name, points)
        assert np.array_equal(ours, theirs)
    assert found["points"] == whole["points"]
    again = validated(made, tiny_queries, "stopped", estimators=names, refine=2)
    assert again["fresh"]
    assert again["validation"] == json.loads((made.run / "stopped" / stage.FILE).read_text())


def stopped_after(monkeypatch, kind: type, stops: set[int]) -> list[int]:
    """Let `kind.keep` be interrupted once it has been called so often; its calls are counted."""
    usual, calls = kind.keep, [0]

    def keep(self: Any, *arguments: Any) -> None:
        usual(self, *arguments)
        calls[0] += 1
        if calls[0] in stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(kind, "keep", keep)
    return calls


def test_a_solve_goes_on_from_its_last_step(made, tiny_queries, monkeypatch):
    """Stopped in float32 and again in float64, it takes the same steps to the same bits."""
    monkeypatch.setattr(validate_truths, "_SECONDS", 0.0)
    monkeypatch.setattr(validate_truths, "_SHARE", 0.0)
    settings = {"truths": ("ggn",), "estimators": ("gradient",), "tolerance": 1e-7}
    settings["dtype"] = "float32"
    stops: set[int] = set()
    calls = stopped_after(monkeypatch, validate_truths._Solve, stops)
    whole = validated(made, tiny_queries, "whole-solve", **settings)["validation"]
    details = whole["truths"]["ggn"]["details"]
    single, steps = details["single_steps"], details["single_steps"] + details["steps"]
    assert calls[0] == steps
    stops |= {steps + 2, steps + single + 1}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            validated(made, tiny_queries, "stopped-solve", **settings)
    found = validated(made, tiny_queries, "stopped-solve", **settings)["validation"]
    assert calls[0] == 2 * steps
    assert found["truths"]["ggn"]["details"] == details
    points = found["points"]
    ours, theirs = (
        scores(made.run / out, "truths", "ggn", points) for out in ("stopped-solve", "whole-solve")
    )
    assert np.array_equal(ours, theirs)
    assert not list((made.run / "stopped-solve").glob("state*"))


def test_no_response_is_searched_for_twice(made, tiny_queries, monkeypatch):
    settings = {"truths": ("pbrf",), "estimators": ("gradient",), "tolerance": 1e-2, "points": 4}
    stops: set[int] = set()
    calls = stopped_after(monkeypatch, validate_truths._Found, stops)
    whole = validated(made, tiny_queries, "whole-pbrf", **settings)["validation"]
    searched = calls[0]
    stops |= {searched + 2}
    with pytest.raises(KeyboardInterrupt):
        validated(made, tiny_queries, "stopped-pbrf", **settings)
    found = validated(made, tiny_queries, "stopped-pbrf", **settings)["validation"]
    assert calls[0] == 2 * searched
    ours, theirs = (
        scores(made.run / out, "truths", "pbrf", found["points"])
        for out in ("stopped-pbrf", "whole-pbrf")
    )
    assert np.array_equal(ours, theirs)
    details = [one["truths"]["pbrf"]["details"] for one in (found, whole)]
    assert details[0] == details[1]


def test_no_retrained_model_is_lost(made, tiny_queries, monkeypatch):
    """Stopped in the third model, a run trains the third and what follows it."""
    settings = {"truths": ("lds",), "estimators": ("gradient",), "points": 10, "subsets": 4}
    whole = validated(made, tiny_queries, "bank", epochs=1, **settings)["validation"]
    usual, trained = Bank.train, []

    def train(self: Bank, *arguments: Any) -> Any:
        trained.append(arguments)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return usual(self, *arguments)

    monkeypatch.setattr(Bank, "train", train)
    with pytest.raises(KeyboardInterrupt):
        validated(made, tiny_queries, "half-bank", epochs=1, **settings)
    found = validated(made, tiny_queries, "half-bank", epochs=1, **settings)["validation"]
    assert len(trained) == 5  # two, the one that was stopped, and the two that were missing
    against = [one["estimators"]["gradient"]["against"]["lds"] for one in (found, whole)]
    assert against[0] == against[1]


def test_refusals(made, tiny_queries, tiny_model, tmp_path):
    made.fit(out="none", curvature="identity", modules=MODULE)
    with pytest.raises(BadInput, match="identity"):
        stage.validate(
            str(made.model), made.run / "corpus", made.run / "none", tiny_queries,
            tmp_path / "out", ValidateConfig(), CPU,
        )  # fmt: skip
    other = replace(made, model=tiny_model("gpt2"))
    with pytest.raises(StaleArtifact):
        validated(other, tiny_queries, "other")
