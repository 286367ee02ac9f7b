"""inflcli's own stages, timed as whole stages: reading, computing, writing and making durable.

Only the loading of the model is left out, as for the peers: the stages get the model that was
loaded at the start. `WORK/ours/` must hold a prepared `corpus`, and `queries.jsonl`.
"""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from protocol import claim_stdout, disk_bytes, measured, read_bench, serve

from inflcli.artifacts.manifest import read_manifest
from inflcli.artifacts.scan import ScanReader
from inflcli.config import FitFactorsConfig, PreconditionConfig, Runtime, ScanConfig
from inflcli.model.load import load_model
from inflcli.stages import common
from inflcli.stages import fit_factors as fit_stage
from inflcli.stages import precondition as precondition_stage
from inflcli.stages import scan as scan_stage


class Worker:
    def __init__(self, work: Path) -> None:
        self.bench = read_bench(work)
        self.model, self.folder = str(work / "model"), work / "ours"
        # The stages load the model by name; here they share one.
        self._load = common.load_model = cache(load_model)  # type: ignore[assignment]
        common.load(self.model, self.bench["dtype"], self._runtime(None))

    def fit(self, batch: int | None = None, precision: str = "auto") -> dict[str, Any]:
        config = FitFactorsConfig(
            modules=",".join(self.bench["modules"]), dtype=self.bench["dtype"], precision=precision
        )
        out = self._clean(f"factors-{precision}")
        with measured() as answer:
            fit_stage.fit_factors(
                self.model, self.folder / "corpus", out, config, self._runtime(batch)
            )
        timings = read_manifest(out).timings
        answer["parts"] = {
            "covariance": timings["covariance"],
            "eigen": timings["eigenvectors"],
            "corrected": timings["corrected"],
        }
        answer["disk_bytes"] = disk_bytes(out)
        return answer

    def precondition(
        self, queries: int, name: str, factors: str = "auto", **settings: Any
    ) -> dict[str, Any]:
        lines = (self.folder / "queries.jsonl").read_text().splitlines()[:queries]
        asked = self.folder / f"queries-{queries}.jsonl"
        asked.write_text("\n".join(lines) + "\n")
        config = PreconditionConfig(dtype=self.bench["dtype"], **settings)
        out = self._clean(f"queries-{name}")
        with measured() as answer:
            precondition_stage.precondition(
                self.model,
                self.folder / f"factors-{factors}",
                asked,
                out,
                config,
                self._runtime(None),
            )
        answer["disk_bytes"] = disk_bytes(out)
        return answer

    def scan(
        self,
        name: str,
        batch: int | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        config = ScanConfig(dtype=self.bench["dtype"], **settings)
        out = self._clean("scan")
        with measured() as answer:
            scan_stage.scan(
                self.model,
                self.folder / f"queries-{name}",
                self.folder / "corpus",
                out,
                config,
                self._runtime(batch),
            )
        reader = ScanReader.open(out)
        count = len(reader.query_ids)
        scores = np.stack([reader.scores(query) for query in range(count)])
        answer["scores"] = str(self.folder / "scores.npy")
        np.save(answer["scores"], scores)
        routes = list(read_manifest(out).details["routes"].values())
        answer["routes"] = {route: routes.count(route) for route in sorted(set(routes))}
        answer["disk_bytes"] = disk_bytes(out)
        return answer

    def _runtime(self, batch: int | None) -> Runtime:
        return Runtime(device=self.bench["device"], batch_size=batch)

    def _clean(self, name: str) -> Path:
        if self._load.cache_info().misses != 1:
            raise RuntimeError("a stage has loaded the model for itself, in measured time")
        for path in (self.folder / name, self.folder / f"{name}.partial"):
            shutil.rmtree(path, ignore_errors=True)
        return self.folder / name


def main() -> None:
    answers = claim_stdout()
    worker = Worker(Path(sys.argv[1]).resolve())
    jobs = {"fit": worker.fit, "precondition": worker.precondition, "scan": worker.scan}
    serve(answers, jobs, ("zarr", "safetensors"))


if __name__ == "__main__":
    main()
