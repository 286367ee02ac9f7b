"""Timing the fit: its two passes on a few batches, and the eigenvectors of some layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inflcli.artifacts import factors as store
from inflcli.artifacts.writer import describe_files
from inflcli.config import AUTO, has_corrected
from inflcli.ekfac import Basis, CorrectedSum, held_out_damping, kfac_eigenvalues, mean_corrected
from inflcli.ekfac.covariance import block_sizes
from inflcli.ekfac.damping import strided
from inflcli.model.batches import Batch
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule
from inflcli.stages.eigenvectors import Matrix, covariances, write_eigenvectors
from inflcli.stages.fit_plan import draw_labels, read_bases
from inflcli.stages.planning.estimates import fit_parts, sums_bytes
from inflcli.stages.planning.flops import (
    corrected_flops,
    covariance_flops,
    eigenvector_flops,
)
from inflcli.stages.planning.measure import measured, now
from inflcli.stages.planning.timing import Timed
from inflcli.stages.statistics import (
    CorrectedStatistics,
    CovarianceStatistics,
    covariance_statistics,
)

_DECOMPOSITION_SECONDS = 20.0
"""Layers are decomposed for about so long, and one of them for no longer than three times that."""
_PROBE = 512
_SEQUENCES = 256
"""That are read: what queries keep depends on how many are in Λ. With the default compression it
falls with their number n about as exp(-n / 150), to a little more than K-FAC's (the demo's model,
16 to 600 sequences of 256 tokens; SmolLM2, 32 to 300 of 64), so that half of a fit tells little."""
_NOISE_FALLS = 0.4
"""Of seven pairs of a small and a larger fit of the demo's model, the larger one's queries took 0.7
to 1.4 times as many bytes, 2.1 times where the small one had 30 sequences. SmolLM2 lies between 0.3
(0.8 to 1.4 times, three pairs) and 0.5 (1.3 to 2.5)."""
_USUAL_DAMPING = 0.1
"""A share of mean Λ, where `--damping auto` has nothing here to choose by."""


@dataclass
class FittedLayers:
    """Layers whose factors lie in the folder, as far as a handful of batches makes factors."""

    modules: list[TrackedModule]
    mean_tokens: float


def time_fit(timed: Timed) -> FittedLayers:
    """Rates of covariance, eigenvectors and corrected, and of reading and writing factors."""
    parts = fit_parts(timed.task)
    if not parts:
        return FittedLayers([], 0.0)
    statistics, tokens = _covariance(timed, parts[0][1])
    some = _eigenvectors(timed, statistics, parts[0][1])
    del statistics
    if has_corrected(timed.task.config.fit.curvature):
        second = next(modules for phase, modules in parts if phase == "corrected")
        names = {module.name for module in second}
        some = [module for module in some if module.name in names]
        _corrected(timed, second, some)
    return FittedLayers(some, tokens)


def _covariance(timed: Timed, modules: list[TrackedModule]) -> tuple[CovarianceStatistics, float]:
    task, model = timed.task, timed.model
    passes = Passes.for_model(model, modules, task.config.fit.precision)
    labels = draw_labels(task.config.fit, 0)
    with measured(model.device) as found:
        statistics = covariance_statistics(task.config.fit, modules, model)

        def run(batch: Batch) -> None:
            statistics.begin(batch)
            passes.run(batch, labels, statistics.consume)

        seconds, reading = timed.passes("covariance", timed.plans(task.fit_ids), run, _SEQUENCES)
    timed.speed["covariance"] = covariance_flops(task, modules, reading) / seconds
    sums = sums_bytes(task, "covariance", modules, task.config.fit.blocks, splits=1)
    timed.working["covariance"] = found.growth - sums
    return statistics, reading.predicted / reading.sequences


def _eigenvectors(
    timed: Timed, statistics: CovarianceStatistics, modules: list[TrackedModule]
) -> list[TrackedModule]:
    """Decompose the covariances of some layers into the folder; their modules."""
    task, device = timed.task, timed.model.device
    layers = sorted({module.layer for module in modules})

    def of(chosen: Sequence[int]) -> list[TrackedModule]:
        return [module for module in modules if module.layer in chosen]

    guessed = eigenvector_flops(task, of(layers[:1])) / _probe_speed(timed)
    if guessed > 3 * _DECOMPOSITION_SECONDS:
        timed.speed["eigenvectors"] = _probe_speed(timed, 4 * _PROBE)
        largest = max(one.size for one in covariances(modules))
        timed.working["eigenvectors"] = 6.0 * 8 * largest**2
        return []
    chosen = layers[:1]
    with measured(device) as found:
        seconds = _decompose(timed, statistics, of(chosen))
        more = min(int(_DECOMPOSITION_SECONDS / seconds), len(layers)) - 1
        if more > 0:
            spread = np.linspace(1, len(layers) - 1, more).astype(int)
            rest = sorted({layers[number] for number in spread})
            seconds = _decompose(timed, statistics, of(rest))
            timed.speed["eigenvectors"] = eigenvector_flops(task, of(rest)) / seconds
            chosen = [*chosen, *rest]
        else:
            timed.speed["eigenvectors"] = eigenvector_flops(task, of(chosen)) / seconds
    timed.working["eigenvectors"] = found.growth
    timed.sampled["layers decomposed"] = len(chosen)
    return of(chosen)


def _decompose(
    timed: Timed, statistics: CovarianceStatistics, modules: list[TrackedModule]
) -> float:
    """Seconds of decomposing and writing."""
    config, sides = timed.task.config.fit, {"A": statistics.inputs, "S": statistics.outputs}

    def mean(matrix: Matrix, dtype: torch.dtype) -> tuple[list[Tensor], None]:
        return sides[matrix.side][matrix.name].mean(dtype), None

    begun = now(timed.model.device)
    write_eigenvectors(
        timed.folder,
        covariances(modules),
        mean,
        fast=config.precision != "exact",
        stored=timed.model.statistics_dtype,
        done=lambda group: None,
    )
    return now(timed.model.device) - begun


def _probe_speed(timed: Timed, size: int = _PROBE) -> float:
    """FLOPs a second of the eigenvectors of a random matrix."""
    device = timed.model.device
    kind = torch.float64 if timed.task.config.fit.precision == "exact" else torch.float32
    rows = torch.randn(2 * size, size, dtype=kind, device=device)
    matrix = rows.T @ rows
    begun = now(device)
    torch.linalg.eigh(matrix)
    return 9.0 * size**3 / (now(device) - begun)


def _corrected(timed: Timed, modules: list[TrackedModule], some: list[TrackedModule]) -> None:
    """The pass in the bases of `some` modules; others turn into those of their size."""
    task, model = timed.task, timed.model
    passes = Passes.for_model(model, modules, task.config.fit.precision)
    labels, plans = draw_labels(task.config.fit, 1), timed.plans(task.fit_ids)
    auto = task.config.precondition.damping == AUTO
    # A batch alone is run twice, and would be both halves.
    parts = 2 if auto and len(plans) > 1 else 1
    with measured(model.device, above=timed.base) as found:
        bases = read_bases(timed.folder, some, model.device, task.product_dtype)
        allocated = _fill(bases, modules, task.config.fit.blocks, task.product_dtype, model.device)
        statistics = [CorrectedStatistics(modules, bases, model) for _ in range(parts)]
        in_turn = itertools.cycle(statistics)

        def run(batch: Batch) -> None:
            sums = next(in_turn)
            sums.begin(batch)
            passes.run(batch, labels, sums.consume)

        seconds, reading = timed.passes("corrected", plans, run, _SEQUENCES)
    timed.speed["corrected"] = corrected_flops(task, modules, reading) / seconds
    sums = parts * task.element * sum(module.parameters for module in modules)
    timed.working["corrected"] = found.growth - sums - allocated
    count = task.fit_reading().sequences
    settled = {
        module.name: _settled(timed, module, [one.sums[module.name] for one in statistics], count)
        for module in some
    }
    begun = now(model.device)
    for name, (mean, factor) in settled.items():
        store.write_corrected(
            timed.folder, name, mean, damping_factor=factor or _USUAL_DAMPING if auto else None
        )
    if settled:
        written = sum(mean.numel() * mean.element_size() for mean, _ in settled.values())
        timed.write = written / (now(model.device) - begun)
        begun = now(model.device)
        files = describe_files(timed.folder)
        timed.digest = sum(one["size"] for one in files.values()) / (now(model.device) - begun)


def _settled(
    timed: Timed, module: TrackedModule, parts: list[CorrectedSum], sequences: float
) -> tuple[Tensor, float | None]:
    """Λ [P, M] about as it will be once all `sequences` are added up, and the damping that its
    halves will choose, where `parts` are two.

    Of few sequences Λ is so noisy that queries need many times the components. The noise of its
    logarithm is taken to fall with a power of their number, towards K-FAC's Λ, which has hardly
    any; in the bases of ec-shampoo towards λ_S λ_Aᵀ, whose rows and columns add up as Λ's do.
    """
    eigen_a = store.read_input(timed.folder, module.shares_input_with)
    eigen_s = store.read_output(timed.folder, module.name)
    means = [part.mean() for part in parts]
    mean = mean_corrected([[part] for part in parts], means[0].device).mean
    smooth = kfac_eigenvalues(eigen_s.values, eigen_a.values, 1.0).to(mean)
    tiny = torch.finfo(smooth.dtype).tiny
    smooth *= mean.mean() / smooth.mean().clamp(min=tiny)

    def settle(mean: Tensor, count: int, of: float) -> Tensor:
        noise = min(1.0, (count / max(of, 1.0)) ** _NOISE_FALLS)
        return smooth.clamp(min=tiny) ** (1 - noise) * mean.clamp(min=tiny) ** noise

    whole = settle(mean, sum(part.count for part in parts), sequences)
    if len(parts) < 2:
        return whole, None
    one, other = (
        settle(mean, part.count, sequences / 2) for mean, part in zip(means, parts, strict=True)
    )
    rows = strided(*whole.shape)
    return whole, held_out_damping(one[rows], other[rows], float(whole.double().mean()))


def _fill(
    bases: dict[str, tuple[Basis, Basis]],
    modules: list[TrackedModule],
    blocks: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Give every module bases of its size; returns the bytes of all different ones."""
    by_size = {basis.size: basis for pair in bases.values() for basis in pair}

    def of_size(size: int) -> Basis:
        if size not in by_size:
            parts = block_sizes(size, blocks)
            # Near enough to orthogonal that nothing overflows, which is all that time depends on.
            by_size[size] = Basis(
                tuple(torch.randn(n, n, dtype=dtype, device=device) / n**0.5 for n in parts)
            )
        return by_size[size]

    for module in modules:
        if module.name not in bases:
            bases[module.name] = of_size(module.inputs), of_size(module.outputs)
    different = {id(basis): basis for pair in bases.values() for basis in pair}
    return sum(
        block.numel() * block.element_size()
        for basis in different.values()
        for block in basis.blocks
    )
