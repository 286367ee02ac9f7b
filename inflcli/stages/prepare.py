"""prepare: text to a corpus of token sequences.

Documents are read, tokenised and assembled in a stream. After every `COMMIT_SEQUENCES` sequences
(or `Runtime.checkpoint_seconds`) the position in the text, the unfinished sequence and the rows
that fill no chunk yet are recorded together, and a later run of the same command goes on there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts.corpus import STAGE, CorpusLayout, CorpusWriter
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import PrepareConfig, Runtime
from inflcli.corpus.assemble import Assembler, Packed, PerDocument
from inflcli.corpus.documents import BadRecord, Document
from inflcli.corpus.encode import EncodedPiece, Encoder, Piece, pieces_of
from inflcli.corpus.readers import ReadOptions, read_source
from inflcli.corpus.sources import TextSource, discover, of_text
from inflcli.errors import BadInput, InflcliError
from inflcli.model.resolve import load_tokenizer, resolve_folder
from inflcli.stages.common import Checkpoints, exclusively, result

COMMIT_SEQUENCES = 1024
BATCH_CHARS = 1 << 18
BATCH_PIECES = 1024
_SHOWN = 10


@dataclass(frozen=True)
class Position:
    """How far the text is consumed: sources, records of the next one, pieces of the next one."""

    source: int = 0
    record: int = 0
    piece: int = 0


@dataclass(frozen=True)
class _Item:
    what: Piece | BadRecord
    after: Position
    read: int
    """Bytes of all sources on disk that are read so far."""


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
        out, identity, overwrite=runtime.overwrite, command=runtime.command
    )
    if writer is None:
        return _result(Artifact.open(out, STAGE), fresh=True)
    packing = "per-line" if config.per_line else "packed"
    vocabulary = max(loaded.get_vocab().values()) + 1  # ids may have gaps
    layout = CorpusLayout(tokenizer, vocabulary, config.seq_len, packing, config.bos)
    try:
        run = _Run(writer, layout, sources, config, runtime, bos, separator)
        run.consume(encoder)
        artifact = run.finish(inputs)
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


class _Run:
    """The stage at work: everything that moves as the text is consumed."""

    def __init__(
        self,
        writer: ArtifactWriter,
        layout: CorpusLayout,
        sources: list[TextSource],
        config: PrepareConfig,
        runtime: Runtime,
        bos: int | None,
        separator: int | None,
    ) -> None:
        self.writer, self.sources, self.config = writer, sources, config
        before = writer.progress
        state = {name: one.numpy() for name, one in writer.ledger.load_state()[0].items()}
        self.corpus = CorpusWriter(
            writer.folder, layout, state=state, counts=before.get("rows"), chunk_rows=1024
        )
        self.assembler: Assembler = (
            PerDocument(config.seq_len, bos, self._register)
            if separator is None
            else Packed(config.seq_len, bos, self._register, separator)
        )
        self.position = Position(**before.get("position", {}))
        self.bad: list[str] = before.get("bad_records", [])
        self.tokens: int = before.get("tokens", 0)
        self.read: int = before.get("bytes_read", 0)
        if before:
            self.assembler.restore(before["assembler"])
        self._committed = self.corpus.n_sequences
        self._checkpoints = Checkpoints(runtime.checkpoint_seconds)

    def _register(self, document: Document) -> int:
        return self.corpus.add_document(
            document.id, document.file, document.line, document.metadata
        )

    def consume(self, encoder: Encoder) -> None:
        """Read, tokenise and store all that is not yet."""
        total = sum(source.size() for source in self.sources)
        with console.progress(
            "prepare", total // 1024 or None, done=self.read // 1024, unit="KiB"
        ) as meter:
            for batch in _batches(_items(self.sources, self.config, self.position)):
                encodings = iter(
                    encoder.encode([one.what for one in batch if isinstance(one.what, Piece)])
                )
                for item in batch:
                    if isinstance(item.what, BadRecord):
                        self._count_bad(item.what)
                    else:
                        encoding = next(encodings)
                        self.assembler.add(EncodedPiece(item.what, encoding, self.assembler.seen))
                    self.position = item.after
                self._store()
                meter.advance(batch[-1].read // 1024 - self.read // 1024)
                self.read = batch[-1].read
                self._commit_if_due()

    def _count_bad(self, record: BadRecord) -> None:
        if not self.config.skip_bad:
            raise BadInput(str(record), "mend it, or count such records with --skip-bad")
        self.assembler.counts["bad"] += 1
        if len(self.bad) < _SHOWN:
            self.bad.append(str(record))

    def _store(self) -> None:
        ready = self.assembler.take_ready()
        self.corpus.add_sequences([tokens for tokens, _ in ready], [spans for _, spans in ready])
        self.tokens += sum(len(tokens) for tokens, _ in ready)

    def _commit_if_due(self) -> None:
        new = self.corpus.n_sequences - self._committed
        if new < COMMIT_SEQUENCES and not self._checkpoints.due():
            return
        progress = {
            "sequences": self.corpus.n_sequences,
            "documents": self.corpus.n_documents,
            "tokens": self.tokens,
            "bytes_read": self.read,
            "bytes_total": sum(source.size() for source in self.sources),
            "position": asdict(self.position),
            "bad_records": list(self.bad),
            "rows": self.corpus.counts(),
            "assembler": self.assembler.state(),
        }
        with self._checkpoints.saving():
            self.corpus.make_durable()
            state = self.corpus.state()
            tails = {name: torch.from_numpy(_plain(one)) for name, one in state.items()}
            self.writer.ledger.save_state(tails, {}, progress)
        self._committed = self.corpus.n_sequences

    def finish(self, inputs: list[str]) -> Artifact:
        """Store the last sequence and publish the corpus."""
        self.assembler.finish()
        self._store()
        if not self.corpus.n_sequences:
            dropped = sum(self.assembler.counts.values())
            raise BadInput(
                f"the input {' '.join(inputs)} holds no text to train on"
                + (f" ({dropped} records are empty, too short or bad)" if dropped else "")
            )
        self.corpus.finish()
        counts = {
            "sequences": self.corpus.n_sequences,
            "documents": self.corpus.n_documents,
            "tokens": self.tokens,
            **{name: self.assembler.counts[name] for name in ("empty", "short", "cut", "bad")},
        }
        details = {
            "inputs": inputs,
            "include": list(self.config.include),
            "sources": len(self.sources),
            "skip_bad": self.config.skip_bad,
            "bad_records": self.bad,
        }
        return self.writer.finish(counts=counts, details=details)


def _plain(rows: Any) -> Any:
    """Rows in a type that every torch and safetensors version can store."""
    return rows if rows.dtype == "uint8" else rows.astype("int64")


def _items(sources: list[TextSource], config: PrepareConfig, start: Position) -> Iterator[_Item]:
    """All pieces and bad records from `start` on."""
    options = ReadOptions(config.text_field, config.per_line)
    before = sum(source.size() for source in sources[: start.source])
    for index, source in enumerate(sources[start.source :], start.source):
        here = start if index == start.source else Position(index)
        reached = 0
        for number, record in enumerate(read_source(source, options, here.record), here.record):
            following = Position(index, number + 1)
            if isinstance(record, BadRecord):
                yield _Item(record, following, before + reached)
                continue
            skip = here.piece if number == here.record else 0
            for piece in pieces_of(record):
                if piece.number >= skip:
                    after = following if piece.last else Position(index, number, piece.number + 1)
                    # A text file's position is its end; its pieces tell how far they are.
                    shown = piece.offset + len(piece.text)
                    reached = max(
                        reached, record.position if piece.last else min(shown, record.position)
                    )
                    yield _Item(piece, after, before + reached)
        before += source.size()


def _batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Group items so that one call of the tokenizer has enough, and not too much, to do."""
    batch: list[_Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.what.text) if isinstance(item.what, Piece) else 0
        if chars >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


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
