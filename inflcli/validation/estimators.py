"""Estimators of influence, from a dot product to Krylov steps on the exact Gauss-Newton Hessian.

All solve (G + λI) x = ∇f for the K queries' gradients with their idea of G, and score <x, DW_n>.
λ is a number or one a module, and the EK-FAC fit's own 0.1 · mean Λ where none is given: an
estimator that does not fit EK-FAC itself does so for its λ, on the clock, so give λ where time
counts. Axes: K queries, N points, vectors [K, P, M] by module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inflcli.ekfac import (
    Inverse,
    conjugate_gradient,
    damped,
    damping_value,
    fit,
    influences,
    truncate,
)
from inflcli.ekfac import lissa as lissa_solver
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.linear import Batch
from inflcli.ekfac.solve import Apply
from inflcli.validation.fisher import ROOM, SampledFisher
from inflcli.validation.problem import (
    ROWS,
    Damping,
    Problem,
    Result,
    Watch,
    by_module,
    capped_product,
    damping_for,
    inverse_for,
)
from inflcli.validation.replay import ROOM as REPLAYED

KINDS = ("ekfac", "ec-shampoo", "kfac")


def gradient_dot(problem: Problem) -> Result:
    """∇f · ∇log p(point) over all tracked parameters: G + λI taken for the identity."""
    return _solved(problem, Watch(problem.model.device), {}, lambda gradients: gradients)


def gradient_cosine(problem: Problem) -> Result:
    """The same over both gradients' norms; 0 where one is zero."""
    watch = Watch(problem.model.device)
    result = _solved(problem, watch, {}, lambda gradients: gradients)
    with watch("solve"):
        size = _squares(problem.model.gradients(problem.queries)).sqrt().cpu()
    with watch("score"):
        sizes = [_squares(problem.model.gradients(batch)) for batch in problem.points]
        product = torch.outer(size, torch.cat(sizes).sqrt().cpu())
        scores = torch.where(product > 0, result.scores / product, 0.0)
    return Result(scores, watch.seconds, {})


