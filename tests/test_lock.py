"""One process at a time writes an artifact: a second one waits, says for whom, and finds it done;
a dead owner holds nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import clocks
import pytest

from inflcli.artifacts import lock

HOLD = """
import sys, time
from pathlib import Path
from inflcli.artifacts.lock import exclusive
with exclusive(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from pathlib import Path
from inflcli.artifacts.lock import exclusive
if len(sys.argv) > 3:
    sys.path.insert(0, sys.argv[3])
    import clocks
    clocks.jump(0)
for _ in range(50):
    with exclusive(Path(sys.argv[1]), lambda message: None):
        number = int(Path(sys.argv[2]).read_text())
        Path(sys.argv[2]).write_text(str(number + 1))
"""


def holder(artifact: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(artifact)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("jumps", [False, True], ids=["right clock", "jumping clock"])
def test_the_second_waits_and_says_for_whom(tmp_path, monkeypatch, jumps):
    if jumps:
        clocks.jump(0, monkeypatch.setattr)
    owner, said, entered = holder(tmp_path / "scan"), [], threading.Event()

    def second() -> None:
        with lock.exclusive(tmp_path / "scan", said.append):
            entered.set()

    waiter = threading.Thread(target=second)
    waiter.start()
    assert not entered.wait(0.5)
    assert len(said) == 1
    assert f"process {owner.pid} on " in said[0]
    # Killed outright: the lock goes with its owner.
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert entered.wait(10)
    waiter.join()


def test_a_dead_owner_is_not_waited_for(tmp_path):
    owner = holder(tmp_path / "scan")
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    said: list[str] = []
    with lock.exclusive(tmp_path / "scan", said.append):
        described = json.loads((tmp_path / ".scan.owner").read_text())
    assert said == []
    assert described["process"] == os.getpid()
    assert not (tmp_path / ".scan.owner").exists()


@pytest.mark.parametrize("clock", [[], [Path(__file__).parent]], ids=["right", "jumping"])
def test_none_is_let_in_beside_another(tmp_path, clock):
    """Four processes add 50 each to a number in a file, reading and writing it in turn."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "scan"), str(counter)]
    command += map(str, clock)
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert counter.read_text() == "200"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}'])
def test_an_owner_that_cannot_be_read(tmp_path, content):
    (tmp_path / ".scan.owner").write_text(content)
    assert lock._describe(tmp_path / ".scan.owner") == "another process"


@pytest.mark.parametrize(("ago", "words"), [(600, ", for 10 min"), (5, ""), (-3600, "")])
def test_a_clock_that_jumps(tmp_path, ago, words):
    owner = {"process": 7, "host": "box", "since": time.time() - ago}
    (tmp_path / ".scan.owner").write_text(json.dumps(owner))
    assert lock._describe(tmp_path / ".scan.owner") == "process 7 on box" + words


def test_artifacts_do_not_wait_for_each_other(tmp_path):
    owner = holder(tmp_path / "scan")
    with lock.exclusive(tmp_path / "attribution", pytest.fail):
        pass
    owner.kill()
    owner.wait()


PREPARE = ("import sys; from inflcli.cli import main; main()", "prepare", "--seq-len", "16")


def test_two_commands_race(tmp_path, tiny_text, tiny_tokenizer):
    """Both end well; one did the work, and the other waited or found it done."""
    out = tmp_path / "corpus"
    command = [sys.executable, "-c", *PREPARE, "--json", "--tokenizer", str(tiny_tokenizer)]
    command += ["--input", str(tiny_text), "--out", str(out)]
    racing = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = []
    for process in racing:
        answer, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        results.append(json.loads(answer))
    assert sorted(result["fresh"] for result in results) == [False, True]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
