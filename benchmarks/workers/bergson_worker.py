"""bergson's EK-FAC fit, preconditioning and scoring, timed: a worker of the benchmark's driver.

The steps are those of the library's own Hessian pipeline, in one process (world size 1):
`approximate_hessians` (kfac with eigenvalue correction and sampled labels), `build` (query
gradients), `EkfacApplicator` (damped inverse) and `score_dataset`. Each leaves its files on disk,
as the pipeline does; scores are grad(query loss) . H^-1 . grad(sequence loss), so a positive score
means that the sequence raises the query's log probability. H is a mean over sequences.

Worked around:
- Every step would load the model again, and would tokenize text with the model's tokenizer. Their
  two loaders are replaced by ones that return the model loaded at the start (by the library's own
  loader) and the token arrays.
- Modules are named below `model.base_model`, so the prefix is cut off; `lm_head` is out of reach.
- It has no low-rank queries (its random projection excludes EK-FAC): only `rank: null` is answered.
- `fit`'s parts come from timing `collect_hessians`, which runs once for the covariances and once
  for the corrected eigenvalues; "eigen" is the time outside of both: eigh (always in float64), its
  files, and two garbage collections of the library's own, a constant third of a second.
- A batch of queries holds all its gradients in memory twice: `"query_batch"` in a score job makes
  that batch smaller than the training data's.
- `prepared` in a score job has it take the queries that the job before it left on disk, as a user
  would; "precondition" is left out of its parts then.
- `apply_batch_size` is raised from 2 to all the queries, and biases are included.
- Per-token scores are attributed to the position of the activation, [queries, N, T], with a zero at
  each sequence's last position, for which it stores nothing.
- Scores are saved as a structured file; the copy to .npy is made after the clock has stopped.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import claim_stdout, disk_bytes, measured, read_bench, serve

ANSWERS = claim_stdout()
WORK = Path(sys.argv[1]).resolve()
BENCH = read_bench(WORK)
if BENCH["device"] == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np  # noqa: E402
from bergson import DataConfig, IndexConfig, PreprocessConfig, ScoreConfig  # noqa: E402
from bergson import build as build_step  # noqa: E402
from bergson.collector.collector import HookCollectorBase  # noqa: E402
from bergson.config import HessianConfig, InversionConfig  # noqa: E402
from bergson.config.config import DistributedConfig  # noqa: E402
from bergson.data import load_scores  # noqa: E402
from bergson.hessians import hessian_approximations as hessian_step  # noqa: E402
from bergson.hessians.apply_hessian import EkfacApplicator, EkfacConfig  # noqa: E402
from bergson.score import score as score_step  # noqa: E402
from bergson.utils.worker_utils import setup_model_and_peft  # noqa: E402
from datasets import Dataset  # noqa: E402

OUT = WORK / "bergson"
HESSIAN, QUERY, INVERSE, SCORES = (str(OUT / n) for n in ("hessian", "query", "inverse", "scores"))
PRECISION = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}


def dataset(tokens: np.ndarray, starts: np.ndarray | None = None) -> Dataset:
    """Token arrays as the library's tokenizing step would hand them on."""
    columns: dict[str, Any] = {"input_ids": list(tokens), "length": [tokens.shape[1]] * len(tokens)}
    if starts is not None:
        measured = np.arange(tokens.shape[1]) >= starts[:, None]
        columns["labels"] = list(np.where(measured, tokens, -100))
    return Dataset.from_dict(columns)


def config(run_path: str, data: str, batch: int, length: int, tokens: bool = False) -> IndexConfig:
    return IndexConfig(
        run_path=run_path,
        model=str(WORK / "model"),
        precision=PRECISION[BENCH["dtype"]],
        data=DataConfig(dataset=data),
        distributed=DistributedConfig(nproc_per_node=1),
        token_batch_size=batch * length,
        max_batch_size=batch,
        loss_reduction="sum",
        include_bias=True,
        attribute_tokens=tokens,
    )


