"""Whether an artifact's inputs are still what it was made from.

Recorded inputs are followed to where they lie: another artifact to its manifest, a file or a model
folder to its content. Nothing is fetched, and content above `CHEAP_BYTES` is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inflcli.artifacts import fingerprint
from inflcli.artifacts.folder import partial_path
from inflcli.artifacts.manifest import FILE_NAME, Identity, Input, read_manifest
from inflcli.corpus.sources import discover, of_text
from inflcli.errors import InflcliError

CHEAP_BYTES = 256 << 20


class Unknown(Exception):
    """Why an input cannot be compared."""


def changes(
    folder: Path, identity: Identity, details: dict[str, Any]
) -> Iterator[tuple[str, str, bool]]:
    """For each input that is not what it was: its name, what about it, and whether that is sure.

    `details` are those of the manifest; {} for an unfinished artifact. An input that is gone, on
    the hub, or too large to read is named with False.
    """
    for name, recorded in identity.inputs.items():
        try:
            current = _current(name, recorded, folder, identity, details)
        except (Unknown, InflcliError, OSError) as reason:
            yield name, str(reason), False
        else:
            if current != recorded.fingerprint:
                yield name, recorded.path, True


def _current(
    name: str, recorded: Input, folder: Path, identity: Identity, details: dict[str, Any]
) -> str:
    """The present fingerprint of an input. Raises Unknown, InflcliError or OSError."""
    if identity.stage == "prepare" and name == "text":
        return _current_text(identity, details)
    path = place(recorded.path, folder)
    if (path / FILE_NAME).is_file():
        return read_manifest(path).fingerprint
    if path.is_file():
        _require_cheap([path])
        return fingerprint.of_files([path], "").fingerprint
    if not path.is_dir():
        raise Unknown(f"{path} is being made again")
    if name == "tokenizer":
        return fingerprint.of_tokenizer(path, "").fingerprint
    _require_cheap(list(path.iterdir()))
    return fingerprint.of_model(path, "").fingerprint


def _current_text(identity: Identity, details: dict[str, Any]) -> str:
    if "inputs" not in details:
        raise Unknown("known only when the corpus is finished")
    for name in details["inputs"]:
        if not Path(name).exists():
            raise Unknown(f"{name} is not here")
    sources = discover(
        details["inputs"], split=identity.config["split"], include=details["include"]
    )
    _require_cheap([file for source in sources for file in source.files])
    return of_text(sources, "").fingerprint


def place(recorded: str, folder: Path) -> Path:
    """Where an input of the artifact `folder` lies now. Raises Unknown.

    It is as recorded, or, when the run was moved, beside the artifact or in a folder above: sets of
    queries lie in folders of their own below what they share, and so do shards.
    """
    above = [parent / Path(recorded).name for parent in list(folder.resolve().parents)[:3]]
    for path in (Path(recorded), *above):
        if path.exists() or partial_path(path).is_dir():
            return path
    raise Unknown(f"{recorded} is not here")


def _require_cheap(paths: list[Path]) -> None:
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size > CHEAP_BYTES:
        raise Unknown(f"its {size / 2**20:.0f} MiB would take long to read")
