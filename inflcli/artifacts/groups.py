"""zarr groups as artifacts: creating arrays, and reading them without silent holes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from inflcli.artifacts.files import sync, write_errors
from inflcli.artifacts.folder import Artifact
from inflcli.errors import CorruptArtifact

_METADATA = "zarr.json"


@dataclass(frozen=True)
class ArraySpec:
    """Shape, chunk shape, type, meaning of the axes, and the value of what is not written."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    fill: float | int = 0


def create_group(
    folder: Path, arrays: Mapping[str, ArraySpec], attributes: dict[str, Any]
) -> zarr.Group:
    """Open the group in `folder` for writing, creating what is not there yet, durably."""
    places = [folder, *(folder / name for name in arrays)]
    with write_errors(folder):
        for place in places:
            _drop_unreadable(place / _METADATA)
        missing = [place for place in places if not (place / _METADATA).exists()]
        group = zarr.open_group(folder, mode="a")
        if dict(group.attrs) != attributes:
            group.attrs.update(attributes)
            missing.append(folder)
        for name, spec in arrays.items():
            if name not in group:
                group.create_array(
                    name,
                    shape=spec.shape,
                    chunks=tuple(max(1, size) for size in spec.chunks),
                    dtype=spec.dtype,
                    fill_value=spec.fill,
                    dimension_names=spec.axes,
                    # A chunk of fill values is written too: a missing file is always damage.
                    config={"write_empty_chunks": True},
                )
        for place in missing:
            sync(place / _METADATA)
            sync(place)
    return group


def _drop_unreadable(metadata: Path) -> None:
    """Remove what a loss of power left of an array's or group's description; chunks stay."""
    try:
        json.loads(metadata.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        metadata.unlink()


def create_alike(folder: Path, artifact: Artifact) -> zarr.Group:
    """Open a group in `folder` for writing with the arrays and attributes of an artifact's."""
    like = open_group(artifact)
    names = sorted(path.parent.name for path in artifact.path.glob("*/zarr.json"))
    specs = {
        name: ArraySpec(
            stored.shape,
            stored.chunks,
            str(stored.dtype),
            tuple(str(axis) for axis in stored.metadata.dimension_names),  # type: ignore[union-attr]
            stored.fill_value,
        )
        for name, stored in ((name, array(like, name)) for name in names)
    }
    return create_group(folder, specs, dict(like.attrs))


def open_group(artifact: Artifact) -> zarr.Group:
    """The group of a complete artifact, read-only."""
    try:
        return zarr.open_group(artifact.path, mode="r")
    except Exception as error:  # zarr raises by kind of damage: FileNotFound, Value, JSONDecode
        raise CorruptArtifact(f"{artifact.path} is not a readable zarr group ({error})") from error


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """One array of a group; CorruptArtifact when it is not there."""
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        raise CorruptArtifact(f"{group.store} has no array {name}")
    return found


def read(group: zarr.Group, name: str, selection: Any = ...) -> NDArray[Any]:
    """Read a selection of an array; CorruptArtifact when a chunk does not decode."""
    stored = array(group, name)
    with _damage(group, name):
        return np.asarray(stored[selection])


@contextmanager
def _damage(group: zarr.Group, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # codecs raise RuntimeError, ValueError, OSError
        raise CorruptArtifact(f"array {name} of {group.store} is damaged ({error})") from error
