"""Writing an artifact's folder so that nothing is lost.

It is written as `NAME.partial`, made durable, given its manifest, then renamed to `NAME`.
`progress.json` in it names what is done, and is replaced in one step after the data that it speaks
of is durable.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from inflcli.artifacts import files
from inflcli.artifacts.folder import (
    IDENTITY,
    Artifact,
    check_files,
    damaged_files,
    partial_path,
    read_identity,
)
from inflcli.artifacts.ledger import Ledger, ledger_path
from inflcli.artifacts.manifest import (
    FILE_NAME,
    LOST,
    Identity,
    Manifest,
    has_lost_manifest,
    read_manifest,
)
from inflcli.errors import BadInput, CorruptArtifact, StaleArtifact

Salvage = Callable[[Manifest, Collection[str]], dict[str, Any] | None]
"""The progress that a damaged artifact still is, None where all of it is to be made again; the
damaged files go by their relative paths."""
_UNFINISHED = ("*.tmp", "*.partial")
"""Files on their way to their names."""


@dataclass
class ArtifactWriter:
    """A folder in the making. Use `begin`, then `commit` after each piece, then `finish`."""

    path: Path
    identity: Identity
    ledger: Ledger
    command: tuple[str, ...] = ()
    _started: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> dict[str, Any]:
        """What earlier runs of the same command completed; {} at first."""
        return self.ledger.progress

    @property
    def folder(self) -> Path:
        """Where the files go until the artifact is complete."""
        return partial_path(self.path)

    @classmethod
    def begin(
        cls,
        path: Path,
        identity: Identity,
        *,
        overwrite: bool,
        command: tuple[str, ...] = (),
        salvage: Salvage | None = None,
    ) -> Self | None:
        """Start or resume; None when `path` already holds this very artifact.

        With `overwrite` the content of what is there is compared with its digests, too, and where
        some files are damaged `salvage` says what progress the others are.

        Without `overwrite`, raises StaleArtifact when `path` holds something made with other
        settings or inputs, and CorruptArtifact when it is damaged; with it, the old artifact is
        replaced once the new one is complete. Raises BadInput when `path` is no artifact at all.
        """
        if has_lost_manifest(path):
            # Not even with `overwrite`: without a manifest nobody knows whose files these are.
            raise CorruptArtifact(f"{path / FILE_NAME} is missing", LOST)
        if path.exists() and not (path / FILE_NAME).is_file():
            raise BadInput(f"{path} exists and is not an artifact", "choose another --out")
        writer = cls(path, identity, Ledger(partial_path(path)), command)
        if path.exists() and _is_current(path, identity, overwrite):
            writer._drop_old()
            return None
        with files.write_errors(path):
            if writer._is_whole():
                writer._publish()
                return None
            if overwrite and salvage is not None:
                writer._salvage(salvage)
            writer._resume_or_create(overwrite)
        return writer

    def _is_whole(self) -> bool:
        """Whether an earlier run wrote everything and was stopped before it published it."""
        if not (self.folder / FILE_NAME).is_file():
            return False
        try:
            manifest = read_manifest(self.folder)
            check_files(self.folder, manifest)
        except CorruptArtifact:
            return False
        return manifest.fingerprint == self.identity.digest()

    def _salvage(self, salvage: Salvage) -> None:
        """Turn a damaged artifact of this identity into an unfinished one, without what is bad."""
        if not (self.path / FILE_NAME).is_file():
            return
        try:
            manifest = read_manifest(self.path)
        except CorruptArtifact:
            return
        if manifest.fingerprint != self.identity.digest() or self.folder.exists():
            return
        bad = damaged_files(self.path, manifest)
        progress = salvage(manifest, bad)
        if progress is None:
            return
        # In this order: stopped anywhere, nothing takes what is left for whole.
        for name in bad:
            (self.path / name).unlink(missing_ok=True)
            files.sync((self.path / name).parent)
        files.write_json(ledger_path(self.path), progress)
        files.write_json(self.path / IDENTITY, _identity_json(self.identity))
        self.path.rename(self.folder)
        files.sync(self.folder.parent)
        (self.folder / FILE_NAME).unlink()

    def abandon(self) -> None:
        """Remove the folder if no progress is in it, as when its input proves unusable."""
        if not self.progress:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _resume_or_create(self, overwrite: bool) -> None:
        # A run that got nowhere has nothing to lose, and may have left anything.
        if ledger_path(self.folder).is_file() and (self.folder / IDENTITY).is_file():
            before = read_identity(self.folder / IDENTITY)
            same = before.digest() == self.identity.digest()
            if same and self._resume(overwrite):
                return
            if not (same or overwrite):
                changes = "; ".join(self.identity.differences(before))
                raise StaleArtifact(
                    f"{self.folder} holds an unfinished run with other settings: {changes}",
                    "finish it with its own settings, or discard it with --overwrite",
                )
        self._discard()
        files.make_folder(self.folder)
        files.write_json(self.folder / IDENTITY, _identity_json(self.identity))

    def _resume(self, overwrite: bool) -> bool:
        """Take up what an earlier run did; False where that is damaged and may be overwritten."""
        # What a killed run was just writing, ours and zarr's, would stay for ever.
        for pattern in _UNFINISHED:
            for path in self.folder.rglob(pattern):
                path.unlink()
        try:
            self.ledger = Ledger.resume(self.folder)
        except CorruptArtifact:
            if not overwrite:
                raise
            return False
        return True

    def _discard(self) -> None:
        """Remove an unfinished run; first what says how far it was, lest a stop leave half of it
        to go on from."""
        if self.folder.is_dir():
            ledger_path(self.folder).unlink(missing_ok=True)
            files.sync(self.folder)
            shutil.rmtree(self.folder)

    def commit(self, progress: dict[str, Any], written: list[Path] | None = None) -> None:
        """Record `progress`, after making the files and folders in `written` durable."""
        self.ledger.commit(progress, written)

    def finish(
        self,
        *,
        counts: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
    ) -> Artifact:
        """Make everything durable, write the manifest, publish under the final name."""
        with files.write_errors(self.path):
            # What a resumed run needs goes only after the manifest stands: until then, an
            # interruption (the digests of a large artifact take a while) must lose nothing.
            manifest = Manifest(
                self.identity,
                describe_files(self.folder, leave_out=_leftovers(self.folder)),
                counts or {},
                details or {},
                {**(timings or {}), "seconds": round(time.monotonic() - self._started, 3)},
                list(self.command),
            )
            files.sync_tree(self.folder)
            files.write_bytes(self.folder / FILE_NAME, manifest.to_json().encode())
            self._publish()
        return Artifact(self.path, manifest)

    def _publish(self) -> None:
        """Rename into place; an old artifact of that name goes only once the new one is whole."""
        for leftover in _leftovers(self.folder):
            leftover.unlink(missing_ok=True)
        files.sync(self.folder)
        if self.path.exists():
            self._drop_old()
            self.path.rename(self._old)
        self.folder.rename(self.path)
        files.sync(self.path.parent)
        self._drop_old()

    @property
    def _old(self) -> Path:
        """Where a replaced artifact is until the new one has its name; hidden, so nobody's else."""
        return self.path.with_name(f".{self.path.name}.old")

    def _drop_old(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)


