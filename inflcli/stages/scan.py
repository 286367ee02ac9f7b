"""`scan`: the influence of every training sequence on every query, in one pass."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts import scan as store
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.files import write_errors
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Manifest
from inflcli.artifacts.queries import QueriesReader
from inflcli.config import Runtime, ScanConfig
from inflcli.errors import BadInput
from inflcli.influence.cost import Work
from inflcli.influence.topk import RunningTop
from inflcli.model.batches import plan_batches
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, arithmetic, identify
from inflcli.model.memory import budget
from inflcli.model.passes import Passes
from inflcli.model.tracked import depth_group, group_names, select_layers
from inflcli.stages import common
from inflcli.stages.scoring import (
    Scorer,
    describe_routes,
    load_queries,
    on_route,
    pick_routes,
    scan_work,
)
from inflcli.stages.units import Unit, ignore, read_units

STAGE = "scan"


@common.exclusively_by_ranks
def scan(
    model: str,
    queries: Path,
    corpus: Path,
    out: Path,
    config: ScanConfig,
    runtime: Runtime,
    candidates: Path | None = None,
) -> dict[str, Any]:
    """Score a corpus, a slice of it, or the union of the candidates, against all queries.

    Cost: one forward and one activations-only backward of what is scanned, whatever the number of
    queries, and the scoring (`influence.cost`). Raises BadInput, StaleArtifact, NumericalFault.
    """
    reader, wanted = CorpusReader.open(corpus), QueriesReader.open(queries)
    dtype, precision = arithmetic(config.dtype, config.precision, model, runtime.device)
    config = replace(config, dtype=dtype, precision=precision)
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    mend = f"make them again: inflcli precondition --model {model} ... --overwrite"
    wanted.artifact.require_input("model", weights, mend)
    inputs = {
        "model": weights,
        "queries": wanted.artifact.as_input(),
        "corpus": reader.artifact.as_input(),
    }
    chosen = None if candidates is None else CandidateReader.open(candidates)
    if chosen is not None:
        again = "filter again: inflcli tfidf-filter ... --overwrite"
        chosen.artifact.require_input("corpus", reader.artifact.as_input(), again)
        chosen.artifact.require_input("queries", wanted.artifact.manifest.inputs["queries"], again)
        inputs["candidates"] = chosen.artifact.as_input()
    ids = _scanned(reader, config, chosen)
    begun = common.begin(out, Identity(STAGE, config.identity(), inputs), runtime, salvaged)
    if begun is None:
        return common.up_to_date(out, STAGE)
    loaded = common.load(model, config.dtype, runtime)
    common.require_context(reader, loaded)
    artifact = Scan(begun, loaded, reader, wanted, config, runtime, ids).run()
    scored = artifact.manifest.counts["sequences"]
    summary = f"{scored} sequences scored against {len(wanted.ids)} queries"
    return common.result(artifact, fresh=False, summary=summary)


def salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any]:
    """The progress of a damaged scan: the chunks whose files are sound."""
    chunks = store.chunks_in(manifest.files) - store.chunks_in(damaged)
    return {"chunks": sorted(chunks), "routes": manifest.details["routes"]}


def _scanned(
    corpus: CorpusReader, config: ScanConfig, candidates: CandidateReader | None
) -> NDArray[np.int64]:
    """Numbers of the sequences to scan, ascending. Raises BadInput for an empty choice."""
    stop = corpus.n_sequences if config.stop is None else config.stop
    if not 0 <= config.start < stop <= corpus.n_sequences:
        raise BadInput(
            f"--range {config.start}:{stop} is not within the corpus's 0:{corpus.n_sequences}"
        )
    ids = np.arange(corpus.n_sequences) if candidates is None else candidates.union()
    ids = ids[(ids >= config.start) & (ids < stop)]
    if len(ids) == 0:
        raise BadInput("there is nothing to scan: no candidate lies in the range")
    return ids


class Scan:
    """One run of the stage, or one process's part in it. Progress: the chunks that are done."""

    def __init__(
        self,
        begun: common.Begun,
        model: LoadedModel,
        corpus: CorpusReader,
        queries: QueriesReader,
        config: ScanConfig,
        runtime: Runtime,
        ids: NDArray[np.int64],
    ) -> None:
        self.begun, self.writer, self.ranks = begun, begun.writer, begun.ranks
        self.model, self.corpus, self.queries = model, corpus, queries
        self.config, self.runtime, self.ids = config, runtime, ids
        every = common.tracked_from(queries.modules)
        self.modules = select_layers(every, config.layers)
        self.names = group_names(self.modules)
        self.routes: dict[str, str] = begun.before.get("routes", {})
        self.done: set[int] = set(begun.before.get("chunks", []))

    def run(self) -> Artifact:
        # The first process creates the arrays, the others find them.
        if self.ranks.rank == 0:
            self._open_arrays()
        self.ranks.wait()
        if self.ranks.rank:
            self._open_arrays()
        mine, shard = self._chunks(), self.config.shard
        if shard is not None:
            mine = mine[shard.part(len(mine))]
        left = [chunk for chunk in mine if chunk.number not in self.done]
        started = time.monotonic()
        if left:
            self._score(left, sum(len(one.ids) for one in mine if one.number in self.done))
        self.ranks.wait()
        seconds = round(time.monotonic() - started, 3)
        if shard is None and self.ranks.rank == 0:
            with write_errors(self.writer.folder):
                write_top(self.group)
        scanned = sum(len(one.ids) for one in mine)
        counts = {"sequences": scanned, "queries": len(self.queries.ids)}
        details = {
            "routes": self.routes,
            "groups": self.names,
            "dtype": self.config.dtype,
            "precision": self.config.precision,
            "modules": [module.name for module in self.modules],
            "group_of": [depth_group(module, self.modules) for module in self.modules],
        }
        return self.begun.finish(counts=counts, details=details, timings={"scan": seconds})

    def _open_arrays(self) -> None:
        self.group = store.create(
            self.writer.folder,
            self.queries.ids,
            self.corpus.n_sequences,
            self.names,
            min(self.config.top_k, self.corpus.n_sequences),
            int(self.corpus.lengths.max()) if self.config.token_scores else None,
            self.config.chunk_size,
        )

    def _chunks(self) -> list[Unit]:
        """What to scan, by the chunk of the score arrays that it lies in."""
        numbers = self.ids // self.config.chunk_size
        return [Unit(int(number), self.ids[numbers == number]) for number in np.unique(numbers)]

    def _score(self, chunks: Sequence[Unit], done: int) -> None:
        """Score chunk after chunk; each is written while the next is computed.

        `done` are the sequences of earlier runs.
        """
        scorer = self._scorer()
        passes = Passes.for_model(self.model, self.modules, self.config.precision)
        total = sum(len(chunk.ids) for chunk in chunks) + done
        parts = read_units(
            chunks, self.ranks, STAGE, self.corpus, self.model, self.runtime.batch_size
        )
        with (
            console.progress("scan", total, done=done) as meter,
            common.Behind() as behind,
        ):
            for part in parts:
                batch = part.batch
                if part.unit is None:
                    passes.run(batch, [TrueLabels()], ignore)
                    continue
                ids = part.unit.ids
                if part.first:
                    scorer.begin(len(ids))
                scorer.place(torch.from_numpy(np.searchsorted(ids, batch.ids)))
                if batch.count or self.model.lockstep:
                    passes.run(batch, [TrueLabels()], scorer.consume)
                meter.reach(done + self.ranks.tally(STAGE, len(batch.ids)))
                if part.last:
                    scorer.end()
                    tokens = None if scorer.tokens is None else scorer.tokens.float().cpu().numpy()
                    layers = scorer.layers.float().cpu().numpy()
                    behind.do(partial(self._record, part.unit.number, ids, layers, tokens))

    def _record(
        self,
        number: int,
        ids: NDArray[np.int64],
        layers: NDArray[np.float32],
        tokens: NDArray[np.float32] | None,
    ) -> None:
        """Write the scores of the sequences `ids`, all within chunk `number` of the arrays."""
        size = self.config.chunk_size
        first = number * size
        width = min(size, self.corpus.n_sequences - first)
        span = slice(first, first + width)

        def spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
            """[n, ...] to [width, ...], NaN where nothing was scanned."""
            found = np.full((width, *values.shape[1:]), np.nan, np.float32)
            found[ids - first] = values
            return found

        with write_errors(self.writer.folder):
            by_query = spread(layers).transpose(1, 0, 2)
            store.write(self.group, span, by_query.sum(-1, dtype=np.float64), by_query)
            if tokens is not None:
                store.write_tokens(self.group, span, spread(tokens).transpose(2, 0, 1))
        self.done.add(number)
        written = store.chunk_files(self.writer.folder, number)
        self.writer.commit({"chunks": sorted(self.done), "routes": self.routes}, written)

    def _scorer(self) -> Scorer:
        """The queries by the route of each module."""
        element, device = self.model.statistics_dtype, self.model.device
        held = torch.bfloat16 if self.config.precision == "fast" else element
        names = [module.name for module in self.modules]
        loaded = {name: load_queries(self.queries, name, held, device) for name in names}
        work = self._work(held)
        if not self.routes:
            memory = budget(self.runtime.memory_gib, device)
            routes = pick_routes(
                loaded, self.modules, work, memory=memory, forced=self.config.route
            )
            self.routes = self.ranks.broadcast(routes)
            if self.ranks.rank == 0:
                self.writer.commit({**self.writer.progress, "routes": self.routes})
        queries = {n: on_route(loaded.pop(n), self.routes[n]) for n in names}
        describe_routes(queries, self.routes)
        groups = {module.name: depth_group(module, self.modules) for module in self.modules}
        shape = (len(self.queries.ids), len(self.names))
        width = int(self.corpus.lengths.max()) if self.config.token_scores else None
        return Scorer(queries, groups, shape, width, work.waiting, element, device)

    def _work(self, held: torch.dtype) -> Work:
        lengths = self.corpus.lengths[self.ids]
        return scan_work(
            lengths,
            len(plan_batches(self.ids, lengths, self.runtime.batch_size)),
            chunk=min(self.config.chunk_size, len(lengths)),
            queries=len(self.queries.ids),
            device=self.model.device,
            precision=self.config.precision,
            element=held.itemsize,
            token_scores=self.config.token_scores,
        )


def write_top(group: zarr.Group) -> None:
    """The top-k of both signs, in one reading of the finished scores."""
    queries, _, k = store.top_shape(group)
    tops = [RunningTop.empty(queries, k) for _ in range(2)]
    for first, scores in store.read_chunks(group):
        tops[0].update(first, scores)
        tops[1].update(first, -scores)
    ids = np.stack([top.ids for top in tops], axis=1)
    store.write_top(group, ids, np.stack([tops[0].scores, -tops[1].scores], axis=1))
