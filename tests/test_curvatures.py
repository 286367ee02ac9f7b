"""Every curvature and option of the fit and of the damping equals a brute-force version of it.

identity, kfac, ekfac with whole and with block-diagonal covariances, relative and absolute damping,
true labels, several label samples: the preconditioned queries against dense solves, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from oracle import Oracle, Seen, relative
from pipeline import Pipeline, scores
from torch import Tensor

from inflcli.artifacts import factors as factor_store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.queries import QueriesReader
from inflcli.errors import BadInput

TOLERANCE = 1e-9
SEED = 0
STREAMS = (0, 1024)
"""Of the first label sample in the covariance pass and in the eigenvalue pass."""


@dataclass
class Case:
    """A corpus and queries, and brute-force gradients of both."""

    pipeline: Pipeline
    oracle: Oracle
    tokens: list[list[int]]
    queries: list[Seen]
    file: Path

    def true(self) -> list[Seen]:
        return [self.oracle.see(row, torch.tensor(row[1:])) for row in self.tokens]

    def sampled(self, stream: int) -> list[Seen]:
        return [
            self.oracle.see(row, self.oracle.labels(row, SEED, stream, number))
            for number, row in enumerate(self.tokens)
        ]

    def check(self, out: str, name: str, dense: Tensor, damping: float) -> None:
        """Compare (G + λI)⁻¹ ∇f with a dense solve, for every query."""
        stored = QueriesReader.open(self.pipeline.run / out).matrices(name)["dense"]
        damped = dense + damping * torch.eye(len(dense), dtype=dense.dtype)
        for found, seen in zip(stored, self.queries, strict=True):
            expected = torch.linalg.solve(damped, seen.dw[name].flatten())
            assert relative(found.flatten(), expected) < TOLERANCE


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Case:
    run = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(tiny_model(request.param), run)
    corpus = CorpusReader.open(pipeline.prepare(tiny_text))
    rows = zip(corpus.tokens(0, corpus.n_sequences).tolist(), corpus.lengths, strict=True)
    tokens = [row[:length] for row, length in rows]
    factors = FactorsReader.open(pipeline.fit(seed=SEED))
    oracle = Oracle(pipeline.model, [module["name"] for module in factors.modules])
    asked = QueriesReader.open(pipeline.precondition(tiny_queries)).queries
    queries = [
        oracle.see(q["tokens"], torch.tensor(q["tokens"][1:]), q["completion_start"] - 1)
        for q in asked
    ]
    return Case(pipeline, oracle, tokens, queries, tiny_queries)


def covariances(passed: list[Seen], name: str) -> tuple[Tensor, Tensor]:
    """A and S over predicted tokens."""
    a = torch.cat([seen.a[name][:-1] for seen in passed])
    g = torch.cat([seen.g[name][:-1] for seen in passed])
    return a.T @ a / len(a), g.T @ g / len(g)


def cut(matrix: Tensor, blocks: int) -> Tensor:
    """Zero outside the diagonal blocks, whose sizes differ by one at most, the larger first."""
    size, larger = divmod(len(matrix), blocks)
    sizes = torch.tensor([size + (number < larger) for number in range(blocks)])
    block = torch.arange(blocks).repeat_interleave(sizes)
    return matrix * (block[:, None] == block[None, :])


def ekfac(first: list[Seen], second: list[Seen], name: str, blocks: int = 1) -> Tensor:
    """G = Q diag(Λ) Qᵀ, dense."""
    q_a, q_s = (torch.linalg.eigh(cut(x, blocks))[1] for x in covariances(first, name))
    corrected = sum((q_s.T @ seen.dw[name] @ q_a) ** 2 for seen in second) / len(second)
    q = torch.kron(q_s, q_a)
    return q @ torch.diag(corrected.flatten()) @ q.T


def test_identity_is_the_gradient_dot_product(case):
    for out, settings in (("fitted", {"factors": "f-identity"}), ("asked", {})):
        if "factors" in settings:
            case.pipeline.fit("f-identity", curvature="identity")
        queries = f"q-identity-{out}"
        case.pipeline.precondition(case.file, queries, curvature="identity", **settings)
        found = torch.from_numpy(scores(case.pipeline.scan(f"s-identity-{out}", queries)))
        expected = torch.stack(
            [
                torch.stack(
                    [sum((q.dw[n] * s.dw[n]).sum() for n in case.oracle.names) for s in case.true()]
                )
                for q in case.queries
            ]
        )
        assert relative(found, expected) < 1e-6  # the scan stores float32


@pytest.mark.parametrize("factors", ["kfac", "ekfac"])
def test_kfac_is_mean_tokens_times_s_kron_a(case, factors):
    """From its own factors, and from those of ekfac."""
    if factors == "kfac":
        case.pipeline.fit("f-kfac", curvature="kfac")
    fitted = "factors" if factors == "ekfac" else "f-kfac"
    out = f"q-kfac-{factors}"
    case.pipeline.precondition(case.file, out, fitted, curvature="kfac")
    passed = case.sampled(STREAMS[0])
    mean_tokens = sum(len(row) - 1 for row in case.tokens) / len(case.tokens)
    for name in case.oracle.names:
        a, s = covariances(passed, name)
        dense = mean_tokens * torch.kron(s, a)
        case.check(out, name, dense, 0.1 * float(dense.diagonal().mean()))


@pytest.mark.parametrize("blocks", [2, 3])
def test_block_diagonal_covariances(case, blocks):
    case.pipeline.fit(f"f-{blocks}", blocks=blocks)
    out = f"q-{blocks}"
    case.pipeline.precondition(case.file, out, f"f-{blocks}")
    first, second = (case.sampled(stream) for stream in STREAMS)
    for name in case.oracle.names:
        dense = ekfac(first, second, name, blocks)
        case.check(out, name, dense, 0.1 * float(dense.diagonal().mean()))
        whole = ekfac(first, second, name)
        assert relative(dense, whole) > 0.01


@pytest.mark.parametrize(
    "settings", [{"damping_factor": 0.5}, {"damping_factor": None, "damping": 0.003}]
)
def test_damping(case, settings):
    """A share of the module's mean eigenvalue, or one absolute value for all modules."""
    out = f"q-damping-{settings['damping_factor']}"
    case.pipeline.precondition(case.file, out, **settings)
    first, second = (case.sampled(stream) for stream in STREAMS)
    recorded = QueriesReader.open(case.pipeline.run / out).artifact.manifest.details["damping"]
    for name in case.oracle.names:
        dense = ekfac(first, second, name)
        damping = settings.get("damping") or 0.5 * float(dense.diagonal().mean())
        assert recorded[name] == pytest.approx(damping, rel=1e-9)
        case.check(out, name, dense, damping)


