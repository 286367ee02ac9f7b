"""`precondition`: the inverse curvature times the gradient of every query, compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inflcli import console
from inflcli.artifacts import factors as factor_store
from inflcli.artifacts import files, fingerprint
from inflcli.artifacts import queries as store
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.folder import Artifact, ArtifactWriter
from inflcli.artifacts.manifest import Identity
from inflcli.config import PreconditionConfig, Runtime
from inflcli.corpus.queries import EncodedQuery, encode_query, read_queries
from inflcli.ekfac import Basis, damping_value, kfac_eigenvalues, truncate
from inflcli.ekfac.inverse import rotate_in, rotate_out
from inflcli.errors import BadInput
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, dtype_name, identify, load_model
from inflcli.model.passes import Passes
from inflcli.model.resolve import load_tokenizer
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common
from inflcli.stages.fit_factors import read_bases

STAGE = "precondition"
_QUERIES_A_CHUNK = 8
_LOSSY_BELOW = 0.9
_NEEDS = {"ekfac": ("ekfac",), "kfac": ("ekfac", "kfac"), "identity": ("ekfac", "kfac", "identity")}


def precondition(
    model: str,
    factors: Path,
    queries: Path,
    out: Path,
    config: PreconditionConfig,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write (G + λI)⁻¹ ∇f of every query in `queries`, f = log p(completion | prompt).

    Cost: one pass over the queries, and P M (P + M) MACs a query and module for the rotations.
    Raises BadInput, StaleArtifact (factors of another model), NumericalFault.
    """
    reader = FactorsReader.open(factors)
    config = replace(
        config,
        curvature=reader.curvature if config.curvature == "auto" else config.curvature,
        dtype=dtype_name(config.dtype, model, runtime.device),
    )
    _require_curvature(reader, config)
    weights, tokenizer = identify(model)
    mend = f"fit them again: inflcli fit-factors --model {model} ... --overwrite"
    reader.artifact.require_input("model", weights, mend)
    parsed = read_queries(queries)
    inputs = {
        "model": weights,
        "tokenizer": tokenizer,
        "factors": reader.artifact.as_input(),
        "queries": fingerprint.of_files([queries], str(queries)),
    }
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config.identity(), inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    loaded = load_model(model, device=runtime.device, dtype=config.dtype)
    text = load_tokenizer(loaded.folder)
    encoded = [
        encode_query(query, text, bos=config.bos, max_tokens=loaded.context) for query in parsed
    ]
    for query in encoded:
        if query.message:
            console.warn(query.message)
    artifact = Precondition(writer, loaded, reader, encoded, config, runtime).run()
    rank = "full rank" if config.rank is None else f"rank {config.rank}"
    summary = f"{len(encoded)} queries, {config.curvature}, {rank}"
    return common.result(artifact, fresh=False, summary=summary)


def _require_curvature(factors: FactorsReader, config: PreconditionConfig) -> None:
    if factors.curvature not in _NEEDS[config.curvature]:
        raise BadInput(
            f"--curvature {config.curvature} needs factors fitted for it; "
            f"{factors.artifact.path} holds {factors.curvature}",
            f"fit them with --curvature {config.curvature}",
        )


@dataclass(frozen=True)
class ModuleInverse:
    """The damped inverse curvature of one module; no bases for the identity."""

    bases: tuple[Basis, Basis] | None
    eigenvalues: Tensor | None
    damping: float

    def apply(self, gradient: Tensor, rank: int | None) -> tuple[dict[str, Tensor], float, float]:
        """Precondition one DW [P, M]: its tensors, ‖V‖² kept and ‖V‖².

        The truncation is taken in the eigenbasis, where V is cheap, and only its factors are
        rotated back: rotations are orthogonal, so it is the same truncation.
        """
        v = gradient
        if self.bases is not None and self.eigenvalues is not None:
            v = rotate_in(gradient, *self.bases) / (self.eigenvalues + self.damping)
        energy = float(v.double().square().sum())
        if rank is None:
            dense = v if self.bases is None else rotate_out(v, *self.bases)
            return {"dense": dense.unsqueeze(0)}, energy, energy
        left, right, kept = truncate(v, rank)
        if self.bases is not None:
            basis_a, basis_s = self.bases
            left, right = basis_s.out_of(left.T).T, basis_a.out_of(right.T).T
        return {"left": left, "right": right}, kept * energy, energy


