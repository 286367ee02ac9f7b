"""Durable writes and checked reads of single files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inflcli.errors import BadInput, CorruptArtifact, OutOfResources

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST,
}  # fmt: skip


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into errors with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutOfResources(
                f"no space left to write {path}",
                "free some space and run the same command again: it resumes",
            ) from error
        if error.errno in _NOT_WRITABLE:
            reason = os.strerror(error.errno or 0)
            raise BadInput(f"cannot write {path}: {reason}", "choose another --out") from error
        raise


def sync(path: Path) -> None:
    """fsync a file or a folder, so that it survives a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, itself included."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))


def sync_names(paths: Iterable[Path], root: Path, known: set[Path]) -> None:
    """fsync the folders between `root` and each of `paths`, so that their names survive, too.

    A folder in `known` has a durable name; those found here are added. `root` itself is left out.
    """
    for path in paths:
        for folder in path.parents:
            if folder == root:
                break
            sync(folder)
            if folder in known:
                break
            known.add(folder)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, durably; it may exist."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, never a part."""
    with write_errors(path):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of an artifact; CorruptArtifact if it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{path} is missing or damaged ({error})") from error


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write named torch tensors as one safetensors file, durably and in one step."""
    from safetensors.torch import save

    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(ready, metadata))


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file; CorruptArtifact names it when it is missing or truncated."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(
            f"{path} is missing or damaged ({error})", "make the artifact again with --overwrite"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_tensors` was given beside the tensors; raises CorruptArtifact."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path} is missing or damaged ({error})") from error


def find_tensor(path: Path, name: str) -> Any | None:
    """A tensor of a safetensors file, or None; the rest is not read. Raises CorruptArtifact."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return stored.get_tensor(name) if name in set(stored.keys()) else None
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path} is missing or damaged ({error})") from error


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
