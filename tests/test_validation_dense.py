"""Estimators that are exact in a limit are the dense solve there, on tiny networks in float64."""

from __future__ import annotations

import pytest
import torch
from dense import Dense, every
from oracle import relative
from tiny_problems import classifier, regression

from inflcli.ekfac import fit
from inflcli.validation import ekfac, ggn, gradient_cosine, gradient_dot, lissa, refined, sampled_cg
from inflcli.validation.problem import Problem

PROBLEMS = {"gaussian": regression, "categorical": classifier}
DAMPING = {"0": 0.02, "2": 0.1}


@pytest.fixture(params=PROBLEMS)
def both(request) -> tuple[Problem, Dense]:
    problem = PROBLEMS[request.param]()
    names = [module.name for module in problem.model.modules]
    return problem, Dense(problem.model.network, names, request.param)


def exactly(problem, dense, damping=DAMPING):
    g = dense.ggn(every(problem.fitted)[0])
    return dense.scores(g, dense.each(damping), problem.queries, problem.points)


def test_gradient_dot_and_cosine(both):
    problem, dense = both
    q = dense.gradients(problem.queries)
    n = torch.cat([dense.gradients(batch) for batch in problem.points])
    assert relative(gradient_dot(problem).scores, q @ n.T) < 1e-12
    cosine = torch.nn.functional.cosine_similarity(q[:, None], n[None], dim=-1)
    assert relative(gradient_cosine(problem).scores, cosine) < 1e-12


@pytest.mark.parametrize("damping", [DAMPING, {"0": 0.05, "2": 0.05}])
def test_ggn(both, damping):
    """One λ a module, and one for all given as a number."""
    problem, dense = both
    given = 0.05 if damping["0"] == 0.05 else damping
    found = ggn(problem, damping=given, tolerance=1e-11)
    assert found.details["converged"] and found.details["residual"] < 2e-11
    assert found.details["damping"] == damping
    assert relative(found.scores, exactly(problem, dense, damping)) < 1e-9


def test_ggn_says_where_it_did_not_arrive(both):
    problem, _ = both
    found = ggn(problem, damping=DAMPING, steps=2)
    assert not found.details["converged"] and found.details["residual"] > 1e-8


def test_ggn_of_a_float32_network_is_computed_in_float64(both):
    problem, dense = both

    def single(batch):
        inputs, targets = batch
        return inputs.float(), targets.float() if targets.is_floating_point() else targets

    problem.model.network.float().double()  # weights that float32 holds
    expected = exactly(problem, dense)
    problem.model.network.float()
    rounded = Problem(
        problem.model,
        [single(batch) for batch in problem.fitted],
        [single(batch) for batch in problem.points],
        single(problem.queries),
    )
    found = ggn(rounded, damping=DAMPING)
    # The data are rounded, too: to 1e-7.
    assert relative(found.scores, expected) < 1e-5
    # float32 comes first, and float64 has the last word.
    assert found.details["converged"] and found.details["residual"] < 2e-8
    assert min(found.details[which] for which in ("single_steps", "steps")) > 0
    assert rounded.model.dtype == torch.float32


def test_lissa_with_all_sequences_in_a_batch(both):
    problem, dense = both
    whole = Problem(problem.model, [every(problem.fitted)], problem.points, problem.queries)
    found = lissa(whole, damping={"0": 1.0, "2": 2.0}, depth=150)
    assert relative(found.scores, exactly(problem, dense, {"0": 1.0, "2": 2.0})) < 1e-4


def test_lissa_sees_every_batch(both):
    """Its minibatches' mean is right: with small steps it ends near the solution, and not near
    that of one batch."""
    problem, dense = both
    parts = problem.fitted[:3]  # of one size
    problem = Problem(problem.model, parts, problem.points, problem.queries)
    found = lissa(problem, damping=1.0, depth=180, step_size=0.02).scores
    error = relative(found, exactly(problem, dense, {"0": 1.0, "2": 1.0}))
    assert error < 0.02
    for part in parts:
        alone = Problem(problem.model, [part], problem.points, problem.queries)
        assert relative(found, exactly(alone, dense, {"0": 1.0, "2": 1.0})) > 2 * error


