"""`--keep` keeps the share of every query's squared norm that it says, and no column too many."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import call, refuse
from pipeline import Pipeline, scores
from torch import Tensor

from inflcli.artifacts.queries import QueriesReader
from inflcli.config import PreconditionConfig
from inflcli.stages import compression

SHARES = [0.5, 0.9, 0.99, 0.9999]


@pytest.fixture(scope="module")
def base(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"))
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries, "full")
    for share in SHARES:
        pipeline.precondition(tiny_queries, f"keep-{share}", keep=share)
    return pipeline


def columns(reader: QueriesReader, name: str, query: int) -> tuple[Tensor, Tensor]:
    """left and right of one query, strongest column first."""
    stored = reader.matrices(name)
    mine = stored["owner"] == query
    return stored["left"][:, mine], stored["right"][:, mine]


def squares(base: Pipeline, query: int) -> dict[str, float]:
    """‖V‖² by module, from the full matrices."""
    reader = QueriesReader.open(base.run / "full")
    names = [module["name"] for module in reader.modules]
    return {name: float(reader.matrices(name)["dense"][query].square().sum()) for name in names}


@pytest.mark.parametrize("share", SHARES)
def test_the_share_is_reported_rightly(base, share):
    full, reader = (QueriesReader.open(base.run / name) for name in ("full", f"keep-{share}"))
    for number, query in enumerate(reader.queries):
        whole, lost = squares(base, number), {}
        for name, described in query["modules"].items():
            left, right = columns(reader, name, number)
            v = full.matrices(name)["dense"][number]
            lost[name] = float((v - left @ right.T).square().sum())
            assert described["rank"] == left.shape[1]
            assert described["kept_energy"] == pytest.approx(1 - lost[name] / whole[name], abs=1e-9)
        kept = 1 - sum(lost.values()) / sum(whole.values())
        assert query["kept_energy"] == pytest.approx(kept, abs=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_the_share_is_reached_and_no_column_is_too_many(base, share):
    """Without the column that adds least for its size, it would not be reached."""
    reader = QueriesReader.open(base.run / f"keep-{share}")
    sizes = {module["name"]: module["inputs"] + module["outputs"] for module in reader.modules}
    for number, query in enumerate(reader.queries):
        whole = sum(squares(base, number).values())
        assert query["kept_energy"] >= share
        last = []
        for name, size in sizes.items():
            left, right = columns(reader, name, number)
            if left.shape[1]:
                energy = float(left[:, -1].square().sum() * right[:, -1].square().sum())
                last.append((energy / size, energy))
        assert query["kept_energy"] - min(last)[1] / whole < share
        ranks = [query["modules"][name]["rank"] for name in sizes]
        assert query["columns"] == sum(ranks)
        numbers = sum(rank * size for rank, size in zip(ranks, sizes.values(), strict=True))
        assert query["bytes"] == 8 * numbers


def test_ranks_differ_by_module_and_query(base):
    reader = QueriesReader.open(base.run / "keep-0.99")
    ranks = [[m["rank"] for m in query["modules"].values()] for query in reader.queries]
    assert len({rank for row in ranks for rank in row}) > 2
    assert ranks[0] != ranks[1]


def test_a_higher_share_is_nearer_to_the_full_scores(base):
    full, errors = scores(base.scan("scan-full", "full")), []
    for share in SHARES:
        found = scores(base.scan(f"scan-{share}", f"keep-{share}"))
        errors.append(float(np.linalg.norm(found - full) / np.linalg.norm(full)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


def test_the_cap_holds_and_says_what_it_costs(base, tiny_queries, capsys):
    out = base.precondition(tiny_queries, "capped", keep=0.9999, max_rank=3)
    for query in QueriesReader.open(out).queries:
        assert max(module["rank"] for module in query["modules"].values()) == 3
        assert query["kept_energy"] < 0.9999
    assert capsys.readouterr().err.count("a higher --max-rank keeps more") == 3
    free = base.precondition(tiny_queries, "uncapped", keep=0.9999, max_rank=25)
    assert "warning" not in capsys.readouterr().err
    for found, expected in zip(
        QueriesReader.open(free).queries,
        QueriesReader.open(base.run / "keep-0.9999").queries,
        strict=True,
    ):
        assert found["modules"] == expected["modules"]


def test_searching_in_steps_finds_the_same(base, tiny_queries, monkeypatch):
    """From rank 1 on, doubled where a query would take all that was found."""
    monkeypatch.setattr(compression, "FIRST_RANK", 1)
    out = base.precondition(tiny_queries, "steps", keep=0.99)
    for found, expected in zip(
        QueriesReader.open(out).queries,
        QueriesReader.open(base.run / "keep-0.99").queries,
        strict=True,
    ):
        for name, module in expected["modules"].items():
            assert found["modules"][name]["rank"] == module["rank"]


@pytest.mark.parametrize("size", [1, 2])
def test_batches_do_not_matter(base, tiny_queries, size):
    name = f"batches-{size}"
    base.with_batches(size).precondition(tiny_queries, name, keep=0.9)
    found, expected = (
        scores(base.scan(f"{folder}-scanned", folder)) for folder in (name, "keep-0.9")
    )
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_few_matrices_at_a_time_and_little_memory():
    """A chunk's size falls with what is held for a query; one query is always taken."""
    modules = [compression.TrackedModule(f"m{i}", 576, 1536, False, i, f"m{i}") for i in range(36)]
    sizes = [
        compression.queries_a_chunk(modules, tokens, config, 4, 2 * 2**30)
        for tokens in (32, 512)
        for config in (PreconditionConfig(rank=r, keep=None) for r in (8, 64))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert compression.queries_a_chunk(modules, 32, PreconditionConfig(), 4, 1.0) == 1


def test_identity_holds_only_what_decides():
    uniform, kept = (
        PreconditionConfig(**settings).identity()
        for settings in ({"rank": 8, "keep": None}, {"rank": None, "keep": 0.9, "max_rank": 4})
    )
    assert uniform.keys() & {"rank", "keep", "max_rank"} == {"rank"}
    assert kept.keys() & {"rank", "keep", "max_rank"} == {"keep", "max_rank"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "0.9", "--rank", "4"), "exclude each other"),
        (("--keep", "0.9", "--rank", "full"), "exclude each other"),
        (("--keep", "0"), "not a share"),
        (("--keep", "1"), "not a share"),
        (("--keep", "nan"), "not a share"),
        (("--max-rank", "4", "--rank", "4"), "--max-rank goes with --keep"),
    ],
)
def test_refusals(base, tiny_queries, options, words):
    where = ("--model", base.model, "--factors", base.run / "factors", "--queries", tiny_queries)
    out = base.run / "refused"
    refuse(call("precondition", *where, "--out", out, *options), 2, words)
    assert not out.exists()


def test_on_the_command_line(base, tiny_queries):
    where = ("--model", base.model, "--factors", base.run / "factors", "--queries", tiny_queries)
    out = base.run / "by-command"
    result = call(
        "precondition",
        *where,
        "--out",
        out,
        "--keep",
        "0.9",
        "--max-rank",
        "5",
        "--dtype",
        "float64",
    )
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["keep"] == 0.9
    assert manifest["config"]["max_rank"] == 5
    assert torch.tensor([q["kept_energy"] for q in QueriesReader.open(out).queries]).min() > 0.5
