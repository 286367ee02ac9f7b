"""What of an unfinished artifact is done: a small JSON file, replaced in one step after the data
that it speaks of is durable, and the running sums that go with it.

Each process of a torchrun keeps its own, `progress.RANK.json`; that of the first one, or of a
process alone, is `progress.json`. Sums are in `state.RANK.GENERATION.safetensors`, with their
counts in the same file; the ledger holds the file's digest and keeps the generation before, which
a run falls back on if the last one proves damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from inflcli.artifacts import files
from inflcli.errors import CorruptArtifact

Progress = dict[str, Any]
Counts = dict[str, Any]
"""Whole numbers, in dictionaries of any depth."""
Sums = tuple[dict[str, Tensor], Counts]
_STATE, _BEFORE, _EPOCH = "state", "before", "epoch"


@dataclass
class Ledger:
    """The progress of one process; `commit` after each piece of work."""

    folder: Path
    rank: int = 0
    progress: Progress = field(default_factory=dict)
    """{} at first. Lists in it name pieces that are done; what else a stage likes to keep."""
    epoch: int = 0
    """Ledgers of other ranks count only if they are of the first one's epoch."""
    _named: set[Path] = field(default_factory=set)
    """Folders whose names are durable."""

    @classmethod
    def resume(cls, folder: Path) -> Self:
        """The first rank's ledger, with whatever the others of its epoch have done taken over.

        Raises CorruptArtifact when sums are damaged in both generations.
        """
        path = ledger_path(folder)
        ledger = cls(folder)
        if path.is_file():
            ledger._read(path)
        ledger._take_over()
        return ledger

    def said(self) -> Progress:
        """The progress as a stage recorded it, without where its sums are."""
        return _said(self.progress)

    def commit(self, progress: Progress, written: list[Path] | None = None) -> None:
        """Record `progress`, after making the files and folders in `written` durable.

        Sums that were saved stay, and so must what the progress says of them.
        """
        kept = {key: self.progress[key] for key in (_STATE, _BEFORE) if key in self.progress}
        self.record({**progress, **kept}, written)

    def save_state(self, tensors: Mapping[str, Tensor], counts: Counts, progress: Progress) -> None:
        """Record running sums together with the progress that they include.

        A crash in between leaves the older pair in force, so no piece is counted twice or lost.
        """
        last = self.progress.get(_STATE)
        generation = last["generation"] + 1 if last else 1
        name = f"state.{self.rank}.{generation}.safetensors"
        path = self.folder / name
        files.write_tensors(path, tensors, {"counts": json.dumps(counts)})
        state = {"file": name, "generation": generation, "sha256": files.file_digest(path)}
        before = {key: value for key, value in self.progress.items() if key != _BEFORE}
        self.record({**progress, _STATE: state, **({_BEFORE: before} if last else {})})
        for old in self._states():
            if old.name not in (name, last and last["file"]):
                old.unlink()

    def load_state(self) -> Sums:
        """The last sums that were saved, and their counts; nothing when there are none."""
        state = self.progress.get(_STATE)
        if state is None:
            return {}, {}
        path = self.folder / state["file"]
        return files.read_tensors(path), json.loads(files.read_metadata(path)["counts"])

    def drop_state(self, progress: Progress, written: list[Path] | None = None) -> None:
        """Record `progress` and delete the sums that it replaces; other ranks' ledgers are void."""
        self.epoch += 1
        self.record(progress, written)
        for old in self._states():
            old.unlink()

    def void(self) -> None:
        """Follow the first rank's `drop_state`: nothing of this rank's counts any more."""
        self.epoch += 1
        self.progress = {}
        for path in [ledger_path(self.folder, self.rank), *self._states()]:
            path.unlink(missing_ok=True)

    def record(self, progress: Progress, written: list[Path] | None = None) -> None:
        """Replace the file, in one step; everything that is recorded passes here."""
        with files.write_errors(self.folder):
            for path in written or []:
                files.sync_tree(path) if path.is_dir() else files.sync(path)
            files.sync_names(written or [], self.folder, self._named)
        files.write_json(ledger_path(self.folder, self.rank), {**progress, _EPOCH: self.epoch})
        self.progress = progress

    def _states(self) -> Iterator[Path]:
        return self.folder.glob(f"state.{self.rank}.*.safetensors")

    def _read(self, path: Path) -> None:
        """Take what `path` says, or what it says of the generation before."""
        found = files.read_json(path)
        self.epoch = found.pop(_EPOCH, 0)
        while (state := found.get(_STATE)) is not None:
            file = self.folder / state["file"]
            if file.is_file() and files.file_digest(file) == state["sha256"]:
                break
            if _BEFORE not in found:
                message = f"the running sums {file} are missing or damaged"
                raise CorruptArtifact(message, "start again with --overwrite")
            found = found[_BEFORE]
            found.pop(_EPOCH, None)
        self.progress = found

    def _is_of(self, epoch: int) -> bool:
        """Read another rank's ledger, unless the first one's is of another epoch."""
        path = ledger_path(self.folder, self.rank)
        if files.read_json(path).get(_EPOCH, 0) != epoch:
            return False
        self._read(path)
        return True

    def _take_over(self) -> None:
        """Add other ranks' sums to this one's, and what they did to its lists, in one step."""
        others = [
            Ledger(self.folder, int(path.name.split(".")[1]))
            for path in sorted(self.folder.glob("progress.*.json"))
        ]
        current = [other for other in others if other._is_of(self.epoch)]
        if current:
            progress, total = dict(self.progress), self.load_state()
            for other in current:
                _unite(progress, other.progress)
                total = _added(total, other.load_state())
            self.epoch += 1
            self.save_state(*total, progress) if total[0] else self.record(progress)
        for other in others:
            other.void()


def ledger_path(folder: Path, rank: int = 0) -> Path:
    return folder / (f"progress.{rank}.json" if rank else "progress.json")


def read_progress(folder: Path) -> Progress:
    """What is done of an unfinished artifact, by all ranks; {} where there is nothing.

    Reads no sums. Raises CorruptArtifact for a ledger that cannot be read.
    """
    if not ledger_path(folder).is_file():
        return {}
    found: Progress = files.read_json(ledger_path(folder))
    for path in sorted(folder.glob("progress.*.json")):
        other = files.read_json(path)
        if other.get(_EPOCH) == found.get(_EPOCH):
            _unite(found, other)
    return _said(found)


def _said(progress: Progress) -> Progress:
    return {key: value for key, value in progress.items() if key not in (_STATE, _BEFORE, _EPOCH)}


def _unite(progress: Progress, other: Progress) -> None:
    """Add to the lists in `progress` what is in another's."""
    for key, done in other.items():
        if isinstance(done, list):
            progress[key] = list(dict.fromkeys([*progress.get(key, []), *done]))


def _added(one: Sums, other: Sums) -> Sums:
    if not one[0] or not other[0]:
        return one if one[0] else other
    for name, tensor in other[0].items():
        if name in one[0]:
            one[0][name] += tensor
        else:
            one[0][name] = tensor
    return one[0], add_counts(one[1], other[1])


def add_counts(one: Counts, other: Counts) -> Counts:
    """Add up numbers of the same names; one that only one of the two has stands as it is."""
    found = {**other, **one}
    for name in one.keys() & other.keys():
        pair = one[name], other[name]
        found[name] = add_counts(*pair) if isinstance(pair[0], dict) else sum(pair)
    return found
