"""What a plan is for: the model's outline, the sequences, the queries and the stages' settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import PlanConfig, Runtime
from inflcli.corpus.queries import EncodedQuery, Query, encode_query, read_queries
from inflcli.errors import BadInput
from inflcli.model.batches import plan_batches
from inflcli.model.load import arithmetic, pick_device
from inflcli.model.memory import budget
from inflcli.model.resolve import load_tokenizer
from inflcli.stages.fit_plan import chosen_sequences
from inflcli.stages.planning.outline import Outline

_IMAGINED = 1 << 16
"""Sequences that stand for a corpus which is not there; they are all of one length."""
_IMAGINED_TOKENS = 64
"""Different ones, which every vocabulary has."""
_QUERY_TOKENS, _COMPLETION_TOKENS = 16, 4
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Reading:
    """What one pass reads."""

    sequences: float
    positions: float
    """Of all batches, padding included."""
    predicted: float

    @property
    def tokens(self) -> float:
        """Positions a sequence."""
        return self.positions / max(self.sequences, 1)


@dataclass(frozen=True)
class Text:
    """The sequences of a corpus, or of one that is imagined."""

    count: int
    lengths: NDArray[np.int32]
    """Of all sequences; of the first of them where they are imagined, and all alike."""
    reader: CorpusReader | None

    @property
    def width(self) -> int:
        """The longest sequence."""
        return int(self.lengths.max())

    @property
    def mean(self) -> float:
        return float(self.lengths.mean())

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids [n, T]; the same made-up ones for every imagined sequence."""
        if self.reader is not None:
            return self.reader.take(ids)
        row = np.random.default_rng(0).integers(0, _IMAGINED_TOKENS, self.width)
        return np.tile(row, (len(ids), 1))

    def reading(
        self, ids: NDArray[np.int64], batch_size: int | None, chunk: int | None = None
    ) -> Reading:
        """Of a pass over sequences `ids`, cut into batches as the stages do, chunk by chunk."""
        sequences = positions = predicted = 0.0
        for first in range(0, len(ids), chunk or max(len(ids), 1)):
            part = self.lengths[ids[first : first + (chunk or len(ids))]]
            batches = plan_batches(np.arange(len(part)), part, batch_size)
            sequences += len(part)
            positions += sum(len(batch) * int(part[batch[0]]) for batch in batches)
            predicted += float(np.maximum(part - 1, 0).sum())
        return Reading(sequences, positions, predicted)


@dataclass(frozen=True)
class Task:
    """All that the stages' costs follow from, with nothing left to choose."""

    outline: Outline
    text: Text
    fit_ids: NDArray[np.int64]
    queries: int
    encoded: list[EncodedQuery]
    """The queries; some alike where there is only their number."""
    config: PlanConfig
    device: torch.device
    memory: float
    """Bytes that a stage may choose to hold."""
    available: float | None
    """Bytes that are free on the device; None if it is not here."""
    batch_size: int | None

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.config.fit.dtype)
        return found

    @property
    def fast(self) -> bool:
        return self.config.fit.precision == "fast"

    @property
    def element(self) -> int:
        """Bytes of a number of the statistics."""
        return 8 if self.dtype == torch.float64 else 4

    @property
    def product(self) -> int:
        """Bytes of a number of what is multiplied: bases, dense queries, queries on disk."""
        return 2 if self.fast else self.element

    @property
    def product_dtype(self) -> torch.dtype:
        """In which queries are preconditioned and truncated."""
        if self.fast:
            return torch.bfloat16
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def query_tokens(self) -> float:
        return float(np.mean([len(query.tokens) for query in self.encoded]))

    @property
    def ranked_length(self) -> float:
        """Tokens of a sequence of the ranking: long ones are more often among the top."""
        lengths = self.text.lengths.astype(np.float64)
        return float((lengths**2).mean() / lengths.mean())

    def fit_reading(self) -> Reading:
        found, scale = self.text.reading(self.fit_ids, self.batch_size), 1.0
        if self.text.reader is None:
            wanted = self.config.fit.max_sequences or self.text.count
            scale = min(wanted, self.text.count) / len(self.fit_ids)
        return _scaled(found, scale)

    def scan_reading(self, chunk: int) -> Reading:
        every = np.arange(len(self.text.lengths))
        found = self.text.reading(every, self.batch_size, chunk)
        return _scaled(found, self.text.count / len(every))


