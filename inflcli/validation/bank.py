"""Models trained on parts of the data, of which only measurements are kept, one file each.

    bank = Bank(folder, make_network, data, queries)
    measured = bank.fill([(ids, recipe), ...])       # trains what the folder does not have

A member is told by all that it depends on: the points, the recipe, the data, the initial weights
and the queries. What was made from anything else has another name, so a folder can hold the members
of several experiments, and experiments that share a member train it once. A file is there whole or
not at all: a run that was stopped goes on with what is missing, and several processes may fill one
bank, at worst training a member twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inflcli.errors import CorruptArtifact, NumericalFault
from inflcli.validation.points import Ids, Points, log_probs
from inflcli.validation.retraining import MakeNetwork, Recipe, initial, network_fingerprint, train

Wanted = tuple[Sequence[int] | Ids, Recipe]
"""The points that a model is trained on, and how."""
_FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """What is kept of a model."""

    queries: NDArray[np.float64]
    """log p of every query, [K]."""
    points: NDArray[np.float64] | None
    """log p of every point, trained on or not, [N]; None where that was not asked for."""
    loss: float
    """Nats a prediction, the mean of the last epoch while it was trained."""
    seconds: float
    """That training took."""
    cpu_seconds: float
    """The same, of processors: what it takes on a machine that does nothing else."""


@dataclass(frozen=True)
class Progress:
    """Where `Bank.fill` is."""

    done: int
    total: int
    """Members that are asked for, each counted once."""
    trained: bool
    """Whether this one was trained now; else it was there."""
    measured: Measured


class Bank:
    """The members of a folder for one network, data and queries.

    With `points`, members hold log p of every point, too; those that lack it are trained again.
    """

    def __init__(
        self,
        folder: Path,
        make_network: MakeNetwork,
        data: Points,
        queries: Points,
        *,
        points: bool = False,
    ) -> None:
        self.folder, self.make_network = folder, make_network
        self.data, self.queries, self._points = data, queries, points
        self._fixed = {"data": data.fingerprint(), "queries": queries.fingerprint()}
        self._weights: dict[tuple[int, str], str] = {}

    def path(self, ids: Sequence[int] | Ids, recipe: Recipe) -> Path:
        """The member's file. Cost: the initial weights are made once for a seed."""
        text = json.dumps(self._identity(ids, recipe), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def find(self, ids: Sequence[int] | Ids, recipe: Recipe) -> Measured | None:
        """A member's measurements, or None where it has to be trained.

        Raises CorruptArtifact for a file that is not what `add` wrote.
        """
        path = self.path(ids, recipe)
        try:
            content = json.loads(path.read_bytes())
            same = content["identity"] == self._identity(ids, recipe)
            found = content["measured"]
            measured = Measured(
                np.array(found["queries"], np.float64),
                None if found["points"] is None else np.array(found["points"], np.float64),
                float(found["loss"]),
                float(found["seconds"]),
                float(found["cpu_seconds"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptArtifact(
                f"{path} is damaged ({error})", "delete it, and it is trained again"
            ) from error
        if not same or measured.queries.shape != (len(self.queries),):
            raise CorruptArtifact(
                f"{path} holds another model than its name says",
                "delete it, and it is trained again",
            )
        if self._points and measured.points is None:
            return None
        return measured

    def train(
        self,
        ids: Sequence[int] | Ids,
        recipe: Recipe,
        keep: Callable[[nn.Module], None] | None = None,
    ) -> Measured:
        """Train a member whether it is there or not, give it to `keep`, and store what it says.

        Raises NumericalFault, and stores nothing, where that is not finite.
        """
        losses = [float("nan")]
        start, cpu = time.perf_counter(), time.process_time()
        network = train(
            self.make_network, self.data, ids, recipe, lambda _, loss: losses.append(loss)
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        measured = Measured(
            log_probs(network, self.queries),
            log_probs(network, self.data) if self._points else None,
            losses[-1],
            seconds,
            cpu,
        )
        finite = np.isfinite(measured.queries).all() and (
            measured.points is None or np.isfinite(measured.points).all()
        )
        if not finite or not np.isfinite(measured.loss):
            raise NumericalFault(
                f"training on {len(ids)} points with seed {recipe.seed} did not stay finite",
                "lower the learning rate",
            )
        if keep is not None:
            keep(network)
        self._write(ids, recipe, measured)
        return measured

    def fill(
        self,
        wanted: Sequence[Wanted],
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Measured]:
        """The measurements of all `wanted`, in their order; trains those that are missing.

        `progress` is called after each; what it raises stops the run and loses nothing.
        """
        members = [self.path(*one) for one in wanted]
        distinct = dict(zip(members, wanted, strict=True))
        found: dict[Path, Measured] = {}
        for path, (ids, recipe) in distinct.items():
            # Looked up only now: another process may have trained it meanwhile.
            there = self.find(ids, recipe)
            found[path] = there or self.train(ids, recipe)
            if progress is not None:
                progress(Progress(len(found), len(distinct), there is None, found[path]))
        return [found[path] for path in members]

    def _identity(self, ids: Sequence[int] | Ids, recipe: Recipe) -> dict[str, Any]:
        # A change of seed or type changes the initial weights; nothing else of a recipe does.
        start = recipe.seed, recipe.dtype
        if start not in self._weights:
            self._weights[start] = network_fingerprint(initial(self.make_network, recipe))
        return {
            "format": _FORMAT,
            "ids": sorted(int(one) for one in ids),
            "recipe": {**asdict(recipe), "betas": list(recipe.betas)},
            "weights": self._weights[start],
            **self._fixed,
        }

    def _write(self, ids: Sequence[int] | Ids, recipe: Recipe, measured: Measured) -> None:
        content = {
            "identity": self._identity(ids, recipe),
            "measured": {
                "queries": measured.queries.tolist(),
                "points": None if measured.points is None else measured.points.tolist(),
                "loss": measured.loss,
                "seconds": measured.seconds,
                "cpu_seconds": measured.cpu_seconds,
            },
            # To look up where results differ; no part of what a member is.
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        path = self.path(ids, recipe)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w") as handle:
                json.dump(content, handle, allow_nan=False)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
