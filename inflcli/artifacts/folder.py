"""Artifact folders for reading: opening a complete one, checking it, or an unfinished one.

A folder without the suffix is complete, and one with it can be resumed: see `writer`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from inflcli.artifacts import files
from inflcli.artifacts.ledger import read_progress
from inflcli.artifacts.manifest import (
    FILE_NAME,
    LOST,
    Identity,
    Input,
    Manifest,
    has_lost_manifest,
    read_manifest,
)
from inflcli.errors import BadInput, CorruptArtifact, MissingArtifact, StaleArtifact

SUFFIX = ".partial"
"""Ends the name of a folder that is not complete."""
IDENTITY = "identity.json"
"""What an unfinished artifact is made of and with."""


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact, opened for reading."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, stage: str, *, shard: bool = False) -> Self:
        """Open the artifact that `stage` wrote at `path`, or with `shard` one of its shards.

        Raises MissingArtifact, CorruptArtifact (schema, missing or truncated files), or BadInput
        when another stage wrote it, or when it is a shard.
        """
        if not (path / FILE_NAME).is_file():
            if partial_path(path).is_dir():
                raise MissingArtifact(
                    f"{path} is not finished", f"run the same inflcli {stage} command to resume it"
                )
            if has_lost_manifest(path):
                raise CorruptArtifact(f"{path / FILE_NAME} is missing", LOST)
            shards = path.with_name(f"{path.name}.shards")
            mend = f"inflcli merge {path}" if shards.is_dir() else f"make it with inflcli {stage}"
            raise MissingArtifact(f"no artifact at {path}", mend)
        manifest = read_manifest(path)
        if manifest.stage != stage:
            raise BadInput(f"{path} was written by inflcli {manifest.stage}, not by {stage}")
        if "shard" in manifest.config and not shard:
            raise BadInput(f"{path} is a shard", f"inflcli merge {path.parent.with_suffix('')}")
        check_files(path, manifest)
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def as_input(self) -> Input:
        return Input(self.fingerprint, str(self.path))

    def require_input(self, name: str, current: Input, mend: str) -> None:
        """Refuse this artifact when its input `name` is not `current` any more.

        Raises StaleArtifact naming both, with the command that mends it.
        """
        recorded = self.manifest.inputs.get(name)
        if recorded is None or recorded.fingerprint != current.fingerprint:
            made_from = "nothing of the kind" if recorded is None else recorded.path
            raise StaleArtifact(
                f"{self.path} was made with another {name} ({made_from}) than {current.path}", mend
            )


def damaged_files(path: Path, manifest: Manifest) -> list[str]:
    """The files, by their relative paths, that are missing or not what was written. Reads all."""

    def is_damaged(name: str) -> bool:
        file, entry = path / name, manifest.files[name]
        if not file.is_file() or file.stat().st_size != entry["size"]:
            return True
        return files.file_digest(file) != entry["sha256"]

    names = list(manifest.files)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return [name for name, bad in zip(names, pool.map(is_damaged, names), strict=True) if bad]


def damage(path: Path, manifest: Manifest) -> str | None:
    """Which files are not what was written, in words. Reads all of them."""
    bad = damaged_files(path, manifest)
    more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{', '.join(bad[:3])}{more}: missing, or not what was written" if bad else None


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare the size of every file with the manifest; CorruptArtifact names the first wrong."""
    mend = f"mend it: {manifest.again()}"
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CorruptArtifact(f"{file} is missing", mend)
        if file.stat().st_size != entry["size"]:
            raise CorruptArtifact(
                f"{file} has {file.stat().st_size} bytes instead of {entry['size']}",
                mend,
            )


def read_partial(folder: Path) -> tuple[Identity | None, dict[str, Any]]:
    """Identity and progress of an unfinished artifact, as far as it has them.

    Raises CorruptArtifact when what is there cannot be read.
    """
    if (folder / FILE_NAME).is_file():  # whole, but for its name
        return read_manifest(folder).identity, {}
    identity = folder / IDENTITY
    return read_identity(identity) if identity.is_file() else None, read_progress(folder)


def read_identity(path: Path) -> Identity:
    raw = files.read_json(path)
    inputs = {name: Input(*item) for name, item in raw["inputs"].items()}
    return Identity(raw["stage"], raw["config"], inputs)
