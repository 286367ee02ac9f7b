"""`precondition`: the inverse curvature times the gradient of every query, compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts import queries as store
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.files import write_tensors
from inflcli.artifacts.folder import Artifact, ArtifactWriter
from inflcli.artifacts.manifest import Identity
from inflcli.config import PreconditionConfig, Runtime
from inflcli.corpus.queries import EncodedQuery, encode_query, read_queries
from inflcli.ekfac import DampedInverse
from inflcli.ekfac.inverse import RotatedGradients
from inflcli.errors import BadInput
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, arithmetic, identify, load_model
from inflcli.model.memory import budget
from inflcli.model.passes import Passes
from inflcli.model.resolve import load_tokenizer
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common
from inflcli.stages.compression import Compressed, compress, queries_a_chunk
from inflcli.stages.inverses import read_inverses

STAGE = "precondition"
LARGEST_CHUNK = 2.0 * 2**30
"""Bytes: larger chunks of queries are no faster."""
_LOSSY_BELOW = 0.9
_WARNINGS = 3
"""Queries named, at most, of those that a rank compresses too much."""
_NEEDS = {"ekfac": ("ekfac",), "kfac": ("ekfac", "kfac"), "identity": ("ekfac", "kfac", "identity")}


@common.exclusively
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
    dtype, precision = arithmetic(config.dtype, config.precision, model, runtime.device)
    config = replace(
        config,
        curvature=reader.curvature if config.curvature == "auto" else config.curvature,
        dtype=dtype,
        precision=precision,
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
    summary = f"{len(encoded)} queries, {config.curvature}, {_compression(config)}"
    return common.result(artifact, fresh=False, summary=summary)


def _compression(config: PreconditionConfig) -> str:
    if config.keep is not None:
        limit = f", rank {config.max_rank} at most"
        return f"{config.keep:.6g} of the energy{limit}"
    return "full rank" if config.rank is None else f"rank {config.rank}"


def _require_curvature(factors: FactorsReader, config: PreconditionConfig) -> None:
    if factors.curvature not in _NEEDS[config.curvature]:
        raise BadInput(
            f"--curvature {config.curvature} needs factors fitted for it; "
            f"{factors.artifact.path} holds {factors.curvature}",
            f"fit them with --curvature {config.curvature}",
        )


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
        self.passes = Passes.for_model(model, self.modules, config.precision)
        self.size = runtime.batch_size or queries_a_chunk(
            self.modules,
            max(len(query.tokens) for query in queries),
            config,
            model.statistics_dtype.itemsize,
            min(LARGEST_CHUNK, budget(runtime.memory_gib, model.device)),
        )
        self.inverses: dict[str, DampedInverse] = {}
        # Products of bfloat16 hold no more than bfloat16 does.
        fast = config.precision == "fast"
        self.stored = torch.bfloat16 if fast else model.statistics_dtype

    def run(self) -> Artifact:
        factors = self.factors
        self.inverses = read_inverses(
            factors.artifact.path, factors.mean_tokens, self.modules, self.config, self.model
        )
        done = self.writer.progress.get("queries", 0)
        described: list[dict[str, Any]] = self.writer.progress.get("described", [])
        chunks: int = self.writer.progress.get("chunks", 0)
        with console.progress("precondition", len(self.queries), done=done, unit="queries") as bar:
            while done < len(self.queries):
                part = self.queries[done : done + self.size]
                written, more = self._chunk(part, done, chunks)
                described, done, chunks = described + more, done + len(part), chunks + 1
                progress = {"queries": done, "chunks": chunks, "described": described}
                self.writer.commit(progress, written)
                bar.advance(len(part))
        store.merge_chunks(self.writer.folder, [module.name for module in self.modules], chunks)
        store.write_queries(self.writer.folder, described)
        return self.writer.finish(counts={"queries": done}, details=self._details(described))

    def _details(self, described: list[dict[str, Any]]) -> dict[str, Any]:
        _warn_if_lossy(described, self.config)
        return {
            "modules": self.factors.modules,
            "damping": {name: inverse.damping for name, inverse in self.inverses.items()},
            "dtype": self.config.dtype,
            "precision": self.config.precision,
            "share_tracked": self.factors.artifact.manifest.details["share_tracked"],
        }

    def _chunk(
        self, part: list[EncodedQuery], first: int, number: int
    ) -> tuple[list[Path], list[dict[str, Any]]]:
        """Precondition a few queries: the files written, and what queries.json says of them.

        Each module's file is written while the next is computed.
        """
        batch, element = query_batch(part, self.model.device), self.model.statistics_dtype
        length = max(batch.extents)
        held: list[tuple[TrackedModule, RotatedGradients]] = []

        def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            a, g = a[:, :length].to(element), g[:, :length].to(element)
            held.append((module, self.inverses[module.name].gradients(a, g)))

        log_p = self.passes.run(batch, [TrueLabels()], consume)
        found: dict[str, Compressed] = {}
        with common.Behind() as behind:
            for name, one in compress(held, self.config):
                tensors = {key: value.to(self.stored) for key, value in one.matrices.items()}
                for value in tensors.values():
                    common.require_finite(value, "preconditioned query", name)
                if one.owner is not None:
                    tensors["owner"] = one.owner + first
                path = store.chunk_path(self.writer.folder, number, name)
                behind.do(partial(write_tensors, path, tensors, {}))
                found[name] = replace(one, matrices={}, owner=None)
        described = [
            {**_describe(query, log_p[row]), **self._describe_kept(found, row)}
            for row, query in enumerate(part)
        ]
        return [store.chunk_path(self.writer.folder, number, name) for name in found], described

    def _describe_kept(self, found: Mapping[str, Compressed], row: int) -> dict[str, Any]:
        """What is kept of one query, as a whole and by module."""
        whole = self.config.rank is None and self.config.keep is None
        numbers, by_module = 0, {}
        for module in self.modules:
            one = found[module.name]
            rank, size = one.ranks[row], module.inputs + module.outputs
            numbers += module.parameters if whole else rank * size
            share = _share(one.kept[row], one.energy[row])
            by_module[module.name] = {"rank": rank, "kept_energy": share}
        kept = sum(one.kept[row] for one in found.values())
        energy = sum(one.energy[row] for one in found.values())
        return {
            "kept_energy": _share(kept, energy),
            "columns": sum(entry["rank"] for entry in by_module.values()),
            "bytes": numbers * self.stored.itemsize,
            "modules": by_module,
        }


def _share(kept: float, energy: float) -> float:
    # The two are sums of different roundings.
    return min(kept / energy, 1.0) if energy > 0 else 1.0


def _warn_if_lossy(described: list[dict[str, Any]], config: PreconditionConfig) -> None:
    """Say of which queries too little is kept."""
    wanted, option = config.keep, "--max-rank"
    if wanted is None:
        wanted, option = _LOSSY_BELOW, "--rank"
    rank = config.rank if config.keep is None else config.max_rank
    lossy = [query for query in described if query["kept_energy"] < wanted]
    for query in lossy[:_WARNINGS]:
        console.warn(
            f"query {query['id']!r}: rank {rank} keeps {query['kept_energy']:.2%} of its squared "
            f"norm, less than {wanted:.1%}; a higher {option} keeps more"
        )
    if len(lossy) > _WARNINGS:
        console.warn(f"the same is true of {len(lossy) - _WARNINGS} more queries")


def query_batch(queries: list[EncodedQuery], device: torch.device) -> Batch:
    """A batch in which only completion tokens are predicted; ids count within the batch."""
    lengths = np.array([len(query.tokens) for query in queries], np.int32)
    tokens = np.zeros((len(queries), int(lengths.max())), np.int64)
    for row, query in enumerate(queries):
        tokens[row, : len(query.tokens)] = query.tokens
    starts = np.array([query.completion_start for query in queries], np.int64)
    return make_batch(np.arange(len(queries)), tokens, lengths, device, starts)


def _describe(query: EncodedQuery, log_p: Tensor) -> dict[str, Any]:
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
    }
