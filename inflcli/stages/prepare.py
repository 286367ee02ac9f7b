"""prepare: text to a corpus of token sequences.

After every `COMMIT_SEQUENCES` sequences (or `Runtime.checkpoint_seconds`) the position in the text,
the unfinished sequence and the rows that fill no chunk yet are recorded together, and a later run
of the same command goes on there. A damaged corpus is mended (see `mend_corpus`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts.corpus import STAGE, CorpusLayout
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import PrepareConfig, Runtime
from inflcli.corpus.encode import Encoder
from inflcli.corpus.sources import discover, of_text
from inflcli.errors import BadInput, InflcliError
from inflcli.model.resolve import load_tokenizer, resolve_folder
from inflcli.stages.common import Checkpoints, exclusively, result
from inflcli.stages.mend_corpus import MENDING, mend, salvaged
from inflcli.stages.tokenising import Task, Tokenising

COMMIT_SEQUENCES = 1024


@exclusively
def prepare(
    inputs: list[str], tokenizer: str, out: Path, config: PrepareConfig, runtime: Runtime
) -> dict[str, Any]:
    """Write the corpus `out` from the texts that `inputs` name.

    Returns `artifact`, `fresh` (nothing was to be done), `summary` and the counts. Raises BadInput
    for texts, records and tokenizers that cannot be used, StaleArtifact when `out` holds something
    else, OutOfResources. Memory does not grow with the text, but for its longest line.
    """
    sources = discover(inputs, split=config.split, include=config.include)
    folder = resolve_folder(tokenizer, weights=False)
    loaded = load_tokenizer(folder)
    encoder = Encoder(loaded, tokenizer)
    bos, separator = _special_tokens(loaded, tokenizer, config)
    read = {
        "tokenizer": fingerprint.of_tokenizer(folder, tokenizer),
        "text": of_text(sources, " ".join(inputs)),
    }
    identity = Identity(STAGE, config.identity(), read)
    writer = ArtifactWriter.begin(
        out, identity, overwrite=runtime.overwrite, command=runtime.command, salvage=salvaged
    )
    if writer is None:
        return _result(Artifact.open(out, STAGE), fresh=True)
    packing = "per-line" if config.per_line else "packed"
    vocabulary = max(loaded.get_vocab().values()) + 1  # ids may have gaps
    layout = CorpusLayout(tokenizer, vocabulary, config.seq_len, packing, config.bos)
    task = Task(layout, sources, config, bos, separator)
    if MENDING in writer.progress:
        return _result(mend(writer, task, encoder), fresh=False)
    try:
        artifact = _make(writer, task, encoder, runtime, inputs)
    except InflcliError:
        writer.abandon()
        raise
    return _result(artifact, fresh=False)


def _special_tokens(
    tokenizer: Any, name: str, config: PrepareConfig
) -> tuple[int | None, int | None]:
    """The ids of bos and of the token between documents, each None where it is not wanted."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if config.bos and bos is None:
        raise BadInput(f"the tokenizer {name} has no bos token", "leave out --bos")
    if not config.per_line and eos is None:
        raise BadInput(
            f"the tokenizer {name} has no eos token to put between documents", "use --per-line"
        )
    return bos if config.bos else None, None if config.per_line else eos


def _make(
    writer: ArtifactWriter, task: Task, encoder: Encoder, runtime: Runtime, inputs: list[str]
) -> Artifact:
    """Consume the text, recording now and then how far it is, and publish the corpus."""
    before = writer.progress
    tails = {name: one.numpy() for name, one in writer.ledger.load_state()[0].items()}
    run = Tokenising(writer.folder, task, before, tails, before.get("rows"))
    run.read = before.get("bytes_read", 0)
    checkpoints = Checkpoints(runtime.checkpoint_seconds)
    committed = run.corpus.n_sequences

    def commit_if_due() -> bool:
        nonlocal committed
        new = run.corpus.n_sequences - committed
        if new >= COMMIT_SEQUENCES or checkpoints.due():
            with checkpoints.saving():
                _commit(writer, run)
            committed = run.corpus.n_sequences
        return True

    run.consume(encoder, "prepare", commit_if_due)
    run.finish()
    if not run.corpus.n_sequences:
        dropped = sum(run.assembler.counts.values())
        raise BadInput(
            f"the input {' '.join(inputs)} holds no text to train on"
            + (f" ({dropped} records are empty, too short or bad)" if dropped else "")
        )
    counts = {
        "sequences": run.corpus.n_sequences,
        "documents": run.corpus.n_documents,
        "tokens": run.tokens,
        **{name: run.assembler.counts[name] for name in ("empty", "short", "cut", "bad")},
    }
    details = {
        "inputs": inputs,
        "include": list(task.config.include),
        "sources": len(task.sources),
        "skip_bad": task.config.skip_bad,
        "bad_records": run.bad,
        "rows": run.corpus.counts(),
    }
    return writer.finish(counts=counts, details=details)


def _commit(writer: ArtifactWriter, run: Tokenising) -> None:
    progress = {
        "sequences": run.corpus.n_sequences,
        "documents": run.corpus.n_documents,
        "bytes_read": run.read,
        "bytes_total": sum(source.size() for source in run.task.sources),
        "rows": run.corpus.counts(),
        **run.state(),
    }
    run.corpus.make_durable()
    tails = {name: torch.from_numpy(_plain(one)) for name, one in run.corpus.state().items()}
    writer.ledger.save_state(tails, {}, progress)


def _plain(rows: Any) -> Any:
    """Rows in a type that every torch and safetensors version can store."""
    return rows if rows.dtype == "uint8" else rows.astype("int64")


def _result(artifact: Artifact, *, fresh: bool) -> dict[str, Any]:
    counts = artifact.manifest.counts
    if counts["bad"] and not fresh:
        shown = "; ".join(artifact.manifest.details["bad_records"][:3])
        console.warn(f"{counts['bad']} bad records left out, first: {shown}")
    parts = [
        f"{counts['sequences']} sequences, {counts['tokens']} tokens, "
        f"{counts['documents']} documents"
    ]
    if counts["cut"]:
        parts.append(f"{counts['cut']} documents cut")
    dropped = counts["short"] + counts["empty"]
    if dropped:
        parts.append(f"{dropped} empty or too short")
    return result(artifact, fresh=fresh, summary="; ".join(parts))
