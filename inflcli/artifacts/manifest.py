"""The manifest: what an artifact is, what it was made from, and what its files are.

`identity` is a hash over the schema, the stage, its settings and the fingerprints of its inputs.
Two runs with the same identity produce the same data, so it serves downstream stages as the
artifact's fingerprint. Paths, timings, device and batch size are recorded but not part of it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inflcli import __version__
from inflcli.errors import CorruptArtifact

SCHEMA = 1
FILE_NAME = "manifest.json"
LOST = "without it nothing there can be trusted: remove the folder and run the same command again"


@dataclass(frozen=True)
class Input:
    """One thing that a stage read: its content's fingerprint, and where it lay."""

    fingerprint: str
    path: str


@dataclass(frozen=True)
class Identity:
    """What determines an artifact's content."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Input]

    def digest(self) -> str:
        """Hex SHA-256 of the canonical form (16 bytes of it)."""
        content = {
            "schema": SCHEMA,
            "stage": self.stage,
            "config": self.config,
            "inputs": {name: item.fingerprint for name, item in self.inputs.items()},
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, other: Identity) -> list[str]:
        """What changed from `other` to this, in words, one entry a setting or input."""
        found = []
        for key in sorted({*self.config, *other.config}):
            was, now = other.config.get(key), self.config.get(key)
            if was != now:
                found.append(f"{key.replace('_', '-')} was {was}, now {now}")
        for name in sorted({*self.inputs, *other.inputs}):
            was_in, now_in = other.inputs.get(name), self.inputs.get(name)
            if was_in is None or now_in is None:
                found.append(f"input {name} was {'absent' if was_in is None else was_in.path}")
            elif was_in.fingerprint != now_in.fingerprint:
                found.append(f"input {name} has changed ({now_in.path})")
        return found


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    identity: Identity
    files: dict[str, dict[str, Any]]
    """Relative path to {size, sha256}."""
    counts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What the stage found or chose (modules, shares, dtypes, routes...)."""
    timings: dict[str, float] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    version: str = __version__
    schema: int = SCHEMA

    @property
    def stage(self) -> str:
        return self.identity.stage

    @property
    def config(self) -> dict[str, Any]:
        return self.identity.config

    @property
    def inputs(self) -> dict[str, Input]:
        return self.identity.inputs

    @property
    def fingerprint(self) -> str:
        return self.identity.digest()

    def again(self) -> str:
        """The command that makes it again, or mends it where it is damaged."""
        words = self.command or ["inflcli", self.stage, "..."]
        return shlex.join([*(word for word in words if word != "--overwrite"), "--overwrite"])

    def to_json(self) -> str:
        content = {"schema": self.schema, "stage": self.stage, "fingerprint": self.fingerprint}
        content |= {"version": self.version, "command": self.command}
        content |= {"config": self.config}
        content |= {"inputs": {name: asdict(item) for name, item in self.inputs.items()}}
        content |= {"counts": self.counts, "details": self.details}
        content |= {"timings": self.timings, "files": self.files}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def has_lost_manifest(folder: Path) -> bool:
    """Whether there is no manifest where there is what an artifact holds, and no other folder."""
    if (folder / FILE_NAME).is_file():
        return False
    modules = (folder / "modules").is_dir()
    factors = modules and (folder / "inputs").is_dir()
    queries = modules and (folder / "queries.json").is_file()
    return factors or queries or _is_group(folder) or _is_report(folder)


def _is_group(folder: Path) -> bool:
    """Whether it is a group of zarr arrays, and no array itself."""
    try:
        described = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("node_type") == "group"


def _is_report(folder: Path) -> bool:
    try:
        with (folder / "index.html").open(encoding="utf-8", errors="replace") as page:
            return "influence report</title>" in page.read(4096)
    except OSError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises CorruptArtifact if it is not JSON, lacks a field, is of another schema, or was edited.
    """
    path = folder / FILE_NAME
    hint = "make the artifact again with --overwrite"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise CorruptArtifact(
                f"{path} has schema {raw['schema']}; this version reads schema {SCHEMA}", hint
            )
        inputs = {name: Input(**item) for name, item in raw["inputs"].items()}
        identity = Identity(raw["stage"], raw["config"], inputs)
        manifest = Manifest(
            identity,
            raw["files"],
            raw["counts"],
            raw["details"],
            raw["timings"],
            raw["command"],
            raw["version"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{path} is not a manifest ({error})", hint) from error
    if manifest.fingerprint != raw["fingerprint"]:
        raise CorruptArtifact(f"{path} was edited: its fingerprint does not match", hint)
    return manifest
