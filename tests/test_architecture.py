"""Imports go one way: cli, then stages, then everything else; the pure packages import only torch,
numpy, scipy, themselves and `shapes`, which imports nothing; rendering knows nothing of artifacts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import inflcli

ROOT = Path(inflcli.__file__).parent
PURE = ("ekfac", "influence", "retrieval", "statistics")
PURE_MAY_IMPORT = {
    "abc",
    "torch",
    "numpy",
    "scipy",
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "types",
    "typing",
}
# What a package may import of the project besides itself.
LAYERS: dict[str, set[str]] = {
    "cli": {"stages", "config", "errors", "console", "report", "distributed"},
    "stages": {
        "artifacts", "config", "console", "corpus", "distributed", "ekfac", "errors", "influence",
        "model", "report", "retrieval", "shapes", "statistics",
    },
    "model": {"artifacts", "distributed", "ekfac", "errors", "shapes"},
    "corpus": {"artifacts", "errors"},
    "artifacts": {"errors"},
    "report": {"errors"},
    "validation": {"ekfac", "statistics"},
    "console": set(),
    "distributed": set(),
    "config": set(),
    "errors": set(),
    "shapes": set(),
    **{name: set() for name in PURE},
    "influence": {"shapes"},
}  # fmt: skip
HEAVY = {"torch", "transformers", "zarr", "numpy", "scipy", "safetensors"}


def modules() -> list[Path]:
    found = sorted(ROOT.rglob("*.py"))
    assert len(found) > 40
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(path: Path) -> str:
    """`stages` for inflcli/stages/scan.py, `config` for inflcli/config.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = package(path)
    if here not in LAYERS:
        assert here in ("__init__", "__main__", "demo"), f"{here} is not in the table of layers"
        return
    allowed = {here, "__version__", *LAYERS[here]}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "inflcli":
            assert parts[1] in allowed, f"{here} imports {name}"


@pytest.mark.parametrize("name", PURE)
def test_pure_packages_import_only_mathematics(name):
    for path in (ROOT / name).rglob("*.py"):
        for found in imported(path):
            parts = found.split(".")
            own = parts[0] == "inflcli" and parts[1] in {name, *LAYERS[name]}
            assert own or parts[0] in PURE_MAY_IMPORT, f"{path} imports {found}"
            assert parts[:2] != ["torch", "distributed"], f"{path} imports {found}"


def test_rendering_reads_no_files_of_artifacts():
    """report/ gets plain data; stages read the artifacts for it."""
    for path in (ROOT / "report").rglob("*.py"):
        for found in imported(path):
            below = found.split(".")[1:2]
            assert below not in (["artifacts"], ["stages"], ["cli"], ["model"]), f"{path}: {found}"


def test_the_command_line_touches_no_tensor():
    for path in (ROOT / "cli").rglob("*.py"):
        for found in imported(path):
            assert found.split(".")[0] not in HEAVY, f"{path} imports {found}"
