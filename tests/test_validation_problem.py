"""A problem that would be answered wrongly is refused, and float64 leaves the caller's alone."""

from __future__ import annotations

import functools

import pytest
import torch
from oracle import relative
from tiny_problems import classifier, regression
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from inflcli.ekfac import Categorical, DampedInverse, Inverse, LinearModel
from inflcli.validation import Problem, ekfac, pbrf, refined


def test_training_mode_is_refused():
    problem = regression()
    problem.model.network.train()
    with pytest.raises(ValueError, match="eval"):
        Problem(problem.model, problem.fitted, problem.points, problem.queries)


def test_nothing_to_do_is_refused():
    problem = regression()
    with pytest.raises(ValueError, match="points"):
        Problem(problem.model, problem.fitted, [], problem.queries)


def test_float64_copies():
    problem = classifier()
    assert problem.in_float64().model.network is problem.model.network
    problem.model.network.float()
    inputs, targets = problem.queries
    single = Problem(problem.model, problem.fitted, problem.points, (inputs.float(), targets))
    double = single.in_float64()
    assert single.model.dtype == torch.float32 and double.model.dtype == torch.float64
    assert double.queries[0].dtype == torch.float64 and double.queries[1].dtype == torch.int64
    assert [m.name for m in double.model.modules] == [m.name for m in single.model.modules]


def test_float64_is_not_rounded_on_the_way(tiny_model):
    """Llama's norm, as transformers has it, goes through float32, and so do its angles."""
    made = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32).eval()
    ids = torch.arange(1, 8)[None]
    model = LinearModel(
        made,
        Categorical(),
        modules=["model.layers.0.mlp.down_proj"],
        forward=lambda network, ids: network(ids).logits,
    )
    double = Problem(model, [(ids, ids)], [(ids, ids)], (ids, ids)).in_float64().model
    logits = double.outputs(ids)
    rounded = double.network(ids).logits
    with torch.no_grad():
        for norm in (one for one in double.network.modules() if type(one) is LlamaRMSNorm):
            norm.forward = functools.partial(unrounded, norm)
    assert logits.dtype == torch.float64
    assert relative(logits, double.outputs(ids)) < 1e-14 < 1e-10 < relative(rounded, logits)


def unrounded(norm, x):
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kfax"):
        ekfac(regression(), kind="kfax")


@pytest.mark.parametrize("method", [ekfac, refined, pbrf])
def test_an_identity_is_refused_as_an_inverse(method):
    problem = regression()
    identity = Inverse({m.name: DampedInverse(None, None, 0.0) for m in problem.model.modules})
    with pytest.raises(ValueError, match="identity"):
        method(problem, inverse=identity)


def test_a_module_without_damping_is_refused():
    with pytest.raises(KeyError, match="2"):
        ekfac(regression(), damping={"0": 0.1})
