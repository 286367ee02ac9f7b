"""`attribute`: which tokens and modules of the top sequences carry their influence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inflcli import console
from inflcli.artifacts import attribution as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.files import write_errors
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Manifest
from inflcli.artifacts.queries import QueriesReader
from inflcli.artifacts.scan import ScanReader
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import AttributeConfig, Runtime
from inflcli.errors import NumericalFault
from inflcli.model.batches import plan_batches, read_batches
from inflcli.model.direction import effects
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, dtype_name, identify
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common
from inflcli.stages.scoring import load_queries

STAGE = "attribute"
_TOLERANCE = {"float64": 1e-5, "float32": 1e-3, "fast": 2e-2, "bfloat16": 5e-2, "float16": 2e-2}
"""Largest difference from the scan's score, relative to the sum of absolute token influences."""


@common.exclusively
def attribute(
    model: str,
    queries: Path,
    corpus: Path,
    scan: Path,
    out: Path,
    config: AttributeConfig,
    runtime: Runtime,
) -> dict[str, Any]:
    """Token × module influences (Eqs. 30, 31) of the top `top_k` sequences of both signs, and,
    if asked for, the counterfactual ones of output and input tokens (Eqs. 36, 38).

    The sum of the first over tokens and modules is the scan's score, and that of the output tokens;
    a difference beyond rounding raises NumericalFault. Cost: one pass over each query's top
    sequences; five more. Raises StaleArtifact.
    """
    reader, wanted, scanned = (
        CorpusReader.open(corpus),
        QueriesReader.open(queries),
        ScanReader.open(scan),
    )
    config = replace(config, dtype=dtype_name(config.dtype, model, runtime.device))
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    inputs = {
        "model": weights,
        "queries": wanted.artifact.as_input(),
        "corpus": reader.artifact.as_input(),
    }
    for name, current in inputs.items():
        scanned.artifact.require_input(name, current, "scan again: inflcli scan ... --overwrite")
    inputs["scan"] = scanned.artifact.as_input()
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config.identity(), inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
        salvage=_salvaged,
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    loaded = common.load(model, config.dtype, runtime)
    common.require_context(reader, loaded)
    artifact = Attribute(writer, loaded, reader, wanted, scanned, config, runtime).run()
    counts = artifact.manifest.counts
    summary = f"{counts['pairs']} pairs of query and sequence, {counts['sequences']} sequences"
    return common.result(artifact, fresh=False, summary=summary)


def _salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any]:
    """The progress of a damaged attribution: the queries whose files are sound."""
    queries = store.queries_in(manifest.files) - store.queries_in(damaged)
    return {
        "done": sorted(queries),
        "worst": manifest.details["worst_difference_from_scan"],
        "error": manifest.details.get("counterfactual_error", 0.0),
    }


