"""Names of models, tokenizers and data sets: a local folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inflcli.errors import BadInput

_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
_TOKENIZER_FILES = [name for name in _MODEL_FILES if name != "*.safetensors"]


def resolve_folder(name: str, *, weights: bool) -> Path:
    """The local folder that holds model `name`, fetched from the hub if it is not a folder.

    Raises BadInput when it is neither a folder with a config nor to be had from the hub.
    """
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "tokenizer.json")):
            raise BadInput(f"{name} holds neither config.json nor tokenizer.json")
        return folder
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "/")):
        raise BadInput(f"{name} is not a model folder")
    from huggingface_hub import snapshot_download

    try:
        patterns = _MODEL_FILES if weights else _TOKENIZER_FILES
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises a family of network and HTTP errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{name} is no local folder, and the hub does not give it ({reason})",
            "check the name, the network, or HF_HUB_OFFLINE",
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder` (a transformers fast tokenizer). Raises BadInput."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"cannot load a tokenizer from {folder} ({reason})") from error
    return tokenizer
