"""Products of a language model's passes with the Gauss-Newton Hessian are those of `ggn.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ggn import GaussNewton as Exact
from ggn import keep_float64
from oracle import relative
from torch import Tensor

from inflcli.ekfac import GaussNewton, gauss_newton
from inflcli.model import passes as module_under_test
from inflcli.model.batches import Batch, make_batch
from inflcli.model.load import load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import find_tracked

SEQUENCES = [[5, 17, 200, 31, 9, 44, 60], [40, 3, 3], [260, 11, 7, 90], [8, 8]]
CPU = torch.device("cpu")


def passes_of(folder: Path, wanted: str, dtype: str = "float64") -> Passes:
    model = load_model(str(folder), device="cpu", dtype=dtype)
    return Passes.for_model(model, find_tracked(model.network, wanted), "exact")


def batches() -> list[Batch]:
    """Padded ones, of several sizes."""
    found = []
    for ids in ([0, 1], [2], [3]):
        lengths = np.array([len(SEQUENCES[i]) for i in ids], np.int32)
        tokens = np.zeros((len(ids), 9), np.int64)
        for row, i in enumerate(ids):
            tokens[row, : lengths[row]] = SEQUENCES[i]
        found.append(make_batch(np.array(ids), tokens, lengths, CPU))
    return found


def drawn(passes: Passes, count: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        m.name: scale
        * torch.randn(count, m.outputs, m.inputs, generator=generator, dtype=torch.float64)
        for m in passes.modules
    }


def expected(folder: Path, vectors: dict[str, Tensor]) -> list[Tensor]:
    """By vector, flat."""
    exact = Exact(folder, list(vectors))
    count = len(next(iter(vectors.values())))
    flat = [torch.cat([v[k].flatten() for v in vectors.values()]) for k in range(count)]
    return [exact.product(SEQUENCES, one) for one in flat]


def errors(folder: Path, passes: Passes, vectors: dict[str, Tensor], dtype: torch.dtype) -> float:
    given = {name: value.to(dtype) for name, value in vectors.items()}
    found = GaussNewton(passes, batches).product(given)
    assert all(value.dtype == dtype for value in found.values())
    wanted = expected(folder, vectors)
    return max(
        relative(torch.cat([found[name][k].double().flatten() for name in vectors]), one)
        for k, one in enumerate(wanted)
    )


@pytest.mark.parametrize("wanted", ["mlp", "all"])
@pytest.mark.parametrize("shape", ["llama", "llama-bias", "gpt2", "opt", "neox"])
def test_product(tiny_model, monkeypatch, shape, wanted):
    """Also of modules that see their tokens flattened (OPT), and of transposed weights (GPT-2)."""
    keep_float64(monkeypatch)
    folder = tiny_model(shape)
    passes = passes_of(folder, wanted)
    assert passes.head is not None
    assert errors(folder, passes, drawn(passes, 3), torch.float64) < 1e-9


@pytest.mark.parametrize("positions", [1, 40, 10**6])
def test_vectors_one_by_one_and_together(tiny_model, monkeypatch, positions):
    """Backward passes of one vector each, of two with one left over, and of all."""
    keep_float64(monkeypatch)
    monkeypatch.setattr(gauss_newton, "_POSITIONS", positions)
    passes = passes_of(tiny_model("llama-bias"), "mlp")
    assert errors(tiny_model("llama-bias"), passes, drawn(passes, 3), torch.float64) < 1e-9


def test_the_head_in_chunks(tiny_model, monkeypatch):
    keep_float64(monkeypatch)
    monkeypatch.setattr(module_under_test, "_CHUNK_ELEMENTS", 4 * 300)  # two positions at a time
    passes = passes_of(tiny_model("llama"), "mlp")
    assert errors(tiny_model("llama"), passes, drawn(passes, 2), torch.float64) < 1e-9


def test_a_tracked_head(tiny_model, monkeypatch):
    """Its logits are the top, and it moves like any other module."""
    keep_float64(monkeypatch)
    folder = tiny_model("neox")  # whose head is no embedding
    passes = passes_of(folder, "lm_head,embed_out,*.dense_h_to_4h")
    assert passes.head is None
    assert errors(folder, passes, drawn(passes, 2), torch.float64) < 1e-9


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_in_the_models_type(tiny_model, dtype, bound):
    folder = tiny_model("gpt2")
    passes = passes_of(folder, "mlp", dtype)
    assert errors(folder, passes, drawn(passes, 2), torch.float32) < bound


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_vectors_of_any_size(tiny_model, scale):
    """What float16 cannot hold: the passes see the vectors at a size near 1."""
    folder = tiny_model("gpt2")
    passes = passes_of(folder, "mlp", "float16")
    assert errors(folder, passes, drawn(passes, 2, scale), torch.float32) < 0.02


def test_no_power_of_two_rounds(tiny_model):
    passes = passes_of(tiny_model("gpt2"), "mlp")
    vectors = drawn(passes, 2)
    product = GaussNewton(passes, batches).product
    once, many = product(vectors), product({name: 2.0**40 * v for name, v in vectors.items()})
    assert all(torch.equal(2.0**40 * once[name], many[name]) for name in vectors)


def test_a_zero_among_the_vectors(tiny_model):
    passes = passes_of(tiny_model("gpt2"), "mlp")
    vectors = {name: value.clone() for name, value in drawn(passes, 2).items()}
    for value in vectors.values():
        value[1] = 0.0
    found = GaussNewton(passes, batches).product(vectors)
    assert all(bool((value[1] == 0).all()) for value in found.values())
    assert all(bool(value[0].any()) for value in found.values())
