"""Every number of the pipeline equals a brute-force computation by plain autograd.

A, S, Λ, the damped inverse, the low-rank factors and the scores, on four shapes, as the stages
leave them on disk: within 1e-9 in float64 and 1e-4 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Curvature, Oracle, Seen, curvature, relative

from inflcli.artifacts import factors as factor_store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import (
    FitFactorsConfig,
    PreconditionConfig,
    PrepareConfig,
    Runtime,
    ScanConfig,
)
from inflcli.model.batches import plan_batches, read_batches
from inflcli.model.labels import TrueLabels
from inflcli.model.load import load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import find_tracked
from inflcli.stages.fit_factors import fit_factors
from inflcli.stages.precondition import precondition
from inflcli.stages.prepare import prepare
from inflcli.stages.scan import scan
from inflcli.stages.scoring import load_queries

SEQUENCES = 30
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
RUNTIME = Runtime(device="cpu", batch_size=7)


@dataclass
class Case:
    """A pipeline's artifacts and the oracle's numbers for the same model and corpus."""

    run: Path
    model: Path
    dtype: str
    names: list[str]
    truth: dict[str, Curvature]
    queries: list[Seen]
    sequences: list[Seen]

    def scores(self, query: int, rank: int | None) -> torch.Tensor:
        """Brute-force scores of all sequences: explicit solve, explicit SVD."""
        total = torch.zeros(len(self.sequences), dtype=torch.float64)
        for name in self.names:
            v = self.truth[name].solve(self.queries[query].dw[name], 0.1)
            if rank is not None:
                u, s, w = torch.linalg.svd(v)
                v = u[:, :rank] @ torch.diag(s[:rank]) @ w[:rank]
            total += torch.stack([(v * seen.dw[name]).sum() for seen in self.sequences])
        return total


@pytest.fixture(
    scope="module",
    params=["llama-bias float64", "gpt2 float64", "llama float64", "neox float64", "gpt2 float32",
            "llama float32", "opt float64"],
)  # fmt: skip
def case(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Case:
    shape, dtype = request.param.split()
    run, model = tmp_path_factory.mktemp("run"), tiny_model(shape)
    prepare(
        [str(tiny_text)],
        str(model),
        run / "corpus",
        PrepareConfig(seq_len=24, per_line=True),
        RUNTIME,
    )
    fit = FitFactorsConfig(max_sequences=SEQUENCES, dtype=dtype, precision="exact", seed=3)
    fit_factors(str(model), run / "corpus", run / "factors", fit, RUNTIME)
    for rank, name in ((None, "full"), (3, "low")):
        config = PreconditionConfig(rank=rank, keep=None, dtype=dtype, precision="exact")
        precondition(str(model), run / "factors", tiny_queries, run / name, config, RUNTIME)
        config = ScanConfig(dtype=dtype, precision="exact")
        scan(str(model), run / name, run / "corpus", run / f"scan-{name}", config, RUNTIME)
    return brute_force(run, model, dtype)


def brute_force(run: Path, model: Path, dtype: str) -> Case:
    reader = factor_store.FactorsReader.open(run / "factors")
    names = [module["name"] for module in reader.modules]
    oracle, corpus = Oracle(model, names), CorpusReader.open(run / "corpus")
    tokens = [
        row[:length].tolist()
        for row, length in zip(corpus.tokens(0, corpus.n_sequences), corpus.lengths, strict=True)
    ]
    ids = np.sort(np.random.default_rng(3).choice(corpus.n_sequences, SEQUENCES, replace=False))
    passes = [
        [oracle.see(tokens[i], oracle.labels(tokens[i], 3, stream, i)) for i in ids.tolist()]
        for stream in (0, 1024)
    ]
    truth = {name: curvature(*passes, name) for name in names}
    asked = QueriesReader.open(run / "full").queries
    queries = [
        oracle.see(q["tokens"], torch.tensor(q["tokens"][1:]), q["completion_start"] - 1)
        for q in asked
    ]
    sequences = [oracle.see(row, torch.tensor(row[1:])) for row in tokens]
    return Case(run, model, dtype, names, truth, queries, sequences)


def test_covariances(case):
    reader = factor_store.FactorsReader.open(case.run / "factors")
    folder = reader.artifact.path
    for module in reader.modules:
        truth = case.truth[module["name"]]
        a = factor_store.read_input(folder, module["shares_input_with"])
        s = factor_store.read_output(folder, module["name"])
        for eigen, expected in ((a, truth.a), (s, truth.s)):
            q = eigen.vectors[0].double()
            assert relative(q @ torch.diag(eigen.values) @ q.T, expected) < TOLERANCE[case.dtype]


def test_corrected_eigenvalues(case):
    """Against the oracle's gradients in the oracle's own eigenvectors, up to their order."""
    folder = case.run / "factors"
    for name in case.names:
        found = factor_store.read_corrected(folder, name)
        assert relative(found, case.truth[name].corrected) < TOLERANCE[case.dtype]


def test_damped_inverse(case):
    reader = QueriesReader.open(case.run / "full")
    for name in case.names:
        dense = reader.matrices(name)["dense"]
        for query, seen in enumerate(case.queries):
            expected = case.truth[name].solve(seen.dw[name], 0.1)
            assert relative(dense[query], expected) < TOLERANCE[case.dtype]


def test_low_rank_factors(case):
    reader = QueriesReader.open(case.run / "low")
    for name in case.names:
        stored = reader.matrices(name)
        for query, seen in enumerate(case.queries):
            v = case.truth[name].solve(seen.dw[name], 0.1)
            u, s, w = torch.linalg.svd(v)
            expected = u[:, :3] @ torch.diag(s[:3]) @ w[:3]
            mine = stored["owner"] == query
            found = stored["left"][:, mine] @ stored["right"][:, mine].T
            assert relative(found, expected) < TOLERANCE[case.dtype]


@pytest.mark.parametrize(("name", "rank"), [("full", None), ("low", 3)])
def test_scores_on_disk(case, name, rank):
    """The scan's scores are stored in float32."""
    reader = ScanReader.open(case.run / f"scan-{name}")
    for query in range(len(case.queries)):
        found = torch.from_numpy(reader.scores(query))
        tolerance = max(TOLERANCE[case.dtype], 1e-6)
        assert relative(found, case.scores(query, rank)) < tolerance


@pytest.mark.parametrize(("name", "rank"), [("full", None), ("low", 3)])
def test_scores_before_storing(case, name, rank):
    """In the working precision, straight from the scoring functions."""
    model = load_model(str(case.model), device="cpu", dtype=case.dtype)
    modules = [m for m in find_tracked(model.network, "mlp") if m.name in case.names]
    reader, corpus = QueriesReader.open(case.run / name), CorpusReader.open(case.run / "corpus")
    element = model.statistics_dtype
    queries = {m.name: load_queries(reader, m.name, element, model.device) for m in modules}
    found = torch.zeros(corpus.n_sequences, len(reader.ids), dtype=element)
    ids = np.arange(corpus.n_sequences)
    passes = Passes.for_model(model, modules)
    plans = plan_batches(ids, corpus.lengths, 5)
    for batch in read_batches(plans, corpus.take, corpus.lengths, model.device):

        def consume(module, a, g, batch=batch):
            found[batch.ids] += queries[module.name].sequence_scores(a, g)

        passes.run(batch, [TrueLabels()], consume)
    for query in range(len(reader.ids)):
        assert relative(found[:, query], case.scores(query, rank)) < TOLERANCE[case.dtype]
