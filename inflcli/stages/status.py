"""status: what a run holds, what of it is complete, and what is stale and why.

An artifact's recorded inputs are followed: another artifact to its manifest, a file or a model
folder to its content. Nothing is fetched from the hub, and content above `CHEAP_BYTES` is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inflcli.artifacts import fingerprint
from inflcli.artifacts.files import file_digest
from inflcli.artifacts.folder import (
    PARTIAL,
    check_files,
    partial_path,
    read_partial,
)
from inflcli.artifacts.manifest import FILE_NAME, Identity, Input, Manifest, read_manifest
from inflcli.corpus.sources import HUB, discover, of_text
from inflcli.errors import CorruptArtifact, InflcliError, MissingArtifact

COMPLETE, PARTIAL_STATE, STALE, CORRUPT = "complete", "partial", "stale", "corrupt"
CHEAP_BYTES = 256 << 20
ORDER = (
    "prepare",
    "fit-factors",
    "precondition",
    "tfidf-filter",
    "scan",
    "attribute",
    "report",
)


@dataclass
class ArtifactStatus:
    """One artifact folder of a run."""

    name: str
    stage: str
    state: str
    reasons: list[str] = field(default_factory=list)
    """Why it is stale or corrupt."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked."""
    counts: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    """How far a partial artifact is."""
    bytes: int = 0
    fingerprint: str = ""
    command: list[str] = field(default_factory=list)


def status(run: Path, *, verify: bool = False) -> dict[str, Any]:
    """Describe the artifacts directly below `run`, in the pipeline's order.

    `verify` compares the content of every file with its SHA-256, which reads all of it; without it
    sizes are compared. Returns `run` and `artifacts` (ArtifactStatus as dictionaries). Raises
    MissingArtifact when `run` is no folder or holds no artifact.
    """
    if not run.is_dir():
        raise MissingArtifact(f"no run at {run}", "name the folder that holds the artifacts")
    folders = [folder for folder in sorted(run.iterdir()) if _is_artifact(folder)]
    if not folders and _is_artifact(run):
        folders = [run]
    if not folders:
        raise MissingArtifact(f"{run} holds no artifact", "begin with inflcli prepare")
    found = [_describe(folder, verify) for folder in folders]
    _spread_staleness(found, folders)
    found.sort(key=lambda one: (ORDER.index(one.stage) if one.stage in ORDER else 99, one.name))
    return {"run": str(run), "artifacts": [asdict(one) for one in found]}


