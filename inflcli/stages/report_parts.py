"""One query's attributions, for the report's shadings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.attribution import EFFECTS, AttributionReader
from inflcli.report.model import TOKENS

_SPURIOUS = 2 / 3
"""Of the 2-norm of a sequence's token influences over their 1-norm."""


def shadings(attribution: AttributionReader | None) -> list[str]:
    """The attributions that there are, token influence first."""
    if attribution is None:
        return []
    return [TOKENS, *(name for name in EFFECTS if name in attribution.group)]


@dataclass(frozen=True)
class Parts:
    """Of the sequences `ids` [ranks]: values [ranks, token] by shading, and the influence of
    tokens by depth group, `groups` [ranks, group, token]."""

    ids: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    groups: NDArray[np.float32]

    @classmethod
    def read(
        cls,
        attribution: AttributionReader,
        query: int,
        ids: NDArray[np.int64],
        group_of: Mapping[str, int],
    ) -> Parts:
        """`group_of` are the scan's depth groups of the modules."""
        by_module = attribution.token_scores(query)
        places = np.array([group_of[module["name"]] for module in attribution.modules])
        groups = np.stack(
            [by_module[:, places == place].sum(axis=1) for place in range(places.max() + 1)], axis=1
        )
        values = {TOKENS: by_module.sum(axis=1, dtype=np.float64)}
        for name in EFFECTS:
            found = attribution.effects(name, query)
            if found is not None:
                values[name] = found.astype(np.float64)
        return cls(ids, values, groups)

    def spurious(self) -> set[int]:
        """The sequences of which few tokens carry most of the influence."""
        sizes = np.abs(self.values[TOKENS])
        few = np.linalg.norm(sizes, axis=1) > _SPURIOUS * sizes.sum(axis=1)
        return set(self.ids[few & (self.ids >= 0)].tolist())

    def row(self, sequence: int) -> int | None:
        """Where a sequence is; None when it was not attributed."""
        found = np.flatnonzero(self.ids == sequence)
        return int(found[0]) if len(found) else None
