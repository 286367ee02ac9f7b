"""Estimates of influence against retraining: the demo's architecture, from scratch on subsets.

    python -m benchmarks.validation.retraining --stage train    # the models, resumable
    python -m benchmarks.validation.retraining --stage scores   # of the model trained on all
    python -m benchmarks.validation.retraining --stage lds
    python -m benchmarks.validation.retraining --stage topk     # trains some more

run from the top of the repository, in this order and with the same options. The data are paragraphs
of the demo's corpus, cut at --seq-len tokens: all that state a fact that a query asks for, and
random ones. `scores` makes those of every estimator of `inflcli validate` for the model trained on
all; scores of others come as --scores FILE.npz, an array [K, N] an estimator, with K and N as
`train` prints them. Models are in runs/validation/retraining/bank, as measurements; results in
results/lds-demo.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.validation.retraining_demo import Experiment, estimated_scores, load
from inflcli import console
from inflcli.validation.bank import Bank, Progress, Wanted
from inflcli.validation.lds import lds, noise, subsets
from inflcli.validation.points import log_probs
from inflcli.validation.removal import measure_removals, plan_removals, wanted_models
from inflcli.validation.retraining import Recipe, initial

RESULT = Path(__file__).parent / "results" / "lds-demo.json"
Options = argparse.Namespace


def recipe(options: Options, repeat: int = 0) -> Recipe:
    return Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        seed=options.seed + repeat,
        dtype=options.dtype,
    )


def open_bank(options: Options, demo: Experiment) -> Bank:
    return Bank(options.run / "bank", demo.make_network, demo.data, demo.queries)


def full_folder(options: Options, bank: Bank) -> Path:
    """Of the model trained on all: its weights, and what follows from them."""
    every = np.arange(len(bank.data))
    return options.run / f"full-{bank.path(every, recipe(options)).stem[:8]}"


def subset_models(options: Options, points: int) -> list[Wanted]:
    """Subset by subset, the repeats of each together."""
    chosen = subsets(points, options.models, options.share, options.seed)
    return [(ids, recipe(options, r)) for ids in chosen for r in range(options.repeats)]


def fill_part(options: Options, wanted: Sequence[Wanted], worker: int) -> None:
    torch.set_num_threads(options.threads)
    console.set_level(console.QUIET)
    bank = open_bank(options, load(options))
    start = time.perf_counter()

    def tell(progress: Progress) -> None:
        passed = time.perf_counter() - start
        how = (
            f"{progress.measured.cpu_seconds:.0f} s of a core" if progress.trained else "was there"
        )
        print(
            f"worker {worker}: {progress.done}/{progress.total} {how}, loss "
            f"{progress.measured.loss:.3f}, {passed:.0f} s passed",
            flush=True,
        )

    bank.fill(wanted, tell)


def fill(options: Options, wanted: Sequence[Wanted]) -> None:
    """Train what is missing, in processes of their own: small products gain little by threads."""
    parts = [wanted[worker :: options.workers] for worker in range(options.workers)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = [
            pool.submit(fill_part, options, part, worker)
            for worker, part in enumerate(parts)
            if part
        ]
        for one in waiting:
            one.result()


def train_full(options: Options, demo: Experiment, bank: Bank) -> None:
    """The model trained on all, with its weights as a transformers folder."""
    every, folder = np.arange(len(bank.data)), full_folder(options, bank)
    if (folder / "model").exists() and bank.find(every, recipe(options)):
        return

    def keep(network: Any) -> None:
        partial = folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        network.save_pretrained(partial)
        demo.tokenizer.save_pretrained(partial)
        shutil.rmtree(folder / "model", ignore_errors=True)
        partial.rename(folder / "model")

    bank.train(every, recipe(options), keep)


def stage_train(options: Options, demo: Experiment, bank: Bank) -> dict[str, Any]:
    train_full(options, demo, bank)
    every = np.arange(len(bank.data))
    full = bank.find(every, recipe(options))
    assert full is not None
    untrained = log_probs(initial(demo.make_network, recipe(options)), demo.queries)
    print(
        f"{len(demo.query_ids)} queries, {len(bank.data)} paragraphs of "
        f"{demo.data.positions.mean():.0f} predictions\n"
        f"trained on all in {full.cpu_seconds:.0f} s of a core: loss {full.loss:.3f} nats a token; "
        f"mean log p of the queries {full.queries.mean():.2f}, untrained {untrained.mean():.2f}\n"
        f"weights in {full_folder(options, bank) / 'model'}",
        flush=True,
    )
    wanted = subset_models(options, len(bank.data))
    fill(options, wanted)
    found = bank.fill(wanted)
    seconds = np.array([one.cpu_seconds for one in found])
    print(
        f"{len(found)} models of subsets, {seconds.mean():.0f} s of a core each: "
        f"{seconds.mean() / options.workers:.0f} min for 60 in {options.workers} processes"
    )
    return {
        "predictions_a_paragraph": float(demo.data.positions.mean()),
        "full": {
            "cpu_seconds": full.cpu_seconds,
            "loss": full.loss,
            "log_p": full.queries.tolist(),
            "log_p_untrained": untrained.tolist(),
        },
        "subset_cpu_seconds": {"mean": float(seconds.mean()), "max": float(seconds.max())},
        "subset_loss_mean": float(np.mean([one.loss for one in found])),
        "subset_log_p_mean": float(np.mean([one.queries.mean() for one in found])),
    }


def read_scores(options: Options, demo: Experiment, bank: Bank) -> dict[str, NDArray[np.float64]]:
    """Every estimator's scores [K, N]: of the stage `scores`, and of the files handed in."""
    own = full_folder(options, bank) / f"scores-{options.modules}.npz"
    found: dict[str, NDArray[np.float64]] = {}
    for path in [*([own] if own.exists() else []), *options.scores]:
        with np.load(path) as arrays:
            found |= {name: arrays[name].astype(np.float64) for name in arrays.files}
    if not found:
        raise SystemExit("no scores: run --stage scores, or hand in --scores FILE.npz")
    for name, values in found.items():
        if values.shape != (len(demo.query_ids), len(demo.data)):
            raise SystemExit(f"the scores {name} are {values.shape}")
    return found


