"""What is kept of a refined query is the best of its rank, and scores are near the full ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import relative
from pipeline import Pipeline, scores
from refining import refinements, refining

from inflcli.artifacts.queries import QueriesReader

SETTINGS = {"refine": 6, "refine_sequences": None, "refine_corpus": "few"}


@pytest.fixture(scope="module")
def base(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("run")
    pipeline = refining(tiny_model("gpt2"), folder, tiny_text, "mlp", "float32")
    pipeline.precondition(tiny_queries, "full", **SETTINGS)
    pipeline.scan("scan-full", "full")
    return pipeline


@pytest.mark.parametrize("settings", [{"rank": 3}, {"keep": 0.9}, {"keep": 0.999}], ids=str)
def test_the_best_of_its_rank(base, tiny_queries, settings):
    name = "-".join(map(str, (*settings, *settings.values())))
    folder = base.precondition(tiny_queries, name, **SETTINGS, **settings)
    full, reader = QueriesReader.open(base.run / "full"), QueriesReader.open(folder)
    for number, query in enumerate(reader.queries):
        kept = whole = 0.0
        for module in reader.modules:
            stored = reader.matrices(module["name"])
            mine = stored["owner"] == number
            found = stored["left"][:, mine] @ stored["right"][:, mine].T
            v = full.matrices(module["name"])["dense"][number].double()
            u, s, w = torch.linalg.svd(v, full_matrices=False)
            rank = query["modules"][module["name"]]["rank"]
            assert rank == int(mine.sum())
            if rank:
                assert relative(found, u[:, :rank] * s[:rank] @ w[:rank]) < 1e-4
            kept += float(s[:rank].square().sum())
            whole += float(s.square().sum())
        assert query["kept_energy"] == pytest.approx(kept / whole, abs=1e-5)
        if "keep" in settings:
            assert query["kept_energy"] >= settings["keep"]


def test_scores(base, tiny_queries):
    folder = base.precondition(tiny_queries, "kept", **SETTINGS, keep=0.99999)
    found = scores(base.scan("scan-kept", folder.name))
    for one, wanted in zip(found, scores(base.run / "scan-full"), strict=True):
        assert np.corrcoef(one, wanted)[0, 1] > 0.999


def test_fast(base, tiny_queries):
    """bfloat16 on disk, solved for in float32."""
    folder = base.precondition(tiny_queries, "fast", **SETTINGS, precision="fast")
    full, reader = QueriesReader.open(base.run / "full"), QueriesReader.open(folder)
    for module in reader.modules:
        found, wanted = (one.matrices(module["name"])["dense"] for one in (reader, full))
        assert found.dtype == torch.bfloat16
        for one, other in zip(found, wanted, strict=True):
            assert relative(one, other) < 2**-8
    for one, other in zip(refinements(folder), refinements(base.run / "full"), strict=True):
        assert one["residuals"] == pytest.approx(other["residuals"], rel=1e-3)


def test_a_bfloat16_model(base, tiny_queries):
    """Its products are rounded; the solve still comes nearer than its start."""
    folder = base.precondition(tiny_queries, "bfloat16", **SETTINGS, dtype="bfloat16")
    for one in refinements(folder):
        assert one["residual_after"] < 0.7 * one["residual_before"]
