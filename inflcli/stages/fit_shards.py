"""`fit-factors --shard`: running sums over a part of the sequences, and their merging.

`OUT.shards/covariance/I-of-N` hold the sums of the first pass, `OUT.shards/bases` the eigenvectors
of all of them together, and `OUT.shards/corrected/I-of-N` the sums of the second pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inflcli.artifacts import factors as store
from inflcli.artifacts import files
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.ledger import Counts
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import FitFactorsConfig, Runtime, has_corrected
from inflcli.ekfac import Corrected, CorrectedSum, CovarianceSum, mean_corrected, mean_covariance
from inflcli.ekfac.covariance import block_sizes
from inflcli.errors import BadInput
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common
from inflcli.stages.eigenvectors import Matrix, covariances, write_eigenvectors
from inflcli.stages.fit import Fit
from inflcli.stages.fit_factors import STAGE, open_inputs
from inflcli.stages.fit_plan import chosen_sequences
from inflcli.stages.shards import Shards, find_shards, verify, whole_identity
from inflcli.stages.splits import (
    HOST,
    Splits,
    halves,
    split_sequences,
    sum_name,
    told_by_halves,
)

COVARIANCE, BASES, CORRECTED = "covariance", "bases", "corrected"


def fit_shard(
    model: str, corpus: Path, whole: Path, config: FitFactorsConfig, runtime: Runtime
) -> dict[str, Any]:
    """Add up one shard's covariances; or, once all shards' are merged, its corrected eigenvalues.

    `whole` is the artifact that the shards are of. With `overwrite` covariances that are damaged or
    another's are added up again at any time, and nothing else then. Cost: one of the two passes,
    over the shard's sequences. Raises BadInput, StaleArtifact, NumericalFault.
    """
    if config.shard is None or config.curvature == "identity":
        raise BadInput("the identity needs no fit, and has no shards", "leave --shard out")
    folder = whole.with_name(f"{whole.name}.shards")
    out = config.shard.folder(whole).name
    second = (folder / BASES).is_dir() and has_corrected(config.curvature)
    if runtime.overwrite or not second:
        done = _fit_shard(model, corpus, folder / COVARIANCE / out, config, runtime)
        if not (second and done["fresh"]):
            return done
    return _fit_shard(model, corpus, folder / CORRECTED / out, config, runtime)


@common.exclusively_by_ranks
def _fit_shard(
    model: str, corpus: Path, out: Path, config: FitFactorsConfig, runtime: Runtime
) -> dict[str, Any]:
    reader, config, inputs = open_inputs(model, corpus, config, runtime)
    phase, bases = out.parent.name, None
    if phase == CORRECTED:
        bases = Artifact.open(out.parent.parent / BASES, STAGE, shard=True)
        inputs[BASES] = bases.as_input()
    identity = Identity(STAGE, {**config.identity(), "phase": phase}, inputs)
    begun = common.begin(out, identity, runtime)
    if begun is None:
        return common.up_to_date(out, STAGE)
    loaded = common.load(model, config.dtype, runtime)
    common.require_context(reader, loaded)
    artifact = FitShard(begun, loaded, reader, config, runtime).run_phase(phase, bases)
    summary = f"{phase} of {artifact.manifest.counts['sequences']} sequences; merge all shards next"
    return common.result(artifact, fresh=False, summary=summary)


class FitShard(Fit):
    """One shard's pass. Progress as in `Fit`: the parts of the modules, and the sequences."""

    def run_phase(self, phase: str, bases: Artifact | None) -> Artifact:
        assert self.config.shard is not None
        chosen = chosen_sequences(self.corpus, self.config)
        ids = split_sequences(chosen, self.config.splits, self.config.shard)
        sums: list[dict[str, Any]] = self.before.get("sums", [])
        for number, (_, names) in self.steps(lambda: [p for p in self._parts() if p[0] == phase]):
            modules = [module for module in self.modules if module.name in names]
            statistics: Splits[Any]
            if bases is None:
                statistics = self.covariance_pass(modules, ids, f"{phase} {number}")
            else:
                statistics = self.corrected_pass(modules, ids, f"{phase} {number}", bases.path)
            self.add_up(statistics, {})
            path = self.folder / f"sums.{len(sums)}.safetensors"
            if self.ranks.rank == 0:
                files.write_tensors(path, statistics.state(), {})
            sums = [*sums, statistics.counts()]
            self.end_step({"sums": sums}, [])
        return self.begun.finish(
            counts={"sequences": sum(map(len, ids)), "modules": len(self.modules)},
            details={**self.details, "sums": sums},
            timings=self.timings,
        )