def stage_scores(options: Options, demo: Experiment, bank: Bank) -> dict[str, Any]:
    train_full(options, demo, bank)
    folder = full_folder(options, bank)
    found = estimated_scores(demo, folder, options)
    path = folder / f"scores-{options.modules}.npz"
    np.savez(path, **found)
    print(f"{', '.join(found)}: {path}")
    return {}


def stage_lds(options: Options, demo: Experiment, bank: Bank) -> dict[str, Any]:
    """Over the subsets of which all repeats are there."""
    chosen = subsets(len(bank.data), options.models, options.share, options.seed)
    kept, outputs = [], []
    for ids in chosen:
        found = [bank.find(ids, recipe(options, repeat)) for repeat in range(options.repeats)]
        if all(found):
            kept.append(ids)
            outputs.append([one.queries for one in found if one])
    if len(kept) < 3:
        raise SystemExit(f"{len(kept)} of {len(chosen)} subsets were trained: run --stage train")
    by_seed = np.swapaxes(outputs, 0, 1)  # [repeats, m, K]
    mean = by_seed.mean(0)
    rows, results = {}, {}
    for name, scores in read_scores(options, demo, bank).items():
        result = results[name] = lds(scores, kept, mean)
        these = lds(scores, kept, mean, over="subsets")
        rows[name] = {
            "mean": result.mean,
            "interval": result.interval,
            "interval_for_these_queries": these.interval,
            "per_query": dict(zip(demo.query_ids, result.per_query.tolist(), strict=True)),
        }
    first = "ekfac" if "ekfac" in results else next(iter(results))
    for name in results:
        if name != first:
            difference, interval = results[first].minus(results[name])
            rows[name][f"{first}_minus_this"] = {"mean": difference, "interval": interval}
    table = Table(title=f"LDS, mean of {len(demo.query_ids)} queries, {len(kept)} subsets")
    for column in ("estimator", "LDS", "95 %", f"{first} better by", "95 %"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name, row in rows.items():
        less = row.get(f"{first}_minus_this")
        cells = [f"{less['mean']:+.3f}", _span(less["interval"])] if less else []
        table.add_row(name, f"{row['mean']:+.3f}", _span(row["interval"]), *cells)
    Console().print(table)
    content: dict[str, Any] = {
        "subsets": len(kept),
        "repeats": options.repeats,
        "modules": options.modules,
        "lds": rows,
    }
    if options.repeats > 1:
        agreement = noise(by_seed)
        content["between_seeds"] = agreement.between
        content["ceiling"] = agreement.ceiling
        print(f"between two seeds {agreement.between:.3f}, ceiling {agreement.ceiling:.3f}")
    return content


def stage_topk(options: Options, demo: Experiment, bank: Bank) -> dict[str, Any]:
    """For the queries that the model trained on all has learnt best."""
    scores = read_scores(options, demo, bank)
    if options.estimators:
        scores = {name: scores[name] for name in options.estimators}
    untrained = log_probs(initial(demo.make_network, recipe(options)), demo.queries)
    train_full(options, demo, bank)
    full = bank.find(np.arange(len(bank.data)), recipe(options))
    assert full is not None
    learnt = np.argsort(-(full.queries - untrained), kind="stable")[: options.topk_queries]
    queries = sorted(learnt.tolist())
    plan = plan_removals(scores, queries, options.sizes, draws=options.draws, seed=options.seed)
    recipes = [recipe(options, repeat) for repeat in range(options.repeats)]
    fill(options, wanted_models(len(bank.data), plan, recipes))
    rises = measure_removals(bank, plan, recipes)
    table = Table(title=f"rise of the loss, nats, mean of {len(queries)} queries")
    for column in ("estimator", *(f"without {size}" for size in options.sizes)):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name in scores:
        means = (
            np.mean([one.rise for one in rises if (one.estimator, one.size) == (name, size)])
            for size in options.sizes
        )
        table.add_row(name, *(f"{mean:+.2f}" for mean in means))
    random = ([one for one in rises if one.size == size] for size in options.sizes)
    cells = (
        f"{np.mean([one.random_mean for one in ones]):+.2f} "
        f"± {np.mean([one.random_deviation for one in ones]):.2f}"
        for ones in random
    )
    table.add_row("random", *cells)
    Console().print(table)
    named = [{**asdict(one), "query": demo.query_ids[one.query]} for one in rises]
    return {
        "draws": options.draws,
        "repeats": options.repeats,
        "modules": options.modules,
        "rises": named,
    }


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"


STAGES = {"train": stage_train, "scores": stage_scores, "lds": stage_lds, "topk": stage_topk}


def settings(options: Options) -> dict[str, Any]:
    """What results belong to: those of other settings are not kept beside them."""
    return {
        "recipe": {**asdict(recipe(options)), "betas": list(recipe(options).betas)},
        "paragraphs": options.paragraphs,
        "seq_len": options.seq_len,
        "queries": options.queries,
        "share": options.share,
    }


def write(options: Options, content: dict[str, Any]) -> None:
    try:
        old = json.loads(options.out.read_text("utf-8"))
    except FileNotFoundError:
        old = {}
    if old.get("settings") != settings(options):
        old = {}
    old["settings"] = settings(options)
    command = shlex.join(["python", "-m", "benchmarks.validation.retraining", *sys.argv[1:]])
    old[options.stage] = {"command": command, **content}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(old, indent=1) + "\n", "utf-8")
    print(options.out)


