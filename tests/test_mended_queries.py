"""Damaged modules of preconditioned queries are made again alone, with the bytes that they had."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from commands import contents
from pipeline import Pipeline
from test_damage import delete, flip, mending, truncate
from tiny import CONTEXT, SHAPES, VOCABULARY, save_model, save_tokenizer
from transformers import LlamaConfig

from inflcli.artifacts import queries as store
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.model.passes import Passes
from inflcli.stages import compression

SETTINGS = {
    "keep": {"keep": 0.9, "max_rank": 16},
    "rank": {"rank": 5},
    "full": {},
}
WIDE = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=160, intermediate_size=288, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=CONTEXT,
)  # fmt: skip
"""Wide enough that components are searched at random, with a start that depends on their number."""


@pytest.fixture(scope="module")
def wide(tiny_text, tmp_path_factory) -> Pipeline:
    model = tmp_path_factory.mktemp("wide")
    save_tokenizer(model)
    save_model(model, WIDE)
    pipeline = Pipeline(model, tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit(max_sequences=20)
    return pipeline


@pytest.fixture
def worked_on(monkeypatch) -> list[set[str]]:
    """The modules of every pass."""
    seen: list[set[str]] = []
    run = Passes.run

    def watched(self, *arguments):
        seen.append({module.name for module in self.modules})
        return run(self, *arguments)

    monkeypatch.setattr(Passes, "run", watched)
    return seen


def places(folder: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    found = {name: (folder / name).stat() for name in names}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def described(folder: Path) -> dict:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in manifest.items() if key != "timings"}


def files_of(folder: Path) -> dict[str, str]:
    return {name: one for name, one in contents(folder).items() if name != "manifest.json"}


@pytest.mark.parametrize("precision", ["exact", "single", "fast"])
@pytest.mark.parametrize("batch", [2, 7], ids=["two chunks", "one chunk"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_only_damaged_modules(
    wide, tiny_queries, tmp_path, monkeypatch, worked_on, kind, batch, precision
):
    monkeypatch.setattr(compression, "FIRST_RANK", 4)  # up to three searches
    monkeypatch.setattr(compression, "_MATRIX_BYTES", 2 * 161 * 289 * 4)  # of two matrices
    out, settings = f"{kind}-{batch}-{precision}", {**SETTINGS[kind], "precision": precision}
    folder = wide.with_batches(batch).precondition(tiny_queries, out, **settings)
    before, manifest = files_of(folder), described(folder)
    if kind == "keep":
        found = [m["found"] for q in store.read_queries_json(folder) for m in q["modules"].values()]
        assert len(set(found)) > 1
    names = [module["name"] for module in manifest["details"]["modules"]]
    damaged = {names[0]: flip, names[3]: truncate, names[4]: delete}
    for name, damage in damaged.items():
        damage(folder / "modules" / f"{name}.safetensors", folder)
    sound = [name for name in before if not store.modules_in([name]) & set(damaged)]
    assert len(sound) == len(names) - 3 + 1
    untouched = places(folder, sound)
    worked_on.clear()
    # The batches of the mending run are not what decides.
    mending(wide.with_batches(1)).precondition(tiny_queries, out, **settings)
    assert files_of(folder) == before
    assert described(folder) == manifest
    assert places(folder, sound) == untouched
    assert worked_on == [set(damaged)] * (2 if batch == 2 else 1)


@pytest.mark.parametrize("tracked", ["all", "*"], ids=["layers", "with the head"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "llama"])
def test_every_module_by_itself(
    tiny_model, tiny_text, tiny_queries, tmp_path, worked_on, shape, tracked
):
    """Whatever else the backward pass leaves out."""
    pipeline = Pipeline(tiny_model(shape), tmp_path, "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit(max_sequences=10, modules=tracked)
    folder = pipeline.precondition(tiny_queries, keep=0.9)
    before = files_of(folder)
    victims = [name for name in before if store.modules_in([name])]
    assert len(victims) >= 5
    for victim in victims:
        flip(folder / victim, folder)
        worked_on.clear()
        mending(pipeline).precondition(tiny_queries, keep=0.9)
        assert files_of(folder) == before
        assert worked_on == [store.modules_in([victim])]


@pytest.mark.parametrize("also", [[], ["modules"]], ids=["alone", "and a module"])
def test_without_what_was_kept_all_is_made_again(wide, tiny_queries, worked_on, also):
    folder = wide.precondition(tiny_queries, "described", keep=0.9)
    before, names = files_of(folder), wide_modules(folder)
    flip(folder / "queries.json", folder)
    for name in also:
        flip(folder / f"{name}/{sorted(names)[0]}.safetensors", folder)
    worked_on.clear()
    mending(wide).precondition(tiny_queries, "described", keep=0.9)
    assert files_of(folder) == before
    assert worked_on == [names]


def wide_modules(folder: Path) -> set[str]:
    return {module["name"] for module in described(folder)["details"]["modules"]}


def interrupted_after(count: int, work: Callable) -> Callable:
    left = [count]

    def interrupted(*arguments, **options):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return work(*arguments, **options)

    return interrupted


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ArtifactWriter, "commit"), (store, "merge_chunks"), (ArtifactWriter, "finish"),
     (Path, "unlink"), (Path, "rename"), (Path, "replace")],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_stopped_while_mending(wide, tiny_queries, monkeypatch, owner, name):
    """At every call of it, the next attempt goes on, and ends with the same bytes."""
    one_by_one = wide.with_batches(1)
    folder = one_by_one.precondition(tiny_queries, f"stopped-{name}", rank=3)
    before, manifest = files_of(folder), described(folder)
    for victim in sorted(wide_modules(folder))[:2]:
        flip(folder / f"modules/{victim}.safetensors", folder)
    again = replace(mending(one_by_one))
    for count in range(5):
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(owner, name, interrupted_after(count, getattr(owner, name)))
            again.precondition(tiny_queries, folder.name, rank=3)
    again.precondition(tiny_queries, folder.name, rank=3)
    assert files_of(folder) == before
    assert described(folder) == manifest
