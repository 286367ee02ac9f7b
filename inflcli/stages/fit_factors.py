"""`fit-factors`: two passes over a corpus, an eigendecomposition between them."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact, ArtifactWriter
from inflcli.artifacts.manifest import Identity
from inflcli.config import FitFactorsConfig, Runtime
from inflcli.ekfac import Basis, decompose
from inflcli.errors import BadInput
from inflcli.model.batches import plan_batches, read_batches
from inflcli.model.labels import Labels, SampledLabels, TrueLabels
from inflcli.model.load import LoadedModel, dtype_name, identify, load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked, share_tracked
from inflcli.stages import common
from inflcli.stages.statistics import CorrectedStatistics, CovarianceStatistics, Statistics

STAGE = "fit-factors"


def fit_factors(
    model: str, corpus: Path, out: Path, config: FitFactorsConfig, runtime: Runtime
) -> dict[str, Any]:
    """Fit the curvature of `model` on `corpus` and write the factors to `out`.

    Cost: for `ekfac` two forward passes and 2 · label_samples activations-only backward passes,
    and the covariances' M² + P² MACs a token; `kfac` takes one of the two passes, `identity` none.
    Raises BadInput, StaleArtifact, NumericalFault.
    """
    reader = CorpusReader.open(corpus)
    config = replace(config, dtype=dtype_name(config.dtype, model, runtime.device))
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    inputs = {"model": weights, "corpus": reader.artifact.as_input()}
    identity = Identity(STAGE, config.identity(), inputs)
    writer = ArtifactWriter.begin(
        out, identity, overwrite=runtime.overwrite, command=runtime.command
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    loaded = load_model(model, device=runtime.device, dtype=config.dtype)
    common.require_context(reader, loaded)
    artifact = Fit(writer, loaded, reader, config, runtime).run()
    counts = artifact.manifest.counts
    summary = (
        f"{config.curvature} of {counts['modules']} modules from {counts['sequences']} sequences, "
        f"{counts['predicted_tokens']} predicted tokens"
    )
    return common.result(artifact, fresh=False, summary=summary)


class Fit:
    """One run of the stage. Progress: a phase, and the sequences that are done within it."""

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        corpus: CorpusReader,
        config: FitFactorsConfig,
        runtime: Runtime,
    ) -> None:
        self.writer, self.model, self.corpus = writer, model, corpus
        self.config, self.runtime = config, runtime
        self.modules = find_tracked(model.network, config.modules)
        share = share_tracked(model.network, self.modules)
        self.details: dict[str, Any] = {
            "modules": [asdict(module) for module in self.modules],
            "share_tracked": share,
            "dtype": config.dtype,
        }
        console.info(f"tracking {len(self.modules)} modules, {share:.1%} of the model's parameters")
        for module in self.modules:
            console.detail(f"  {module.name} [{module.outputs}, {module.inputs}]")
        self.timings: dict[str, float] = {}

    def run(self) -> Artifact:
        if self.config.curvature == "identity":
            counts: dict[str, Any] = {"sequences": 0, "predicted_tokens": 0}
            return self._finish(counts)
        passes = Passes.for_model(self.model, self.modules)
        ids = chosen_sequences(self.corpus, self.config)
        counts = self.writer.progress.get("counts") or {"sequences": len(ids)}
        if "predicted_tokens" not in counts:
            counts |= self._covariances(passes, ids, counts)
        if self.config.curvature == "ekfac":
            self._corrected(passes, ids, counts)
        return self._finish(counts)

    def _finish(self, counts: dict[str, Any]) -> Artifact:
        counts = {**counts, "modules": len(self.modules)}
        return self.writer.finish(counts=counts, details=self.details, timings=self.timings)

    def _covariances(
        self, passes: Passes, ids: NDArray[np.int64], counts: dict[str, Any]
    ) -> dict[str, Any]:
        """First pass, then the eigenvectors. Returns the count of predicted tokens."""
        statistics = CovarianceStatistics(self.modules, self.config.blocks, self.model)
        self._pass("covariance", passes, ids, statistics, stream=0)
        statistics.check()
        started = time.monotonic()
        with console.progress("eigenvectors", len(self.modules), unit="modules") as meter:
            for module in self.modules:
                self._decompose(module, statistics)
                meter.advance(1)
        self.timings["eigenvectors"] = round(time.monotonic() - started, 3)
        found = {"predicted_tokens": statistics.tokens}
        folders = [self.writer.folder / name for name in ("inputs", "modules")]
        self.writer.drop_state({"phase": "corrected", "counts": {**counts, **found}}, folders)
        return found

    def _decompose(self, module: TrackedModule, statistics: CovarianceStatistics) -> None:
        element = self.model.statistics_dtype
        if module.name == module.shares_input_with:
            values, basis = decompose(statistics.inputs[module.name].mean())
            eigen = store.Eigen(values, basis.to(element).blocks)
            store.write_input(self.writer.folder, module.name, eigen)
        values, basis = decompose(statistics.outputs[module.name].mean())
        eigen = store.Eigen(values, basis.to(element).blocks)
        store.write_output(self.writer.folder, module.name, eigen)

    def _corrected(self, passes: Passes, ids: NDArray[np.int64], counts: dict[str, Any]) -> None:
        """Second pass, with fresh pseudo-labels."""
        bases = {m.name: read_bases(self.writer.folder, m, self.model.device) for m in self.modules}
        statistics = CorrectedStatistics(self.modules, bases, self.model)
        self._pass("corrected", passes, ids, statistics, stream=1, counts=counts)
        statistics.check()
        for module in self.modules:
            mean = statistics.sums[module.name].mean()
            store.write_corrected(self.writer.folder, module.name, mean)

    def _pass(
        self,
        phase: str,
        passes: Passes,
        ids: NDArray[np.int64],
        statistics: Statistics,
        *,
        stream: int,
        counts: dict[str, Any] | None = None,
    ) -> None:
        """Add every sequence to `statistics`, from where an earlier run left off."""
        lengths, size, done = self.corpus.lengths, self.runtime.batch_size, 0
        if self.writer.progress.get("phase") == phase and "state" in self.writer.progress:
            done = self.writer.progress["done"]
            statistics.restore(self.writer.load_state(), self.writer.progress["sums"])
        # Batches of any size follow one order, so a resumed run may cut them otherwise.
        order = np.concatenate(plan_batches(ids, lengths[ids], size))
        plans = plan_batches(order[done:], lengths[order[done:]], size)
        labels = draw_labels(self.config, stream)
        checkpoints = common.Checkpoints(self.runtime.checkpoint_seconds)
        started = time.monotonic()
        batches = read_batches(plans, self.corpus.take, lengths, self.model.device)
        with console.progress(phase, len(ids), done=done) as meter:
            for batch in batches:
                statistics.begin(batch)
                passes.run(batch, labels, statistics.consume)
                done += len(batch.ids)
                meter.advance(len(batch.ids))
                if checkpoints.due() or done == len(ids):
                    statistics.check()
                    progress = {"phase": phase, "done": done, "sums": statistics.counts()}
                    with checkpoints.saving():
                        self.writer.save_state(statistics.state(), {**progress, "counts": counts})
        self.timings[phase] = round(time.monotonic() - started, 3)


def chosen_sequences(corpus: CorpusReader, config: FitFactorsConfig) -> NDArray[np.int64]:
    """The sequences of the fit that predict something: all, or a seeded sample, ascending."""
    usable = np.flatnonzero(corpus.lengths >= 2)
    if len(usable) == 0:
        raise BadInput(f"{corpus.artifact.path} holds no sequence of two tokens or more")
    wanted = config.max_sequences
    if wanted is None or wanted >= len(usable):
        return usable
    # A sample, not the first ones: corpora are often sorted by source.
    return np.sort(np.random.default_rng(config.seed).choice(usable, wanted, replace=False))


def draw_labels(config: FitFactorsConfig, stream: int) -> list[Labels]:
    """The label sets of a pass; `stream` tells the two passes' draws apart."""
    if config.labels == "true":
        return [TrueLabels()]
    count = config.label_samples
    return [SampledLabels(config.seed, stream * 1024 + sample) for sample in range(count)]


def read_bases(folder: Path, module: TrackedModule, device: torch.device) -> tuple[Basis, Basis]:
    """Q_A and Q_S of a module."""
    a = store.read_input(folder, module.shares_input_with)
    s = store.read_output(folder, module.name)
    return (
        Basis(tuple(block.to(device) for block in a.vectors)),
        Basis(tuple(block.to(device) for block in s.vectors)),
    )
