"""The solvers end at the answers of dense solves, or say that they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import relative
from torch import Tensor

from inflcli.ekfac import conjugate_gradient, damped, lissa, neumann
from inflcli.ekfac.solve import Iteration, largest_eigenvalue

SHAPES = {"one": (3, 4), "two": (5, 2)}
DAMPING = {"one": 1.0, "two": 0.4}
SIZE, SYSTEMS = 22, 3
Vectors = dict[str, Tensor]


def split(flat: Tensor) -> Vectors:
    """[K, 22] by module, each [K, P, M]."""
    parts = flat.split([p * m for p, m in SHAPES.values()], 1)
    return {n: x.view(-1, *shape) for (n, shape), x in zip(SHAPES.items(), parts, strict=True)}


def joined(vectors: Vectors) -> Tensor:
    return torch.cat([vectors[name].flatten(1) for name in SHAPES], 1)


def by(matrix: Tensor) -> Callable[[Vectors], Vectors]:
    return lambda v: split(joined(v) @ matrix.T)


def drawn(seed: int, rank: int = 9) -> Tensor:
    """A semi-definite G [22, 22] of a few large eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(SIZE, rank, generator=generator, dtype=torch.float64)
    return root @ root.T


@pytest.fixture
def b() -> Vectors:
    generator = torch.Generator().manual_seed(7)
    return split(torch.randn(SYSTEMS, SIZE, generator=generator, dtype=torch.float64))


SIZES = {name: p * m for name, (p, m) in SHAPES.items()}
LAMBDA = torch.diag(
    torch.cat([torch.full((n,), DAMPING[name], dtype=torch.float64) for name, n in SIZES.items()])
)


def answer(g: Tensor, b: Vectors) -> Tensor:
    return torch.linalg.solve(g + LAMBDA, joined(b).T).T


@pytest.fixture
def preconditioner() -> Callable[[Vectors], Vectors]:
    """The inverse of the diagonal."""
    return by(torch.diag(1 / (drawn(0) + LAMBDA).diagonal()))


def falls(residuals: list[Tensor]) -> bool:
    return bool((torch.stack(residuals).diff(dim=0) <= 1e-12).all())


@pytest.mark.parametrize("begin", [False, True], ids=["from zero", "from P b"])
def test_conjugate_gradients_reach_the_dense_solve(b, preconditioner, begin):
    g = drawn(0)
    start = preconditioner(b) if begin else None
    given = {name: value.clone() for name, value in (start or b).items()}
    found = conjugate_gradient(
        damped(by(g), DAMPING), b, precondition=preconditioner, start=start, steps=60,
        tolerance=1e-12,
    )  # fmt: skip
    assert relative(joined(found.x), answer(g, b)) < 1e-10
    assert found.converged
    assert found.steps < 60
    assert falls(found.residuals)
    assert all(torch.equal(given[name], (start or b)[name]) for name in given)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_residual_said_is_that_of_the_answer(b, preconditioner, steps):
    g = drawn(0)
    found = conjugate_gradient(damped(by(g), DAMPING), b, precondition=preconditioner, steps=steps)
    left = joined(b) - joined(found.x) @ (g + LAMBDA).T
    assert torch.allclose(found.residuals[-1], left.norm(dim=1) / joined(b).norm(dim=1))
    assert len(found.residuals) == steps + 1
    assert not found.converged


def test_without_a_preconditioner_it_is_that_of_a_few_eigenvalues(b):
    """Of m different eigenvalues conjugate gradients take m steps."""
    draw = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q = torch.linalg.qr(draw).Q
    values = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64).repeat(8)[:SIZE]
    found = conjugate_gradient(by(q @ values.diag() @ q.T), b, steps=3)
    assert float(found.residuals[-1].max()) < 1e-10


def test_no_step_returns_the_start(b, preconditioner):
    start = preconditioner(b)
    found = conjugate_gradient(damped(by(drawn(0)), DAMPING), b, start=start, steps=0)
    assert all(torch.equal(found.x[name], start[name]) for name in start)
    assert found.steps == 0