def describe_files(folder: Path, leave_out: Collection[Path] = ()) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in found if path.name != FILE_NAME and path not in leave_out]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(files.file_digest, paths))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }


def _is_current(path: Path, identity: Identity, overwrite: bool) -> bool:
    """Whether `path` holds a sound artifact with this identity; if not, whether it may go."""
    try:
        manifest = read_manifest(path)
        check_files(path, manifest)
    except CorruptArtifact:
        if overwrite:
            return False
        raise
    if overwrite and damaged_files(path, manifest):
        return False
    if manifest.fingerprint == identity.digest():
        return True
    if manifest.stage != identity.stage:
        raise BadInput(f"{path} was written by inflcli {manifest.stage}", "choose another --out")
    if overwrite:
        return False
    changes = "; ".join(identity.differences(manifest.identity))
    raise StaleArtifact(
        f"{path} was made with other settings or inputs: {changes}",
        "replace it with --overwrite, or choose another --out",
    )


def _leftovers(folder: Path) -> list[Path]:
    """What only an unfinished artifact has at the top of its folder."""
    patterns = ("state.*", "chunk.*", "progress.*")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    found += [path for pattern in _UNFINISHED for path in folder.rglob(pattern)]
    return [folder / IDENTITY, *found]


def _identity_json(identity: Identity) -> dict[str, Any]:
    inputs = {name: [item.fingerprint, item.path] for name, item in identity.inputs.items()}
    return {
        "stage": identity.stage,
        "config": identity.config,
        "inputs": inputs,
    }
