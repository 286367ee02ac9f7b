"""The stages on one model, called as the commands call them, for tests of several stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.scan import ScanReader
from inflcli.config import (
    AttributeConfig,
    FitFactorsConfig,
    PreconditionConfig,
    PrepareConfig,
    ReportConfig,
    Runtime,
    ScanConfig,
    TfidfConfig,
)
from inflcli.stages.attribute import attribute
from inflcli.stages.fit_factors import fit_factors
from inflcli.stages.precondition import precondition
from inflcli.stages.prepare import prepare
from inflcli.stages.report import report
from inflcli.stages.scan import scan
from inflcli.stages.tfidf_filter import tfidf_filter

SEQ_LEN = 24
SCAN = {"precision": "exact", "chunk_size": 7}
CPU = Runtime(device="cpu", batch_size=7)


@dataclass(frozen=True)
class Pipeline:
    """Artifacts of `model` below `run`. Each method runs a stage and returns its folder; names of
    artifacts default to the usual ones, other keywords are the stage's settings."""

    model: Path
    run: Path
    dtype: str = "float64"
    runtime: Runtime = CPU

    def with_batches(self, size: int | None) -> Pipeline:
        return replace(self, runtime=replace(self.runtime, batch_size=size))

    def prepare(self, text: Path, out: str = "corpus", **settings: Any) -> Path:
        config = PrepareConfig(**{"seq_len": SEQ_LEN, "per_line": True, **settings})
        prepare([str(text)], str(self.model), self.run / out, config, self.runtime)
        return self.run / out

    def fit_config(self, **settings: Any) -> FitFactorsConfig:
        return FitFactorsConfig(**{"dtype": self.dtype, "precision": "exact", **settings})

    def fit(self, out: str = "factors", corpus: str = "corpus", **settings: Any) -> Path:
        config = self.fit_config(**settings)
        fit_factors(str(self.model), self.run / corpus, self.run / out, config, self.runtime)
        return self.run / out

    def precondition(
        self,
        file: Path,
        out: str = "queries",
        factors: str = "factors",
        refine_corpus: str | None = None,
        **settings: Any,
    ) -> Path:
        usual = {"rank": None, "keep": None, "dtype": self.dtype, "precision": "exact"}
        config = PreconditionConfig(**{**usual, **settings})
        folder, refine = self.run / out, None if refine_corpus is None else self.run / refine_corpus
        inputs = str(self.model), self.run / factors, file, folder
        precondition(*inputs, config, self.runtime, refine)
        return folder

    def tfidf_filter(self, file: Path, out: str = "candidates", **settings: Any) -> Path:
        config = TfidfConfig(**{"top": 5, **settings})
        tfidf_filter(self.run / "corpus", file, self.run / out, config, self.runtime)
        return self.run / out

    def scan(
        self,
        out: str = "scan",
        queries: str = "queries",
        corpus: str = "corpus",
        candidates: Path | None = None,
        **settings: Any,
    ) -> Path:
        config = ScanConfig(**{**SCAN, "dtype": self.dtype, **settings})
        inputs = str(self.model), self.run / queries, self.run / corpus, self.run / out
        scan(*inputs, config, self.runtime, candidates)
        return self.run / out

    def attribute(self, out: str = "attribution", scan: str = "scan", **settings: Any) -> Path:
        config = AttributeConfig(dtype=self.dtype, **settings)
        inputs = (self.run / name for name in ("queries", "corpus", scan, out))
        attribute(str(self.model), *inputs, config, self.runtime)
        return self.run / out

    def report(self, out: str = "report", **settings: Any) -> Path:
        report(self.run, self.run / out, ReportConfig(**settings), self.runtime)
        return self.run / out


def scores(folder: Path) -> NDArray[np.float32]:
    """All scores [Q, N] of a scan."""
    reader = ScanReader.open(folder)
    return np.stack([reader.scores(query) for query in range(len(reader.query_ids))])


def layer_scores(folder: Path) -> NDArray[np.float32]:
    """All scores by depth group [Q, N, G] of a scan."""
    reader = ScanReader.open(folder)
    every = np.arange(reader.scores(0).shape[0])
    return reader.layer_scores(np.tile(every, (len(reader.query_ids), 1)))
