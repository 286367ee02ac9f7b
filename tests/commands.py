"""Running `inflcli` within the tests' own process, and what a refusal must look like."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from inflcli.cli import app


def call(*arguments: object) -> Result:
    """`inflcli ARGUMENTS`; `.exit_code`, `.stdout`, `.stderr`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    """The one line that an error leaves as."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.rstrip().splitlines()[-1] == lines[0]
    assert "Traceback" not in result.output
    assert "unexpected" not in lines[0]
    return lines[0]


def refuse(result: Result, code: int, *words: str) -> None:
    """The command ended with `code` and one line that holds `words`."""
    assert result.exit_code == code, result.output
    line = error_line(result)
    for word in words:
        assert word in line, line


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by its relative path; locks hold nothing."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@dataclass(frozen=True)
class Chain:
    """A folder with a model, a query file and the artifacts of a finished chain."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def copy(self, to: Path) -> Chain:
        return Chain(Path(shutil.copytree(self.folder, to)))

    def fit(self, *more: object, **other: object) -> Result:
        return self._run("fit-factors", {"corpus": "corpus", "out": "factors"}, more, other)

    def precondition(self, *more: object, **other: object) -> Result:
        usual = {"factors": "factors", "queries": "queries.jsonl", "out": "queries"}
        return self._run("precondition", usual, more, other)

    def scan(self, *more: object, **other: object) -> Result:
        usual = {"queries": "queries", "corpus": "corpus", "out": "scan"}
        return self._run("scan", usual, more, other)

    def attribute(self, *more: object, **other: object) -> Result:
        usual = {"queries": "queries", "corpus": "corpus", "scan": "scan", "out": "attribution"}
        return self._run("attribute", usual, more, other)

    def _run(
        self, name: str, usual: dict[str, str], more: tuple[object, ...], other: dict[str, object]
    ) -> Result:
        """The stage on the chain's own folders; keywords replace them, positions are added."""
        paths = {"model": "model", **usual, **other}
        pairs = [(f"--{key}", self.folder / str(path)) for key, path in paths.items()]
        return call(name, *(word for pair in pairs for word in pair), *more)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensor(path: Path, part: str, value: float) -> str:
    """Put `value` first in the first tensor whose name holds `part`; its name. The size stays."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    name = next(name for name in sorted(header) if part in name)
    types = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    number = torch.tensor([value], dtype=types[header[name]["dtype"]]).view(torch.uint8)
    place = start + header[name]["data_offsets"][0]
    data[place : place + len(number)] = number.numpy().tobytes()
    path.write_bytes(data)
    return name


def cut(path: Path) -> None:
    """Truncate a file to two thirds."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def scale_weights(folder: Path, factor: float) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor * factor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
