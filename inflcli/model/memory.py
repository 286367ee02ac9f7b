"""How much memory there is to plan with, and what libraries may keep of it."""

from __future__ import annotations

import os

import psutil
import torch
from torch import Tensor, nn

_SHARE = 0.5
_KERNELS = "64"
"""That are kept. A batch takes a few tens; the usual 1,024 fill up with more than 1 GB where the
shape differs from batch to batch, and none is used again."""


def bound_kernel_caches() -> None:
    """Have oneDNN, and torch above it, keep few of the kernels that they compile for a shape each.

    Only before the first product on a CPU. What the environment says goes before.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, _KERNELS)


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Adds up what the passes within keep for their backward, without the network's weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(self.keep, lambda tensor: tensor)
        self._weights = {value.untyped_storage()._cdata for value in network.parameters()}
        # The storages themselves, so that none is freed and its address used again.
        self._held: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._held[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(one.nbytes() for one in self._held.values())


def budget(gib: float | None, device: torch.device) -> float:
    """Bytes that a stage may choose to hold: `gib`, or half of what is free on the device."""
    if gib is not None:
        return gib * 2**30
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    return _SHARE * psutil.virtual_memory().available
