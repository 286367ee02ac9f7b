"""tfidf-filter: the sequences that share the most telling tokens with each query.

Two passes over the token store, one for how many sequences hold each of the queries' tokens, one
for the scores of all queries at once. Progress is recorded every `Runtime.checkpoint_seconds`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts import candidates, fingerprint
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Manifest
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import SCORERS, Runtime, TfidfConfig
from inflcli.corpus import bm25
from inflcli.corpus.queries import query_tokens, read_queries
from inflcli.errors import BadInput, CorruptArtifact, OutOfResources, StaleArtifact
from inflcli.model.resolve import load_tokenizer, resolve_folder
from inflcli.retrieval import tfidf
from inflcli.stages.common import Checkpoints, exclusively, result, up_to_date

BLOCK = 1024
PASSES = ("count", "score")


@exclusively
def tfidf_filter(
    corpus: Path,
    queries: Path,
    out: Path,
    config: TfidfConfig,
    runtime: Runtime,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Write the candidates `out`: the `config.top` sequences of `corpus` closest to each query.

    `tokenizer` is where the corpus's tokenizer lies now; by default where it lay. Raises BadInput,
    MissingArtifact, CorruptArtifact, StaleArtifact for a tokenizer that is not the corpus's, and
    OutOfResources for a BM25 scorer on a corpus that does not fit in memory.
    """
    if config.top < 1 or config.scorer not in SCORERS:
        raise BadInput(f"--top {config.top} or --scorer {config.scorer} makes no sense")
    asked = read_queries(queries)
    reader = CorpusReader.open(corpus)
    loaded = corpus_tokenizer(reader, tokenizer)
    read = {
        "corpus": reader.artifact.as_input(),
        "queries": fingerprint.of_files([queries], str(queries)),
    }
    identity = Identity(candidates.STAGE, config.identity(), read)
    if config.scorer != "paper":
        _require_memory(reader)
    writer = ArtifactWriter.begin(
        out, identity, overwrite=runtime.overwrite, command=runtime.command, salvage=_salvaged
    )
    if writer is None:
        return up_to_date(out, candidates.STAGE)
    ids, scores, left = _begun(writer, len(asked), min(config.top, reader.n_sequences))
    tokens = [query_tokens(asked[number], loaded) for number in left]
    search = _paper if config.scorer == "paper" else _bm25
    ids[left], scores[left] = search(writer, reader, tokens, config, runtime).ranked()
    attributes = {"scorer": config.scorer, "sequences": reader.n_sequences, "units": _units(config)}
    candidates.write(writer.folder, ids, scores, [query.id for query in asked], attributes)
    return _finish(writer, ids, reader.n_sequences)


def _salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any] | None:
    """The progress of damaged candidates: the queries that are to be searched for again."""
    counts = manifest.counts
    queries = candidates.damaged_queries(damaged, counts["queries"], counts["top"])
    return None if queries is None else {"damaged": queries}


def _begun(
    writer: ArtifactWriter, queries: int, top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[int]]:
    """Ids and scores [queries, top] as far as they are there, and the queries of which not."""
    left: list[int] = writer.progress.get("damaged", [])
    if left:
        try:
            return *candidates.read_sound(writer.folder, top, left, queries), left
        except CorruptArtifact:  # an earlier attempt was stopped while it wrote
            writer.ledger.drop_state({})
    ids, scores = np.zeros((queries, top), np.int64), np.zeros((queries, top), np.float32)
    return ids, scores, list(range(queries))


def _units(config: TfidfConfig) -> dict[str, str]:
    paper = config.scorer == "paper"
    score = "nats (sum of IDF)" if paper else f"rank-bm25's {config.scorer} score"
    return {"ids": "sequence of the corpus", "scores": score}


