"""What a model is trained on depends on its points and its recipe, and on nothing else.

The same arguments give the same weights; a subset sees the batches of all points, in their order
and at their learning rates, without those that it lacks; and one model is what a loop written out
by hand gives.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ggn import keep_float64
from retraining_fixtures import RECIPE, make_llama, random_sequences, some_queries
from torch import nn
from torch.nn import functional

from inflcli.ekfac import IGNORED, Categorical, Gaussian
from inflcli.validation.points import Examples, Sequences, log_probs
from inflcli.validation.retraining import Recipe, batches, initial, network_fingerprint, train

COUNT = 22
DATA = random_sequences(COUNT)


class Watched(Sequences):
    """Sequences that note which were asked for."""

    def batch(self, ids):
        self.__dict__.setdefault("seen", []).append(ids.tolist())
        return super().batch(ids)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_same_arguments_give_the_same_weights():
    ids = np.random.default_rng(1).permutation(COUNT)[:11]
    torch.manual_seed(5)
    first = weights(train(make_llama, DATA, ids, RECIPE))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "training moved the caller's random numbers"
    torch.manual_seed(6)
    assert torch.equal(first, weights(train(make_llama, DATA, np.sort(ids), RECIPE)))
    for other in (replace(RECIPE, seed=1), replace(RECIPE, learning_rate=2e-2)):
        assert not torch.equal(first, weights(train(make_llama, DATA, ids, other)))
    assert not torch.equal(first, weights(train(make_llama, DATA, ids[:-1], RECIPE)))


def test_batches_are_of_similar_lengths_and_differ_between_epochs():
    lengths = np.random.default_rng(0).integers(1, 500, 200)
    first, second = (batches(lengths, RECIPE, epoch) for epoch in range(2))
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(200))
        assert max(np.ptp(lengths[ids]) for ids in epoch) < 60
        assert np.abs(np.diff([lengths[ids].mean() for ids in epoch])).mean() > 60, "short first"
    assert {tuple(sorted(ids)) for ids in first} != {tuple(sorted(ids)) for ids in second}


def test_a_subset_sees_the_batches_of_all_without_what_it_lacks():
    whole = [ids.tolist() for epoch in range(2) for ids in batches(DATA.lengths, RECIPE, epoch)]
    assert [sorted(sum(part, [])) for part in (whole[:6], whole[6:])] == [list(range(COUNT))] * 2
    # A whole batch is missing: its step is left out, and the others keep their learning rates.
    lacking = {*whole[1], whole[0][0], whole[7][1]}
    watched = Watched(DATA.tokens, DATA.lengths)
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def note(optimizer, *given):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", note)
        train(make_llama, watched, [i for i in range(COUNT) if i not in lacking], RECIPE)
    left = [[i for i in ids if i not in lacking] for ids in whole]
    assert watched.__dict__["seen"] == [ids for ids in left if ids]
    expected = [RECIPE.rate(i, len(whole)) for i, ids in enumerate(left) if ids]
    assert rates == expected
    assert len(rates) < len(whole)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_training_is_the_loop_written_out(loss, monkeypatch):
    """Llama in float64 against a plain loop over single sequences: AdamW, clipping, schedule."""
    keep_float64(monkeypatch)
    recipe = replace(RECIPE, loss=loss, dtype="float64", warmup=0.25, clip=0.1)
    ids = [i for i in range(COUNT) if i % 3]
    found = train(make_llama, DATA, ids, recipe)
    network = initial(make_llama, recipe)
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas,
    )  # fmt: skip
    steps = 2 * math.ceil(COUNT / 4)

    def rate(step: int) -> float:
        if step < 3:
            return (step + 1) / 3
        return 0.5 + 0.5 * math.cos(math.pi * (step - 3) / (steps - 3))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    constant = 4 * float(np.mean(DATA.lengths - 1))
    for epoch in range(2):
        for batch in batches(DATA.lengths, recipe, epoch):
            present = [i for i in batch if i in ids]
            total, count = torch.zeros((), dtype=torch.float64), 0
            for i in present:
                tokens = torch.from_numpy(DATA.tokens[i, : DATA.lengths[i]])[None]
                logits = network(input_ids=tokens).logits[0, :-1]
                total = total + functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
                count += tokens.numel() - 1
            if present:
                (total / (constant if loss == "sum" else count)).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
    moved = weights(network) - weights(initial(make_llama, recipe))
    assert (weights(found) - weights(network)).norm() < 1e-6 * moved.norm()


def test_training_lowers_the_loss_of_what_is_trained_on():
    losses: list[float] = []
    recipe = replace(RECIPE, epochs=15, dtype="bfloat16")
    ids = list(range(0, COUNT, 2))
    network = train(make_llama, DATA, ids, recipe, lambda _, loss: losses.append(loss))
    assert len(losses) == 15 and losses[-1] < 0.7 * losses[0]
    assert not network.training and next(network.parameters()).dtype == torch.float32
    per_token = -log_probs(network, DATA) / DATA.positions
    assert per_token[ids].mean() < 0.8 * np.delete(per_token, ids).mean()


def test_log_p_of_a_query_is_that_of_its_completion():
    network, queries = make_llama().double().eval(), some_queries(5)
    found = log_probs(network, queries, batch_size=2)
    for row, tokens in enumerate(queries.tokens):
        with torch.no_grad():
            log_p = network(torch.from_numpy(tokens)[None]).logits[0].log_softmax(-1)
        expected = sum(log_p[t - 1, tokens[t]].item() for t in (4, 5))
        assert found[row] == pytest.approx(expected, rel=1e-10)
    assert queries.positions.tolist() == [2] * 5


def test_points_are_checked():
    tokens = np.zeros((2, 4), int)
    for lengths, starts in (([1], None), ([0, 4], None), ([4, 5], None), ([4, 4], [1])):
        with pytest.raises(ValueError):
            Sequences(tokens, np.array(lengths), None if starts is None else np.array(starts))
    with pytest.raises(ValueError):
        Examples(torch.zeros(3, 2), torch.zeros(2, 1), Gaussian())
    for ids in ([], [0, 0], [COUNT], [-1]):
        with pytest.raises(ValueError):
            train(make_llama, DATA, ids, RECIPE)
    for wrong in ({"epochs": 0}, {"warmup": 2.0}, {"dtype": "int8"}, {"loss": "max"}):
        with pytest.raises(ValueError):
            Recipe(**{"epochs": 1, **wrong})


def test_padding_changes_nothing():
    wide = np.concatenate([DATA.tokens, np.full((COUNT, 9), 7)], axis=1)
    wide[np.arange(29) >= DATA.lengths[:, None]] = 7
    padded = Sequences(wide, DATA.lengths)
    network = make_llama().double()
    assert np.allclose(log_probs(network, padded), log_probs(network, DATA), rtol=1e-12)
    inputs, targets = padded.batch(np.array([3, 0]))
    assert (targets != IGNORED).sum(1).tolist() == (DATA.lengths[[3, 0]] - 1).tolist()
    assert inputs.shape[1] <= 32


def test_fingerprints_tell_networks_apart():
    first = initial(make_llama, RECIPE)
    same = network_fingerprint(first)
    assert same == network_fingerprint(initial(make_llama, RECIPE))
    assert same != network_fingerprint(initial(make_llama, replace(RECIPE, seed=1)))
    first.config.rms_norm_eps = 1e-3  # the weights are what they were
    assert same != network_fingerprint(first)


def test_any_network_with_a_likelihood_can_be_trained():
    """Softmax regression, full batches, against full-batch gradient steps by its closed form."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 5, generator=draw)
    targets = (inputs[:, 0] > 0).long()
    data = Examples(inputs, targets, Categorical())
    recipe = Recipe(epochs=60, batch_size=12, learning_rate=0.1, weight_decay=0.0)
    network = train(lambda: nn.Linear(5, 2), data, range(8), recipe)
    with torch.no_grad():
        right = network(inputs).argmax(1) == targets
    assert right[:8].all()
    assert log_probs(network, data)[:8].mean() > -0.1
