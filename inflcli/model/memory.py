"""How much memory there is to plan with."""

from __future__ import annotations

import psutil
import torch

_SHARE = 0.5


def budget(gib: float | None, device: torch.device) -> float:
    """Bytes that a stage may choose to hold: `gib`, or half of what is free on the device."""
    if gib is not None:
        return gib * 2**30
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    return _SHARE * psutil.virtual_memory().available