def test_no_damping_is_refused_where_the_curvature_is_singular(case):
    """One sequence has no curvature in directions that its activations lack. Rounding must not
    pass for some."""
    case.pipeline.fit("f-few", max_sequences=1)
    with pytest.raises(BadInput, match="singular with damping 0"):
        case.pipeline.precondition(case.file, "q-none", "f-few", damping_factor=0.0)


def test_true_labels(case):
    case.pipeline.fit("f-true", labels="true")
    case.pipeline.precondition(case.file, "q-true", "f-true")
    passed = case.true()
    for name in case.oracle.names:
        dense = ekfac(passed, passed, name)
        case.check("q-true", name, dense, 0.1 * float(dense.diagonal().mean()))


def test_label_samples_average_over_single_draws(case):
    """S and Λ of three label samples are the means of the three draws'; A does not change."""
    folder, draws = case.pipeline.fit("f-three", label_samples=3), range(3)
    first, second = ([case.sampled(stream + k) for k in draws] for stream in STREAMS)
    for module in FactorsReader.open(folder).modules:
        name = module["name"]
        a = factor_store.read_input(folder, module["shares_input_with"])
        s = factor_store.read_output(folder, name)
        found_a, found_s = (x.vectors[0] @ torch.diag(x.values) @ x.vectors[0].T for x in (a, s))
        singles = [covariances(passed, name) for passed in first]
        assert relative(singles[0][1], singles[1][1]) > 0.01
        assert relative(found_a, singles[0][0]) < TOLERANCE
        assert relative(found_s, sum(single for _, single in singles) / 3) < TOLERANCE
        q_a, q_s = a.vectors[0], s.vectors[0]
        expected = [
            sum((q_s.T @ seen.dw[name] @ q_a) ** 2 for seen in passed) / len(passed)
            for passed in second
        ]
        found = factor_store.read_corrected(folder, name)
        assert relative(found, sum(expected) / 3) < TOLERANCE


def test_a_curvature_needs_factors_fitted_for_it(case):
    case.pipeline.fit("f-identity-only", curvature="identity")
    with pytest.raises(BadInput, match="needs factors fitted for it"):
        case.pipeline.precondition(case.file, "q-no", "f-identity-only", curvature="ekfac")
