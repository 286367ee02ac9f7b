"""`fit-factors`: two passes over a corpus, an eigendecomposition between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Input
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import FitFactorsConfig, Runtime
from inflcli.ekfac import Basis
from inflcli.errors import BadInput
from inflcli.model.batches import plan_batches, read_batches
from inflcli.model.labels import Labels, SampledLabels, TrueLabels
from inflcli.model.load import LoadedModel, arithmetic, identify, load_model
from inflcli.model.memory import budget
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked, share_tracked
from inflcli.stages import common
from inflcli.stages.eigenvectors import Matrix, covariances, write_eigenvectors
from inflcli.stages.statistics import (
    CorrectedStatistics,
    CovarianceStatistics,
    Statistics,
    corrected_bytes,
    covariance_bytes,
)

STAGE = "fit-factors"


@common.exclusively
def fit_factors(
    model: str, corpus: Path, out: Path, config: FitFactorsConfig, runtime: Runtime
) -> dict[str, Any]:
    """Fit the curvature of `model` on `corpus` and write the factors to `out`.

    Cost: for `ekfac` two forward passes and 2 · label_samples activations-only backward passes,
    and the covariances' M² + P² MACs a token; `kfac` takes one of the two passes, `identity` none.
    Raises BadInput, StaleArtifact, NumericalFault.
    """
    reader, config, inputs = open_inputs(model, corpus, config, runtime)
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


def open_inputs(
    model: str, corpus: Path, config: FitFactorsConfig, runtime: Runtime
) -> tuple[CorpusReader, FitFactorsConfig, dict[str, Input]]:
    """The corpus, the settings with nothing left to choose, and what the fit reads.

    Raises BadInput, StaleArtifact.
    """
    reader = CorpusReader.open(corpus)
    dtype, precision = arithmetic(config.dtype, config.precision, model, runtime.device)
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    inputs = {"model": weights, "corpus": reader.artifact.as_input()}
    return reader, replace(config, dtype=dtype, precision=precision), inputs


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
            "precision": config.precision,
        }
        console.info(f"tracking {len(self.modules)} modules, {share:.1%} of the model's parameters")
        for module in self.modules:
            console.detail(f"  {module.name} [{module.outputs}, {module.inputs}]")
        self.timings: dict[str, float] = {}
        self.checkpoints = common.Checkpoints(runtime.checkpoint_seconds)

    def run(self) -> Artifact:
        if self.config.curvature == "identity":
            return self._finish({"sequences": 0, "predicted_tokens": 0})
        ids = chosen_sequences(self.corpus, self.config)
        if "parts" not in self.writer.progress:
            self.writer.commit({"parts": self._parts(), "step": 0})
        steps = self.writer.progress["parts"]
        tokens = self.writer.progress.get("tokens", 0)
        for step, (phase, names) in enumerate(steps):
            if step < self.writer.progress["step"]:
                continue
            modules = [module for module in self.modules if module.name in names]
            number = f" {step + 1}/{len(steps)}" if len(steps) > 2 else ""
            if phase == "covariance":
                tokens, folders = self._covariances(modules, ids, phase + number)
            else:
                folders = self._corrected(modules, ids, phase + number)
            progress = {"parts": steps, "step": step + 1, "tokens": tokens}
            self.writer.drop_state(progress, [self.writer.folder / name for name in folders])
        return self._finish({"sequences": len(ids), "predicted_tokens": tokens})

    def _parts(self) -> list[tuple[str, list[str]]]:
        """The passes to make: as few as memory allows, each for some of the modules."""
        memory = budget(self.runtime.memory_gib, self.model.device)
        element = self.model.statistics_dtype.itemsize
        found = []
        phases = {"covariance": covariance_bytes, "corrected": corrected_bytes}
        if self.config.curvature == "kfac":
            del phases["corrected"]
        for phase, size in phases.items():
            sizes = {m.name: size(m, self.config.blocks, element) for m in self.modules}
            parts = partition(self.modules, sizes, memory)
            if len(parts) > 1:
                console.info(
                    f"{phase}: {sum(sizes.values()) / 2**30:.1f} GiB of sums do not fit "
                    f"{memory / 2**30:.1f} GiB at once: {len(parts)} passes"
                )
            found += [(phase, part) for part in parts]
        return found

    def _finish(self, counts: dict[str, Any]) -> Artifact:
        counts = {**counts, "modules": len(self.modules)}
        return self.writer.finish(counts=counts, details=self.details, timings=self.timings)

    def _covariances(
        self, modules: list[TrackedModule], ids: NDArray[np.int64], title: str
    ) -> tuple[int, list[str]]:
        """A pass, then the eigenvectors. Returns the count of predicted tokens."""
        statistics = self.covariance_pass(modules, ids, title)
        started = time.monotonic()
        saved = self.writer.progress.get("done") == len(ids)
        if not saved and self.checkpoints.due():
            self._save(statistics, len(ids))
            saved = True
        found: list[str] = self.writer.progress.get("decomposed", [])

        def done(group: list[Matrix]) -> None:
            found.extend(matrix.key for matrix in group)
            # Without the sums on disk, there is nothing that a resumed run could go on from.
            if saved:
                self.writer.commit({**self.writer.progress, "decomposed": found})

        write_eigenvectors(
            self.writer.folder,
            [matrix for matrix in covariances(modules) if matrix.key not in found],
            lambda matrix: statistics.take(matrix.side, matrix.name).mean(),
            fast=self.config.precision == "fast",
            stored=self.model.statistics_dtype,
            done=done,
        )
        self._spent("eigenvectors", started)
        return statistics.tokens, ["inputs", "modules"]

    def _corrected(
        self, modules: list[TrackedModule], ids: NDArray[np.int64], title: str
    ) -> list[str]:
        """A pass with fresh pseudo-labels."""
        statistics = self.corrected_pass(modules, ids, title, self.writer.folder)
        for module in modules:
            mean = statistics.sums[module.name].mean()
            store.write_corrected(self.writer.folder, module.name, mean)
        return ["corrected"]

    def covariance_pass(
        self, modules: list[TrackedModule], ids: NDArray[np.int64], title: str
    ) -> CovarianceStatistics:
        statistics = CovarianceStatistics(modules, self.config.blocks, self.model)
        self._pass(title, modules, ids, statistics, stream=0)
        return statistics

    def corrected_pass(
        self, modules: list[TrackedModule], ids: NDArray[np.int64], title: str, folder: Path
    ) -> CorrectedStatistics:
        """In the eigenbases that lie in `folder`."""
        element = self.model.statistics_dtype
        if self.config.precision == "fast":
            element = torch.bfloat16
        bases = read_bases(folder, modules, self.model.device, element)
        statistics = CorrectedStatistics(modules, bases, self.model)
        self._pass(title, modules, ids, statistics, stream=1)
        return statistics

    def _pass(
        self,
        title: str,
        modules: list[TrackedModule],
        ids: NDArray[np.int64],
        statistics: Statistics,
        *,
        stream: int,
    ) -> None:
        """Add every sequence to `statistics`, from where an earlier run left off."""
        passes = Passes.for_model(self.model, modules, self.config.precision)
        lengths, size, done = self.corpus.lengths, self.runtime.batch_size, 0
        before = self.writer.progress
        if "state" in before:
            done = before["done"]
            statistics.restore(self.writer.load_state(), before["sums"])
        # Batches of any size follow one order, so a resumed run may cut them otherwise.
        order = np.concatenate([ids[:0], *plan_batches(ids, lengths[ids], size)])
        plans = plan_batches(order[done:], lengths[order[done:]], size)
        labels = draw_labels(self.config, stream)
        started = time.monotonic()
        batches = read_batches(plans, self.corpus.take, lengths, self.model.device)
        with console.progress(title, len(ids), done=done) as meter:
            for batch in batches:
                statistics.begin(batch)
                passes.run(batch, labels, statistics.consume)
                done += len(batch.ids)
                meter.advance(len(batch.ids))
                if self.checkpoints.due() and done < len(ids):
                    self._save(statistics, done)
        statistics.check()
        self._spent(title.split()[0], started)

    def _save(self, statistics: Statistics, done: int) -> None:
        """Record the sums over the first `done` sequences of the pass's order."""
        statistics.check()
        progress = {**self.writer.progress, "done": done, "sums": statistics.counts()}
        with self.checkpoints.saving():
            self.writer.save_state(statistics.state(), progress)

    def _spent(self, what: str, started: float) -> None:
        seconds = self.timings.get(what, 0.0) + time.monotonic() - started
        self.timings[what] = round(seconds, 3)


def partition(
    modules: Sequence[TrackedModule], sizes: Mapping[str, int], memory: float
) -> list[list[str]]:
    """Names of the modules in parts whose sizes add up to at most `memory`, in their order.

    Modules that share an input stay together; a group that is too large alone is a part alone.
    """
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(module.shares_input_with, []).append(module.name)
    parts: list[list[str]] = []
    filled = 0.0
    for names in groups.values():
        size = sum(sizes[name] for name in names)
        if parts and filled + size <= memory:
            parts[-1] += names
            filled += size
        else:
            parts.append(list(names))
            filled = size
    return parts


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


def read_bases(
    folder: Path, modules: Sequence[TrackedModule], device: torch.device, element: torch.dtype
) -> dict[str, tuple[Basis, Basis]]:
    """Q_A and Q_S of every module; modules that share their input share its Q_A in memory."""

    def basis(eigen: store.Eigen) -> Basis:
        return Basis(eigen.vectors).to(element, device)

    shared = {module.shares_input_with for module in modules}
    inputs = {name: basis(store.read_input(folder, name)) for name in shared}
    return {
        module.name: (
            inputs[module.shares_input_with],
            basis(store.read_output(folder, module.name)),
        )
        for module in modules
    }
