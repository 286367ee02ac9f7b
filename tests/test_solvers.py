"""Solvers by products alone find the dense solution, and say truthfully how far they are."""

from __future__ import annotations

import pytest
import torch
from oracle import relative

from inflcli.ekfac import conjugate_gradient, damped, lissa, neumann

SHAPES = {"one": (3, 4), "two": (2, 5)}
DAMPING = {"one": 0.05, "two": 0.3}


def flat(vectors):
    return torch.cat([vectors[name].flatten(1) for name in SHAPES], 1)


def matrices(columns):
    parts = columns.split([12, 10], dim=1)
    return {n: x.reshape(-1, *SHAPES[n]) for n, x in zip(SHAPES, parts, strict=True)}


@pytest.fixture
def system():
    """G [22, 22] of rank 15, three right sides and the solutions of (G + λ) x = b."""
    torch.manual_seed(0)
    root = torch.randn(15, 22, dtype=torch.float64)
    g = root.T @ root / 15
    added = torch.tensor([0.05] * 12 + [0.3] * 10, dtype=torch.float64)
    b = torch.randn(3, 22, dtype=torch.float64)
    return g, b, torch.linalg.solve(g + torch.diag(added), b.T).T


def product(g):
    return damped(lambda v: matrices(flat(v) @ g), DAMPING)


def test_conjugate_gradient(system):
    g, b, x = system
    found = conjugate_gradient(product(g), matrices(b), steps=60, tolerance=1e-12)
    assert found.converged and found.steps < 60
    assert relative(flat(found.x), x) < 1e-10


def test_conjugate_gradient_with_the_inverse_needs_one_step(system):
    g, b, x = system
    added = torch.tensor([0.05] * 12 + [0.3] * 10, dtype=torch.float64)
    inverse = torch.linalg.inv(g + torch.diag(added))
    found = conjugate_gradient(
        product(g),
        matrices(b),
        precondition=lambda v: matrices(flat(v) @ inverse),
        steps=60,
        tolerance=1e-10,
    )
    assert found.steps == 1
    assert relative(flat(found.x), x) < 1e-10


def test_conjugate_gradient_from_a_start_takes_no_step_if_told(system):
    g, b, _ = system
    start = matrices(torch.randn(3, 22, dtype=torch.float64))
    found = conjugate_gradient(product(g), matrices(b), start=start, steps=0)
    assert torch.equal(flat(found.x), flat(start)) and found.steps == 0


def test_residuals_are_those_of_the_answer_and_fall(system):
    g, b, _ = system
    found = conjugate_gradient(product(g), matrices(b), steps=7)
    left = b - flat(product(g)(found.x))
    assert torch.allclose(found.residuals[-1], left.norm(dim=1) / b.norm(dim=1), rtol=1e-9)
    sizes = torch.stack(found.residuals)
    assert (sizes[1:] <= sizes[:-1] * (1 + 1e-12)).all()


def test_systems_do_not_mix(system):
    """One of them zero, one already solved, one a thousand times the size."""
    g, b, x = system
    b, x = b.clone(), x.clone()
    b[0], x[0] = 0.0, 0.0
    b[2], x[2] = 1000 * b[2], 1000 * x[2]
    found = conjugate_gradient(product(g), matrices(b), steps=60, tolerance=1e-12)
    assert flat(found.x)[0].abs().max() == 0
    assert relative(flat(found.x)[1:], x[1:]) < 1e-9


def test_lissa_with_the_whole_batch(system):
    g, b, x = system
    found = lissa(lambda step: product(g), matrices(b), steps=3000)
    assert relative(flat(found.x), x) < 1e-8
    assert float(found.residuals[-1].max()) < 1e-8


@pytest.mark.parametrize("steps", [1, 3, 49])
def test_lissa_is_its_recursion(system, steps):
    """Of which the last iterate is the answer: r ← b + r - α (G + λI) r, α r."""
    g, b, _ = system
    found = lissa(lambda step: product(g), matrices(b), steps=steps, step_size=0.01)
    r = b
    for _ in range(steps - 1):
        r = b + r - 0.01 * flat(product(g)(matrices(r)))
    assert relative(flat(found.x), 0.01 * r) < 1e-12


def test_the_step_is_halved_until_nothing_diverges(system):
    g, b, x = system
    found = lissa(lambda step: product(g), matrices(b), steps=6000, step_size=8.0)
    largest = float(torch.linalg.eigvalsh(g).max()) + 0.3
    assert found.step_size < 2 / largest + 1e-3
    assert relative(flat(found.x), x) < 1e-8


def test_lissa_gives_up(system):
    """On a matrix that has a negative eigenvalue there is no step that helps."""
    g, b, _ = system
    with pytest.raises(ArithmeticError, match="diverge"):
        lissa(lambda step: product(-1e9 * g), matrices(b), steps=300, step_size=1.0)


def test_neumann_averages_the_last_half(system):
    g, b, _ = system
    found = neumann(
        lambda step: product(g),
        matrices(b),
        precondition=lambda v: v,
        steps=10,
        step_size=0.01,
        tail=0.5,
    )
    x, seen = torch.zeros_like(b), []
    for _ in range(10):
        x = x + 0.01 * (b - flat(product(g)(matrices(x))))
        seen.append(x)
    assert relative(flat(found.x), torch.stack(seen[5:]).mean(0)) < 1e-12
