"""What a run says is done, and the sums that go with it, never disagree: not after a crash between
any two writes, not when the last file of sums is damaged, not when several processes kept them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from inflcli.artifacts import files
from inflcli.artifacts.ledger import Ledger, read_progress
from inflcli.errors import CorruptArtifact


def save(ledger: Ledger, *units: int) -> None:
    """Add units to the sums: unit u counts u tokens, once."""
    tensors, counts = ledger.load_state()
    total = tensors.get("sum", torch.zeros(1)) + sum(units)
    done = [*ledger.progress.get("done", []), *units]
    tokens = counts.get("rows", {}).get("tokens", 0) + sum(units)
    ledger.save_state({"sum": total}, {"rows": {"tokens": tokens}}, {"done": done})


def agrees(ledger: Ledger) -> list[int]:
    """What is done, after checking that the sums hold just that."""
    done = ledger.progress.get("done", [])
    tensors, counts = ledger.load_state()
    if done:
        assert float(tensors["sum"]) == counts["rows"]["tokens"] == sum(done)
    assert len(done) == len(set(done))
    return sorted(done)


def test_two_generations_are_kept(tmp_path):
    ledger = Ledger(tmp_path)
    for unit in (1, 2, 4):
        save(ledger, unit)
    assert len(list(tmp_path.glob("state.*"))) == 2
    assert agrees(Ledger.resume(tmp_path)) == [1, 2, 4]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damaged_sums_fall_back_on_the_generation_before(tmp_path, harm):
    ledger = Ledger(tmp_path)
    for unit in (1, 2, 4):
        save(ledger, unit)
    damage(tmp_path / ledger.progress["state"]["file"], harm)
    again = Ledger.resume(tmp_path)
    assert agrees(again) == [1, 2]
    save(again, 4, 8)
    assert agrees(Ledger.resume(tmp_path)) == [1, 2, 4, 8]


def test_damage_of_both_generations_is_said(tmp_path):
    ledger = Ledger(tmp_path)
    for unit in (1, 2):
        save(ledger, unit)
    for path in tmp_path.glob("state.*"):
        damage(path, "flip")
    with pytest.raises(CorruptArtifact, match="running sums"):
        Ledger.resume(tmp_path)


def damage(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        path.write_bytes(content)


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("crash_at", range(12))
def test_a_crash_between_any_two_writes(tmp_path, monkeypatch, crash_at):
    """Three ranks save, one crashes; resumed with two, every unit is in the sums once."""
    count = itertools.count()

    def crashing(right):
        def call(*args, **options):
            if next(count) == crash_at:
                raise Crash
            return right(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", crashing(files.write_bytes))
        patch.setattr(Path, "unlink", crashing(Path.unlink))
        try:
            ranks = [Ledger(tmp_path, rank) for rank in range(3)]
            for unit in range(1, 7):
                save(ranks[unit % 3], unit)
            Ledger.resume(tmp_path)
        except Crash:
            pass
    first = Ledger.resume(tmp_path)
    done = agrees(first)
    assert read_progress(tmp_path).get("done", []) == first.progress.get("done", [])
    second = Ledger(tmp_path, 1, epoch=first.epoch)
    for unit in set(range(1, 9)) - set(done):
        save(first if unit % 2 else second, unit)
    assert agrees(Ledger.resume(tmp_path)) == list(range(1, 9))
    assert not list(tmp_path.glob("progress.*.json"))


def test_the_first_rank_voids_the_others(tmp_path):
    """Once it has dropped the sums, what another rank wrote before counts no more."""
    first, second = Ledger(tmp_path), Ledger(tmp_path, 1)
    save(first, 1)
    save(second, 2)
    first.drop_state({"step": 1})
    assert Ledger.resume(tmp_path).progress == {"step": 1}
    second.void()
    save(second, 4)
    assert agrees(Ledger.resume(tmp_path)) == [4]
