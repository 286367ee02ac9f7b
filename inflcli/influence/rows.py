"""Activations and gradients as factors of products, in the type of the queries."""

from __future__ import annotations

import torch
from torch import Tensor

from inflcli.shapes import round_up


def as_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, D] as rows [B T, D] of a type, followed by zeros where products are compiled."""
    if not compiled(x, dtype):
        return x.to(dtype).flatten(0, 1)
    count = x.shape[0] * x.shape[1]
    rows = x.new_empty((round_up(count), x.shape[2]), dtype=dtype)
    rows[:count].view(x.shape).copy_(x)
    rows[count:] = 0
    return rows


def lengthened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, D] in a type, with zeros after T."""
    found = x.new_empty((x.shape[0], round_up(x.shape[1]), x.shape[2]), dtype=dtype)
    found[:, : x.shape[1]] = x
    found[:, x.shape[1] :] = 0
    return found


def compiled(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product with it in that type is compiled for its shape, of which few should be.

    It is copied into that type in any case, so that some zeros more cost little.
    """
    return x.device.type == "cpu" and x.dtype != dtype == torch.bfloat16
