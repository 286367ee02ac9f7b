"""How fast, and in what memory, a device does the stages' work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from inflcli.model.tracked import TrackedModule
from inflcli.stages.planning.task import Task

PASSES = ("covariance", "corrected", "queries", "refine", "scan", "attribute")
KINDS = (*PASSES, "eigenvectors")


@dataclass(frozen=True)
class Rates:
    """What `timing` measures, or a guess at it."""

    speed: Mapping[str, float]
    """FLOPs a second, by kind of work."""
    working: Mapping[str, float]
    """Bytes that a kind of work takes at its peak, beside the model, the sums and the queries."""
    base: float
    """Bytes in memory with the model loaded: the host's, or on a GPU the device's."""
    start: float
    """Seconds until a stage begins its work: the programme, its checks, the model."""
    light: float
    """Bytes in memory of a stage that needs no model, before its work."""
    light_start: float
    """Seconds until such a stage begins its work."""
    text: Mapping[str, float]
    """Tokens a second of such a stage."""
    read: float
    """Bytes of tensors a second from an artifact to the device."""
    write: float
    """Bytes of tensors a second into an artifact, durably."""
    digest: float
    """Bytes a second of an artifact's checksums."""
    candidate: float
    """Bytes on disk of a candidate of the filter."""
    columns: Mapping[str, float]
    """Components that are kept of a query in each module, on average."""
    bounded: bool
    """Whether `columns` are only what they are at most."""
    sampled: Mapping[str, float]
    """What was measured on: batches, tokens, matrices, queries. Empty for a guess."""


# FLOPs a second: of a core of a CPU, about what a calibration measured on a Xeon with AMX; of a GPU
# nothing is measured, these are a sixth of an A100's data sheet, and less for eigenvectors.
_GUESSED = {
    "cpu": dict.fromkeys(PASSES, 90e9) | {"eigenvectors": 50e9},
    "cuda": dict.fromkeys(PASSES, 50e12) | {"eigenvectors": 500e9},
}
_WITHOUT_FAST = {"cpu": 0.5, "cuda": 0.15}
TEXT_SPEED = {"prepare": 300e3, "tfidf-filter": 2e6, "report": 50e3}
"""Tokens a second of the stages that run no model, measured on a Xeon."""
CANDIDATE = 12
"""Bytes of a candidate before it is compressed: its number and its score."""
_LIGHT_BYTES, _LIGHT_START = 400e6, 2.5
_PROGRAMME_BYTES = {"cpu": 500e6, "cuda": 0.0}
_START = 6.0
_DISK = 1e9
LOGITS_HELD = 3 * 4 * (1 << 24)
"""Bytes of the head's chunk and its copies."""
_TOKENS_A_BATCH = 4096


def most_columns(module: TrackedModule, task: Task) -> int:
    """The highest rank that a query may keep in a module."""
    config, short = task.config.precondition, min(module.inputs, module.outputs)
    wanted = config.rank if config.keep is None else config.max_rank
    return min(wanted or short, short)


def guess(task: Task) -> Rates:
    """Rates without any measurement."""
    kind, outline = task.device.type, task.outline
    kind = kind if kind in _GUESSED else "cuda"
    width, batch = task.text.width, task.batch_size
    positions = batch * width if batch else max(width, _TOKENS_A_BATCH)
    share = task.dtype.itemsize / 4
    held = positions * outline.held * share + LOGITS_HELD
    cores = (os.cpu_count() or 1) if kind == "cpu" else 1
    factor = cores * (1.0 if task.fast else _WITHOUT_FAST[kind])
    weights = outline.parameters * task.dtype.itemsize
    largest = max(max(m.inputs, m.outputs) for m in outline.modules)
    query = sum(len(one.tokens) for one in task.encoded) * outline.held * share
    return Rates(
        speed={name: speed * factor for name, speed in _GUESSED[kind].items()},
        working=dict.fromkeys(PASSES, held)
        | {"queries": query + 5 * largest**2 * 8, "eigenvectors": 6 * largest**2 * 8},
        base=_PROGRAMME_BYTES[kind] + weights,
        start=_START + weights / _DISK,
        light=_LIGHT_BYTES,
        light_start=_LIGHT_START,
        text=TEXT_SPEED,
        candidate=CANDIDATE,
        read=_DISK,
        write=_DISK / 2,
        digest=_DISK,
        columns={module.name: float(most_columns(module, task)) for module in outline.modules},
        bounded=task.config.precondition.keep is not None,
        sampled={},
    )
