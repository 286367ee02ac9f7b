"""The cost of `fit-factors`, and what an estimate is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inflcli.config import Runtime, has_corrected
from inflcli.ekfac.covariance import block_sizes
from inflcli.model.tracked import TrackedModule
from inflcli.stages.eigenvectors import covariances
from inflcli.stages.fit_plan import partition
from inflcli.stages.planning import flops
from inflcli.stages.planning.rates import Rates
from inflcli.stages.planning.task import Task
from inflcli.stages.statistics import corrected_bytes, covariance_bytes

_CHECKPOINT_COPIES = 2
"""Of the running sums, while they are serialised on the host."""
_CHECKPOINT_SECONDS = Runtime().checkpoint_seconds
FILE_BYTES = 350
"""Of a tensor file's header and of its entry in the manifest."""


@dataclass(frozen=True)
class Estimate:
    """One stage's cost; None is not known."""

    stage: str
    flops: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds, by what they go to."""
    memory: float | None = None
    disk: float | None = None
    at_most: bool = False
    """Whether memory and disk are upper bounds."""

    @property
    def seconds(self) -> float | None:
        return sum(self.parts.values()) if self.parts else None


Part = tuple[str, list[TrackedModule]]
"""A phase of the fit, and the modules of one pass of it."""
_SUMS: Mapping[str, Callable[[TrackedModule, int, int, int], int]] = {
    "covariance": covariance_bytes,
    "corrected": corrected_bytes,
}


def sums_bytes(
    task: Task, phase: str, modules: list[TrackedModule], blocks: int, splits: int | None = None
) -> int:
    """Bytes of what a pass of the fit holds, as the fit counts them; of `splits`, or of all."""
    splits = splits or held_splits(task)
    return sum(_SUMS[phase](module, blocks, task.element, splits) for module in modules)


def held_splits(task: Task) -> int:
    """Of how many splits the device holds the sums at a time."""
    return task.config.fit.splits if task.device.type == "cpu" else 1


def fit_parts(task: Task, blocks: int | None = None) -> list[Part]:
    """The passes that the fit will make, with its own or with other `blocks`."""
    config, modules = task.config.fit, task.outline.modules
    blocks = blocks or config.blocks
    if config.curvature == "identity":
        return []
    phases = ("covariance", "corrected") if has_corrected(config.curvature) else ("covariance",)
    found = []
    for phase in phases:
        sizes = {m.name: _SUMS[phase](m, blocks, task.element, held_splits(task)) for m in modules}
        for names in partition(modules, sizes, task.memory):
            found.append((phase, [module for module in modules if module.name in names]))
    return found


def fit(task: Task, rates: Rates) -> Estimate:
    """`fit-factors`. With shards the seconds are those of one, and of merging."""
    reading, parts = task.fit_reading(), {"start": rates.start}
    config, modules, shards = task.config.fit, task.outline.modules, task.config.shards
    total, memory, disk = 0.0, rates.base, factor_bytes(task)
    for phase, of_part in fit_parts(task):
        count = flops.covariance_flops if phase == "covariance" else flops.corrected_flops
        work = count(task, of_part, reading)
        seconds = work / rates.speed[phase] / shards
        at_work = rates.working[phase]
        if seconds > _CHECKPOINT_SECONDS and task.device.type == "cpu":
            # Between two batches, when nothing else is at work.
            at_work = max(at_work, _CHECKPOINT_COPIES * _saved(task, phase, of_part))
        memory = max(memory, rates.base + _held(task, phase, of_part) + at_work)
        parts[phase] = parts.get(phase, 0.0) + seconds
        total += work
        if phase == "covariance":
            sums = sums_bytes(task, phase, of_part, config.blocks)
            memory = max(memory, rates.base + sums + rates.working["eigenvectors"])
        if shards > 1:
            # The splits that a shard has a part of.
            touched = -(-max(shards, config.splits) // shards)
            disk += shards * touched * _saved(task, phase, of_part) / held_splits(task)
    if "covariance" in parts:
        work = flops.eigenvector_flops(task, modules)
        parts["eigenvectors"] = work / rates.speed["eigenvectors"]
        total += work
        again = rates.start if shards > 1 and "corrected" in parts else 0.0
        parts["start"] += again
        moved = disk / rates.digest + corrected_disk(task) / rates.write
        parts["disk"] = moved + (disk - corrected_disk(task)) / rates.read
    return Estimate("fit-factors", total, parts, memory, disk)


def _held(task: Task, phase: str, modules: list[TrackedModule]) -> int:
    """Bytes of a pass's sums, and of the bases that it turns into."""
    if phase == "covariance":
        return sums_bytes(task, phase, modules, task.config.fit.blocks)
    return _saved(task, phase, modules) + bases_bytes(task, modules)


def _saved(task: Task, phase: str, modules: list[TrackedModule]) -> int:
    """Bytes of the sums alone, as a checkpoint keeps them."""
    if phase == "covariance":
        return sums_bytes(task, phase, modules, task.config.fit.blocks)
    return held_splits(task) * task.element * sum(module.parameters for module in modules)


def bases_bytes(task: Task, modules: list[TrackedModule]) -> int:
    """Q_A, once for those that share it, and Q_S, in the type of the products."""
    blocks = task.config.fit.blocks
    squares = sum(_squares(one.size, blocks) for one in covariances(modules))
    return task.product * squares


def _squares(size: int, blocks: int) -> int:
    return sum(block**2 for block in block_sizes(size, blocks))


def factor_bytes(task: Task) -> float:
    """On disk: λ in float64, Q and Λ in the statistics' type, and the manifest."""
    config, modules = task.config.fit, task.outline.modules
    described = 1000.0 + 220 * len(modules)
    if config.curvature == "identity":
        return described
    matrices = covariances(modules)
    eigen = sum(8 * m.size + task.element * _squares(m.size, config.blocks) for m in matrices)
    files = len(matrices) + (len(modules) if has_corrected(config.curvature) else 0)
    return described + eigen + corrected_disk(task) + FILE_BYTES * files


def corrected_disk(task: Task) -> int:
    if not has_corrected(task.config.fit.curvature):
        return 0
    return task.element * sum(module.parameters for module in task.outline.modules)