def parse() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stage", choices=list(STAGES), required=True)
    add("--run", type=Path, default=Path("runs/validation/retraining"))
    add("--out", type=Path, default=RESULT)
    add("--paragraphs", type=int, default=600)
    add("--seq-len", type=int, default=64)
    add("--models", type=int, default=60, help="Subsets.")
    add("--share", type=float, default=0.5, help="Of the paragraphs in a subset.")
    add("--repeats", type=int, default=1, help="Seeds of each subset, whose outputs are averaged.")
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=8)
    add("--learning-rate", type=float, default=1.5e-3)
    add("--weight-decay", type=float, default=0.1)
    add("--seed", type=int, default=0)
    add("--dtype", default="float32")
    add("--workers", type=int, default=2, help="Processes that train.")
    add("--threads", type=int, default=1, help="Of each.")
    add("--queries", type=int, default=16, help="The demo's and of its further facts, at most.")
    add("--depth", type=int, default=150, help="Steps of LiSSA.")
    add("--modules", default="mlp", help="Of the scores: mlp, attention, all.")
    add("--scores", type=Path, nargs="*", default=[], help="npz: estimator -> [K, N].")
    add("--estimators", nargs="*", help="Of topk; all by default.")
    add("--topk-queries", type=int, default=6)
    add("--sizes", type=int, nargs="*", default=[5, 20, 50])
    add("--draws", type=int, default=5, help="Random sets of each size.")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.stage != "scores":  # which runs in this process alone
        torch.set_num_threads(options.threads)
    console.set_level(console.QUIET)
    demo = load(options)
    content = STAGES[options.stage](options, demo, open_bank(options, demo))
    if content:
        write(options, content)


if __name__ == "__main__":
    main()
