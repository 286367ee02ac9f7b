"""The cost of the stages that run no model: `prepare`, `tfidf-filter`, `report`."""

from __future__ import annotations

from inflcli.config import ReportConfig, TfidfConfig
from inflcli.stages.planning.estimates import Estimate
from inflcli.stages.planning.rates import CANDIDATE, Rates
from inflcli.stages.planning.task import Task

_SPAN, _LENGTH = 40 + 8, 4
"""Bytes of where a sequence came from, with one document in each, and of its length."""
_BUFFERS = 16e6
"""Bytes of the blocks of tokens that are worked on, and of their copies."""
_PAGE, _SHOWN = 70e3, 13
"""Bytes of a report without its sequences, and of a token shown, measured on the demo's."""
_FILES = 3300
"""Bytes of what describes two arrays and the stage."""
_GATHERED = 400
"""Bytes in memory of a token shown, its neighbours' text included."""


def prepare(task: Task, rates: Rates) -> Estimate:
    """What the corpus holds, or would hold at most: tokens compress to about two thirds."""
    tokens = task.text.count * task.text.mean
    parts = {"start": rates.light_start, "text": tokens / rates.text["prepare"]}
    if task.text.reader is not None:
        files = task.text.reader.artifact.path.rglob("*")
        disk = float(sum(path.stat().st_size for path in files if path.is_file()))
    else:
        token = 2 if task.outline.vocabulary <= 1 << 16 else 4
        disk = float(task.text.count * (token * task.text.width + _SPAN + _LENGTH))
    at_most = task.text.reader is None
    memory = _host(task, rates.light + _BUFFERS)
    return Estimate("prepare", None, parts, memory, disk, at_most)


def tfidf_filter(task: Task, rates: Rates) -> Estimate:
    """Its candidates are told at most, unless it was seen how far they compress."""
    top = min(TfidfConfig().top, task.text.count)
    tokens = task.text.count * task.text.mean
    parts = {"start": rates.light_start, "matching": tokens / rates.text["tfidf-filter"]}
    pairs = task.queries * top
    memory = _host(task, rates.light + _BUFFERS + 2 * CANDIDATE * pairs)
    disk = _FILES + rates.candidate * pairs
    at_most = rates.candidate == CANDIDATE
    return Estimate("tfidf-filter", None, parts, memory, disk, at_most)


def report(task: Task, rates: Rates) -> Estimate:
    """The page, with the sequences that it shows by default."""
    each = 2 * min(ReportConfig().top_k, task.config.attribute.top_k, task.text.count)
    shown = task.queries * each * task.ranked_length
    parts = {"start": rates.light_start, "page": shown / rates.text["report"]}
    memory = _host(task, rates.light + _GATHERED * shown)
    return Estimate("report", None, parts, memory, _PAGE + _SHOWN * shown)


def _host(task: Task, memory: float) -> float | None:
    """Nothing of it is on a GPU, whose memory the other stages are told in."""
    return memory if task.device.type == "cpu" else None
