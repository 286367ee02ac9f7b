"""`scan`: the influence of every training sequence on every query, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from inflcli import console
from inflcli.artifacts import scan as store
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.files import write_errors
from inflcli.artifacts.folder import Artifact, ArtifactWriter
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.queries import QueriesReader
from inflcli.config import Runtime, ScanConfig
from inflcli.errors import BadInput
from inflcli.influence.cost import ModuleShape, choose_routes
from inflcli.influence.scoring import DenseQueries, FactoredQueries, Queries
from inflcli.influence.topk import RunningTop
from inflcli.model.batches import plan_batches, read_batches
from inflcli.model.labels import TrueLabels
from inflcli.model.load import LoadedModel, dtype_name, identify, load_model
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule, depth_group, group_names, select_layers
from inflcli.stages import common

STAGE = "scan"


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
    config = replace(config, dtype=dtype_name(config.dtype, model, runtime.device))
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
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config.identity(), inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
    )
    if writer is None:
        return common.up_to_date(out, STAGE)
    loaded = load_model(model, device=runtime.device, dtype=config.dtype)
    common.require_context(reader, loaded)
    artifact = Scan(writer, loaded, reader, wanted, config, runtime, ids).run()
    summary = f"{len(ids)} sequences scored against {len(wanted.ids)} queries"
    return common.result(artifact, fresh=False, summary=summary)


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


@dataclass
class Scorer:
    """Adds up the scores of one batch, by depth group, as its gradients arrive."""

    queries: Mapping[str, Queries]
    groups: Mapping[str, int]
    group_count: int
    scores: Tensor
    """[B, Q, G] of the batch in hand."""

    def begin(self, sequences: int) -> None:
        self.scores = self.scores.new_zeros((sequences, *self.scores.shape[1:]))

    def consume(self, module: TrackedModule, a: Tensor, g: Tensor) -> None:
        element = self.scores.dtype
        found = self.queries[module.name].sequence_scores(a.to(element), g.to(element))
        common.require_finite(found, "score", module.name)
        self.scores[:, :, self.groups[module.name]] += found


class Scan:
    """One run of the stage. Progress: which chunks of the score arrays are done."""

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        corpus: CorpusReader,
        queries: QueriesReader,
        config: ScanConfig,
        runtime: Runtime,
        ids: NDArray[np.int64],
    ) -> None:
        self.writer, self.model, self.corpus, self.queries = writer, model, corpus, queries
        self.config, self.runtime, self.ids = config, runtime, ids
        every = common.tracked_from(queries.modules)
        self.modules = select_layers(every, config.layers)
        self.names = group_names(self.modules)
        self.routes: dict[str, str] = writer.progress.get("routes", {})

    def run(self) -> Artifact:
        group = store.create(
            self.writer.folder,
            self.queries.ids,
            self.corpus.n_sequences,
            self.names,
            min(self.config.top_k, self.corpus.n_sequences),
        )
        done = set(self.writer.progress.get("chunks", []))
        chunks = [chunk for chunk in _chunks(self.ids) if chunk[0] not in done]
        left = sum(len(ids) for _, ids in chunks)
        if chunks:
            scorer = self._scorer()
            passes = Passes.for_model(self.model, self.modules)
            with console.progress("scan", len(self.ids), done=len(self.ids) - left) as meter:
                for number, ids in chunks:
                    self._chunk(group, passes, scorer, number, ids, meter)
                    done.add(number)
                    written = store.chunk_files(self.writer.folder, number)
                    progress = {"chunks": sorted(done), "routes": self.routes}
                    self.writer.commit(progress, written)
        self._top(group)
        counts = {"sequences": len(self.ids), "queries": len(self.queries.ids)}
        details = {
            "routes": self.routes,
            "groups": self.names,
            "dtype": self.config.dtype,
            "modules": [module.name for module in self.modules],
        }
        return self.writer.finish(counts=counts, details=details)

    def _scorer(self) -> Scorer:
        element = self.model.statistics_dtype
        loaded = {m.name: self._load(m.name, element) for m in self.modules}
        self.routes = self._choose(loaded, element)
        queries = {
            name: entry.dense()
            if self.routes[name] == "dense" and isinstance(entry, FactoredQueries)
            else entry
            for name, entry in loaded.items()
        }
        groups = {module.name: depth_group(module, self.modules) for module in self.modules}
        shape = (0, len(self.queries.ids), len(self.names))
        empty = torch.zeros(shape, dtype=element, device=self.model.device)
        return Scorer(queries, groups, len(self.names), empty)

    def _load(self, name: str, element: torch.dtype) -> Queries:
        return load_queries(self.queries, name, element, self.model.device)

    def _choose(self, loaded: Mapping[str, Queries], element: torch.dtype) -> dict[str, str]:
        shapes = {
            module.name: ModuleShape(module.outputs, module.inputs, _columns(loaded[module.name]))
            for module in self.modules
        }
        routes = choose_routes(
            shapes,
            queries=len(self.queries.ids),
            tokens=float(self.corpus.lengths[self.ids].mean()),
            element=element.itemsize,
            memory=self.runtime.memory_gib * 2**30,
            forced=self.config.route,
        )
        for route in ("dense", "factored"):
            names = [name for name, taken in routes.items() if taken == route]
            if names:
                console.info(f"route {route} for {len(names)} of {len(routes)} modules")
                console.detail("  " + ", ".join(names))
        return routes

    def _chunk(
        self,
        group: zarr.Group,
        passes: Passes,
        scorer: Scorer,
        number: int,
        ids: NDArray[np.int64],
        meter: console.Meter,
    ) -> None:
        """Score the sequences `ids`, all within chunk `number` of the arrays, and write them."""
        first = number * store.CHUNK
        width = min(store.CHUNK, self.corpus.n_sequences - first)
        shape = (len(self.queries.ids), width, len(self.names))
        found = np.full(shape, np.nan, np.float32)
        plans = plan_batches(ids, self.corpus.lengths[ids], self.runtime.batch_size)
        for batch in read_batches(plans, self.corpus.take, self.corpus.lengths, self.model.device):
            scorer.begin(len(batch.ids))
            if batch.count:
                passes.run(batch, [TrueLabels()], scorer.consume)
            found[:, batch.ids - first] = scorer.scores.permute(1, 0, 2).float().cpu().numpy()
            meter.advance(len(batch.ids))
        with write_errors(self.writer.folder):
            span = slice(first, first + width)
            store.write(group, span, found.sum(-1, dtype=np.float64), found)

    def _top(self, group: zarr.Group) -> None:
        """The top-k of both signs, in one reading of the finished scores."""
        k = min(self.config.top_k, self.corpus.n_sequences)
        tops = [RunningTop.empty(len(self.queries.ids), k) for _ in range(2)]
        for first, scores in store.read_chunks(group):
            tops[0].update(first, scores)
            tops[1].update(first, -scores)
        with write_errors(self.writer.folder):
            store.write_top(
                group,
                np.stack([top.ids for top in tops], axis=1),
                np.stack([tops[0].scores, -tops[1].scores], axis=1),
            )


def load_queries(
    reader: QueriesReader, name: str, element: torch.dtype, device: torch.device
) -> Queries:
    """One module's queries, as they are stored."""
    stored = {key: value.to(device) for key, value in reader.matrices(name).items()}
    if "dense" in stored:
        return DenseQueries(stored["dense"].to(element))
    return FactoredQueries(
        stored["left"].to(element), stored["right"].to(element), stored["owner"], len(reader.ids)
    )


def _columns(queries: Queries) -> int | None:
    return queries.left.shape[1] if isinstance(queries, FactoredQueries) else None


def _chunks(ids: NDArray[np.int64]) -> Sequence[tuple[int, NDArray[np.int64]]]:
    """`ids` by the chunk of the score arrays that they lie in."""
    numbers = ids // store.CHUNK
    return [(int(number), ids[numbers == number]) for number in np.unique(numbers)]