def _is_artifact(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    return (folder / FILE_NAME).is_file() or folder.name.endswith(PARTIAL)


def _describe(folder: Path, verify: bool) -> ArtifactStatus:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if folder.name.endswith(PARTIAL):
        return _describe_partial(folder, size)
    try:
        manifest = read_manifest(folder)
    except CorruptArtifact as error:
        return ArtifactStatus(folder.name, "?", CORRUPT, [error.message], bytes=size)
    found = ArtifactStatus(
        folder.name,
        manifest.stage,
        COMPLETE,
        counts=manifest.counts,
        bytes=size,
        fingerprint=manifest.fingerprint,
        command=manifest.command,
    )
    try:
        check_files(folder, manifest)
        if verify:
            _check_content(folder, manifest)
    except CorruptArtifact as error:
        found.state, found.reasons = CORRUPT, [error.message]
        return found
    _check_inputs(found, folder, manifest.identity, manifest.details)
    return found


def _describe_partial(folder: Path, size: int) -> ArtifactStatus:
    try:
        identity, progress = read_partial(folder)
    except CorruptArtifact as error:
        return ArtifactStatus(folder.name, "?", CORRUPT, [error.message], bytes=size)
    shown = {key: one for key, one in progress.items() if isinstance(one, int | float | str)}
    for internal in ("state", "generation"):
        shown.pop(internal, None)
    stage = identity.stage if identity else "?"
    found = ArtifactStatus(folder.name, stage, PARTIAL_STATE, progress=shown, bytes=size)
    if identity:
        _check_inputs(found, folder, identity, {})
        found.fingerprint = identity.digest()
    return found


def _check_content(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        if file_digest(folder / name) != entry["sha256"]:
            raise CorruptArtifact(f"{folder / name} is not what was written")


def _check_inputs(
    found: ArtifactStatus, folder: Path, identity: Identity, details: dict[str, Any]
) -> None:
    """Set state and reasons from what the inputs are now; a partial artifact stays partial."""
    for name, recorded in identity.inputs.items():
        try:
            current = _current(name, recorded, folder, identity, details)
        except _Unknown as reason:
            found.notes.append(f"{name} not checked: {reason}")
        except (InflcliError, OSError) as error:
            found.notes.append(f"{name} not checked: {error}")
        else:
            if current != recorded.fingerprint:
                found.reasons.append(f"{name} has changed ({recorded.path})")
    if found.reasons and found.state == COMPLETE:
        found.state = STALE


class _Unknown(Exception):
    """Why an input's fingerprint is not known now."""


def _current(
    name: str, recorded: Input, folder: Path, identity: Identity, details: dict[str, Any]
) -> str:
    """The present fingerprint of an input. Raises _Unknown or InflcliError."""
    if identity.stage == "prepare" and name == "text":
        return _current_text(identity, details)
    path = _place(recorded.path, folder)
    if path.is_file():
        _require_cheap([path])
        return fingerprint.of_files([path], "").fingerprint
    if (path / FILE_NAME).is_file():
        return read_manifest(path).fingerprint
    if partial_path(path).is_dir():
        raise _Unknown(f"{path} is being made again")
    if name == "tokenizer":
        return fingerprint.of_tokenizer(path, "").fingerprint
    _require_cheap(list(path.iterdir()))
    return fingerprint.of_model(path, "").fingerprint


def _current_text(identity: Identity, details: dict[str, Any]) -> str:
    if "inputs" not in details:
        raise _Unknown("the corpus is not finished")
    sources = discover(
        [name for name in details["inputs"] if _is_local(name)],
        split=identity.config["split"],
        include=details["include"],
    )
    if len(sources) < details["sources"] and any(not _is_local(one) for one in details["inputs"]):
        raise _Unknown("part of it is on the hub or gone")
    _require_cheap([file for source in sources for file in source.files if source.kind != HUB])
    return of_text(sources, "").fingerprint


def _is_local(name: str) -> bool:
    return Path(name).exists()


def _place(recorded: str, folder: Path) -> Path:
    """Where an input lies now: as recorded, or beside the artifact when the run was moved."""
    for path in (Path(recorded), folder.parent / Path(recorded).name):
        if path.exists() or partial_path(path).is_dir():
            return path
    raise _Unknown(f"{recorded} is not there")


def _require_cheap(paths: list[Path]) -> None:
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size > CHEAP_BYTES:
        raise _Unknown(f"it has {size / 2**20:.0f} MiB")


def _spread_staleness(found: list[ArtifactStatus], folders: list[Path]) -> None:
    """What was made from a stale or corrupt artifact of the run is stale, too."""
    by_print = {one.fingerprint: one for one in found if one.fingerprint}
    inputs = {id(one): set(_input_prints(folder)) for one, folder in zip(found, folders, strict=True)}
    changed = True
    while changed:
        changed = False
        for one in found:
            if one.state != COMPLETE:
                continue
            for upstream in (by_print[key] for key in inputs[id(one)] if key in by_print):
                if upstream.state in (STALE, CORRUPT):
                    one.state, changed = STALE, True
                    one.reasons.append(f"{upstream.name} is {upstream.state}")


def _input_prints(folder: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(folder)
    except CorruptArtifact:
        return
    yield from (one.fingerprint for one in manifest.inputs.values())
