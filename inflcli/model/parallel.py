"""Models that are larger than one device: spread over a host's, or sharded over torchrun's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inflcli.errors import BadInput
from inflcli.model.tracked import decoder_layers


def load_spread(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """Layers over all GPUs of this host, the CPU and the disk, as accelerate's `auto` does.

    Raises BadInput when accelerate is not installed.
    """
    from transformers import AutoModelForCausalLM

    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise BadInput(
            "--device-map auto needs accelerate", "pip install 'inflcli[large]'"
        ) from error
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, device_map="auto"
    )


def first_device(network: nn.Module) -> torch.device:
    """Where a spread model takes its tokens."""
    if not hasattr(network, "hf_device_map"):  # one device was enough
        return next(network.parameters()).device
    first = next(iter(network.hf_device_map.values()))  # type: ignore[operator]
    return torch.device("cpu" if first == "disk" else first)


def shard(whole: nn.Module | None, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model whose decoder layers are sharded over all ranks by FSDP2 (`fully_shard`).

    Each rank holds its part of a layer's weights, and all of one layer while that runs, forwards
    or backwards; the embeddings and the head are whole on every rank. `whole` is the loaded model
    on the first rank and None on the others, which get its weights from there: the host holds it
    once. Every rank must run the same number of passes.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.requires_grad_(False).eval()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    unsharded = {value for end in ends if end is not None for value in end.parameters()}
    for layer in network.get_submodule(decoder_layers(network)):
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, ignored_params=unsharded)
    network.to_empty(device=device)
    network.tie_weights()
    set_model_state_dict(
        network,
        {} if whole is None else whole.state_dict(),
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )
    # What a state dict leaves out, such as the frequencies of rotary positions.
    given = {} if whole is None else dict(whole.named_buffers())
    for name, buffer in network.named_buffers():
        if whole is not None:
            buffer.copy_(given[name])
        dist.broadcast(buffer, 0)
    return network


def share_held(network: nn.Module) -> float:
    """Of a sharded model's parameters, the share that this rank holds while it does not run."""
    from torch.distributed.tensor import DTensor

    every = list(network.parameters())
    held = [value.to_local() if isinstance(value, DTensor) else value for value in every]
    return sum(part.numel() for part in held) / sum(value.numel() for value in every)
