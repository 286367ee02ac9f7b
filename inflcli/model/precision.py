"""The precision of the programme's own matrix products: covariances, Λ and scores.

`exact` multiplies float32 as float32, and decomposes in float64; `single` decomposes in float32,
too. `fast` rounds the *inputs* of a product to bfloat16 (on a GPU to TF32, which is finer) and adds
up in float32: processors with matrix units do this several times faster. Where a product feeds
another one, for Λ, dense scores and queries, its result is bfloat16 too, and so are the queries on
disk.
The model's own passes keep the model's type in either case, and a float64 model is always exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from inflcli.errors import BadInput

_FAST = {"cpu": "bf16", "cuda": "tf32"}


def resolve_precision(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """`auto` is `fast` where the device multiplies bfloat16 in matrix units, else `single`.

    Raises BadInput for `fast` on a device that has no such products. float64 is always exact.
    """
    if dtype == torch.float64:
        return "exact"
    if wanted == "auto":
        return "fast" if has_matrix_units(device) else "single"
    if wanted == "fast" and device.type not in _FAST:
        raise BadInput(f"--precision fast is not known on a {device.type} device")
    return wanted


def has_matrix_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without AMX, bfloat16 products gain too little to be worth any rounding.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Run the float32 matrix products of the block at `precision`; restores what was set."""
    if precision != "fast" or device.type not in _FAST:
        yield
        return
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = _FAST[device.type]
    try:
        yield
    finally:
        backend.matmul.fp32_precision = before