def corpus_tokenizer(corpus: CorpusReader, name: str | None = None) -> Any:
    """The tokenizer that made `corpus`, from where it is recorded to lie, or from `name`.

    Raises BadInput when it is not there, StaleArtifact when it is another one.
    """
    place = name or corpus.tokenizer
    try:
        folder = resolve_folder(place, weights=False)
    except BadInput as error:
        hint = "say where the corpus's tokenizer is with --tokenizer"
        raise BadInput(error.message, error.hint if name else hint) from error
    if fingerprint.of_tokenizer(folder, place).fingerprint != corpus.tokenizer_fingerprint:
        raise StaleArtifact(
            f"{corpus.artifact.path} was not made with the tokenizer {place} as it is now",
            f"prepare it again: inflcli prepare --tokenizer {place} ... --overwrite",
        )
    return load_tokenizer(folder)


def _paper(
    writer: ArtifactWriter,
    corpus: CorpusReader,
    queries: list[list[int]],
    config: TfidfConfig,
    runtime: Runtime,
) -> tfidf.TopCandidates:
    terms = tfidf.QueryTerms.of(queries)
    top = tfidf.TopCandidates(len(queries), min(config.top, corpus.n_sequences))
    frequency = np.zeros(len(terms.terms), np.int64)
    state = {name: one.numpy() for name, one in writer.ledger.load_state()[0].items()}
    if state:
        frequency = state["frequency"]
        top.restore(state["ids"], state["scores"])
    checkpoints = Checkpoints(runtime.checkpoint_seconds)
    done = writer.progress.get("sequences", 0)
    total = len(PASSES) * corpus.n_sequences
    weights = None
    with console.progress("tfidf-filter", total, done=done) as meter:
        while done < total:
            start = done % corpus.n_sequences
            stop = min(start + BLOCK, corpus.n_sequences)
            occurrence = terms.occurrence(corpus.tokens(start, stop), corpus.lengths[start:stop])
            if done < corpus.n_sequences:
                frequency += tfidf.block_frequency(occurrence)
            else:
                if weights is None:
                    weights = terms.weights(frequency, corpus.n_sequences)
                top.update(start, tfidf.block_scores(occurrence, weights))
            done += stop - start
            meter.advance(stop - start)
            if checkpoints.due():
                ids, scores = top.ranked()
                state = {"frequency": frequency, "ids": ids, "scores": scores}
                tensors = {name: torch.from_numpy(one) for name, one in state.items()}
                with checkpoints.saving():
                    progress = {**writer.ledger.said(), "sequences": done, "total": total}
                    writer.ledger.save_state(tensors, {}, progress)
    return top


def _bm25(
    writer: ArtifactWriter,
    corpus: CorpusReader,
    queries: list[list[int]],
    config: TfidfConfig,
    runtime: Runtime,
) -> tfidf.TopCandidates:
    top = tfidf.TopCandidates(len(queries), min(config.top, corpus.n_sequences))
    index = bm25.build(corpus, config.scorer)
    with console.progress("tfidf-filter", len(queries), unit="queries") as meter:
        for number, scores in enumerate(bm25.scores(index, queries)):
            top.update_one(number, 0, scores)
            meter.advance(1)
    return top


def _require_memory(corpus: CorpusReader) -> None:
    needed = int(corpus.lengths.sum(dtype=np.int64)) * bm25.BYTES_PER_TOKEN
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise OutOfResources(
            f"a BM25 scorer needs about {needed / 2**30:.1f} GiB for {corpus.artifact.path}, "
            f"{free / 2**30:.1f} GiB are free",
            "use --scorer paper, which streams",
        )


def _finish(writer: ArtifactWriter, ids: np.ndarray, sequences: int) -> dict[str, Any]:
    union = len(np.unique(ids[ids >= 0]))
    counts = {"queries": len(ids), "top": ids.shape[1], "union": union, "sequences": sequences}
    artifact: Artifact = writer.finish(counts=counts)
    share = 100 * union / sequences
    summary = (
        f"{len(ids)} queries, {ids.shape[1]} candidates each; "
        f"together {union} of {sequences} sequences ({share:.1f} %)"
    )
    return result(artifact, fresh=False, summary=summary)
