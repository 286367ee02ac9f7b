"""A refinement that was stopped, or that is damaged, ends with the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import contents
from pipeline import Pipeline
from refining import MODULES, by_one, refining
from test_damage import flip

from inflcli.artifacts.ledger import Ledger
from inflcli.stages.refine import Refinement

SETTINGS = {"refine": 3, "refine_sequences": 5, "refine_corpus": "few"}


@pytest.fixture(scope="module")
def base(tiny_model, tiny_text, tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("run")
    return refining(tiny_model("llama"), folder, tiny_text, MODULES["llama"], "float32")


def files_of(folder: Path) -> dict[str, str]:
    return {name: one for name, one in contents(folder).items() if name != "manifest.json"}


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_stopped_after_every_query(base, tiny_queries, monkeypatch, solver):
    one_by_one, settings = by_one(base), {**SETTINGS, "refine_solver": solver}
    whole = one_by_one.precondition(tiny_queries, f"whole-{solver}", **settings)
    solved = []
    record, solve = Ledger.record, Refinement.solve

    def dying(self, *arguments):
        record(self, *arguments)
        raise KeyboardInterrupt

    def counted(self, *arguments):
        solved.append(1)
        return solve(self, *arguments)

    monkeypatch.setattr(Refinement, "solve", counted)
    out = f"stopped-{solver}"
    for count in range(1, 4):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Ledger, "record", dying)
            one_by_one.precondition(tiny_queries, out, **settings)
        assert len(solved) == count
    again = one_by_one.precondition(tiny_queries, out, **settings)
    assert len(solved) == 3
    assert files_of(again) == files_of(whole)


def test_a_damaged_module_costs_them_all(base, tiny_queries, monkeypatch):
    """They were solved for together, and depend on each other."""
    one_by_one = by_one(base)
    folder = one_by_one.precondition(tiny_queries, "damaged", **SETTINGS)
    before = files_of(folder)
    victim = sorted(name for name in before if name.startswith("modules/"))[0]
    flip(folder / victim, folder)
    assert files_of(folder) != before
    one_by_one.precondition(tiny_queries, "damaged", **SETTINGS)
    assert files_of(folder) == before
