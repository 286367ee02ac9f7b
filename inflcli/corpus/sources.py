"""What `--input` names: files, folders of files, saved and hub Hugging Face datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from inflcli.artifacts import fingerprint
from inflcli.artifacts.manifest import Input
from inflcli.corpus.compressed import SUFFIXES, read_errors
from inflcli.errors import BadInput

JSONL, TEXT, PARQUET, SAVED, HUB = "jsonl", "text", "parquet", "saved dataset", "hub dataset"

_KINDS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".parquet": PARQUET,
    ".txt": TEXT,
    ".text": TEXT,
    ".md": TEXT,
    ".rst": TEXT,
}

_DICT, _STATE = "dataset_dict.json", "state.json"


@dataclass(frozen=True)
class TextSource:
    """One file or dataset that is read from its start to its end."""

    name: str
    """As shown and recorded: the path, or the dataset's name."""
    kind: str
    files: tuple[Path, ...] = ()
    """Empty for a hub dataset."""
    split: str = ""
    revision: str = ""
    """A hub dataset's commit."""

    @property
    def path(self) -> Path:
        return Path(self.name)

    def size(self) -> int:
        """Bytes on disk; 0 for a hub dataset."""
        return sum(file.stat().st_size for file in self.files)


def discover(
    inputs: Sequence[str], *, split: str = "train", include: Sequence[str] = ()
) -> list[TextSource]:
    """The sources that `inputs` name, in order; a folder's files sorted, with its subfolders.

    `include` are patterns for the names of a folder's files; without them those with a known
    ending are taken. Raises BadInput for what does not exist, and folders without a text.
    """
    found: list[TextSource] = []
    for name in inputs:
        path = Path(name)
        if path.is_file():
            found.append(_file(path))
        elif _is_plain_folder(path):
            found += _folder(path, include)
        elif path.is_dir():
            whole = (path / _DICT).is_file()
            found.append(_saved(path / split if whole else path, split))
        elif _looks_like_path(name):
            raise BadInput(f"no file or folder {name}", "check the path given to --input")
        else:
            found.append(_hub(name, split))
    if include and not any(_is_plain_folder(Path(name)) for name in inputs):
        raise BadInput("--include chooses among a folder's files, and no input is a folder")
    if not found:
        raise BadInput("no input", "name files, folders or datasets with --input")
    return found


def of_text(sources: Sequence[TextSource], label: str) -> Input:
    """One fingerprint over the contents of all sources. Cost: every byte is read once."""
    digest = hashlib.sha256()
    for source in sources:
        with read_errors(source.path):
            content = source.revision or fingerprint.of_files(list(source.files), "").fingerprint
        name = source.name if source.kind == HUB else source.path.name
        digest.update(f"{source.kind}\0{name}\0{source.split}\0{content}\n".encode())
    return Input(digest.hexdigest()[:32], label)


def _is_plain_folder(path: Path) -> bool:
    """Whether `path` is a folder that no `save_to_disk` wrote."""
    return path.is_dir() and not any((path / name).is_file() for name in (_DICT, _STATE))


def _stem(path: Path) -> tuple[str, str]:
    """The ending that tells the format, and that of the compression."""
    packed = path.suffix if path.suffix in SUFFIXES else ""
    return (path.with_suffix("") if packed else path).suffix.lower(), packed


def _file(path: Path) -> TextSource:
    ending, packed = _stem(path)
    kind = _KINDS.get(ending, TEXT)
    if kind == PARQUET and packed:
        raise BadInput(f"{path}: Parquet is read as it is, not inside {packed}", "unpack it first")
    return TextSource(str(path), kind, (path,))


def _folder(path: Path, include: Sequence[str]) -> list[TextSource]:
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts)
    ]
    if include:
        chosen = [file for file in files if any(fnmatch(file.name, one) for one in include)]
        wanted = ", ".join(include)
    else:
        chosen = [file for file in files if _stem(file)[0] in _KINDS]
        wanted = ", ".join(f"*{ending}" for ending in _KINDS)
    if not chosen:
        raise BadInput(f"the folder {path} holds no {wanted}", "choose others with --include")
    return [_file(file) for file in chosen]


def _saved(path: Path, split: str) -> TextSource:
    if not path.is_dir():
        there = sorted(one.name for one in path.parent.iterdir() if one.is_dir())
        raise BadInput(
            f"the dataset {path.parent} has no split {split!r}", f"--split {' or '.join(there)}"
        )
    files = tuple(sorted(path.glob("*.arrow")))
    if not files:
        raise BadInput(f"the dataset {path} holds no data")
    return TextSource(str(path), SAVED, files, split)


def _looks_like_path(name: str) -> bool:
    repository = name.partition(":")[0]
    known = _stem(Path(name))[0] in _KINDS or name.endswith(SUFFIXES)
    return known or repository.count("/") > 1 or name.startswith((".", "/", "~"))


def _hub(name: str, split: str) -> TextSource:
    """A hub dataset, `owner/name` or `owner/name:config`, pinned to its present commit."""
    missing = f"no file or folder {name}"
    try:
        import datasets  # noqa: F401  # only whether it is there: reading needs it
        from huggingface_hub import dataset_info
    except ImportError as error:
        raise BadInput(
            f"{missing}, and a dataset of the hub needs the package datasets",
            "check the path, or pip install 'inflcli[datasets]'",
        ) from error
    try:
        revision = dataset_info(name.partition(":")[0], timeout=20).sha
    except Exception as error:  # the hub's client raises a family of network and HTTP errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{missing}, and the hub gives no such dataset ({reason})", "check the path or name"
        ) from error
    return TextSource(name, HUB, (), split, revision or "unknown")
