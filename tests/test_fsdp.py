"""A model that FSDP2 shards over two processes gives the scores and factors of a whole one."""

from __future__ import annotations

import numpy as np
import pytest
from pipeline import Pipeline, scores
from ranks import fit_command, launch, same_factors, scan_command, torchrun


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def whole(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    """A chain that one process ran; both models tie the head to the embeddings."""
    pipeline = Pipeline(tiny_model(request.param), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit(label_samples=2)
    pipeline.precondition(tiny_queries)
    pipeline.scan()
    return pipeline


def test_scores(whole):
    said = torchrun(whole, "-m", "quiet_exit", *scan_command(whole, "sharded"), "--fsdp")
    assert "this process holds" in said and "100%" not in said
    assert np.array_equal(scores(whole.run / "sharded"), scores(whole.run / "scan"))


def test_factors(whole):
    command = [*fit_command(whole, "factors-sharded"), "--label-samples", 2, "--fsdp"]
    torchrun(whole, "-m", "inflcli", *command)
    same_factors(whole.run / "factors-sharded", whole.run / "factors")


def test_one_process_has_nobody_to_share_with(whole):
    done = launch(whole.run, 1, "-m", "inflcli", *scan_command(whole, "alone"), "--fsdp")
    assert done.returncode != 0
    assert "--fsdp shards the model over the processes of torchrun" in done.stderr