def merge_fit(folder: Path, out: Path, runtime: Runtime) -> dict[str, Any]:
    """Merge the covariances of all shards to eigenvectors, or their second pass to the factors.

    Sums are added in float64, in the order of the splits and, within one, of the shards. Raises
    what `find_shards` does.
    """
    bases = _bases(folder, runtime)
    if not (folder / CORRECTED).is_dir() and has_corrected(bases.manifest.config["curvature"]):
        summary = "eigenvectors made; run the same shards again, then merge again"
        return common.result(bases, fresh=False, summary=summary)
    identity = _without_phase(bases.manifest.identity)
    writer = ArtifactWriter.begin(
        out, identity, overwrite=runtime.overwrite, command=runtime.command
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    verify(bases)
    with files.write_errors(writer.folder):
        for name in ("inputs", "modules"):
            shutil.copytree(bases.path / name, writer.folder / name, dirs_exist_ok=True)
    timings = dict(bases.manifest.timings)
    if has_corrected(bases.manifest.config["curvature"]):
        shards = find_shards(folder / CORRECTED)
        shards.verify()
        for one in shards.artifacts:
            one.require_input(BASES, bases.as_input(), "run the shards again with --overwrite")
        for module in common.tracked_from(bases.manifest.details["modules"]):
            store.write_corrected(writer.folder, module.name, *_corrected(shards, module))
    details = {**_without_sums(bases.manifest.details), **told_by_halves(writer.folder)}
    artifact = writer.finish(counts=bases.manifest.counts, details=details, timings=timings)
    return common.result(artifact, fresh=False, summary="factors of all shards")


def _bases(folder: Path, runtime: Runtime) -> Artifact:
    """Q_A and Q_S of all shards' sums together; made if they are not there."""
    shards = find_shards(folder / COVARIANCE)
    whole = _without_phase(shards.whole)
    identity = replace(whole, config={**whole.config, "shard": BASES})
    writer = ArtifactWriter.begin(
        folder / BASES, identity, overwrite=runtime.overwrite, command=runtime.command
    )
    if writer is None:
        return Artifact.open(folder / BASES, STAGE, shard=True)
    shards.verify()
    modules = common.tracked_from(shards.details["modules"])
    sums, wanted = _Sums(shards), covariances(modules)
    write_eigenvectors(
        writer.folder,
        wanted,
        lambda matrix, dtype: _covariance(sums, matrix, whole.config["blocks"], dtype),
        fast=shards.details["precision"] != "exact",
        stored=sums.stored(f"{wanted[0].key}:0"),
        done=lambda group: None,
    )
    # Every part of the modules has seen all tokens.
    first = [one.manifest.details["sums"][0] for one in shards.artifacts]
    tokens = sum(part["tokens"] for splits in first for part in splits.values())
    counts = {"sequences": shards.total("sequences"), "predicted_tokens": tokens}
    return writer.finish(
        counts={**counts, "modules": len(modules)},
        details=_without_sums(shards.details),
    )


def _without_sums(details: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in details.items() if key != "sums"}


def _without_phase(identity: Identity) -> Identity:
    """That of the factors which these are a part of."""
    whole = whole_identity(identity)
    config = {key: value for key, value in whole.config.items() if key != "phase"}
    inputs = {name: item for name, item in whole.inputs.items() if name != BASES}
    return replace(whole, config=config, inputs=inputs)


class _Sums:
    """The shards' running sums, each tensor read when it is asked for."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.splits = int(shards.whole.config["splits"])

    def parts(self, *names: str) -> Iterator[tuple[int, list[Tensor], Counts]]:
        """A split, its sums of these names and its counts: by split, then by shard."""
        for split in range(self.splits):
            for one in self.shards.artifacts:
                for number, counts in enumerate(one.manifest.details["sums"]):
                    if str(split) not in counts:
                        continue
                    path = one.path / f"sums.{number}.safetensors"
                    found = [files.find_tensor(path, sum_name(split, name)) for name in names]
                    sums = [tensor for tensor in found if tensor is not None]
                    if sums:  # else it is in another of the shard's files
                        yield split, sums, counts[str(split)]

    def stored(self, name: str) -> torch.dtype:
        """The type of a sum on disk."""
        return next(self.parts(name))[1][0].dtype


def _covariance(
    sums: _Sums, matrix: Matrix, blocks: int, dtype: torch.dtype
) -> tuple[list[Tensor], float | None]:
    names = [f"{matrix.key}:{number}" for number in range(len(block_sizes(matrix.size, blocks)))]
    parts = (
        (split, CovarianceSum(tensors, counts["rows"][matrix.key]))
        for split, tensors, counts in sums.parts(*names)
    )
    return mean_covariance(halves(parts, sums.splits), dtype, HOST)


def _corrected(shards: Shards, module: TrackedModule) -> Corrected:
    """Λ of a module, and what its halves say about it."""
    sums = _Sums(shards)
    parts = (
        (split, CorrectedSum(tensor, counts[module.name]))
        for split, [tensor], counts in sums.parts(module.name)
    )
    return mean_corrected(halves(parts, sums.splits), HOST)
