"""The ground truths of `validate` that solve or optimise: what they have found so far is kept.

A solve saves its iteration once a minute, and goes on from there to the same answer; a proximal
Bregman response is recorded as it is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inflcli import console
from inflcli.artifacts.files import read_tensors, write_tensors
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import ValidateConfig
from inflcli.ekfac import Inverse
from inflcli.stages.validate_problem import Question
from inflcli.validation import Result, ggn, pbrf
from inflcli.validation.response import Response

NEWTON = 1000
"""Conjugate gradient steps, at most, to where the search for a PBRF begins."""
_SECONDS, _SHARE = 60.0, 20.0
"""Between two saved iterations, and how much longer that is than saving one."""
_RESPONSES = "responses"


class Truths:
    """Makes one ground truth after another."""

    def __init__(self, writer: ArtifactWriter, question: Question, config: ValidateConfig) -> None:
        self.question, self.config, self._writer = question, config, writer

    def make(self, name: str, inverse: Inverse) -> Result:
        """`ggn` or `pbrf`, of scores [K, N]."""
        config, question = self.config, self.question
        if name == "ggn":
            with console.progress("ggn", None, unit="steps") as meter:
                return ggn(
                    question.problem,
                    inverse=inverse,
                    tolerance=config.tolerance,
                    rows=question.rows,
                    checkpoint=_Solve(self._writer, meter),
                )
        fewer = len(question.problem.queries[0]) < len(question.points)
        with console.progress("pbrf", None, unit="responses") as meter:
            return pbrf(
                question.problem,
                weighted="queries" if fewer else "points",
                inverse=inverse,
                epsilon=config.epsilon,
                tolerance=config.tolerance,
                newton=NEWTON,
                journal=_Found(self._writer, meter),
            )


class _Solve:
    """A `Checkpoint` in the unfinished artifact, as its running sums."""

    def __init__(self, writer: ArtifactWriter, meter: console.Meter) -> None:
        self._ledger, self._meter = writer.ledger, meter
        self._due = time.monotonic() + _SECONDS

    def find(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        tensors, about = self._ledger.load_state()
        return (tensors, about) if tensors else None

    def keep(self, tensors: Callable[[], dict[str, Tensor]], about: dict[str, Any]) -> None:
        self._meter.note(f"residual {about['residual']:.2g}")
        self._meter.advance(1)
        if time.monotonic() < self._due:
            return
        started = time.monotonic()
        state = {name: one.contiguous() for name, one in tensors().items()}
        self._ledger.save_state(state, about, self._ledger.said())
        ended = time.monotonic()
        self._due = ended + max(_SECONDS, _SHARE * (ended - started))


class _Found:
    """A `Journal`: each response is a file of the artifact, with what is said of it recorded."""

    def __init__(self, writer: ArtifactWriter, meter: console.Meter) -> None:
        self._writer, self._meter = writer, meter
        self._responses: dict[str, Any] = dict(writer.progress.get(_RESPONSES, {}))

    def begin(self, total: int) -> None:
        self._meter.expect(total, done=len(self._responses))

    def find(self, name: str) -> Response | None:
        about = self._responses.get(name)
        if about is None:
            return None
        return Response(read_tensors(self._path(name))["values"], **about)

    def keep(self, name: str, response: Response) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"values": response.values.contiguous()}, {})
        self._responses[name] = {
            "gradient_norm": response.gradient_norm,
            "evaluations": response.evaluations,
            "seconds": response.seconds,
        }
        progress = {**self._writer.ledger.said(), _RESPONSES: self._responses}
        self._writer.commit(progress, [path])
        self._meter.advance(1)

    def _path(self, name: str) -> Path:
        return self._writer.folder / "truths" / "responses" / f"{name}.safetensors"
