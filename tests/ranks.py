"""Commands under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline import Pipeline

from inflcli.artifacts import factors as factor_store
from inflcli.artifacts.factors import Eigen

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def environment() -> dict[str, str]:
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"}


def launch(folder: Path, ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`torchrun ARGUMENTS` in several processes; a module comes after -m."""
    return subprocess.run(
        [*LAUNCH, f"--nproc-per-node={ranks}", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip


def torchrun(pipeline: Pipeline, *arguments: object, ranks: int = 2) -> str:
    """As `launch`, in a run's folder; what it prints. Fails unless all processes end well."""
    done = launch(pipeline.run, ranks, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def fit_command(pipeline: Pipeline, out: str) -> list[object]:
    return [
        "fit-factors", "--model", pipeline.model, "--corpus", "corpus", "--out", out,
        "--dtype", "float64", "--precision", "exact", "--device", "cpu", "--chunk-size", 3,
    ]  # fmt: skip


def scan_command(pipeline: Pipeline, out: str) -> list[object]:
    return [
        "scan", "--model", pipeline.model, "--queries", "queries", "--corpus", "corpus",
        "--out", out, "--dtype", "float64", "--precision", "exact", "--device", "cpu",
        "--chunk-size", 7, "--batch-size", 7,
    ]  # fmt: skip


def same_factors(found: Path, expected: Path, bound: float = 1e-6) -> None:
    """Eigenvectors are theirs up to sign, so what they make up is compared."""
    for module in factor_store.FactorsReader.open(found).modules:
        name, shared = module["name"], module["shares_input_with"]
        made = []
        for folder in (found, expected):
            a = factor_store.read_input(folder, shared)
            s = factor_store.read_output(folder, name)
            corrected = factor_store.read_corrected(folder, name)
            squares = (s.vectors[0] ** 2) @ corrected @ (a.vectors[0] ** 2).T
            made.append([_matrix(a), _matrix(s), squares])
        for one, other in zip(*made, strict=True):
            assert float((one - other).norm() / other.norm()) < bound


def _matrix(eigen: Eigen):
    (q,) = eigen.vectors
    return (q * eigen.values) @ q.T