class Attribute:
    """One run of the stage. Progress: which queries are written."""

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        corpus: CorpusReader,
        queries: QueriesReader,
        scan: ScanReader,
        config: AttributeConfig,
        runtime: Runtime,
    ) -> None:
        self.writer, self.model, self.corpus = writer, model, corpus
        self.queries, self.scan, self.config, self.runtime = queries, scan, config, runtime
        names = set(scan.artifact.manifest.details["modules"])
        self.modules = [m for m in common.tracked_from(queries.modules) if m.name in names]
        self.places = {module.name: place for place, module in enumerate(self.modules)}
        self.ids, self.expected = self._ranked()

    def _ranked(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sequences and scores [Q, 2k]: positive side, then negative side."""
        ids, scores = self.scan.top()
        k = min(self.config.top_k, ids.shape[2])
        shape = (ids.shape[0], 2 * k)
        return ids[:, :, :k].reshape(shape), scores[:, :, :k].reshape(shape)

    def run(self) -> Artifact:
        width = int(self.corpus.lengths.max())
        group = store.create(
            self.writer.folder,
            self.queries.ids,
            [asdict(module) for module in self.modules],
            self.ids.shape[1],
            width,
            counterfactual=self.config.counterfactual,
        )
        element = self.model.statistics_dtype
        matrices = {
            m.name: load_queries(self.queries, m.name, element, self.model.device)
            for m in self.modules
        }
        passes = Passes.for_model(self.model, self.modules)
        mine = range(len(self.queries.ids))
        if self.config.shard is not None:
            mine = mine[self.config.shard.part(len(mine))]
        with write_errors(self.writer.folder):
            store.write_ranking(group, self.ids, self.expected)
        done: list[int] = self.writer.progress.get("done", [])
        worst = self.writer.progress.get("worst", 0.0)
        error = self.writer.progress.get("error", 0.0)
        with console.progress("attribute", len(mine), done=len(done), unit="queries") as meter:
            for query in (one for one in mine if one not in done):
                only = {name: entry.select(query) for name, entry in matrices.items()}
                found, off = self._query(passes, only, query, width)
                error = max(error, off)
                worst = max(worst, self._check(query, found["token_scores"], 0.0))
                if self.config.counterfactual:
                    self._check(query, found[store.OUTPUTS], off)
                with write_errors(self.writer.folder):
                    store.write(group, query, found)
                done = [*done, query]
                written = store.query_files(self.writer.folder, query)
                self.writer.commit({"done": done, "worst": worst, "error": error}, written)
                meter.advance(1)
        ids = self.ids[mine]
        pairs = int((ids >= 0).sum())
        counts = {"pairs": pairs, "sequences": len(np.unique(ids[ids >= 0]))}
        details = {
            "worst_difference_from_scan": worst,
            "counterfactual_error": error,
            "dtype": self.config.dtype,
        }
        return self.writer.finish(counts=counts, details=details)

    def _query(
        self, passes: Passes, matrices: dict[str, Any], query: int, width: int
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        """The arrays of one query's sequences, and how far off the counterfactual ones are."""
        ranks, element = self.ids[query], self.model.statistics_dtype
        found = np.zeros((len(ranks), len(self.modules), width), np.float32)
        by_token = {
            name: np.zeros((len(ranks), width), np.float32)
            for name in store.EFFECTS
            if self.config.counterfactual
        }
        error = 0.0

        def push(module: TrackedModule, a: Tensor) -> Tensor:
            return matrices[module.name].outputs(a.to(self.model.device, element)).to(a)

        distinct = np.unique(ranks[ranks >= 0])
        plans = plan_batches(distinct, self.corpus.lengths[distinct], self.runtime.batch_size)
        for batch in read_batches(plans, self.corpus.take, self.corpus.lengths, self.model.device):
            rows = [np.flatnonzero(ranks == sequence) for sequence in batch.ids]

            def consume(
                module: TrackedModule, a: Tensor, g: Tensor, rows: list[Any] = rows
            ) -> None:
                tokens = matrices[module.name].token_scores(a.to(element), g.to(element))
                values = tokens[..., 0].float().cpu().numpy()
                place = self.places[module.name]
                for row, value in zip(rows, values, strict=True):
                    found[row, place, : value.shape[0]] = value

            if batch.count:
                passes.run(batch, [TrueLabels()], consume)
            if batch.count and self.config.counterfactual:
                effect = effects(passes, batch, push)
                error = max(error, effect.error)
                for name, values in zip(
                    store.EFFECTS, (effect.outputs, effect.inputs), strict=True
                ):
                    for row, value in zip(rows, values.float().cpu().numpy(), strict=True):
                        by_token[name][row, : len(value)] = value
        return {"token_scores": found, **by_token}, error

    def _check(self, query: int, scores: NDArray[np.float32], error: float) -> float:
        """Compare the sums of what is [ranks, ...] with the scan, up to rounding and an error.
        Returns the largest relative difference."""
        ranked = self.ids[query] >= 0
        parts = scores[ranked].reshape(int(ranked.sum()), -1)
        sums = parts.sum(1, dtype=np.float64)
        scale = np.abs(parts).sum(1, dtype=np.float64) + 1e-30
        off = np.abs(sums - self.expected[query][ranked]) / scale
        worst = float(off.max(initial=0.0))
        scanned = self.scan.artifact.manifest.config
        types = [self.config.dtype, scanned["dtype"]]
        if scanned["precision"] == "fast":
            types.append("fast")
        if worst > error + max(_TOLERANCE[name] for name in types):
            raise NumericalFault(
                f"token influences of query {self.queries.ids[query]!r} do not add up to the "
                f"scan's score (off by {worst:.1e})",
                "scan and attribute with the same --dtype, float32 if need be",
            )
        return worst
