"""The cost of the stages that run no model: `prepare`, `tfidf-filter`, `report`."""

from __future__ import annotations

from importlib.util import find_spec

from inflcli.config import ReportConfig, TfidfConfig
from inflcli.model.tracked import group_names
from inflcli.stages.planning.estimates import Estimate
from inflcli.stages.planning.rates import CANDIDATE, Rates
from inflcli.stages.planning.task import Task

_SPAN, _LENGTH = 40 + 8, 4
"""Bytes of where a sequence came from, with one document in each, and of its length."""
_BUFFERS = 16e6
"""Bytes of the blocks of tokens that are worked on, and of their copies."""
_PAGE, _QUERY, _SEQUENCE, _SHOWN, _GROUP = 60e3, 30e3, 240, 3.7, 0.4
"""Bytes of a report without its queries, of a query without its sequences, of a sequence without
its tokens, and of a token shown, by itself and for each depth group; measured on the demo's."""
_TABLE, _TABLE_START = 150e6, 0.2
"""Of pyarrow, which writes the report's table: bytes in memory, and a share of the start."""
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
    sequences = task.queries * each
    shown = sequences * task.ranked_length
    table = find_spec("pyarrow") is not None
    start = rates.light_start * (1 + _TABLE_START * table)
    parts = {"start": start, "page": shown / rates.text["report"]}
    memory = _host(task, rates.light + _TABLE * table + _GATHERED * shown)
    groups = len(group_names(task.outline.modules))
    token = _SHOWN + _GROUP * groups
    disk = _PAGE + _QUERY * task.queries + _SEQUENCE * sequences + token * shown
    return Estimate("report", None, parts, memory, disk)


def _host(task: Task, memory: float) -> float | None:
    """Nothing of it is on a GPU, whose memory the other stages are told in."""
    return memory if task.device.type == "cpu" else None
