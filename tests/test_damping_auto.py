"""`--damping auto`: λ is the share of mean Λ with which the damped inverse of each half of a fit is
the best step for the other half's gradients, and what the fit stores is what precondition applies.

The oracle averages the quadratic itself over explicit gradients, in float64 and by numpy; it knows
neither the criterion that follows from it nor the grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, refuse
from oracle import relative
from pipeline import CPU, Pipeline
from scipy.optimize import brute
from torch import Tensor, nn

from inflcli.artifacts import factors as store
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.files import read_tensors
from inflcli.artifacts.queries import QueriesReader
from inflcli.config import Shard
from inflcli.ekfac import CorrectedSum, Gaussian, LinearModel, corrected, held_out_damping, linear
from inflcli.ekfac import fit as fit_linear
from inflcli.ekfac.corrected import mean_corrected
from inflcli.ekfac.damping import FACTORS, strided
from inflcli.errors import BadInput
from inflcli.stages import fit as fit_stage
from inflcli.stages.fit_shards import fit_shard
from inflcli.stages.merge import merge
from inflcli.stages.planning import timing_fit


def gradients(spread: float, count: int, seed: int, size: int) -> np.ndarray:
    """`count` Gaussian gradients [count, size] whose second moments spread over so many decades."""
    draw = np.random.default_rng(seed)
    moments = 10 ** (spread * draw.random(size))
    return np.sqrt(moments) * draw.standard_normal((count, size))


def quadratic(fitted: np.ndarray, held_out: np.ndarray, damping: float) -> float:
    """½ xᵀ G x − bᵀ x at x = b / (Λ₁ + λ), over the gradients b held out, whose G is diagonal."""
    x = held_out / ((fitted**2).mean(0) + damping)
    curvature = (held_out**2).mean(0)
    return float(np.mean(0.5 * (curvature * x**2).sum(1) - (held_out * x).sum(1)))


def both_ways(one: np.ndarray, other: np.ndarray) -> Callable[[float], float]:
    """The quadratic of a factor of mean Λ."""
    mean = ((one**2).mean() + (other**2).mean()) / 2

    def of(factor: float) -> float:
        return quadratic(one, other, factor * mean) + quadratic(other, one, factor * mean)

    return of


def moments(rows: np.ndarray) -> Tensor:
    return torch.from_numpy((rows**2).mean(0))


def chosen(one: np.ndarray, other: np.ndarray) -> float:
    found = held_out_damping(moments(one), moments(other))
    assert found is not None
    return found


def halves(spread: float, count: int, seed: int, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rows = gradients(spread, 2 * count, seed, size)
    return rows[:count], rows[count:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("spread", "count"), [(4, 6), (4, 60), (2, 20), (6, 20)])
def test_it_is_the_best_step_for_gradients_held_out(spread, count, seed):
    one, other = halves(spread, count, seed)
    found, loss = chosen(one, other), both_ways(one, other)
    assert found == min(FACTORS, key=loss)
    best = brute(lambda log: loss(10.0 ** log.item()), [slice(-6.0, 1.0, 1 / 64)], finish=None)
    assert abs(np.log10(found) - best) <= 0.25
    assert FACTORS[0] < found < FACTORS[-1]


def test_halves_that_are_the_same_want_the_least():
    one, _ = halves(4, 20, 0)
    assert chosen(one, one) == FACTORS[0] == 1e-6


def test_halves_of_noise_want_much():
    draw = np.random.default_rng(0)
    one, other = (torch.from_numpy(draw.lognormal(0, 3, (50, 70))) for _ in range(2))
    assert held_out_damping(one, other) == FACTORS[-1] == 10
    # One gradient in each half, of equal moments: Λ₂ has a mean of 1 and a mean square of 3.
    assert 1 <= chosen(*halves(0, 1, 1)) <= 10


@pytest.mark.parametrize("seed", range(3))
def test_more_gradients_want_less(seed):
    found = [chosen(*halves(4, count, seed)) for count in (2, 8, 32, 128, 512)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) >= 4


@pytest.mark.parametrize("scale", [1e-30, 0.37, 1e25])
def test_the_scale_of_gradients_does_not_matter(scale):
    one, other = halves(4, 20, 0)
    assert chosen(scale * one, scale * other) == chosen(one, other)
    assert chosen(other, one) == chosen(one, other)


def test_what_has_no_gradient_does_not_count():
    one, other = (moments(rows) for rows in halves(4, 20, 0))
    mean, zeros = float(one.mean() + other.mean()) / 2, torch.zeros(5000)
    wider = torch.cat([one, zeros]), torch.cat([other, zeros])
    assert held_out_damping(*wider, mean) == held_out_damping(one, other, mean)
    # A gradient in one half alone is noise like no other.
    lone = torch.cat([one, zeros]), torch.cat([other, mean + zeros])
    assert held_out_damping(*lone, mean) > held_out_damping(one, other, mean)
    assert held_out_damping(zeros, zeros) is None
    assert held_out_damping(zeros + torch.nan, zeros) is None


# In a fit


def sums(rows: np.ndarray, shape: tuple[int, int]) -> CorrectedSum:
    return CorrectedSum(torch.from_numpy((rows**2).sum(0)).reshape(shape), len(rows))


def test_how_rows_are_cut_does_not_matter(monkeypatch):
    one, other = halves(4, 20, 0, 40 * 30)
    parts = [[sums(one[:7], (40, 30)), sums(one[7:], (40, 30))], [sums(other, (40, 30))]]
    expected = chosen(one, other)
    for at_once in (1 << 17, 90, 1):
        monkeypatch.setattr(corrected, "_AT_ONCE", at_once)
        assert mean_corrected(parts, torch.device("cpu")).damping_factor == expected


def test_a_part_of_a_wide_module_stands_for_it():
    """Rows and columns throughout, in shares of the mean of all of Λ."""
    for count in (1, 255, 256, 511, 512, 4000):
        rows, columns = strided(count, 5000)
        kept = len(range(count)[rows])
        assert kept == count or 256 <= kept < 512
        assert 256 <= len(range(5000)[columns]) < 512
    one, other = halves(4, 9, 0, 700 * 600)
    shape = 700, 600
    found = mean_corrected([[sums(one, shape)], [sums(other, shape)]], torch.device("cpu"))
    assert abs(np.log10(found.damping_factor / chosen(one, other))) < 0.26
    # A coordinate that is not among them makes the mean a hundred times what it was.
    outlier = [sums(rows, shape) for rows in (one, other)]
    more = 99 * sum(float(part.total.sum()) for part in outlier) / 2
    for part in outlier:
        part.total[0, 0] += more
    again = mean_corrected([[part] for part in outlier], torch.device("cpu"))
    assert np.log10(found.damping_factor / again.damping_factor) == pytest.approx(2, abs=1e-6)


def test_an_empty_half_chooses_nothing():
    full, empty = sums(gradients(4, 9, 0, 300), (30, 10)), CorrectedSum(torch.zeros(30, 10), 0)
    for parts in ([[full]], [[empty], [full]], [[full], [empty]]):
        assert mean_corrected(parts, torch.device("cpu")).damping_factor is None


@pytest.fixture(scope="module")
def fitted(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> tuple[Pipeline, Path]:
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit(labels="true")
    return pipeline, tiny_queries


def test_a_fit_stores_what_its_halves_choose(fitted):
    """Each half summed by itself, in the eigenvectors of both: the shards of a fit of one split."""
    pipeline, _ = fitted
    config = pipeline.fit_config(splits=1, labels="true")
    for _ in range(2):
        for number in range(2):
            part = replace(config, shard=Shard(number, 2))
            fit_shard(str(pipeline.model), pipeline.run / "corpus", pipeline.run / "h", part, CPU)
        merge(pipeline.run / "h", CPU)
    found = store.read_damping_factors(pipeline.run / "factors")
    reader = FactorsReader.open(pipeline.run / "factors")
    assert sorted(found) == sorted(module["name"] for module in reader.modules)
    folder = pipeline.run / "h.shards/corrected"
    parts = [read_tensors(folder / f"{number}-of-2/sums.0.safetensors") for number in (0, 1)]
    counts = [
        json.loads((folder / f"{number}-of-2/manifest.json").read_text())["counts"]["sequences"]
        for number in (0, 1)
    ]
    for name, factor in found.items():
        one, other = (
            (part[f"0/{name}"] / count).flatten().numpy()
            for part, count in zip(parts, counts, strict=True)
        )
        mean = float(store.read_corrected(pipeline.run / "factors", name).mean())
        # As gradients of which there is one: only their squares count.
        one, other = np.sqrt(one)[None], np.sqrt(other)[None]

        def loss(share: float, one=one, other=other, mean=mean) -> float:
            return quadratic(one, other, share * mean) + quadratic(other, one, share * mean)

        assert factor == min(FACTORS, key=loss)
    told = reader.artifact.manifest.details["damping_factors"]
    assert (told["least"], told["most"]) == (min(found.values()), max(found.values()))
    assert told["median"] == np.median(list(found.values()))
    for other, expected in (("h", {}), ("factors", told)):
        manifest = FactorsReader.open(pipeline.run / other).artifact.manifest
        assert manifest.details["damping_factors"] == expected


def test_precondition_applies_it(fitted):
    pipeline, file = fitted
    folder = pipeline.precondition(file, "auto", damping="auto", damping_factor=None)
    raw = pipeline.precondition(file, "raw", curvature="identity")
    queries, plain = (QueriesReader.open(one) for one in (folder, raw))
    damping = queries.artifact.manifest.details["damping"]
    found = store.read_damping_factors(pipeline.run / "factors")
    assert len(set(found.values())) > 1
    for module in FactorsReader.open(pipeline.run / "factors").modules:
        name = module["name"]
        moments = store.read_corrected(pipeline.run / "factors", name)
        assert damping[name] == pytest.approx(found[name] * float(moments.mean()), rel=1e-12)
        (q_a,) = store.read_input(pipeline.run / "factors", module["shares_input_with"]).vectors
        (q_s,) = store.read_output(pipeline.run / "factors", name).vectors
        v = plain.matrices(name)["dense"]
        expected = q_s @ ((q_s.T @ v @ q_a) / (moments + damping[name])) @ q_a.T
        assert relative(queries.matrices(name)["dense"], expected) < 1e-10
    usual = QueriesReader.open(pipeline.precondition(file, "usual")).artifact.manifest
    assert usual.details["damping"] != damping
    assert usual.fingerprint != queries.artifact.manifest.fingerprint
    assert queries.artifact.manifest.config["damping"] == "auto"


def test_the_command_says_what_was_chosen(fitted):
    pipeline, file = fitted
    done = call(
        "precondition", "--model", pipeline.model, "--factors", pipeline.run / "factors",
        "--queries", file, "--out", pipeline.run / "said", "--damping", "auto", "--rank", "full",
        "--dtype", "float64", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = store.read_damping_factors(pipeline.run / "factors").values()
    assert f"damping: {min(found):.2g} to {max(found):.2g} times the mean" in done.stderr
    said = QueriesReader.open(pipeline.run / "said").artifact.manifest
    assert said.config["damping"] == "auto" and said.config["damping_factor"] is None


def test_the_report_says_so(fitted):
    pipeline, file = fitted
    own = replace(pipeline, run=pipeline.run / "own")
    own.run.mkdir()
    for name in ("corpus", "factors"):
        (own.run / name).symlink_to(pipeline.run / name)
    own.precondition(file, damping="auto", damping_factor=None)
    own.tfidf_filter(file)
    own.scan()
    own.attribute()
    page = (own.report() / "index.html").read_text()
    found = store.read_damping_factors(pipeline.run / "factors").values()
    words = f"{min(found):.2g} to {max(found):.2g} × mean eigenvalue, chosen by module"
    assert words in page


@pytest.mark.parametrize(
    ("fit", "settings", "words"),
    [
        ({"splits": 1}, {}, "--splits 1"),
        ({"curvature": "kfac"}, {}, "--curvature kfac"),
        ({"curvature": "identity"}, {}, "--curvature identity"),
        ({}, {"curvature": "kfac"}, "--curvature kfac"),
        ({}, {"curvature": "identity"}, "--curvature identity"),
        ({"max_sequences": 1}, {}, "holds no damping"),
    ],
)
def test_where_nothing_was_chosen(fitted, fit, settings, words):
    pipeline, file = fitted
    name = "-".join(["fit", *(f"{key}-{value}" for key, value in fit.items())])
    if not (pipeline.run / name).is_dir():
        pipeline.fit(name, **fit)
    with pytest.raises(BadInput, match=words) as refused:
        pipeline.precondition(file, "no", name, damping="auto", damping_factor=None, **settings)
    assert "--damping-factor a number" in str(refused.value.hint)
    assert not (pipeline.run / "no").exists() and not (pipeline.run / "no.partial").exists()


def test_factors_of_an_earlier_version(fitted, monkeypatch):
    pipeline, file = fitted

    def earlier(*arguments: Any) -> Any:
        return mean_corrected(*arguments)._replace(damping_factor=None)

    monkeypatch.setattr(fit_stage, "mean_corrected", earlier)
    pipeline.fit("earlier")
    with pytest.raises(BadInput, match="earlier version"):
        pipeline.precondition(file, "no", "earlier", damping="auto", damping_factor=None)
    pipeline.precondition(file, "of-earlier", "earlier")


@pytest.mark.parametrize("value", ["automatic", "", "1e999"])
def test_what_is_neither_auto_nor_a_number(value):
    options = ("--model", "m", "--factors", "f", "--queries", "q", "--out", "o")
    refuse(call("precondition", *options, "--damping", value), 2, "--damping", "neither auto")


# Of any network


def test_a_network_in_memory():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model = LinearModel(network, Gaussian())
    batches = [(torch.randn(n, 5).double(), torch.randn(n, 3).double()) for n in (8, 4, 6)]
    curvature = fit_linear(model, batches, seed=3)
    seen: dict[str, list[Tensor]] = {module.name: [] for module in model.modules}

    def consume(module: linear.LinearModule, a: Tensor, g: Tensor) -> None:
        one = curvature.modules[module.name]
        (q_a,), (q_s,) = one.basis_a.blocks, one.basis_s.blocks
        seen[module.name].append((q_s.T @ g.mT @ a @ q_a) ** 2)

    generator = torch.Generator().manual_seed(3)
    for batch in batches:
        model.run(batch, lambda module, a, g: None, generator)
    for batch in batches:
        model.run(batch, consume, generator)
    inverse = curvature.inverse(damping_factor="auto")
    for name, (first, *rest) in seen.items():
        one, other = first.mean(0), torch.cat(rest).mean(0)
        mean = float(torch.cat([first, *rest]).mean())
        factor = held_out_damping(one, other, mean)
        assert inverse.damping[name] == pytest.approx(factor * mean, rel=1e-10)
    with pytest.raises(ValueError, match="two batches"):
        fit_linear(model, batches[:1]).inverse(damping_factor="auto")
    for other in ("kfac", "identity"):
        with pytest.raises(ValueError, match=other):
            curvature.inverse(other, damping_factor="auto")
    given = dict.fromkeys(inverse.damping, 0.5)
    assert curvature.inverse(damping_factor="auto", damping=0.5).damping == given


# Planned


def test_a_plan_takes_it(fitted, monkeypatch):
    pipeline, file = fitted
    options = (
        "plan", "--model", pipeline.model, "--corpus", pipeline.run / "corpus", "--queries", file,
        "--run", pipeline.run, "--device", "cpu", "--batch-size", 3, "--json", "--keep", 0.9,
    )  # fmt: skip

    def kept(*damping: object) -> float:
        done = call(*options, *damping)
        assert done.exit_code == 0, done.output
        return sum(json.loads(done.stdout)["columns"].values())

    found: list[float | None] = []

    def kept_with(factor: float, *more: object) -> float:
        """With another factor than what the halves here choose."""

        def recorded(*arguments: Any) -> float:
            found.append(held_out_damping(*arguments))
            return factor

        monkeypatch.setattr(timing_fit, "held_out_damping", recorded)
        return kept("--damping", "auto", *more)

    assert kept_with(1e-6) != pytest.approx(kept_with(10.0), rel=0.1)
    assert found and set(found) <= set(FACTORS)
    # A single batch has no halves.
    found.clear()
    kept_with(1e-6, "--batch-size", 100)
    assert not found
    refuse(call(*options, "--damping", "auto", "--splits", 1), 2, "--splits 1")
    refuse(call(*options, "--damping", "auto", "--curvature", "kfac"), 2, "--curvature kfac")
    refuse(call(*options, "--damping", "auto", "--damping-factor", 1), 2, "exclude each other")
