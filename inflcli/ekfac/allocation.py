"""Which components of a query to keep: one budget for all of its modules.

A component (singular triple) of a module adds σ² to the energy kept and takes M + P numbers, so
the fewest numbers for a share of the energy come from taking components by σ² / (M + P).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def allocate(energies: Sequence[Tensor], sizes: Sequence[int], wanted: float) -> list[int]:
    """How many leading components of each module to keep, so that `wanted` energy is reached.

    `energies` [r_m] are one query's squared singular values by module, each descending; `sizes`
    are M + P. Everything is kept that holds energy where all of it together falls short. Cost: a
    sort of all components.
    """
    values = torch.cat([module.double().cpu() for module in energies])
    counts = torch.tensor([len(module) for module in energies])
    module = torch.arange(len(energies)).repeat_interleave(counts)
    # Stable: equal components of one module keep their order, so what is taken is a prefix.
    order = (values / torch.tensor(sizes)[module]).argsort(descending=True, stable=True)
    reached = values[order].cumsum(0)
    enough = int((reached < wanted).sum()) + 1
    taken = order[: min(enough, int((values > 0).sum()))]
    return torch.bincount(module[taken], minlength=len(energies)).tolist()
