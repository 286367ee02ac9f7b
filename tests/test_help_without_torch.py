"""`inflcli --help` and every command's `--help` answer without importing torch, and explain every
option.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from inflcli.cli import COMMANDS, app

NAMES = [module.NAME for module in COMMANDS]
HEAVY = ("torch", "transformers", "safetensors", "zarr", "scipy", "datasets", "pyarrow")
# Runs every --help in one process: a process each would only repeat the start of Python.
PROBE = """
import json, sys
from inflcli.cli import app

seen = {}
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as stop:
        loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
        seen[" ".join(arguments)] = [stop.code, loaded]
print(json.dumps(seen), file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_no_help_imports_torch():
    wanted = [["--help"], ["--version"], *([name, "--help"] for name in NAMES)]
    done = run("-c", PROBE, json.dumps(wanted), json.dumps(HEAVY))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen == {" ".join(arguments): [0, []] for arguments in wanted}


def test_the_module_is_the_programme():
    """`python -m inflcli` with the real start-up, quick enough to be asked often."""
    started = time.monotonic()
    done = run("-X", "importtime", "-m", "inflcli", "--help")
    assert time.monotonic() - started < 10
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & set(HEAVY)
    assert all(name in done.stdout for name in NAMES)


@pytest.mark.parametrize("module", COMMANDS, ids=NAMES)
def test_every_option_has_a_help_text(module):
    command = typer.main.get_command(app).commands[module.NAME]
    options = [option for option in command.params if option.name != "help"]
    assert {"overwrite", "quiet", "debug", "as_json"} <= {o.name for o in options} | (
        {"overwrite"} if module.NAME in ("status", "plan", "compare") else set()
    )
    # Wide, so that no word is broken at the edge of the table.
    page = CliRunner().invoke(app, [module.NAME, "--help"], env={"COLUMNS": "400"}).output
    for option in options:
        assert option.help, option.name
        assert option.opts[0] in page
        assert option.help.split()[0] in page
    assert f"inflcli {module.NAME} " in page, "no example"
