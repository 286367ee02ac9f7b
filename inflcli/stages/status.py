"""status: what a run holds, what of it is complete, and what is stale and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inflcli.artifacts.folder import SUFFIX, check_files, damage, read_partial
from inflcli.artifacts.manifest import (
    FILE_NAME,
    Identity,
    Manifest,
    has_lost_manifest,
    read_manifest,
)
from inflcli.errors import CorruptArtifact, MissingArtifact
from inflcli.stages.freshness import changes
from inflcli.stages.shards import is_shard

COMPLETE, PARTIAL, STALE, CORRUPT = "complete", "partial", "stale", "corrupt"
ORDER = (
    "prepare",
    "fit-factors",
    "precondition",
    "tfidf-filter",
    "scan",
    "attribute",
    "report",
)
SHARDS = ".shards"


@dataclass
class ArtifactStatus:
    """One artifact folder of a run."""

    name: str
    stage: str
    """`?` where the manifest cannot be read."""
    state: str
    """complete, partial, stale or corrupt."""
    reasons: list[str] = field(default_factory=list)
    """Why it is stale or corrupt."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked."""
    counts: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    """How far a partial artifact is."""
    bytes: int = 0
    fingerprint: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    """Name to the fingerprint that it was made from."""
    command: list[str] = field(default_factory=list)
    mend: str = ""
    """The command that makes it again, where it is known."""


def status(run: Path, *, verify: bool = False) -> dict[str, Any]:
    """Describe the artifacts below `run`, and their shards, in the pipeline's order.

    First those directly below, then those of each set of queries, which has a folder of its own.

    `verify` compares the content of every file with its SHA-256, which reads all of it; without it
    sizes are compared. Returns `run` and `artifacts` (ArtifactStatus as dictionaries). Raises
    MissingArtifact when `run` is no folder or holds no artifact.
    """
    if not run.is_dir():
        raise MissingArtifact(f"no run at {run}", "name the folder that holds the artifacts")
    folders = _artifacts(run)
    sets = [folder for folder in sorted(run.iterdir()) if _may_be_set(folder)]
    folders += [artifact for folder in sets for artifact in _artifacts(folder)]
    if not folders and _is_artifact(run):
        folders = [run]
    if not folders:
        raise MissingArtifact(f"{run} holds no artifact", "begin with inflcli prepare")
    found = [_describe(folder, verify) for folder in folders]
    for one, folder in zip(found, folders, strict=True):
        one.name = folder.relative_to(run).as_posix() if folder != run else folder.name
    _spread_staleness(found)
    names = {folder.name for folder in sets}
    found.sort(key=lambda one: _rank(one, names))
    return {"run": str(run), "artifacts": [asdict(one) for one in found]}


def _rank(one: ArtifactStatus, sets: set[str]) -> tuple[str, int, str]:
    first = one.name.split("/")[0]
    order = ORDER.index(one.stage) if one.stage in ORDER else 99
    return first if first in sets else "", order, one.name


def _artifacts(folder: Path) -> list[Path]:
    """Those directly in `folder`, and their shards."""
    found = [path for path in sorted(folder.iterdir()) if _is_artifact(path)]
    for parts in sorted(folder.glob(f"*{SHARDS}")):
        found += [path for path in sorted(parts.rglob("*")) if _is_artifact(path)]
    return found


def _may_be_set(folder: Path) -> bool:
    hidden, shards = folder.name.startswith("."), folder.name.endswith(SHARDS)
    return folder.is_dir() and not (hidden or shards or _is_artifact(folder))


def _is_artifact(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    if (folder / FILE_NAME).is_file() or folder.name.endswith(SUFFIX):
        return True
    return has_lost_manifest(folder) or is_shard(folder.name)


def _describe(folder: Path, verify: bool) -> ArtifactStatus:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if folder.name.endswith(SUFFIX):
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
        mend=manifest.again() if manifest.command else "",
    )
    wrong = damage(folder, manifest) if verify else _wrong_size(folder, manifest)
    if wrong:
        found.state, found.reasons = CORRUPT, [wrong]
        return found
    _check_inputs(found, folder, manifest.identity, manifest.details)
    return found


def _wrong_size(folder: Path, manifest: Manifest) -> str | None:
    try:
        check_files(folder, manifest)
    except CorruptArtifact as error:
        return error.message
    return None


def _describe_partial(folder: Path, size: int) -> ArtifactStatus:
    try:
        identity, progress = read_partial(folder)
    except CorruptArtifact as error:
        return ArtifactStatus(folder.name, "?", CORRUPT, [error.message], bytes=size)
    shown = {
        key: len(one) if isinstance(one, list) else one
        for key, one in progress.items()
        if isinstance(one, int | float | str | list)
    }
    stage = identity.stage if identity else "?"
    found = ArtifactStatus(folder.name, stage, PARTIAL, progress=shown, bytes=size)
    if identity:
        _check_inputs(found, folder, identity, {})
        found.fingerprint = identity.digest()
    return found


def _check_inputs(
    found: ArtifactStatus, folder: Path, identity: Identity, details: dict[str, Any]
) -> None:
    """Note what became of the inputs; a partial artifact stays partial."""
    found.inputs = {name: recorded.fingerprint for name, recorded in identity.inputs.items()}
    for name, what, sure in changes(folder, identity, details):
        if sure:
            found.reasons.append(f"{name} has changed ({what})")
        else:
            found.notes.append(f"{name} not checked: {what}")
    if found.reasons and found.state == COMPLETE:
        found.state = STALE


def _spread_staleness(found: list[ArtifactStatus]) -> None:
    """What was made from a stale or corrupt artifact of the run is stale, too."""
    made = {one.fingerprint: one for one in found if one.state in (STALE, CORRUPT)}
    changed = True
    while changed:
        changed = False
        for one in found:
            upstream = [made[key] for key in one.inputs.values() if key in made]
            if one.state == COMPLETE and upstream:
                one.state, changed = STALE, True
                one.reasons += [f"{other.name} is {other.state}" for other in upstream]
                made[one.fingerprint] = one
