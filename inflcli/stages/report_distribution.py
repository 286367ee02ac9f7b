"""How the positive scores of every query are distributed, in one reading of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inflcli.report.model import Distribution, EffortView, RivalView, TailView
from inflcli.statistics.positive import Positive
from inflcli.statistics.tail import TailFit, fit_tail, search_effort

SHARES = (1e-4, 1e-3, 0.01, 0.1)
"""Of the sequences, whose part of the influence is told."""
_POINTS, _CURVE = 200, 60
_WANTED = 10
"""As influential sequences as the candidates' last of so many are looked for."""


@dataclass
class Counter:
    """One query's scores, as they come."""

    positive: Positive
    _best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Of the candidates."""
    _candidates: int = 0
    _influence: float = 0.0
    """Positive, of the candidates."""

    def add(self, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> None:
        """Scores [n], NaN where nothing was scanned, and which are candidates of the filter."""
        self.positive.add(scores)
        found = scores[candidates & (scores > 0)].astype(np.float64)
        self._candidates += int((candidates & ~np.isnan(scores)).sum())
        self._influence += float(found.sum())
        self._best = np.sort(np.concatenate([self._best, found]))[-_WANTED:]

    def distribution(self) -> Distribution | None:
        if self.positive.count == 0:
            return None
        fit = fit_tail(self.positive.tail())
        shares = self.positive.concentration(np.array(SHARES)).tolist()
        scanned = self.positive.scanned
        steps = np.geomspace(1 / scanned, 1, _CURVE)
        curve = zip(steps.tolist(), self.positive.concentration(steps).tolist(), strict=True)
        survival = self.positive.survival()
        # The highest scores, and the rest at even steps of their order.
        step = max(1, len(survival) // _POINTS)
        shown = [*survival[:_WANTED], *survival[_WANTED::step]]
        return Distribution(
            scanned,
            [*shown, *([] if shown[-1] == survival[-1] else survival[-1:])],
            [
                (share, part)
                for share, part in zip(SHARES, shares, strict=True)
                if share * scanned >= 1
            ],
            list(curve),
            (self._candidates / scanned, self._influence / self.positive.total)
            if self._candidates
            else None,
            None if fit is None else _tail(fit),
            None if fit is None else self._effort(fit),
        )

    def _effort(self, fit: TailFit) -> EffortView | None:
        if len(self._best) < _WANTED:
            return None
        score = float(self._best[0])
        found = search_effort(fit.law, self.positive.scanned, score, _WANTED)
        return EffortView(score, found.sequences, found.low, found.high)


def _tail(fit: TailFit) -> TailView:
    return TailView(
        fit.law.count,
        fit.law.alpha,
        fit.law.error,
        fit.law.x_min,
        fit.ks,
        fit.p_value,
        [
            RivalView(name, rival.ks, rival.log_likelihood_ratio, rival.p_value)
            for name, rival in fit.rivals.items()
        ],
    )
