"""A tiny pipeline for tests of refined queries, and its exact answers by dense linear algebra."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ggn import GaussNewton
from oracle import Oracle
from pipeline import Pipeline
from torch import Tensor

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.queries import QueriesReader

MODULES = {
    "llama": "*.0.mlp.up_proj,*.1.mlp.down_proj",
    "gpt2": "*.0.mlp.c_fc,*.1.mlp.c_proj",
}
SEQUENCES = 2
"""Of the corpus to refine on."""


def refining(model: Path, run: Path, text: Path, modules: str, dtype: str = "float64") -> Pipeline:
    """Factors of a whole corpus, and a few other sequences to refine on."""
    pipeline = Pipeline(model, run, dtype)
    pipeline.prepare(text)
    few = run / "few.jsonl"
    few.write_text("".join(text.read_text().splitlines(keepends=True)[-SEQUENCES:]))
    pipeline.prepare(few, "few")
    pipeline.fit(modules=modules)
    return pipeline


def by_one(pipeline: Pipeline) -> Pipeline:
    """With queries one at a time, and what is damaged replaced."""
    return replace(pipeline, runtime=replace(pipeline.runtime, batch_size=1, overwrite=True))


class Dense:
    """(G + λI) x = ∇f of a folder of refined queries, from explicit matrices."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.folder, self.reader = folder, QueriesReader.open(folder)
        details = self.reader.artifact.manifest.details
        self.names = list(details["damping"])
        corpus = CorpusReader.open(pipeline.run / "few")
        rows, lengths = corpus.tokens(0, corpus.n_sequences).tolist(), corpus.lengths
        exact = GaussNewton(pipeline.model, self.names)
        g = exact.matrix([row[:n] for row, n in zip(rows, lengths, strict=True) if n > 1])
        sizes = torch.tensor([shape.numel() for shape in exact.shapes])
        damping = torch.tensor([details["damping"][name] for name in self.names]).double()
        self.matrix = g + damping.repeat_interleave(sizes).diag()
        oracle = Oracle(pipeline.model, self.names)
        self.b = torch.stack([self._gradient(oracle, query) for query in self.reader.queries])

    def _gradient(self, oracle: Oracle, query: dict[str, Any]) -> Tensor:
        tokens, first = query["tokens"], query["completion_start"] - 1
        seen = oracle.see(tokens, torch.tensor(tokens[1:]), first)
        return torch.cat([seen.dw[name].flatten() for name in self.names])

    def answer(self) -> Tensor:
        """[Q, D]."""
        return torch.linalg.solve(self.matrix, self.b.T).T

    def given(self, folder: Path | None = None) -> Tensor:
        """The artifact's, [Q, D]."""
        reader = self.reader if folder is None else QueriesReader.open(folder)
        return torch.cat([reader.matrices(n)["dense"].double().flatten(1) for n in self.names], 1)

    def residual(self, x: Tensor) -> Tensor:
        """|b - (G + λI) x| / |b|, [Q]."""
        return (self.b - x @ self.matrix.T).norm(dim=1) / self.b.norm(dim=1)


def refinements(folder: Path) -> list[dict[str, Any]]:
    """What queries.json says of each query's."""
    found = json.loads((folder / "queries.json").read_text())
    return [query["refinement"] for query in found]