class Precondition:
    """One run of the stage, a few queries at a time."""

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        factors: FactorsReader,
        queries: list[EncodedQuery],
        config: PreconditionConfig,
        runtime: Runtime,
    ) -> None:
        self.writer, self.model, self.factors = writer, model, factors
        self.queries, self.config = queries, config
        self.modules = common.tracked_from(factors.modules)
        self.passes = Passes.for_model(model, self.modules)
        self.size = runtime.batch_size or _QUERIES_A_CHUNK
        self.inverses: dict[str, ModuleInverse] = {}

    def run(self) -> Artifact:
        self.inverses = {module.name: self._inverse(module) for module in self.modules}
        done = self.writer.progress.get("queries", 0)
        described: list[dict[str, Any]] = self.writer.progress.get("described", [])
        chunks: int = self.writer.progress.get("chunks", 0)
        with console.progress("precondition", len(self.queries), done=done, unit="queries") as bar:
            while done < len(self.queries):
                part = self.queries[done : done + self.size]
                tensors, more = self._chunk(part, done)
                path = store.chunk_path(self.writer.folder, chunks)
                files.write_tensors(path, tensors, {})
                described, done, chunks = described + more, done + len(part), chunks + 1
                progress = {"queries": done, "chunks": chunks, "described": described}
                self.writer.commit(progress, [path])
                bar.advance(len(part))
        store.merge_chunks(self.writer.folder, [module.name for module in self.modules], chunks)
        store.write_queries(self.writer.folder, described)
        return self.writer.finish(counts={"queries": done}, details=self._details(described))

    def _details(self, described: list[dict[str, Any]]) -> dict[str, Any]:
        for query in described:
            if query["kept_energy"] < _LOSSY_BELOW:
                console.warn(
                    f"query {query['id']!r}: rank {self.config.rank} keeps "
                    f"{query['kept_energy']:.0%} of its squared norm; a higher --rank keeps more"
                )
        return {
            "modules": self.factors.modules,
            "damping": {name: inverse.damping for name, inverse in self.inverses.items()},
            "dtype": self.config.dtype,
            "share_tracked": self.factors.artifact.manifest.details["share_tracked"],
        }

    def _inverse(self, module: TrackedModule) -> ModuleInverse:
        folder, device = self.factors.artifact.path, self.model.device
        if self.config.curvature == "identity":
            return ModuleInverse(None, None, 0.0)
        if self.config.curvature == "ekfac":
            eigenvalues = factor_store.read_corrected(folder, module.name)
        else:
            values_a = factor_store.read_input(folder, module.shares_input_with).values
            values_s = factor_store.read_output(folder, module.name).values
            eigenvalues = kfac_eigenvalues(values_s, values_a, self.factors.mean_tokens)
        common.require_finite(eigenvalues, "curvature", module.name)
        damping = damping_value(eigenvalues, self.config.damping_factor, self.config.damping)
        eigenvalues = eigenvalues.to(device=device, dtype=self.model.statistics_dtype)
        # A square of rounding errors is no curvature: 1 / Λ there would be noise without bound.
        noise = torch.finfo(eigenvalues.dtype).eps ** 2 * float(eigenvalues.sum())
        if not bool((eigenvalues + damping > noise).all()):
            raise BadInput(
                f"the curvature of module {module.name} is singular with damping {damping:g}",
                "give a higher --damping or --damping-factor",
            )
        return ModuleInverse(read_bases(folder, module, device), eigenvalues, damping)

    def _chunk(
        self, part: list[EncodedQuery], first: int
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Precondition a few queries: their tensors, and what queries.json says of them."""
        batch = query_batch(part, self.model.device)
        tensors: dict[str, list[Tensor]] = {}
        kept, energy = np.zeros(len(part)), np.zeros(len(part))

        def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            element = self.model.statistics_dtype
            for row in range(len(part)):
                gradient = g[row].to(element).T @ a[row].to(element)
                found, some, all_ = self.inverses[module.name].apply(gradient, self.config.rank)
                kept[row] += some
                energy[row] += all_
                for key, value in found.items():
                    common.require_finite(value, "preconditioned query", module.name)
                    tensors.setdefault(f"{module.name}:{key}", []).append(value)
                if "left" in found:
                    owner = torch.full((found["left"].shape[1],), first + row)
                    tensors.setdefault(f"{module.name}:owner", []).append(owner)

        log_p = self.passes.run(batch, [TrueLabels()], consume)
        share = np.divide(kept, energy, out=np.ones_like(kept), where=energy > 0)
        described = [
            _describe(query, log_p[row], float(share[row])) for row, query in enumerate(part)
        ]
        return {key: _join(key, parts) for key, parts in tensors.items()}, described


def _join(key: str, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=0 if key.endswith((":dense", ":owner")) else 1)


def query_batch(queries: list[EncodedQuery], device: torch.device) -> Batch:
    """A batch in which only completion tokens are predicted; ids count within the batch."""
    lengths = np.array([len(query.tokens) for query in queries], np.int32)
    tokens = np.zeros((len(queries), int(lengths.max())), np.int64)
    for row, query in enumerate(queries):
        tokens[row, : len(query.tokens)] = query.tokens
    starts = np.array([query.completion_start for query in queries], np.int64)
    return make_batch(np.arange(len(queries)), tokens, lengths, device, starts)


def _describe(query: EncodedQuery, log_p: Tensor, kept: float) -> dict[str, Any]:
    first = max(query.completion_start, 1)
    of_completion = log_p[first - 1 : len(query.tokens) - 1].double().tolist()
    fields: Mapping[str, Any] = asdict(query.query)
    return {
        **fields,
        "tokens": query.tokens,
        "completion_start": query.completion_start,
        "merged": query.merged,
        "token_log_p": of_completion,
        "log_p": sum(of_completion),
        "kept_energy": kept,
    }
