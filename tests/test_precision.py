"""`--precision fast` rounds the inputs of products and little else, `single` only what is
decomposed: scores stay the same for every purpose of a ranking, and nothing of it outlives a pass
or reaches a float64 model.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline import Pipeline, scores

from inflcli.artifacts.factors import FactorsReader, read_corrected, read_output
from inflcli.artifacts.queries import QueriesReader
from inflcli.ekfac import decompose, decompose_all
from inflcli.errors import BadInput
from inflcli.model.precision import products, resolve_precision

CPU = torch.device("cpu")
EVERY = ("exact", "single", "fast")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def prepared(request, tiny_model, tiny_text, tmp_path_factory):
    pipeline = Pipeline(tiny_model(request.param), tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    for precision in EVERY:
        pipeline.fit(precision, precision=precision)
    return pipeline


@pytest.mark.parametrize("route", ["dense", "factored"])
def test_scores(prepared, tiny_queries, route):
    """From the fit to the scan. The tiny model's random weights are a hard case."""
    found = {}
    for precision in EVERY:
        queries = prepared.precondition(
            tiny_queries, f"q-{precision}-{route}", precision, rank=12, precision=precision
        ).name
        found[precision] = scores(
            prepared.scan(f"s-{precision}-{route}", queries, precision=precision, route=route)
        )
    for precision, bar in (("single", 1 - 1e-6), ("fast", 0.9999)):
        assert not np.array_equal(found["exact"], found[precision])
        for exact, other in zip(found["exact"], found[precision], strict=True):
            assert np.corrcoef(exact, other)[0, 1] > bar


def test_token_scores(prepared, tiny_queries):
    queries = prepared.precondition(tiny_queries, "q-tokens", "exact", rank=12).name
    found = [
        scores(prepared.scan(f"t-{kind}", queries, precision=kind, token_scores=True))
        for kind in ("exact", "fast")
    ]
    for exact, fast in zip(*found, strict=True):
        assert np.corrcoef(exact, fast)[0, 1] > 0.9999


@pytest.mark.parametrize(("rank", "keep"), [(12, None), (None, 0.9), (None, None)])
def test_fast_queries_take_half_the_space(prepared, tiny_queries, rank, keep):
    """They hold bfloat16, and say rightly how much."""
    for precision, element in {"exact": torch.float32, "fast": torch.bfloat16}.items():
        name = f"size-{precision}-{rank}-{keep}"
        out = prepared.precondition(
            tiny_queries, name, precision, precision=precision, rank=rank, keep=keep
        )
        reader = QueriesReader.open(out)
        stored = [reader.matrices(module["name"]) for module in reader.modules]
        found = [value for one in stored for key, value in one.items() if key != "owner"]
        assert {value.dtype for value in found} == {element}
        described = sum(query["bytes"] for query in reader.queries)
        assert sum(value.nbytes for value in found) == described


def test_corrected_eigenvalues_have_no_bias(prepared):
    """Squares of rounded numbers could be too large or too small on the whole."""
    folders = [prepared.run / kind for kind in ("exact", "fast")]
    for module in FactorsReader.open(folders[0]).modules:
        exact, fast = (read_corrected(folder, module["name"]) for folder in folders)
        assert float(fast.sum() / exact.sum()) == pytest.approx(1, abs=5e-3)


def test_a_float64_model_is_exact():
    assert resolve_precision("fast", CPU, torch.float64) == "exact"
    assert resolve_precision("auto", CPU, torch.float64) == "exact"
    for wanted in EVERY:
        assert resolve_precision(wanted, CPU, torch.float32) == wanted
    with pytest.raises(BadInput, match="meta"):
        resolve_precision("fast", torch.device("meta"), torch.float32)


@pytest.mark.parametrize(("units", "found"), [(True, "fast"), (False, "single")])
def test_auto_goes_by_the_matrix_units(monkeypatch, units, found):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    assert resolve_precision("auto", CPU, torch.float32) == found


def test_it_is_restored_after_an_error():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), products("fast", CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def covariance(size: int, scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(size)
    rows = torch.randn(2 * size, size, dtype=torch.float64) * torch.logspace(0, -4, size)
    return scale * (rows.T @ rows) / size


def test_eigenvectors_in_float32():
    """Orthogonal and accurate to float32."""
    matrix = covariance(200)
    exact, _ = decompose([matrix])
    values, basis = decompose([matrix], fast=True)
    q = basis.blocks[0]
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.T @ q, torch.eye(200), atol=1e-5, rtol=0)
    torch.testing.assert_close(values, exact, atol=1e-6 * float(exact.max()), rtol=0)


@pytest.mark.parametrize("fault", ["a vector twice", "one too long", "one turned", "values"])
def test_a_wrong_decomposition_in_float32_is_not_used(monkeypatch, fault):
    """One column of 200, off by a hundredth: the check sees it, and float64 answers."""
    right, matrix = torch.linalg.eigh, covariance(200)

    def wrong(block):
        values, q = right(block)
        if block.dtype == torch.float32:
            if fault == "a vector twice":
                q[..., 7] = q[..., 8]
            elif fault == "one too long":
                q[..., 7] *= 1.01
            elif fault == "one turned":
                one, other = q[..., -1].clone(), q[..., -9].clone()
                q[..., -1], q[..., -9] = one + 0.01 * other, other - 0.01 * one
            else:
                values[..., -1] *= 1.01
        return values, q

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    values, basis = decompose([matrix], fast=True)
    assert basis.dtype == torch.float64
    torch.testing.assert_close(values, right(matrix)[0].clamp(min=0))


def test_what_float32_cannot_hold_is_decomposed_in_float64():
    matrix = covariance(20, scale=1e60)
    values, basis = decompose([matrix], fast=True)
    assert basis.dtype == torch.float64
    torch.testing.assert_close(values, decompose([matrix])[0])


@pytest.mark.parametrize("precision", ["single", "fast"])
def test_the_factors_of_a_fit_in_float32_are_orthogonal(prepared, precision):
    for module in FactorsReader.open(prepared.run / precision).modules:
        (q,) = read_output(prepared.run / precision, module["name"]).vectors
        assert q.dtype == torch.float32
        torch.testing.assert_close(q.T @ q, torch.eye(len(q)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fast", [False, True])
def test_a_batch_is_decomposed_as_each_matrix_alone(fast):
    """Of two sizes, in blocks; one that float32 cannot hold does not spoil those beside it."""
    every = [[covariance(20), covariance(21)], [covariance(20, 1e60)], [covariance(21)]]
    for found, alone in zip(decompose_all(every, fast=fast), every, strict=True):
        values, basis = decompose(alone, fast=fast)
        assert torch.equal(found[0], values)
        for mine, other in zip(found[1].blocks, basis.blocks, strict=True):
            assert torch.equal(mine, other)
