"""A bank goes on where it was stopped, and never takes one model for another.

Stopped between or within models it trains only the rest, and ends with the numbers of a run that
was not stopped; a change of points, recipe, data, queries or initial weights finds nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retraining_fixtures import RECIPE, make_llama, random_sequences, some_queries

from inflcli.errors import CorruptArtifact, NumericalFault
from inflcli.validation import bank as module
from inflcli.validation.bank import Bank, Progress
from inflcli.validation.points import Sequences
from inflcli.validation.retraining import train

DATA, QUERIES = random_sequences(16), some_queries()
SETS = [list(range(16)), list(range(0, 16, 2)), list(range(8)), list(range(4, 12))]
WANTED = [(ids, RECIPE) for ids in SETS]


class Stop(Exception):
    """Raised in the middle."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The subsets that were trained, as it happens."""
    seen: list[list[int]] = []

    def note(make_network, data, ids, recipe, progress=None):
        seen.append(sorted(ids))
        return train(make_network, data, ids, recipe, progress)

    monkeypatch.setattr(module, "train", note)
    return seen


def a_bank(folder: Path, **changes) -> Bank:
    given = {"make_network": make_llama, "data": DATA, "queries": QUERIES, **changes}
    return Bank(folder, **given)


def test_a_stopped_run_does_only_the_rest(tmp_path, trained):
    whole = a_bank(tmp_path / "whole").fill(WANTED)
    trained.clear()
    folder = tmp_path / "stopped"

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise Stop

    with pytest.raises(Stop):
        a_bank(folder).fill(WANTED, stop)
    assert trained == SETS[:2]
    seen: list[Progress] = []
    found = a_bank(folder).fill(WANTED, seen.append)
    assert trained == SETS
    assert [(one.done, one.total, one.trained) for one in seen] == [
        (1, 4, False), (2, 4, False), (3, 4, True), (4, 4, True),
    ]  # fmt: skip
    for one, other in zip(found, whole, strict=True):
        assert np.array_equal(one.queries, other.queries) and one.loss == other.loss
    assert len({tuple(one.queries) for one in found}) == len(SETS)


def test_stopping_within_a_model_leaves_nothing_of_it(tmp_path, trained, monkeypatch):
    folder = tmp_path / "bank"
    a_bank(folder).fill(WANTED[:1])

    def killed(source, target):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killed)
        with pytest.raises(Stop):
            a_bank(folder).fill(WANTED[:2])
    assert len(list(folder.iterdir())) == 1
    assert a_bank(folder).find(*WANTED[1]) is None
    a_bank(folder).fill(WANTED[:2])
    assert trained == [SETS[0], SETS[1], SETS[1]]


def test_what_is_there_is_what_the_model_said(tmp_path):
    (measured,) = a_bank(tmp_path, points=True).fill(WANTED[1:2])
    network = train(make_llama, DATA, SETS[1], RECIPE)
    again = a_bank(tmp_path).find(SETS[1][::-1], RECIPE)
    assert again is not None
    assert np.array_equal(again.queries, module.log_probs(network, QUERIES))
    assert np.array_equal(again.points, module.log_probs(network, DATA))
    assert measured.seconds == again.seconds > 0


def test_nothing_else_is_taken_for_a_member(tmp_path):
    a_bank(tmp_path).fill(WANTED[:1])
    changed_tokens = DATA.tokens.copy()
    changed_tokens[0, 0] += 1
    other_queries = Sequences(QUERIES.tokens, QUERIES.lengths, np.full(3, 3))

    def other_weights():
        network = make_llama()
        network.model.norm.weight.data[0] += 1e-6
        return network

    others = [
        {"data": Sequences(changed_tokens, DATA.lengths)},
        {"queries": other_queries},
        {"make_network": other_weights},
        {"points": True},
    ]
    assert a_bank(tmp_path).find(*WANTED[0]) is not None
    for changes in others:
        assert a_bank(tmp_path, **changes).find(*WANTED[0]) is None, changes
    for change in ({"seed": 1}, {"epochs": 3}, {"learning_rate": 1e-3}, {"loss": "mean"}):
        assert a_bank(tmp_path).find(SETS[0], replace(RECIPE, **change)) is None, change
    assert a_bank(tmp_path).find(SETS[0][:-1], RECIPE) is None


def test_a_set_asked_for_twice_is_trained_once(tmp_path, trained):
    found = a_bank(tmp_path).fill([WANTED[1], (SETS[1][::-1], RECIPE), WANTED[2], WANTED[1]])
    assert trained == [SETS[1], SETS[2]]
    assert found[0] is found[1] is found[3]
    assert not np.array_equal(found[0].queries, found[2].queries)


def test_damage_is_noticed(tmp_path):
    bank = a_bank(tmp_path)
    bank.fill(WANTED[:2])
    path, other = (bank.path(*one) for one in WANTED[:2])
    content = path.read_bytes()
    for damaged in (content[:-40], b"", b"[]", other.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match=path.name):
            bank.find(*WANTED[0])
    fewer = json.loads(content)
    fewer["measured"]["queries"].pop()
    path.write_text(json.dumps(fewer))
    with pytest.raises(CorruptArtifact, match=path.name):
        bank.find(*WANTED[0])


def test_a_model_that_diverged_is_not_stored(tmp_path):
    def broken():
        network = make_llama()
        network.model.norm.weight.data[0] = float("nan")
        return network

    bank = a_bank(tmp_path / "bank", make_network=broken)
    with pytest.raises(NumericalFault):
        bank.fill(WANTED[:1])
    assert not list(tmp_path.rglob("*.json"))


def test_the_model_is_given_to_who_asks_for_it(tmp_path):
    kept = []
    bank = a_bank(tmp_path)
    measured = bank.train(*WANTED[0], kept.append)
    assert np.array_equal(measured.queries, module.log_probs(kept[0], QUERIES))
    assert bank.find(*WANTED[0]).seconds == measured.seconds
    assert len(list(tmp_path.iterdir())) == 1