def test_from_a_kept_iteration_it_goes_on_to_the_same_bits(b, preconditioner):
    apply, kept = damped(by(drawn(0)), DAMPING), []

    def told(at: Iteration) -> None:
        kept.append({name: one.clone() for name, one in at.tensors().items()})

    whole = conjugate_gradient(apply, b, precondition=preconditioner, steps=9, told=told)
    for step, tensors in enumerate(kept, 1):
        begun = Iteration.of_tensors(tensors, b)
        assert len(begun.residuals) == step + 1
        found = conjugate_gradient(apply, b, precondition=preconditioner, steps=9, begun=begun)
        assert all(torch.equal(found.x[name], whole.x[name]) for name in b)
        assert torch.equal(torch.stack(found.residuals), torch.stack(whole.residuals))


def test_it_stops_at_the_tolerance_of_the_slowest(b, preconditioner):
    found = conjugate_gradient(
        damped(by(drawn(0)), DAMPING), b, precondition=preconditioner, steps=60, tolerance=1e-3
    )
    assert float(found.residuals[-1].max()) <= 1e-3 < float(found.residuals[-2].max())


def test_what_is_not_finite_is_said(b):
    with pytest.raises(ArithmeticError):
        conjugate_gradient(by(drawn(0) * float("nan")), b, steps=3)


def test_the_largest_eigenvalue(b):
    values = torch.linspace(1, 9, SIZE, dtype=torch.float64)
    assert largest_eigenvalue(by(values.diag()), b) == pytest.approx(1.1 * 9, rel=0.05)


@pytest.mark.parametrize("tail", [0.0, 0.2])
def test_neumann_iterations_reach_the_dense_solve(b, preconditioner, tail):
    g = drawn(0)
    found = neumann(
        lambda step: damped(by(g), DAMPING), b, precondition=preconditioner,
        start=preconditioner(b), steps=1000, tail=tail,
    )  # fmt: skip
    assert relative(joined(found.x), answer(g, b)) < 2e-3


def test_neumann_iterations_stop_at_the_tolerance(b, preconditioner):
    g = drawn(0)
    found = neumann(
        lambda step: damped(by(g), DAMPING), b, precondition=preconditioner, steps=1000,
        tolerance=1e-3,
    )  # fmt: skip
    assert found.converged
    assert float(found.residuals[-1].max()) <= 1e-3 < float(found.residuals[-2].max())
    left = joined(b) - joined(found.x) @ (g + LAMBDA).T
    assert torch.allclose(found.residuals[-1], left.norm(dim=1) / joined(b).norm(dim=1))


def test_too_long_a_step_is_halved(b, preconditioner):
    g = drawn(0)
    usual = neumann(
        lambda step: damped(by(g), DAMPING), b, precondition=preconditioner, steps=5
    ).step_size
    found = neumann(
        lambda step: damped(by(g), DAMPING), b, precondition=preconditioner, steps=500,
        step_size=64 * usual, tail=0.0,
    )  # fmt: skip
    assert found.step_size <= 4 * usual
    assert relative(joined(found.x), answer(g, b)) < 1e-3


def test_what_no_step_mends_is_said(b):
    """An operator with negative eigenvalues."""
    with pytest.raises(ArithmeticError, match="diverge"):
        neumann(lambda step: by(-1e9 * LAMBDA), b, precondition=by(LAMBDA), steps=50, step_size=1.0)


def test_minibatches_average_out(b, preconditioner):
    """The mean of the iterates is nearer to the answer than the iterates are."""
    damping = {"one": 8.0, "two": 8.0}
    parts = [drawn(0) + 0.1 * (drawn(seed) - drawn(seed + 1)) for seed in range(1, 401, 2)]
    g = torch.stack(parts).mean(0) + 8.0 * torch.eye(SIZE)
    expected, errors = torch.linalg.solve(g, joined(b).T).T, []
    for tail in (0.0, 0.5):
        found = neumann(
            lambda step: damped(by(parts[step % 200]), damping), b,
            precondition=preconditioner, steps=400, step_size=0.1, tail=tail,
        )  # fmt: skip
        errors.append(relative(joined(found.x), expected))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_lissa_is_its_own_recursion(b, steps):
    """r ← b + (I - α A) r from r = b, as Agarwal et al. have it; α r is the answer."""
    parts, alpha = [drawn(seed) + LAMBDA for seed in range(steps)], 1e-3
    found = lissa(lambda step: by(parts[step % steps]), b, steps=steps, step_size=alpha)
    flat = joined(b)
    r = torch.zeros_like(flat)
    for part in parts:
        r = flat + r - alpha * r @ part.T
    assert relative(joined(found.x), alpha * r) < 1e-12
