"""The bases of ec-shampoo are those of E[DWᵀ DW] and E[DW DWᵀ] over sequences, and its Λ and scores
are EK-FAC's in them: against brute force in float64, by every way and from every entrance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from oracle import Oracle, Seen, relative
from pipeline import Pipeline, scores
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from inflcli import ekfac
from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import Eigen, FactorsReader
from inflcli.artifacts.queries import QueriesReader
from inflcli.ekfac import CovarianceSum, add_sequences, sequences
from inflcli.ekfac.cost import sequence_covariance_macs, through_gram

CURVATURE = "ec-shampoo"
TOLERANCE = 1e-9
STREAMS = (0, 1024)
"""Of the first label sample in the pass for the bases and in that for Λ."""


@dataclass
class Case:
    """A corpus, queries and factors, and brute-force gradients."""

    pipeline: Pipeline
    oracle: Oracle
    tokens: list[list[int]]
    queries: list[Seen]
    file: Path
    _sampled: dict[int, list[Seen]] = field(default_factory=dict)

    def sampled(self, stream: int) -> list[Seen]:
        if stream not in self._sampled:
            self._sampled[stream] = [
                self.oracle.see(row, self.oracle.labels(row, 0, stream, number))
                for number, row in enumerate(self.tokens)
            ]
        return self._sampled[stream]

    def true(self) -> list[Seen]:
        return [self.oracle.see(row, torch.tensor(row[1:])) for row in self.tokens]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Case:
    pipeline = Pipeline(tiny_model(request.param), tmp_path_factory.mktemp("run"))
    corpus = CorpusReader.open(pipeline.prepare(tiny_text))
    rows = zip(corpus.tokens(0, corpus.n_sequences).tolist(), corpus.lengths, strict=True)
    factors = FactorsReader.open(pipeline.fit(curvature=CURVATURE))
    oracle = Oracle(pipeline.model, [module["name"] for module in factors.modules])
    asked = QueriesReader.open(pipeline.precondition(tiny_queries)).queries
    queries = [
        oracle.see(q["tokens"], torch.tensor(q["tokens"][1:]), q["completion_start"] - 1)
        for q in asked
    ]
    tokens = [row[:length] for row, length in rows]
    return Case(pipeline, oracle, tokens, queries, tiny_queries)


def moments(passed: list[Seen], name: str) -> tuple[Tensor, Tensor]:
    """E[DWᵀ DW] [M, M] and E[DW DWᵀ] [P, P], a sequence at a time."""
    gradients = [seen.dw[name] for seen in passed]
    a, s = sum(dw.T @ dw for dw in gradients), sum(dw @ dw.T for dw in gradients)
    return a / len(gradients), s / len(gradients)


def cut(matrix: Tensor, blocks: int) -> Tensor:
    """Its diagonal blocks alone."""
    sizes = torch.tensor([len(part) for part in torch.arange(len(matrix)).tensor_split(blocks)])
    block = torch.arange(blocks).repeat_interleave(sizes)
    return matrix * (block[:, None] == block[None, :])


def expected(
    first: list[Seen], second: list[Seen], name: str, blocks: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both matrices, Λ in their eigenvectors, and G = Q diag(Λ) Qᵀ, dense."""
    a, s = (cut(one, blocks) for one in moments(first, name))
    q_a, q_s = torch.linalg.eigh(a)[1], torch.linalg.eigh(s)[1]
    corrected = sum((q_s.T @ seen.dw[name] @ q_a) ** 2 for seen in second) / len(second)
    q = torch.kron(q_s, q_a)
    return a, s, corrected, q @ torch.diag(corrected.flatten()) @ q.T


def whole(eigen: Eigen) -> Tensor:
    q = torch.block_diag(*eigen.vectors)
    return (q * eigen.values) @ q.T