def run(paths: tuple[str, ...], step: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Clear what an earlier run left, run the step, and report time, memory and disk."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path + ".part", ignore_errors=True)
    with measured() as answer:
        answer["parts"] = step()
    answer["disk_bytes"] = disk_bytes(*map(Path, paths))
    return answer


class Worker:
    """The loaded model, the data, and the two jobs."""

    def __init__(self) -> None:
        self.tokens = np.load(WORK / "tokens.npy")
        self.queries, self.starts = np.load(WORK / "queries.npy"), np.load(WORK / "starts.npy")
        self.data = {"tokens": dataset(self.tokens)}
        self.model, _ = setup_model_and_peft(config(HESSIAN, "tokens", 1, self.tokens.shape[1]))
        prefix = self.model.base_model_prefix + "."
        self.targets = {name.removeprefix(prefix) for name in BENCH["modules"]}
        found = HookCollectorBase.discover_targets(self.model.base_model, self.targets, True)
        self.unreached = sorted(self.targets - set(found))
        for step in (hessian_step, build_step, score_step):
            step.setup_model_and_peft = lambda *_, **__: (self.model, self.targets)
            step.setup_data_pipeline = lambda cfg: (self.data[cfg.data.dataset], 0)
        self.passes: list[float] = []
        hessian_step.collect_hessians = self.timed(hessian_step.collect_hessians)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.passes.append(time.perf_counter() - start)
            return result

        return wrapper

    def fit(self, job: dict[str, Any]) -> dict[str, Any]:
        cfg = config(HESSIAN, "tokens", job["batch"], self.tokens.shape[1])
        method = HessianConfig(method="kfac", ev_correction=True, hessian_dtype="fp32")

        def step() -> dict[str, float]:
            self.passes.clear()
            start = time.perf_counter()
            hessian_step.approximate_hessians(cfg, method)
            whole = time.perf_counter() - start
            covariance, corrected = self.passes
            eigen = whole - covariance - corrected
            return {"covariance": covariance, "eigen": eigen, "corrected": corrected}

        return run((HESSIAN,), step)

    def score(self, job: dict[str, Any]) -> dict[str, Any]:
        if job.get("rank") is not None:
            return {"error": "bergson has no low-rank query gradients; ask for rank null"}
        if not Path(HESSIAN).is_dir():
            return {"error": "no factors: fit first"}
        count, batch, tokens = job["queries"], job["batch"], bool(job.get("tokens"))
        rows, length = self.tokens, self.tokens.shape[1]
        self.data["queries"] = dataset(self.queries[:count], self.starts[:count])
        self.data["scored"] = dataset(rows)
        query = config(QUERY, "queries", job.get("query_batch", batch), self.queries.shape[1])
        inverse = EkfacConfig(HESSIAN, QUERY, INVERSE, ev_correction=True, apply_batch_size=count)
        damping = InversionConfig("damped_inverse", BENCH["damping_factor"], count)
        scan = config(SCORES, "scored", batch, length, tokens)

        def precondition() -> float:
            start = time.perf_counter()
            build_step.build(query, PreprocessConfig())
            EkfacApplicator(inverse, inversion_cfg=damping).compute_ivhp_sharded()
            return time.perf_counter() - start

        def step() -> dict[str, float]:
            parts = {} if job.get("prepared") else {"precondition": precondition()}
            start = time.perf_counter()
            score_step.score_dataset(scan, ScoreConfig(query_path=INVERSE), PreprocessConfig())
            return {**parts, "scan": time.perf_counter() - start}

        answer = run((SCORES,) if job.get("prepared") else (QUERY, INVERSE, SCORES), step)
        stored = load_scores(Path(SCORES))
        if not stored.is_written():
            return {"error": "bergson left some scores unwritten"}
        scores = stored[:].reshape(len(rows), -1, stored.num_scores)
        scores = scores.transpose(2, 0, 1).astype(np.float32)
        scores = np.pad(scores, ((0, 0), (0, 0), (0, 1))) if tokens else scores[..., 0]
        path = OUT / ("token_scores.npy" if tokens else "scores.npy")
        np.save(path, scores)
        return answer | {"scores": str(path)}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    worker = Worker()

    def job(step: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def answer(**request: Any) -> dict[str, Any]:
            if worker.unreached:
                return {"error": f"modules that bergson cannot track: {worker.unreached}"}
            return step(request)

        return answer

    serve(ANSWERS, {"fit": job(worker.fit), "score": job(worker.score)}, ("bergson",))


if __name__ == "__main__":
    main()
