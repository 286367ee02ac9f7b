"""Hold influence estimators against two ground truths on small networks (Appendix C of the paper).

    python benchmarks/validation/small.py diabetes friedman
    python benchmarks/validation/small.py digits digits-wide --weighted queries

Writes results/NAME.json beside this file: of every estimator, Pearson and Spearman by query with
the PBRF (Eq. 7, found by Newton steps and L-BFGS) and with the exact damped Gauss-Newton solve, and
its wall clock for all queries; of low ranks (Figure 3) those with full rank, too. All estimators
get the same λ a module, 0.1 · mean Λ of the EK-FAC fit; `global` has them again with one λ for all
modules. No option of an estimator was chosen by these numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import problems
import torch

from inflcli import validation
from inflcli.validation import Problem, Result, correlation
from inflcli.validation.pbrf import WEIGHTED

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")
ROWS = 1 << 16
ROOM = 1 << 30
"""Bytes that the eigenvectors which whiten G may take."""
Estimator = Callable[..., Result]


def estimators() -> dict[str, Estimator]:
    """By name. Each takes a problem and its damping."""
    ekfac = validation.ekfac
    found: dict[str, Estimator] = {
        "gradient dot": lambda problem, damping: validation.gradient_dot(problem),
        "gradient cosine": lambda problem, damping: validation.gradient_cosine(problem),
        "LiSSA": validation.lissa,
        "K-FAC": functools.partial(ekfac, kind="kfac"),
        "EK-FAC": ekfac,
        "EC-Shampoo": functools.partial(ekfac, kind="ec-shampoo"),
    }
    for blocks in (2, 4, 8):
        found[f"EK-FAC, {blocks} blocks"] = functools.partial(ekfac, blocks=blocks)
    found["EK-FAC, 10 label samples"] = functools.partial(ekfac, label_samples=10)
    found["sampled Gauss-Newton"] = functools.partial(validation.sampled_cg, tolerance=1e-4)
    found["EK-FAC + 10 CG steps"] = functools.partial(validation.refined, steps=10)
    return found


def compared(result: Result, truths: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Correlations with every truth, by query and together."""
    found = {}
    for name, truth in truths.items():
        one = correlation(result.scores, truth)
        found[name] = {**one.summary(), "pearson": one.pearson, "spearman": one.spearman}
    return found


def recorded(result: Result) -> dict[str, Any]:
    details = {name: value for name, value in result.details.items() if name != "damping"}
    return {"seconds": result.seconds, "total": result.total, "details": details}


def timed(make: Estimator, problem: Problem, damping: Any, rounds: int) -> tuple[Result, list]:
    """The fastest of so many runs, and how long each took."""
    results = [make(problem, damping=damping) for _ in range(rounds)]
    totals = [result.total for result in results]
    return min(results, key=lambda result: result.total), totals


def ranks(problem: Problem, damping: Any, truths: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Every preconditioned query and module truncated to ranks from 1 to full."""
    sides = [min(module.outputs, module.inputs) for module in problem.model.modules]
    wanted = [rank for rank in (1, 2, 4, 8, 16, 32, 64, 128) if rank < max(sides)]
    truths = {**truths, "full_rank": validation.ekfac(problem, damping=damping).scores}
    return [
        {"rank": rank, **compared(validation.ekfac(problem, damping=damping, rank=rank), truths)}
        for rank in [*wanted, max(sides)]
    ]


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    problem, facts = problems.make(
        name,
        queries=arguments.queries,
        points=arguments.points,
        batch=arguments.batch,
        seed=arguments.seed,
    )
    damping = validation.ekfac(problem).details["damping"]
    say(f"{name}: {facts}")
    sizes = {module.name: module.inputs * module.outputs for module in problem.model.modules}
    whole = tuple(torch.cat(parts) for parts in zip(*problem.fitted, strict=True))
    # The same G; larger batches take less time. All of its eigenvectors whiten it, if they fit.
    together = Problem(problem.model, [whole], problem.points, problem.queries)
    start = time.perf_counter()
    weights = sum(sizes.values())
    rank = min(weights, problem.sequences * facts["outputs"], ROOM // (8 * weights))
    white = validation.SpectralWhitening(together, damping, rank, ROWS)
    whitening = {"rank": rank, "seconds": time.perf_counter() - start}
    exact = validation.ggn(together, damping=damping, whitening=white, rows=ROWS)
    say(f"  exact: {recorded(exact)}")
    response = validation.pbrf(
        together,
        weighted=arguments.weighted,
        damping=damping,
        whitening=white,
        tolerance=arguments.tolerance,
        newton=100,
        iterations=50,
    )
    say(f"  PBRF: {recorded(response)}")
    truths = {"pbrf": response.scores, "exact": exact.scores}
    found = {**recorded(response), **compared(response, {"exact": exact.scores})}
    rows = []
    for title, make in estimators().items():
        result, totals = timed(make, problem, damping, arguments.rounds)
        rows.append(
            {"name": title, **recorded(result), "totals": totals, **compared(result, truths)}
        )
        shown = [rows[-1][truth]["pearson_mean"] for truth in truths]
        say(f"  {title}: {', '.join(f'{value:.4f}' for value in shown)} in {result.total:.3f} s")
    one = sum(damping[part] * size for part, size in sizes.items()) / weights
    again = {"exact": validation.ggn(together, damping=one, whitening=white, rows=ROWS).scores}
    return {
        "problem": {"name": name, **facts},
        "damping": damping,
        "truths": {
            "whitening": whitening,
            "pbrf": found,
            "exact": recorded(exact),
        },
        "estimators": rows,
        "ranks": ranks(problem, damping, truths),
        "global": {
            "damping": one,
            "estimators": [
                {"name": title, **compared(make(problem, damping=one), again)}
                for title, make in estimators().items()
            ],
        },
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(problems.DATA), metavar="NAME")
    parser.add_argument("--queries", type=int, default=10, help="test examples to explain")
    parser.add_argument("--points", type=int, default=500, help="training examples to score")
    parser.add_argument("--batch", type=int, default=64, help="of the fit, and of LiSSA's steps")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every estimator")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the PBRF's gradients")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weighted", choices=WEIGHTED, default="points", help="by ε, see `pbrf`")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keys = ("queries", "points", "batch", "rounds", "tolerance", "weighted", "threads", "seed")
    options = [f"--{key} {getattr(arguments, key)}" for key in keys]
    for name in arguments.names:
        record = {
            "command": f"python benchmarks/validation/small.py {name} {' '.join(options)}",
            "versions": {
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in PACKAGES},
            },
            **measure(name, arguments),
        }
        arguments.folder.mkdir(parents=True, exist_ok=True)
        path = arguments.folder / f"{name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        say(f"wrote {path.name}")


if __name__ == "__main__":
    main()