def found(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of the factors on disk."""
    a, s = store.read_input(folder, name), store.read_output(folder, name)
    corrected = store.read_corrected(folder, name)
    q = torch.kron(torch.block_diag(*s.vectors), torch.block_diag(*a.vectors))
    return whole(a), whole(s), corrected, q @ torch.diag(corrected.flatten()) @ q.T


def test_bases_and_corrected_eigenvalues(case):
    first, second = (case.sampled(stream) for stream in STREAMS)
    for name in case.oracle.names:
        mine = found(case.pipeline.run / "factors", name)
        for one, other in zip(mine, expected(first, second, name), strict=True):
            assert relative(one, other) < TOLERANCE


def test_blocks(case):
    folder = case.pipeline.fit("blocks", curvature=CURVATURE, blocks=3)
    first, second = (case.sampled(stream) for stream in STREAMS)
    for name in case.oracle.names:
        a, s, _, dense = found(folder, name)
        right = expected(first, second, name, blocks=3)
        for one, other in ((a, right[0]), (s, right[1]), (dense, right[3])):
            assert relative(one, other) < TOLERANCE


def test_label_samples_average_over_single_draws(case):
    folder = case.pipeline.fit("three", curvature=CURVATURE, label_samples=3)
    first, second = ([case.sampled(stream + k) for k in range(3)] for stream in STREAMS)
    for name in case.oracle.names:
        right = expected(sum(first, []), sum(second, []), name)
        for one, other in zip(found(folder, name), right, strict=True):
            assert relative(one, other) < TOLERANCE


def test_rows_and_columns_of_corrected_add_up_to_the_eigenvalues(case):
    """With the same labels in both passes: Σ_j (Q_Sᵀ DW Q_A)²_ij is that of a row of Q_Sᵀ DW."""
    folder = case.pipeline.fit("true", curvature=CURVATURE, labels="true")
    for name in case.oracle.names:
        corrected = store.read_corrected(folder, name)
        for side, axis in ((store.read_output, 1), (store.read_input, 0)):
            assert relative(corrected.sum(axis), side(folder, name).values) < TOLERANCE


def test_sequences_are_squared_one_by_one(case):
    """Whatever batch they come in."""
    alone = case.pipeline.with_batches(1).fit("alone", curvature=CURVATURE)
    for name in case.oracle.names:
        for one, other in zip(
            found(alone, name), found(case.pipeline.run / "factors", name), strict=True
        ):
            assert relative(one, other) < TOLERANCE


def test_modules_that_read_the_same_tensor_have_their_own_right_basis(case):
    shared = FactorsReader.open(case.pipeline.fit("tokens", curvature="ekfac"))
    apart = FactorsReader.open(case.pipeline.run / "factors")
    assert all(module["shares_input_with"] == module["name"] for module in apart.modules)
    assert len(list((apart.artifact.path / "inputs").iterdir())) == len(apart.modules)
    sharers = [m for m in shared.modules if m["shares_input_with"] != m["name"]]
    assert bool(sharers) == ("gate" in apart.modules[0]["name"])
    for module in sharers:
        pair = module["name"], module["shares_input_with"]
        one, other = (whole(store.read_input(apart.artifact.path, name)) for name in pair)
        assert relative(one / one.norm(), other / other.norm()) > 0.1


def test_scores(case):
    """(G + λI)⁻¹ by a dense solve."""
    first, second = (case.sampled(stream) for stream in STREAMS)
    total = torch.zeros(len(case.queries), len(case.tokens), dtype=torch.float64)
    every = case.true()
    for name in case.oracle.names:
        dense = expected(first, second, name)[3]
        damped = dense + 0.1 * dense.diagonal().mean() * torch.eye(len(dense), dtype=dense.dtype)
        solved = torch.linalg.solve(
            damped, torch.stack([seen.dw[name].flatten() for seen in case.queries]).T
        )
        total += solved.T @ torch.stack([seen.dw[name].flatten() for seen in every]).T
    mine = torch.from_numpy(scores(case.pipeline.scan()))
    assert relative(mine, total) < 1e-6  # the scan stores float32
    case.pipeline.precondition(case.file, "asked", curvature=CURVATURE)
    asked = torch.from_numpy(scores(case.pipeline.scan("asked-scan", "asked")))
    assert torch.equal(asked, mine)


class Given(ekfac.Categorical):
    """Draws the targets that it is given."""

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        return targets


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_api_has_the_same_factors(case, blocks):
    """From the same labels; in batches of sequences of one length."""
    folder = case.pipeline.fit(f"api-{blocks}", curvature=CURVATURE, labels="true", blocks=blocks)
    network = AutoModelForCausalLM.from_pretrained(case.pipeline.model, dtype=torch.float64)
    model = ekfac.LinearModel(
        network.eval(),
        Given(),
        modules=case.oracle.names,
        forward=lambda network, ids: network(input_ids=ids).logits,
    )
    of_length: dict[int, list[list[int]]] = {}
    for row in case.tokens:
        of_length.setdefault(len(row), []).append(row)
    batches = []
    for rows in of_length.values():
        ids = torch.tensor(rows)
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], ekfac.IGNORED)], 1)
        batches.append((ids, targets))
    assert max(len(ids) for ids, _ in batches) > 1
    fitted = ekfac.fit(model, batches, curvature=CURVATURE, blocks=blocks)
    assert fitted.sequences == len(case.tokens)
    for name, one in fitted.modules.items():
        a, s, _, dense = found(folder, name)
        q_a, q_s = torch.block_diag(*one.basis_a.blocks), torch.block_diag(*one.basis_s.blocks)
        q = torch.kron(q_s, q_a)
        assert relative((q_a * one.values_a) @ q_a.T, a) < TOLERANCE
        assert relative((q_s * one.values_s) @ q_s.T, s) < TOLERANCE
        assert relative((q * one.corrected.flatten()) @ q.T, dense) < TOLERANCE
    for refused in ("kfac", "ekfac", "shampoo"):
        with pytest.raises(ValueError, match=f"ec-shampoo do not serve {refused}"):
            fitted.inverse(refused)
    some = {
        name: torch.randn(2, *one.corrected.shape).double() for name, one in fitted.modules.items()
    }
    assert all(v is some[name] for name, v in fitted.inverse("identity").solve(some).items())
    asked = fitted.inverse(CURVATURE).solve(some)
    assert all(torch.equal(v, asked[name]) for name, v in fitted.inverse().solve(some).items())


def sums_of(outputs: int, inputs: int, blocks: int) -> tuple[CovarianceSum, CovarianceSum]:
    kind = torch.float64, torch.device("cpu")
    a, s = (CovarianceSum.zeros(size, blocks, *kind) for size in (inputs, outputs))
    return a, s


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 7), (12, 3), (20, 530), (600, 40)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("room", [None, 64])
def test_both_ways_to_the_same_sums(monkeypatch, outputs, inputs, blocks, room):
    """Of sequences of different lengths; what is read where nothing is predicted does not count."""
    torch.manual_seed(0)
    lengths = [9, 6, 1]
    a = torch.randn(3, 9, inputs, dtype=torch.float64)
    g = torch.randn(3, 9, outputs, dtype=torch.float64)
    for row, length in enumerate(lengths):
        g[row, length:] = 0
    g[0, 2] = 0  # not predicted, in the middle
    gradients = torch.einsum("btp,btm->bpm", g, a)
    right = sum(dw.T @ dw for dw in gradients) / 3, sum(dw @ dw.T for dw in gradients) / 3
    for gram in (True, False):
        monkeypatch.setattr(sequences, "through_gram", lambda *shape, gram=gram: gram)
        both = sums_of(outputs, inputs, blocks)
        add_sequences(*both, a, g, lengths, room)
        for total, dense in zip(both, right, strict=True):
            assert total.count == 3
            assert relative(torch.block_diag(*total.mean()), cut(dense, blocks)) < 1e-12


@pytest.mark.parametrize("tokens", [1, 3, 12, 60])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 48), (8, 1100)])
def test_the_cheaper_way_costs_what_is_predicted(monkeypatch, tokens, blocks, outputs, inputs):
    """In multiply-adds, as torch counts them."""
    a = torch.randn(2, tokens, inputs, dtype=torch.float64)
    g = torch.randn(2, tokens, outputs, dtype=torch.float64)
    counted = {}
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    for gram in (True, False):
        monkeypatch.setattr(sequences, "through_gram", lambda *shape, gram=gram: gram)
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            add_sequences(*sums_of(outputs, inputs, blocks), a, g, [tokens, tokens])
        counted[gram] = counter.get_total_flops() / 2
    shape = tokens, outputs, inputs, blocks
    assert min(counted.values()) == 2 * sequence_covariance_macs(*shape)
    assert through_gram(*shape) == (counted[True] < counted[False])
