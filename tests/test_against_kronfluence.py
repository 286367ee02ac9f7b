"""Scores equal kronfluence's on a Llama shape, with the true labels on both sides.

Both sum losses and use the same damping, 0.1 times the mean corrected eigenvalue of a module
(kronfluence's `damping_factor=None`), so the scores agree in scale and sign, not only in rank.
kronfluence is given our mask of predicted positions: with its usual mask of real tokens it counts
the last position of each sequence, which predicts nothing, in the covariances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
from numpy.typing import NDArray
from pipeline import Pipeline, scores
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.queries import QueriesReader

_DTYPES = {
    FactorArguments: (
        "activation_covariance_dtype",
        "gradient_covariance_dtype",
        "eigendecomposition_dtype",
        "per_sample_gradient_dtype",
        "lambda_dtype",
    ),
    ScoreArguments: (
        "query_gradient_svd_dtype",
        "per_sample_gradient_dtype",
        "precondition_dtype",
        "score_dtype",
    ),
}


class NextToken(Task):
    """Cross-entropy summed over the positions of `mask`, with the true labels throughout."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        logits = model(input_ids=batch["tokens"], use_cache=False).logits
        targets = batch["tokens"].roll(-1, 1).masked_fill(batch["mask"] == 0, -100)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100
        )

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    def get_attention_mask(self, batch: Any) -> Tensor:
        return batch["mask"]


def in_type(kind: type, dtype: torch.dtype, **settings: Any) -> Any:
    return kind(**dict.fromkeys(_DTYPES[kind], dtype), **settings)


def rows(tokens: list[list[int]], first: list[int]) -> list[dict[str, Tensor]]:
    """A padded data set; token `first` of a sequence is the first to be predicted."""
    width, found = max(map(len, tokens)), []
    for sequence, start in zip(tokens, first, strict=True):
        place = torch.arange(width)
        mask = (place + 1 >= start) & (place + 1 < len(sequence))
        padded = torch.tensor(sequence + [0] * (width - len(sequence)))
        found.append({"tokens": padded, "mask": mask.long()})
    return found


def theirs(pipeline: Pipeline, rank: int | None, tmp_path: Path) -> NDArray[np.float64]:
    """kronfluence's scores [Q, N] of the pipeline's queries and corpus."""
    dtype = getattr(torch, pipeline.dtype)
    modules = [m["name"] for m in FactorsReader.open(pipeline.run / "factors").modules]
    corpus = CorpusReader.open(pipeline.run / "corpus")
    stored = zip(corpus.tokens(0, corpus.n_sequences).tolist(), corpus.lengths, strict=True)
    train = rows([row[:length] for row, length in stored], [1] * corpus.n_sequences)
    asked = QueriesReader.open(pipeline.run / "queries").queries
    queries = rows([q["tokens"] for q in asked], [q["completion_start"] for q in asked])

    task = NextToken(modules)
    network = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=dtype)
    analyzer = Analyzer(
        "test", prepare_model(network, task), task, cpu=True, disable_tqdm=True,
        output_dir=str(tmp_path / "kronfluence"),
    )  # fmt: skip
    analyzer.fit_all_factors(
        "factors",
        train,
        per_device_batch_size=8,
        factor_args=in_type(FactorArguments, dtype, use_empirical_fisher=True),
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        queries,
        train,
        per_device_query_batch_size=2,
        per_device_train_batch_size=8,
        score_args=in_type(
            ScoreArguments,
            dtype,
            damping_factor=None,
            query_gradient_low_rank=rank,
            use_full_svd=True,
        ),
    )
    found = analyzer.load_pairwise_scores("scores")
    return found["all_modules"].double().numpy()


@pytest.mark.parametrize(("rank", "dtype"), [(None, "float32"), (4, "float64")])
def test_scores(tiny_model, tiny_text, tiny_queries, tmp_path, rank, dtype):
    pipeline = Pipeline(tiny_model("llama"), tmp_path, dtype)
    pipeline.prepare(tiny_text)
    pipeline.fit(labels="true")
    pipeline.precondition(tiny_queries, rank=rank)
    ours, expected = scores(pipeline.scan()), theirs(pipeline, rank, tmp_path)
    for found, other in zip(ours, expected, strict=True):
        assert np.corrcoef(found, other)[0, 1] > 1 - 1e-9
        slope = float(found @ other / (other @ other))
        assert slope == pytest.approx(1, abs=1e-5)
