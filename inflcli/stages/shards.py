"""The shards of an artifact: finding a complete set of them that goes together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inflcli.artifacts.folder import SUFFIX, Artifact, damage
from inflcli.artifacts.manifest import Identity, read_manifest
from inflcli.config import Shard
from inflcli.errors import BadInput, CorruptArtifact, MissingArtifact, StaleArtifact

_NAME = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shards:
    """All shards of one artifact, in order, made with the same settings from the same inputs."""

    artifacts: Sequence[Artifact]

    @property
    def stage(self) -> str:
        return self.artifacts[0].manifest.stage

    @property
    def whole(self) -> Identity:
        """The identity of the artifact that they are shards of."""
        return whole_identity(self.artifacts[0].manifest.identity)

    @property
    def details(self) -> dict[str, Any]:
        return self.artifacts[0].manifest.details

    def verify(self) -> None:
        """Compare all content with its digests. Raises CorruptArtifact."""
        for one in self.artifacts:
            verify(one)

    def total(self, count: str) -> int:
        return sum(one.manifest.counts[count] for one in self.artifacts)


def is_shard(name: str) -> bool:
    """Whether a folder of that name is a shard."""
    return _NAME.fullmatch(name) is not None


def verify(artifact: Artifact) -> None:
    """Compare its content with its digests, before it becomes another's, with digests of its own.

    Raises CorruptArtifact naming what is damaged, with the command that mends it. Cost: reading it.
    """
    wrong = damage(artifact.path, artifact.manifest)
    if wrong:
        hint = f"mend it: {artifact.manifest.again()}"
        raise CorruptArtifact(f"{artifact.path}: {wrong}", hint)


def find_shards(folder: Path) -> Shards:
    """The shards in `folder`, a complete set of them.

    Raises MissingArtifact for a shard that is not there or not finished, BadInput where several
    divisions overlap, StaleArtifact where settings or inputs differ, CorruptArtifact.
    """
    if not folder.is_dir():
        raise MissingArtifact(f"no shards at {folder}", "make them with --shard 0/N, 1/N, ...")
    found = {}
    for path in sorted(folder.iterdir()):
        name = _NAME.fullmatch(path.name.removesuffix(SUFFIX))
        if name:
            found[Shard(int(name[1]), int(name[2]))] = path
    divisions = sorted({shard.of for shard in found})
    if len(divisions) != 1:
        counts = " and ".join(map(str, divisions)) or "no"
        raise BadInput(f"{folder} holds {counts} divisions into shards", "remove all but one")
    artifacts = []
    for number in range(divisions[0]):
        made = found.get(Shard(number, divisions[0]))
        if made is None or made.name.endswith(SUFFIX):
            state = "missing" if made is None else "not finished"
            shard = f"{number}/{divisions[0]}"
            message = f"shard {shard} of {folder} is {state}"
            raise MissingArtifact(message, f"run it: --shard {shard}")
        artifacts.append(_open(made, f"{number}/{divisions[0]}"))
    first = artifacts[0]
    for other in artifacts[1:]:
        changes = whole_identity(other.manifest.identity).differences(
            whole_identity(first.manifest.identity)
        )
        if changes:
            raise StaleArtifact(
                f"{other.path} does not go with {first.path}: {'; '.join(changes)}",
                "run the shards again with the same settings and inputs",
            )
    return Shards(artifacts)


def _open(path: Path, shard: str) -> Artifact:
    try:
        manifest = read_manifest(path)
    except CorruptArtifact as error:
        hint = f"mend it: the command that made it, with --shard {shard} --overwrite"
        raise CorruptArtifact(error.message, hint) from error
    return Artifact.open(path, manifest.stage, shard=True)


def whole_identity(identity: Identity) -> Identity:
    """That of the artifact that a shard is a part of."""
    config = {key: value for key, value in identity.config.items() if key != "shard"}
    return replace(identity, config=config)