def ekfac(
    problem: Problem,
    *,
    kind: str = "ekfac",
    blocks: int = 1,
    damping: Damping | None = None,
    label_samples: int = 1,
    seed: int = 0,
    rank: int | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
) -> Result:
    """The Kronecker-factored family: `ekfac`, `ec-shampoo` and `kfac`, as `ekfac.fit` has them.

    `blocks` is O of the block-diagonal variant (Eq. 33). `rank` keeps so many components of every
    preconditioned query and module. With an `inverse` nothing is fitted, its `fit_seconds` count,
    and `kind` and the fit's other options only name it. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind is one of {', '.join(KINDS)}, not {kind}")
    watch = Watch(problem.model.device, fit_seconds)
    details: dict[str, Any] = {"kind": kind, "blocks": blocks, "rank": rank}
    with watch("fit"):
        if inverse is not None:
            inverse = inverse_for(problem, inverse, damping)
        else:
            curvature = fit(
                problem.model,
                problem.fitted,
                curvature="ec-shampoo" if kind == "ec-shampoo" else "ekfac",
                blocks=blocks,
                label_samples=label_samples,
                seed=seed,
            )
            # K-FAC's eigenvalues have another mean: it gets the same λ as the others.
            given = (
                {n: damping_value(one.corrected, 0.1, None) for n, one in curvature.modules.items()}
                if damping is None
                else by_module(problem.model, damping)
            )
            inverse = curvature.inverse("kfac" if kind == "kfac" else None, damping=given)
            details |= {"label_samples": label_samples, "seed": seed}
    details["damping"] = inverse.damping

    def solve(gradients: Matrices) -> Matrices:
        solved = inverse.solve(gradients)
        return solved if rank is None else {name: _low(v, rank) for name, v in solved.items()}

    return _solved(problem, watch, details, solve)


def lissa(
    problem: Problem,
    *,
    depth: int | None = None,
    damping: Damping | None = None,
    step_size: float | None = None,
    seed: int = 0,
    rows: int = ROWS,
) -> Result:
    """LiSSA (Eq. 10): a step a batch of `fitted`, shuffled anew by `seed` in every epoch.

    `depth` is the number of steps: that of fitted sequences unless given, as in Appendix C. The
    step size α is one over the first batch's largest eigenvalue, and halved where the recursion
    diverges; see `ekfac.lissa`. All queries take their steps together, `rows` at a time. Raises
    ArithmeticError where no step size converges. Cost: `depth` Gauss-Newton products of a batch
    for every query.
    """
    watch = Watch(problem.model.device)
    with watch("fit"):
        added = damping_for(problem, damping)
    depth = problem.sequences if depth is None else depth
    order = _shuffled(len(problem.fitted), depth + 1, seed)
    details: dict[str, Any] = {"depth": depth, "seed": seed, "damping": added}

    @functools.cache
    def of_batch(index: int) -> Apply:
        room = REPLAYED / len(problem.fitted)
        return damped(capped_product(problem.model, [problem.fitted[index]], rows, room), added)

    def products(step: int) -> Apply:
        return of_batch(order[step])

    def solve(gradients: Matrices) -> Matrices:
        found = lissa_solver(products, gradients, steps=depth, step_size=step_size)
        details["step_size"] = found.step_size
        details["last_batch_residual"] = float(found.residuals[-1].max())
        return found.x

    return _solved(problem, watch, details, solve)


def sampled_cg(
    problem: Problem,
    *,
    damping: Damping | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
    label_samples: int = 1,
    steps: int = 1000,
    tolerance: float = 1e-6,
    seed: int = 0,
    room: float = ROOM,
) -> Result:
    """Conjugate gradients on the sampled Gauss-Newton Hessian, E[DW DWᵀ] with pseudo-labels.

    What EK-FAC approximates, without the approximation: what is left of its error is that of
    sampling `label_samples` labels a sequence. Where the n sampled gradients take no more than
    `room` bytes, their Gram matrix preconditions, and few steps are left (see
    `SampledFisher.inverse`); elsewhere `inverse` does where one is given, else 1/λ. Cost: n² D MACs
    for the Gram matrix, D the tracked parameters; a step, 2 n D MACs a query, and `label_samples`
    passes where gradients are not kept.
    """
    watch = Watch(problem.model.device, fit_seconds)
    with watch("fit"):
        if inverse is not None:
            inverse = inverse_for(problem, inverse, damping)
        added = damping_for(problem, damping) if inverse is None else inverse.damping
        fisher = SampledFisher(problem.model, problem.fitted, label_samples, seed, room)
    details: dict[str, Any] = {"label_samples": label_samples, "seed": seed, "damping": added}

    def scaled(vectors: Matrices) -> Matrices:
        return {name: v / (added[name] or 1.0) for name, v in vectors.items()}

    def solve(gradients: Matrices) -> Matrices:
        otherwise = scaled if inverse is None else inverse.solve
        found = conjugate_gradient(
            damped(fisher.product, added),
            gradients,
            precondition=fisher.inverse(added) or otherwise,
            steps=steps,
            tolerance=tolerance,
        )
        details["steps"], details["converged"] = found.steps, found.converged
        details["residual"] = float(found.residuals[-1].max())
        return found.x

    return _solved(problem, watch, details, solve)


def refined(
    problem: Problem,
    *,
    steps: int = 10,
    subset: Sequence[Batch] | None = None,
    damping: Damping | None = None,
    inverse: Inverse | None = None,
    fit_seconds: float = 0.0,
    rows: int = ROWS,
) -> Result:
    """EK-FAC, improved by so many conjugate gradient steps on the exact Gauss-Newton Hessian.

    The steps begin at EK-FAC's answer and are preconditioned by it; none gives just that. `subset`
    are batches that stand for `fitted` in the products. details["residuals"] has the largest
    relative residual before the first step and after each. Cost a step: a product of a vector a
    query.
    """
    watch = Watch(problem.model.device, fit_seconds)
    with watch("fit"):
        inverse = inverse_for(problem, inverse, damping)
    batches = problem.fitted if subset is None else subset
    product = damped(capped_product(problem.model, batches, rows), inverse.damping)
    details: dict[str, Any] = {
        "steps": steps,
        "sequences": sum(len(batch[0]) for batch in batches),
        "damping": inverse.damping,
    }

    def solve(gradients: Matrices) -> Matrices:
        start = inverse.solve(gradients)
        found = conjugate_gradient(
            product, gradients, precondition=inverse.solve, start=start, steps=steps
        )
        details["residuals"] = [float(one.max()) for one in found.residuals]
        return found.x

    return _solved(problem, watch, details, solve)


def _solved(
    problem: Problem,
    watch: Watch,
    details: dict[str, Any],
    solve: Callable[[Matrices], Matrices],
) -> Result:
    """The scores of what `solve` makes of the queries' gradients."""
    with watch("solve"):
        queries = solve(problem.model.gradients(problem.queries))
    with watch("score"):
        scores = influences(problem.model, queries, problem.points).cpu()
    return Result(scores, watch.seconds, details)


def _squares(gradients: Matrices) -> Tensor:
    """|DW|² over all modules, [B] float64."""
    return torch.stack([one.flatten(1).double().square().sum(1) for one in gradients.values()]).sum(
        0
    )


def _low(v: Tensor, rank: int) -> Tensor:
    found = truncate(v, rank)
    return (found.left @ found.right.mT).to(v)


def _shuffled(batches: int, steps: int, seed: int) -> list[int]:
    """The batch of every step: all of them in an order of its own in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps:
        order += torch.randperm(batches, generator=generator).tolist()
    return order[:steps]
