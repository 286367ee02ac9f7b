"""The work of `fit-factors`: passes that add up statistics, and what is made of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflcli import console
from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.ledger import add_counts
from inflcli.config import FitFactorsConfig, Runtime, has_corrected, shares_inputs
from inflcli.ekfac import mean_corrected, mean_covariance
from inflcli.model.batches import plan_units
from inflcli.model.load import LoadedModel
from inflcli.model.memory import budget
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, find_tracked, share_tracked
from inflcli.stages import common
from inflcli.stages.eigenvectors import Matrix, covariances, share_out, write_eigenvectors
from inflcli.stages.fit_plan import chosen_sequences, draw_labels, partition, read_bases
from inflcli.stages.splits import Splits, halves, split_sequences, told_by_halves
from inflcli.stages.statistics import (
    CorrectedStatistics,
    CovarianceStatistics,
    corrected_bytes,
    covariance_bytes,
    covariance_statistics,
)
from inflcli.stages.units import Unit, ignore, read_units

Sequences = list[NDArray[np.int64]]
"""Of every split."""
Step = tuple[str, list[str]]
"""A phase, covariance or corrected, and the modules that it is for."""


class Fit:
    """One run of the stage, or one process's part in it.

    Progress: the step; within it the units of work whose sums are saved, and, once all are, the
    matrices that are decomposed.
    """

    def __init__(
        self,
        begun: common.Begun,
        model: LoadedModel,
        corpus: CorpusReader,
        config: FitFactorsConfig,
        runtime: Runtime,
    ) -> None:
        self.begun, self.model, self.corpus = begun, model, corpus
        self.config, self.runtime = config, runtime
        self.ranks, self.ledger = begun.ranks, begun.writer.ledger
        self.folder = begun.writer.folder
        shared = shares_inputs(config.curvature)
        self.modules = find_tracked(model.network, config.modules, share=shared)
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
        self.before = begun.before
        """What earlier runs did of the current step."""

    def run(self) -> Artifact:
        if self.config.curvature == "identity":
            return self._finish({"sequences": 0, "predicted_tokens": 0})
        chosen = chosen_sequences(self.corpus, self.config)
        ids = split_sequences(chosen, self.config.splits)
        tokens = self.before.get("tokens", 0)
        for number, (phase, names) in self.steps(self._parts):
            modules = [module for module in self.modules if module.name in names]
            if phase == "covariance":
                tokens = self._covariances(modules, ids, f"{phase} {number}")
                folders = ["inputs", "modules"]
            else:
                self._corrected(modules, ids, f"{phase} {number}")
                folders = ["corrected"]
            self.end_step({"tokens": tokens}, [self.folder / name for name in folders])
        return self._finish({"sequences": len(chosen), "predicted_tokens": tokens})

    def steps(self, plan: Callable[[], list[Step]]) -> list[tuple[str, Step]]:
        """The steps that are left, each with a number to show; `end_step` ends each."""
        if "parts" not in self.before:
            # Memory decides, so the first process's: all must do the same.
            parts = self.ranks.broadcast(plan())
            unit = self.runtime.chunk_size or self.runtime.batch_size
            self.before = {**self.before, "parts": parts, "step": 0, "unit": unit}
            if self.ranks.rank == 0:
                self.ledger.commit(self.before)
        within = ("done", "decomposed")
        self._kept = {key: value for key, value in self.before.items() if key not in within}
        parts, step = self._kept["parts"], self._kept["step"]
        numbers = [f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)]
        return list(zip(numbers, parts, strict=True))[step:]

    def end_step(self, progress: dict[str, Any], written: list[Path]) -> None:
        """Record that all processes are through with the step, and what they wrote in it."""
        self._kept |= {**progress, "step": self._kept["step"] + 1}
        self.before = dict(self._kept)
        self.ranks.wait()
        if self.ranks.rank == 0:
            self.ledger.drop_state(self.before, written)
        self.ranks.wait()
        if self.ranks.rank:
            self.ledger.void()

    def _parts(self) -> list[Step]:
        """The passes to make: as few as memory allows, each for some of the modules."""
        memory = budget(self.runtime.memory_gib, self.model.device)
        element = self.model.statistics_dtype.itemsize
        # On a device of its own there is one split at a time.
        splits = self.config.splits if self.model.device.type == "cpu" else 1
        found = []
        phases = {"covariance": covariance_bytes, "corrected": corrected_bytes}
        if not has_corrected(self.config.curvature):
            del phases["corrected"]
        for phase, size in phases.items():
            modules = self.modules
            if "only" in self.before:  # the others' are sound
                modules = [m for m in modules if m.name in self.before["only"][phase]]
            sizes = {m.name: size(m, self.config.blocks, element, splits) for m in modules}
            parts = partition(modules, sizes, memory)
            if len(parts) > 1:
                console.info(
                    f"{phase}: {sum(sizes.values()) / 2**30:.1f} GiB of sums do not fit "
                    f"{memory / 2**30:.1f} GiB at once: {len(parts)} passes"
                )
            found += [(phase, part) for part in parts]
        return found

    def _finish(self, counts: dict[str, Any]) -> Artifact:
        counts = {**counts, "modules": len(self.modules)}
        details = {**self.details, **told_by_halves(self.folder)}
        return self.begun.finish(counts=counts, details=details, timings=self.timings)

    def _covariances(self, modules: list[TrackedModule], ids: Sequences, title: str) -> int:
        """A pass, then the eigenvectors. Returns the count of predicted tokens."""
        statistics = self.covariance_pass(modules, ids, title)
        # Without all sums on disk, there is nothing that a resumed run could go on from.
        saved = self.ranks.broadcast(self._all_saved or self.checkpoints.due())
        if saved and not self._all_saved:
            self._save(statistics)
        started = time.monotonic()
        matrices = covariances(modules)
        shares = share_out([matrix.size**3 for matrix in matrices], self.ranks.size)
        owners = {one.key: owner for one, owner in zip(matrices, shares, strict=True)}
        self.add_up(statistics, owners)
        earlier = self.before.get("decomposed", [])
        found: list[str] = list(earlier) if self.ranks.rank == 0 else []
        tokens = sum(part.tokens for _, part in statistics.parts())

        def mean(matrix: Matrix, dtype: torch.dtype) -> tuple[list[Tensor], float | None]:
            parts = (
                (split, part.take(matrix.side, matrix.name)) for split, part in statistics.parts()
            )
            return mean_covariance(halves(parts, self.config.splits), dtype, self.model.device)

        def done(group: list[Matrix]) -> None:
            found.extend(matrix.key for matrix in group)
            if saved:
                self.ledger.commit({**self.ledger.said(), "decomposed": found})

        write_eigenvectors(
            self.folder,
            [
                one
                for one in matrices
                if owners[one.key] == self.ranks.rank and one.key not in earlier
            ],
            mean,
            fast=self.config.precision != "exact",
            stored=self.model.statistics_dtype,
            done=done,
        )
        self._spent("eigenvectors", started)
        return tokens

    def _corrected(self, modules: list[TrackedModule], ids: Sequences, title: str) -> None:
        """A pass with fresh pseudo-labels."""
        statistics = self.corrected_pass(modules, ids, title, self.folder)
        owners = share_out([module.parameters for module in modules], self.ranks.size)
        names = [module.name for module in modules]
        self.add_up(statistics, dict(zip(names, owners, strict=True)))
        for name, owner in zip(names, owners, strict=True):
            if owner == self.ranks.rank:
                parts = ((split, part.sums[name]) for split, part in statistics.parts())
                both = halves(parts, self.config.splits)
                found = mean_corrected(both, self.model.device)
                store.write_corrected(self.folder, name, *found)

    def add_up(self, statistics: Splits[Any], owners: dict[str, int]) -> None:
        """Add up all processes' sums, each at its owner, and the counts everywhere.

        `owners` are by the names that begin the sums' names within a split.
        """
        if self.ranks.size == 1:
            return
        statistics.complete(self.config.splits)
        sums = statistics.state()
        for name, tensor in sums.items():
            within = name.partition("/")[2]
            self.ranks.add_up(tensor, owners.get(within, owners.get(within.rpartition(":")[0], 0)))
        counts = functools.reduce(add_counts, self.ranks.gather(statistics.counts()))
        statistics.restore(sums, counts)

    def covariance_pass(
        self, modules: list[TrackedModule], ids: Sequences, title: str
    ) -> Splits[CovarianceStatistics]:
        def make() -> CovarianceStatistics:
            return covariance_statistics(self.config, modules, self.model)

        statistics = Splits(make, self.model.device)
        self._pass(title, modules, ids, statistics, stream=0)
        return statistics

    def corrected_pass(
        self, modules: list[TrackedModule], ids: Sequences, title: str, folder: Path
    ) -> Splits[CorrectedStatistics]:
        """In the eigenbases that lie in `folder`."""
        element = self.model.statistics_dtype
        if self.config.precision == "fast":
            element = torch.bfloat16
        bases = read_bases(folder, modules, self.model.device, element)

        def make() -> CorrectedStatistics:
            return CorrectedStatistics(modules, bases, self.model)

        statistics = Splits(make, self.model.device)
        self._pass(title, modules, ids, statistics, stream=1)
        return statistics

    def _pass(
        self,
        title: str,
        modules: list[TrackedModule],
        ids: Sequences,
        statistics: Splits[Any],
        *,
        stream: int,
    ) -> None:
        """Add sequences to `statistics`, from where an earlier run left off.

        A process alone adds all of them, always in one order; of several each adds some.
        """
        passes = Passes.for_model(self.model, modules, self.config.precision)
        if self.ranks.rank == 0:
            tensors, counts = self.ledger.load_state()
            if tensors:
                statistics.restore(tensors, counts)
        planned = [
            (split, members)
            for split, of_split in enumerate(ids)
            for members in plan_units(of_split, self.corpus.lengths[of_split], self._kept["unit"])
        ]
        units = [Unit(number, ids, split) for number, (split, ids) in enumerate(planned)]
        earlier = set(self.before.get("done", []))
        self._done = sorted(earlier) if self.ranks.rank == 0 else []
        self._all_saved = len(earlier) == len(units)
        left = [unit for unit in units if unit.number not in earlier]
        before = sum(len(unit.ids) for unit in units) - sum(len(unit.ids) for unit in left)
        labels, started = draw_labels(self.config, stream), time.monotonic()
        parts = read_units(
            left, self.ranks, title, self.corpus, self.model, self.runtime.batch_size
        )
        shown = title if len(self._kept["parts"]) > 2 else title.split()[0]
        with console.progress(shown, sum(map(len, ids)), done=before) as meter:
            for part in parts:
                if part.unit is None:
                    passes.run(part.batch, labels, ignore)
                    continue
                sums = statistics.of(part.unit.split)
                sums.begin(part.batch)
                passes.run(part.batch, labels, sums.consume)
                meter.reach(before + self.ranks.tally(title, len(part.batch.ids)))
                if part.last:
                    self._done.append(part.unit.number)
                    if self.checkpoints.due() and len(self._done) < len(units):
                        self._save(statistics)
        statistics.check()
        self._spent(title.split()[0], started)

    def _save(self, statistics: Splits[Any]) -> None:
        """Record the sums over the units that this process has done."""
        statistics.check()
        progress = {**(self._kept if self.ranks.rank == 0 else {}), "done": self._done}
        with self.checkpoints.saving():
            self.ledger.save_state(statistics.state(), statistics.counts(), progress)

    def _spent(self, what: str, started: float) -> None:
        seconds = self.timings.get(what, 0.0) + time.monotonic() - started
        self.timings[what] = round(seconds, 3)
