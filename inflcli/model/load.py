"""Loading a causal language model, frozen and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inflcli import distributed
from inflcli.artifacts import fingerprint
from inflcli.artifacts.manifest import Input
from inflcli.errors import BadInput, CorruptArtifact, NumericalFault
from inflcli.model.memory import bound_kernel_caches
from inflcli.model.parallel import first_device, load_spread, shard
from inflcli.model.precision import resolve_precision
from inflcli.model.resolve import resolve_folder


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode."""

    network: nn.Module
    folder: Path
    device: torch.device
    dtype: torch.dtype
    context: int | None
    """Longest sequence that the positions allow; None when the config does not say."""
    lockstep: bool = False
    """Whether all ranks must run the same number of passes, since each holds a part of it."""

    @property
    def vocabulary(self) -> int:
        return int(self.network.get_input_embeddings().num_embeddings)  # type: ignore[operator]

    @property
    def statistics_dtype(self) -> torch.dtype:
        """Sums are kept in float32, in float64 for a float64 model."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises BadInput for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name} cannot be used ({reason})") from error
    return device


def dtype_name(wanted: str, model: str, device: str) -> str:
    """Resolve `auto`: float32 on a CPU, the model's own type on a GPU."""
    if wanted != "auto":
        return wanted
    if pick_device(device).type == "cpu":
        return "float32"
    config = _load_config(resolve_folder(model, weights=True))
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def arithmetic(dtype: str, precision: str, model: str, device: str) -> tuple[str, str]:
    """Resolve `auto` of the model's type and of the products' precision on a device."""
    name = dtype_name(dtype, model, device)
    return name, resolve_precision(precision, pick_device(device), getattr(torch, name))


def identify(name: str) -> tuple[Input, Input]:
    """Fingerprints of a model's weights and of its tokenizer, without loading it."""
    folder = resolve_folder(name, weights=True)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{name} holds no config.json: it is not a model folder")
    return fingerprint.of_model(folder, name), fingerprint.of_tokenizer(folder, name)


def load_model(name: str, *, device: str, dtype: str, placement: str = "device") -> LoadedModel:
    """Load, freeze and check a causal language model.

    `placement` is device (all of it there), auto (spread over this host's), or fsdp (sharded over
    the ranks of torchrun). Raises BadInput when the folder holds no causal language model,
    CorruptArtifact for damaged weights, NumericalFault naming the first parameter that holds NaN
    or infinity.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bound_kernel_caches()
    # Its bars and remarks on unused weights would break into ours.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = resolve_folder(name, weights=True)
    config = _load_config(folder)
    target, element = pick_device(device), getattr(torch, dtype)
    network: Any = None
    try:
        if placement == "auto":
            network = load_spread(folder, config, element)
        elif placement == "device" or distributed.rank() == 0:
            network = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=element)
    except BadInput:
        raise
    except Exception as error:  # safetensors, pickle and transformers each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = CorruptArtifact if "SafetensorError" in type(error).__name__ else BadInput
        raise kind(f"cannot load a causal language model from {name} ({reason})") from error
    if network is not None:
        network.requires_grad_(False).eval()
        check_finite(network)
    if placement == "auto":
        target = first_device(network)
    elif placement == "fsdp":
        network = shard(network, config, element, target)
    else:
        network.to(target)
    context = getattr(config, "max_position_embeddings", None)
    return LoadedModel(network, folder, target, element, context, placement == "fsdp")


def check_finite(network: nn.Module) -> None:
    """Raise NumericalFault naming the first parameter that is not finite."""
    for name, value in network.named_parameters():
        if not value.is_meta and not torch.isfinite(value).all():
            raise NumericalFault(
                f"parameter {name} of the model holds NaN or infinity", "check the model's files"
            )


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # OSError, ValueError, KeyError by kind of damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"cannot read a model config from {folder} ({reason})") from error
