"""The stages that compute little: what they leave on disk. Their time is not foreseen."""

from __future__ import annotations

from inflcli.config import TfidfConfig
from inflcli.stages.planning.estimates import Estimate
from inflcli.stages.planning.task import Task

_SPAN, _LENGTH = 40 + 8, 4
"""Bytes of where a sequence came from, with one document in each, and of its length."""


def prepare(task: Task) -> Estimate:
    """What the corpus holds, or would hold at most: tokens compress to about two thirds."""
    if task.text.reader is not None:
        files = task.text.reader.artifact.path.rglob("*")
        there = sum(path.stat().st_size for path in files if path.is_file())
        return Estimate("prepare", disk=float(there))
    token = 2 if task.outline.vocabulary <= 1 << 16 else 4
    each = token * task.text.width + _SPAN + _LENGTH
    return Estimate("prepare", disk=float(task.text.count * each), at_most=True)


def tfidf_filter(task: Task) -> Estimate:
    """The ids and scores of its candidates, before they are compressed."""
    top = min(TfidfConfig().top, task.text.count)
    return Estimate("tfidf-filter", disk=float(task.queries * top * 12), at_most=True)


def report() -> Estimate:
    return Estimate("report")
