"""Invariant: `report` refuses what does not belong together, adapts to what is missing, and makes
the same artifact once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import make_run
from typer.testing import CliRunner, Result

from inflcli.cli import app


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("stage") / "run", tiny_tokenizer)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def _ranks(table: str) -> list[str]:
    return re.findall(r"^ *([+-]\d+) ", table, re.M)


def test_writes_a_page_and_says_where(run: Path) -> None:
    out = run / "report"
    done = _report("--run", run, "--out", out, "--format", "html", "--format", "markdown")
    assert done.exit_code == 0, done.output
    assert str(out / "index.html") in done.stdout
    assert (out / "report.md").read_text().startswith("# Influence report")
    inputs = json.loads((out / "manifest.json").read_text())["inputs"]
    assert set(inputs) == {"corpus", "queries", "candidates", "scan", "attribution"}


def test_a_second_run_does_nothing_and_says_so(run: Path) -> None:
    first = _report("--run", run, "--out", run / "report")
    before = (run / "report" / "index.html").stat().st_mtime_ns
    second = _report("--run", run, "--out", run / "report")
    assert first.exit_code == second.exit_code == 0
    assert "up to date" in second.stderr
    assert (run / "report" / "index.html").stat().st_mtime_ns == before


def test_the_terminal_table_comes_every_time_and_needs_no_folder(run: Path) -> None:
    both = ("--run", run, "--out", run / "report", "--format", "terminal", "--format", "html")
    for arguments in (both, both, ("--run", run, "--format", "terminal")):
        done = _report(*arguments)
        assert done.exit_code == 0, done.output
        assert "by the river." in done.stdout and "+1" in done.stdout
    assert "--out is missing" in _report("--run", run).stderr


def test_the_terminal_table_is_short_unless_asked(run: Path) -> None:
    short = _report("--run", run, "--format", "terminal").stdout
    assert _ranks(short) == ["+1", "+2", "+3", "+4", "+5", "-1", "-2"] * 2
    more = _report("--run", run, "--format", "terminal", "--top-k", 6).stdout
    assert _ranks(more).count("+6") == 2


@pytest.mark.parametrize(("option", "paged"), [("--pager", True), ("--no-pager", False)])
def test_the_table_is_paged_on_a_terminal(run: Path, option: str, paged: bool) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "inflcli", "report", "--run", run, "--format", "terminal"]
    environment = {**os.environ, "PAGER": "sed s/^/PAGED:/", "TERM": "xterm"}
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*map(str, command), option], env=environment, **terminal)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"by the river." in shown and (b"PAGED:" in shown) == paged


@pytest.mark.parametrize(
    ("name", "command"), [("corpus", "prepare"), ("queries", "precondition"), ("scan", "scan")]
)
def test_a_missing_artifact_is_named_with_its_command(
    made: Path, run: Path, name: str, command: str
) -> None:
    shutil.rmtree(run / name)
    away = (made / name).rename(made / "away")  # where a corpus would be looked for, too
    done = _report("--run", run, "--out", run / "report")
    away.rename(made / name)
    assert done.exit_code == 3
    assert name in done.stderr and f"inflcli {command}" in done.stderr
    assert not (run / "report").exists()


def test_a_corpus_that_lies_elsewhere_is_found(run: Path) -> None:
    """As the scan recorded it: several runs may share one."""
    shutil.rmtree(run / "corpus")
    done = _report("--run", run, "--out", run / "report")
    assert done.exit_code == 0, done.output
    assert (run / "report" / "index.html").is_file()


@pytest.mark.parametrize("name", ["attribution", "candidates"])
def test_goes_without_what_is_optional(run: Path, name: str) -> None:
    shutil.rmtree(run / name)
    formats = [
        part for one in ("html", "jsonl", "markdown", "terminal") for part in ("--format", one)
    ]
    done = _report("--run", run, "--out", run / "report", *formats)
    assert done.exit_code == 0, done.output
    page = (run / "report" / "index.html").read_text()
    assert ("inflcli attribute</code> computes them" in page) == (name == "attribution")


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("queries", "scan"),
        ("scan", "scan"),
        ("corpus", "candidates"),
        ("candidates", "candidates"),
        ("attribution", "attribution"),
    ],
)
def test_artifacts_of_different_runs_are_refused(
    run: Path, tmp_path: Path, tiny_tokenizer: Path, changed: str, stale: str
) -> None:
    texts = [{"text": f"Another text, number {number}."} for number in range(9)]
    other = make_run(tmp_path / "other", tiny_tokenizer, texts, seed=1)
    shutil.rmtree(run / changed)
    shutil.copytree(other / changed, run / changed)
    done = _report("--run", run, "--out", run / "report")
    assert done.exit_code == 3
    assert f"{run / stale} was made with another" in done.stderr and "--overwrite" in done.stderr
    assert not (run / "report").exists()


def test_a_changed_run_is_not_passed_off_as_the_old_report(
    run: Path, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    assert _report("--run", run, "--out", run / "report").exit_code == 0
    shutil.rmtree(run / "attribution")
    done = _report("--run", run, "--out", run / "report")
    assert done.exit_code == 3 and "attribution" in done.stderr
    assert _report("--run", run, "--out", run / "report", "--overwrite").exit_code == 0


def test_a_changed_tokenizer_is_refused(run: Path, tmp_path: Path, tiny_tokenizer: Path) -> None:
    other = Path(shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + " ")
    done = _report("--run", run, "--out", run / "report", "--tokenizer", other)
    assert done.exit_code == 3 and "another tokenizer" in done.stderr
    assert not (run / "report.partial").exists()


def test_json_and_a_table_cannot_share_stdout(run: Path) -> None:
    done = _report("--run", run, "--format", "terminal", "--json")
    assert done.exit_code == 2
    as_json = _report("--run", run, "--out", run / "report", "--json")
    assert json.loads(as_json.stdout)["files"] == [str(run / "report" / "index.html")]
    assert _report("--run", run, "--out", run / "x", "--format", "pdf").exit_code == 2
