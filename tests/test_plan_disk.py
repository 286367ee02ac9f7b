"""Without running anything, a plan knows what a run writes, and what it decides: bytes on disk of
every stage, the routes of a scan, the passes of a fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline import Pipeline

from inflcli.artifacts.manifest import read_manifest
from inflcli.config import (
    AttributeConfig,
    FitFactorsConfig,
    PlanConfig,
    PreconditionConfig,
    Runtime,
    ScanConfig,
)
from inflcli.stages.fit import Fit
from inflcli.stages.plan import plan

# A model so small that what describes the numbers takes as much as they do.
SMALL = 1.25


@pytest.fixture
def pipeline(tiny_model, tiny_text, tmp_path):
    found = Pipeline(tiny_model("llama"), tmp_path)
    found.prepare(tiny_text)
    return found


def planned(pipeline: Pipeline, queries: Path, **settings: Any) -> dict[str, Any]:
    """A plan without calibration for what `pipeline` runs; settings by stage."""
    both = {"dtype": pipeline.dtype, "precision": "exact"}
    rank = {"rank": 3, "keep": None, **settings.get("precondition", {})}
    config = PlanConfig(
        fit=FitFactorsConfig(**{**both, **settings.get("fit", {})}),
        precondition=PreconditionConfig(**{**both, **rank}),
        scan=ScanConfig(**{**both, **settings.get("scan", {})}),
        attribute=AttributeConfig(dtype=pipeline.dtype, top_k=4),
        calibrate=False,
    )
    corpus = pipeline.run / "corpus"
    return plan(str(pipeline.model), corpus, queries, pipeline.run, config, pipeline.runtime)


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "all modules in blocks": {"fit": {"modules": "all", "blocks": 2}},
    "kfac": {"fit": {"curvature": "kfac"}, "precondition": {"curvature": "kfac"}},
    "ec-shampoo": {"fit": {"curvature": "ec-shampoo", "modules": "all"}},
    "identity": {"fit": {"curvature": "identity"}, "precondition": {"curvature": "identity"}},
    "a part of the corpus": {"fit": {"max_sequences": 9}},
    "whole queries": {"precondition": {"rank": None}},
    "dense": {"scan": {"route": "dense"}},
    "token scores": {"scan": {"token_scores": True}},
    "upper layers": {"scan": {"layers": "1"}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_disk_and_routes_are_those_of_the_run(pipeline, tiny_queries, settings):
    found = planned(pipeline, tiny_queries, **settings)
    folders = {
        "prepare": pipeline.run / "corpus",
        "fit-factors": pipeline.fit(**settings.get("fit", {})),
        "precondition": pipeline.precondition(
            tiny_queries, **{"rank": 3, **settings.get("precondition", {})}
        ),
        "scan": pipeline.scan(**settings.get("scan", {})),
        "attribute": pipeline.attribute(top_k=4),
    }
    stages = {row["stage"]: row for row in found["stages"]}
    shares = {stage: stages[stage]["disk"] / disk(folder) for stage, folder in folders.items()}
    assert all(1 / SMALL < share < SMALL for share in shares.values()), shares
    assert found["route_of"] == read_manifest(folders["scan"]).details["routes"]
    details = read_manifest(folders["fit-factors"]).details
    assert found["tracked"]["modules"] == len(details["modules"])
    assert found["tracked"]["percent"] == pytest.approx(100 * details["share_tracked"])


def test_the_numbers_of_factors_and_queries_are_exact(pipeline, tiny_queries):
    """On a wider model, where the tensors are nearly all that there is on disk."""
    wide = replace(pipeline, dtype="float32")
    found = planned(wide, tiny_queries, precondition={"rank": None})
    stages = {row["stage"]: row for row in found["stages"]}
    tensors = sum(path.stat().st_size for path in wide.fit().rglob("*.safetensors"))
    # 16 and 24 wide: A, S and their values, and Λ, with 150 bytes of header a file at most.
    assert stages["fit-factors"]["disk"] >= tensors - 150 * 16
    queries = 3 * 6 * 16 * 24 * 4
    assert stages["precondition"]["disk"] >= queries


@pytest.mark.parametrize("memory", [0.0, 1e-5, 2e-5, 1.0])
def test_the_fit_makes_as_many_passes(pipeline, tiny_queries, monkeypatch, memory):
    small = replace(pipeline, runtime=Runtime(device="cpu", memory_gib=memory))
    whole = planned(small, tiny_queries)["fit_passes"]
    made = []
    one_pass = Fit._pass

    def counted(self, title, *arguments, **options):
        made.append(title.split()[0])
        return one_pass(self, title, *arguments, **options)

    monkeypatch.setattr(Fit, "_pass", counted)
    small.fit()
    assert whole == {phase: made.count(phase) for phase in ("covariance", "corrected")}
    assert (sum(whole.values()) == 2) == (memory == 1.0)