def _scaled(one: Reading, by: float) -> Reading:
    return Reading(one.sequences * by, one.positions * by, one.predicted * by)


def read_text(corpus: Path | None, config: PlanConfig) -> Text:
    """The corpus, or sequences as the settings imagine them. Raises what opening a corpus does."""
    if corpus is not None:
        reader = CorpusReader.open(corpus)
        return Text(reader.n_sequences, reader.lengths, reader)
    assert config.sequences is not None and config.seq_len is not None
    lengths = np.full(min(config.sequences, _IMAGINED), config.seq_len, np.int32)
    return Text(config.sequences, lengths, None)


def make_task(
    outline: Outline,
    folder: Path,
    text: Text,
    queries: Path | None,
    config: PlanConfig,
    runtime: Runtime,
) -> Task:
    """Resolve what the settings leave to the model, the corpus and the device. Raises BadInput."""
    if outline.context is not None and text.width > outline.context:
        raise BadInput(
            f"the sequences have {text.width} tokens, the model takes {outline.context}",
            f"plan with --seq-len {outline.context} or less",
        )
    device, here = _device(runtime.device, config.calibrate)
    if here:
        dtype, precision = arithmetic(
            config.fit.dtype, config.fit.precision, str(folder), runtime.device
        )
    else:
        dtype = outline.own_dtype if config.fit.dtype == "auto" else config.fit.dtype
        usual = "exact" if dtype == "float64" else "fast"
        precision = usual if config.fit.precision == "auto" else config.fit.precision
        if runtime.memory_gib is None:
            raise BadInput(
                f"how much memory has {runtime.device}? It is not here",
                "say with --max-memory what a stage may plan with, beside the model",
            )
    config = config.with_arithmetic(dtype, precision)
    if text.reader is not None:
        fit_ids = chosen_sequences(text.reader, config.fit)
    else:
        fit_ids = np.arange(min(config.fit.max_sequences or text.count, len(text.lengths)))
    memory = budget(runtime.memory_gib, device)
    if runtime.memory_gib is None and not config.calibrate:
        # The stages look when the model is loaded.
        weights = outline.parameters * getattr(torch, dtype).itemsize
        memory = max(0.0, memory - weights / 2)
    count, encoded = _queries(queries, text, folder, config, outline.context)
    return Task(
        outline=outline,
        text=text,
        fit_ids=fit_ids,
        queries=count,
        encoded=encoded,
        config=config,
        device=device,
        memory=memory,
        available=available(device) if here else None,
        batch_size=runtime.batch_size,
    )


def _device(name: str, needed: bool) -> tuple[torch.device, bool]:
    """The device, and whether it is here. Raises BadInput."""
    try:
        return pick_device(name), True
    except BadInput:
        if needed or name.split(":")[0] != "cuda":
            raise
        return torch.device("cuda"), False


def available(device: torch.device) -> float:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def _queries(
    file: Path | None, text: Text, folder: Path, config: PlanConfig, context: int | None
) -> tuple[int, list[EncodedQuery]]:
    """How many there are, and their tokens, which are guessed where nothing is calibrated."""
    if file is not None:
        found = read_queries(file)
        if config.calibrate:
            tokenizer, bos = load_tokenizer(folder), config.precondition.bos
            encoded = [encode_query(one, tokenizer, bos=bos, max_tokens=context) for one in found]
            return len(found), encoded
        lengths = [len(one.prompt + one.completion) // _CHARACTERS_A_TOKEN for one in found]
        return len(found), [_imagined(np.zeros(max(2, size), np.int64)) for size in lengths]
    assert config.n_queries is not None
    long = np.flatnonzero(text.lengths >= min(_QUERY_TOKENS, text.width))
    some = long[np.linspace(0, len(long) - 1, min(config.n_queries, 8)).astype(np.int64)]
    return config.n_queries, [_imagined(row[:_QUERY_TOKENS]) for row in text.take(some)]


def _imagined(tokens: NDArray[np.int64]) -> EncodedQuery:
    start = max(1, len(tokens) - _COMPLETION_TOKENS)
    return EncodedQuery(Query("imagined", "", ""), tokens.tolist(), start, merged=False)
