"""`precondition`: the inverse curvature times the gradient of every query, compressed.

With `refine` the inverse is a solve that begins where EK-FAC ends; see `stages.refine`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts import queries as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.files import write_tensors
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import PreconditionConfig, Runtime
from inflcli.corpus.queries import EncodedQuery, encode_query, read_queries
from inflcli.ekfac import DampedInverse
from inflcli.ekfac.damping import FACTORS
from inflcli.ekfac.inverse import GivenMatrices
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, arithmetic, identify
from inflcli.model.memory import budget
from inflcli.model.passes import Passes
from inflcli.model.resolve import load_tokenizer
from inflcli.model.tracked import TrackedModule
from inflcli.stages import common
from inflcli.stages.compression import (
    Compressed,
    Held,
    compress,
    compress_again,
    queries_a_chunk,
)
from inflcli.stages.inverses import chosen_damping, read_inverses, require_curvature
from inflcli.stages.kept import describe, describe_kept, warn_if_lossy
from inflcli.stages.refine import Refinement, describe_refined, require_refinable, summarise

STAGE = "precondition"
LARGEST_CHUNK = 2.0 * 2**30
"""Bytes: larger chunks of queries are no faster."""


@common.exclusively
def precondition(
    model: str,
    factors: Path,
    queries: Path,
    out: Path,
    config: PreconditionConfig,
    runtime: Runtime,
    refine_corpus: Path | None = None,
) -> dict[str, Any]:
    """Write (G + λI)⁻¹ ∇f of every query in `queries`, f = log p(completion | prompt).

    `refine_corpus` has the sequences that `config.refine` steps of a solve take G over. Cost: one
    pass over the queries, and P M (P + M) MACs a query and module for the rotations; a step of the
    solve about 1.5 passes a query over these sequences. Raises BadInput, StaleArtifact (factors
    of another model, a corpus of another tokenizer), NumericalFault.
    """
    reader = FactorsReader.open(factors)
    dtype, precision = arithmetic(config.dtype, config.precision, model, runtime.device)
    config = replace(
        config,
        curvature=reader.curvature if config.curvature == "auto" else config.curvature,
        dtype=dtype,
        precision=precision,
    )
    require_curvature(reader, config)
    chosen = chosen_damping(reader, config)
    wanted = refine_corpus if config.refine else None
    corpus = None if wanted is None else CorpusReader.open(wanted)
    require_refinable(config, corpus)
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
    if corpus is not None:
        common.require_same_tokenizer(corpus, tokenizer)
        inputs["refine_corpus"] = corpus.artifact.as_input()
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config.identity(), inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
        salvage=_salvaged,
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    _say_chosen(chosen)
    loaded = common.load(model, config.dtype, runtime)
    if corpus is not None:
        common.require_context(corpus, loaded)
    text = load_tokenizer(loaded.folder)
    encoded = [
        encode_query(query, text, bos=config.bos, max_tokens=loaded.context) for query in parsed
    ]
    for query in encoded:
        if query.message:
            console.warn(query.message)
    artifact = Precondition(writer, loaded, reader, encoded, config, runtime, corpus).run()
    summary = f"{len(encoded)} queries, {config.curvature}, {_compression(config)}"
    return common.result(artifact, fresh=False, summary=summary)


def _salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any] | None:
    """The progress of damaged queries: the modules to make again, and all as it was made.

    None where queries.json is damaged: it says what each module keeps; and of refined queries,
    whose modules were solved for together.
    """
    modules = store.modules_in(damaged)
    if len(modules) < len(damaged) or "chunks" not in manifest.details:
        return None
    if "refinement" in manifest.details:
        return None
    return {"only": sorted(modules), "mending": manifest.details}


def _say_chosen(factors: dict[str, float]) -> None:
    """Which dampings `--damping auto` takes."""
    if not factors:
        return
    least, most = min(factors.values()), max(factors.values())
    console.info(
        f"damping: {least:.2g} to {most:.2g} times the mean eigenvalue, as the fit's halves chose"
    )
    for name, factor in factors.items():
        console.detail(f"  {name} {factor:.2g}")
    noisy = sum(factor == FACTORS[-1] for factor in factors.values())
    if noisy:
        console.warn(
            f"in {noisy} of {len(factors)} modules one half of the fit says next to nothing of "
            "the other, and --damping auto takes the most there is: fit on more sequences"
        )


def _compression(config: PreconditionConfig) -> str:
    if config.keep is not None:
        limit = f", rank {config.max_rank} at most"
        return f"{config.keep:.6g} of the energy{limit}"
    return "full rank" if config.rank is None else f"rank {config.rank}"


class Precondition:
    """One run of the stage, a few queries at a time.

    Progress: how many queries each chunk done held, and what is to be said of them; where some
    modules are made again, which, in the chunks and with the ranks that the others have.
    """

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        factors: FactorsReader,
        queries: list[EncodedQuery],
        config: PreconditionConfig,
        runtime: Runtime,
        corpus: CorpusReader | None = None,
    ) -> None:
        """Of a `corpus` to refine on, if any."""
        self.writer, self.model, self.factors = writer, model, factors
        self.queries, self.config = queries, config
        every = common.tracked_from(factors.modules)
        only = writer.progress.get("only")
        self.modules = [module for module in every if only is None or module.name in only]
        self.mending: dict[str, Any] | None = writer.progress.get("mending")
        """The details of the manifest that was there."""
        self.before = [] if self.mending is None else store.read_queries_json(writer.folder)
        # Products of bfloat16 hold no more than bfloat16 does.
        fast = config.precision == "fast"
        self.stored = torch.bfloat16 if fast else model.statistics_dtype
        # A solve needs a gradient and a preconditioner that are not rounded.
        self.precision = "single" if fast and corpus is not None else config.precision
        # How the model runs depends on all tracked modules, and rounding on how it runs.
        passes = Passes.for_model(model, every, self.precision)
        self.passes = replace(passes, modules=self.modules)
        memory = budget(runtime.memory_gib, model.device)
        self.refinement: Refinement | None = None
        if corpus is not None:
            self.refinement = Refinement(self.passes, corpus, config, memory, runtime.batch_size)
            self.size = self.refinement.sizes.queries
        else:
            self.size = runtime.batch_size or queries_a_chunk(
                self.modules,
                max(len(query.tokens) for query in queries),
                config,
                model.statistics_dtype.itemsize,
                min(LARGEST_CHUNK, memory),
            )
        self.inverses: dict[str, DampedInverse] = {}

    def run(self) -> Artifact:
        factors, config = self.factors, replace(self.config, precision=self.precision)
        self.inverses = read_inverses(
            factors.artifact.path, factors.mean_tokens, self.modules, config, self.model
        )
        title, unit, each = "precondition", "queries", 1
        if self.refinement is not None:
            self.refinement.inverses = self.inverses
            title, unit, each = "refine", "products", self.refinement.products
        progress = self.writer.progress
        chunks, described = progress.get("chunks", []), progress.get("described", [])
        done = sum(chunks)
        whole = each * len(self.queries)
        with console.progress(title, whole, done=each * done, unit=unit) as bar:
            while done < len(self.queries):
                size = self.size if self.mending is None else self.mending["chunks"][len(chunks)]
                part = self.queries[done : done + size]
                step = partial(bar.advance, len(part))
                written, more = self._chunk(part, done, len(chunks), step)
                described, done, chunks = described + more, done + len(part), [*chunks, len(part)]
                now = {"queries": done, "chunks": chunks, "described": described}
                self.writer.commit({**progress, **now}, written)
                bar.reach(each * done)
        names = [module.name for module in self.modules]
        store.merge_chunks(self.writer.folder, names, len(chunks))
        if self.mending is None:
            store.write_queries(self.writer.folder, described)
        return self.writer.finish(
            counts={"queries": done}, details=self._details(described, chunks)
        )

    def _details(self, described: list[dict[str, Any]], chunks: list[int]) -> dict[str, Any]:
        if self.mending is not None:
            return dict(self.mending)
        warn_if_lossy(described, self.config)
        more: dict[str, Any] = {}
        if self.refinement is not None:
            sequences = len(self.refinement.sequences(0))
            more["refinement"] = summarise(described, self.config, sequences)
        return {
            "modules": self.factors.modules,
            "damping": {name: inverse.damping for name, inverse in self.inverses.items()},
            "dtype": self.config.dtype,
            "precision": self.config.precision,
            "share_tracked": self.factors.artifact.manifest.details["share_tracked"],
            "chunks": chunks,
            **more,
        }

    def _chunk(
        self, part: list[EncodedQuery], first: int, number: int, advance: Callable[[], None]
    ) -> tuple[list[Path], list[dict[str, Any]]]:
        """Precondition a few queries: the files written, and what queries.json is to say of them.

        `advance` is called after each product of a refinement. Each module's file is written while
        the next is computed.
        """
        batch, element = query_batch(part, self.model.device), self.model.statistics_dtype
        length = max(batch.extents)
        held: list[Held] = []

        def consume(module: TrackedModule, a: Tensor, g: Tensor) -> None:
            a, g = a[:, :length].to(element), g[:, :length].to(element)
            if self.refinement is None:
                held.append((module, self.inverses[module.name].gradients(a, g)))
            else:
                held.append((module, GivenMatrices(g.mT @ a)))

        log_p = self.passes.run(batch, [TrueLabels()], consume)
        residuals = self._refine(held, self.refinement, advance) if self.refinement else []
        found: dict[str, Compressed] = {}
        with common.Behind() as behind:
            for name, one in self._compressed(held, first, len(part)):
                tensors = {key: value.to(self.stored) for key, value in one.matrices.items()}
                for value in tensors.values():
                    common.require_finite(value, "preconditioned query", name)
                if one.owner is not None:
                    tensors["owner"] = one.owner + first
                path = store.chunk_path(self.writer.folder, number, name)
                behind.do(partial(write_tensors, path, tensors, {}))
                found[name] = replace(one, matrices={}, owner=None)
        written = [store.chunk_path(self.writer.folder, number, name) for name in found]
        if self.mending is not None:
            return written, []
        described = [
            {
                **describe(query, log_p[row]),
                **describe_kept(found, self.modules, row, self.config, self.stored.itemsize),
                **(describe_refined(residuals[row]) if residuals else {}),
            }
            for row, query in enumerate(part)
        ]
        return written, described

    @staticmethod
    def _refine(
        held: list[Held], refinement: Refinement, advance: Callable[[], None]
    ) -> list[list[float]]:
        """Put in the place of gradients what solves for them; the residuals by query and step."""
        modules, gradients = [module for module, _ in held], {}
        for module, one in held:
            common.require_finite(one.like, "gradient of a query", module.name)
            gradients[module.name] = one.like
        held.clear()
        found, residuals = refinement.solve(gradients, advance)
        held += [(module, GivenMatrices(found[module.name])) for module in modules]
        return residuals

    def _compressed(
        self, held: list[Held], first: int, count: int
    ) -> Iterator[tuple[str, Compressed]]:
        if self.mending is None:
            return compress(held, self.config)
        before = [query["modules"] for query in self.before[first : first + count]]
        return compress_again(held, self.config, before)


def query_batch(queries: list[EncodedQuery], device: torch.device) -> Batch:
    """A batch in which only completion tokens are predicted; ids count within the batch."""
    lengths = np.array([len(query.tokens) for query in queries], np.int32)
    tokens = np.zeros((len(queries), int(lengths.max())), np.int64)
    for row, query in enumerate(queries):
        tokens[row, : len(query.tokens)] = query.tokens
    starts = np.array([query.completion_start for query in queries], np.int64)
    return make_batch(np.arange(len(queries)), tokens, lengths, device, starts)