def test_lissa_is_as_deep_as_there_are_sequences(both):
    problem, _ = both
    assert lissa(problem, damping=1.0).details["depth"] == 15


@pytest.mark.parametrize("kept", [True, False])
def test_sampled_cg_with_its_labels(both, kept):
    """The dense sampled Fisher of the very labels, whether gradients are kept or not."""
    problem, dense = both
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(2):
        for inputs, targets in problem.fitted:
            outputs = problem.model.network(inputs).detach()
            drawn = problem.model.likelihood.sample(outputs, targets, generator)
            rows.append(dense.gradients((inputs, drawn)))
    rows = torch.cat(rows)
    g = rows.T @ rows / len(rows)
    room = 1e9 if kept else 0
    found = sampled_cg(
        problem, damping=DAMPING, label_samples=2, seed=3, tolerance=1e-12, room=room
    )
    expected = dense.scores(g, dense.each(DAMPING), problem.queries, problem.points)
    assert relative(found.scores, expected) < 1e-9
    # The Gram matrix of kept gradients solves but for rounding; without it steps are many.
    assert found.details["steps"] <= 2 if kept else found.details["steps"] > 5


def test_sampled_cg_with_many_labels(both):
    problem, dense = both
    whole = Problem(problem.model, [every(problem.fitted)], problem.points, problem.queries)
    found = sampled_cg(whole, damping=0.5, label_samples=500)
    assert relative(found.scores, exactly(problem, dense, {"0": 0.5, "2": 0.5})) < 0.05


def test_refined_begins_at_ekfac_and_ends_at_the_exact_solution(both):
    problem, dense = both
    inverse = fit(problem.model, problem.fitted).inverse(damping=DAMPING)
    estimates = [refined(problem, steps=steps, inverse=inverse) for steps in (0, 5, 80)]
    assert torch.equal(estimates[0].scores, ekfac(problem, inverse=inverse).scores)
    expected = exactly(problem, dense)
    errors = [relative(one.scores, expected) for one in estimates]
    assert errors[2] < 1e-9 < errors[1] < errors[0]
    assert len(estimates[1].details["residuals"]) == 6


def test_refined_on_a_subset(both):
    problem, dense = both
    found = refined(problem, steps=80, subset=problem.fitted[:2], damping=DAMPING)
    g = dense.ggn(every(problem.fitted[:2])[0])
    expected = dense.scores(g, dense.each(DAMPING), problem.queries, problem.points)
    assert relative(found.scores, expected) < 1e-9
    assert found.details["sequences"] == 8


def test_ekfac_damps_a_given_inverse_anew(both):
    problem, _ = both
    inverse = fit(problem.model, problem.fitted).inverse(damping=3.0)
    expected = ekfac(problem, damping=DAMPING)
    found = ekfac(problem, inverse=inverse, damping=DAMPING, fit_seconds=12.5)
    assert relative(found.scores, expected.scores) < 1e-12
    assert found.seconds["fit"] >= 12.5 and found.total >= 12.5


def test_every_kind_has_ekfac_s_damping(both):
    """So that like is compared with like: 0.1 of the mean Λ, whatever is done with it."""
    problem, _ = both
    expected = ekfac(problem).details["damping"]
    assert ekfac(problem, kind="kfac").details["damping"] == expected
    for result in (ggn(problem), lissa(problem), sampled_cg(problem), refined(problem)):
        assert result.details["damping"] == pytest.approx(expected, rel=1e-12)
    blocks = ekfac(problem, blocks=2).details["damping"]
    assert blocks == pytest.approx(expected, rel=1e-12)


def test_full_rank_changes_nothing(both):
    problem, _ = both
    whole = ekfac(problem)
    assert relative(ekfac(problem, rank=5).scores, whole.scores) < 1e-12
    assert relative(ekfac(problem, rank=1).scores, whole.scores) > 1e-3
