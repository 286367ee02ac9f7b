"""Whether two halves of the data find the same curvature: 1 if sampling noise plays no part."""

from __future__ import annotations

import math

from inflcli.ekfac.corrected import CorrectedSum
from inflcli.ekfac.covariance import CovarianceSum
from inflcli.ekfac.inverse import damping_value

_DAMPING_FACTOR = 0.1


def covariance_agreement(one: CovarianceSum, other: CovarianceSum) -> float:
    """The cosine between two halves' covariances, tr(X Y) / (|X| |Y|); nan if one is zero."""
    norms = one.inner(one) * other.inner(other)
    return one.inner(other) / math.sqrt(norms) if norms > 0 else math.nan


def corrected_agreement(one: CorrectedSum, other: CorrectedSum) -> float:
    """Pearson between two halves' log(Λ + λ), with λ = 0.1 · mean Λ of each half.

    That is what an inverse Hessian-vector product divides by; without λ it would be the noise of
    directions that hardly count. nan where a half knows nothing. Cost: a pass over Λ.
    """
    logs = []
    for half in (one, other):
        mean = half.mean().float()
        logs.append((mean + damping_value(mean, _DAMPING_FACTOR, None)).log_().flatten())
    centred = [log - log.mean() for log in logs]
    norms = math.prod(float(log.norm()) for log in centred)
    return float(centred[0] @ centred[1]) / norms if norms > 0 else math.nan
