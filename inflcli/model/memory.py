"""How much memory there is to plan with, and what libraries may keep of it."""

from __future__ import annotations

import os

import psutil
import torch

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


def budget(gib: float | None, device: torch.device) -> float:
    """Bytes that a stage may choose to hold: `gib`, or half of what is free on the device."""
    if gib is not None:
        return gib * 2**30
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    return _SHARE * psutil.virtual_memory().available
