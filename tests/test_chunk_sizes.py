"""However much work is recorded, and handed out, at a time: the same factors and scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pipeline import Pipeline, scores
from ranks import same_factors


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    return pipeline


@pytest.mark.parametrize("size", [1, 7, 64])
def test_factors(whole, size):
    runtime = replace(whole.runtime, chunk_size=size, batch_size=None)
    out = replace(whole, runtime=runtime).fit(f"factors-{size}")
    same_factors(out, whole.run / "factors", 1e-6)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_scores(whole, size):
    out = whole.scan(f"scan-{size}", chunk_size=size)
    assert np.allclose(scores(out), scores(whole.run / "scan"), rtol=1e-6, atol=0)
