"""Training a network from its start on a part of its data: what influence is meant to predict.

    data = Sequences(tokens, lengths)
    network = train(make_network, data, ids, Recipe(epochs=10))
    log_p = log_probs(network, Sequences(queries, lengths, starts))

Two models differ in the points left out and, as far as can be, in nothing else. Every epoch orders
*all* points and cuts them into batches, by the recipe's seed alone; a subset sees the same batches
in the same order, without the points that it lacks. So the number of steps and the learning rate at
each do not depend on the subset, and with the loss `sum` a token weighs the same in every model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inflcli.validation.points import Ids, Points, digest

MakeNetwork = Callable[[], nn.Module]
"""Makes a new network each time. What it draws at random follows the recipe's seed, so that a fresh
initialisation differs between seeds, and given weights do not."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""The type of the weights. `bfloat16` computes in it by autocast, on float32 weights."""
LOSSES = ("sum", "mean")
_JITTER = 8.0
"""Lengths are moved by up to this many tokens before points are grouped by them, so that an epoch's
groups are not another's."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, weight decay on matrices alone, linear warm-up and cosine to zero.

    The loss is the negative log p of a batch's predictions: with `sum` over a constant, the mean
    number of predictions in a batch of all data, so that each prediction weighs the same; with
    `mean` over the number in that very batch. Raises ValueError for values that make no sense.
    """

    epochs: int
    batch_size: int = 16
    """Points in a batch of all data."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    """Share of the steps."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = 1.0
    """Norm to which gradients are cut."""
    loss: str = "sum"
    seed: int = 0
    """Of the order, of dropout, and of the initial weights where the network is made at random."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.seed < 0:
            raise ValueError(f"{self.epochs} epochs, batches of {self.batch_size}: {self}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, not {self.warmup}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, not {self.dtype}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {self.loss}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` of `steps`, from 0."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def batches(lengths: NDArray[np.int64], recipe: Recipe, epoch: int) -> list[Ids]:
    """All points in the batches of one epoch, of similar lengths each, in random order."""
    draw = np.random.default_rng((recipe.seed, epoch))
    order = np.argsort(lengths + draw.uniform(-_JITTER, _JITTER, len(lengths)), kind="stable")
    cut = [order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size)]
    return [cut[index] for index in draw.permutation(len(cut))]


def initial(make_network: MakeNetwork, recipe: Recipe) -> nn.Module:
    """The network before any training, with its weights in the recipe's type."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return make_network().to(DTYPES[recipe.dtype])


def train(
    make_network: MakeNetwork,
    data: Points,
    ids: Sequence[int] | Ids,
    recipe: Recipe,
    progress: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a new network on points `ids` of `data`, and return it in evaluation mode.

    On one machine, with one number of threads, the same arguments give the same weights; the order
    of `ids` does not count. After every epoch `progress` gets its number and the mean loss, nats a
    prediction, while it was trained. Raises ValueError for ids that are none, not those of points,
    or given twice. Cost: `epochs` forward and backward passes over the points kept, and as many
    optimizer steps as all points take.
    """
    kept = _kept(ids, len(data))
    lengths, positions = data.lengths, data.positions
    usual = recipe.batch_size * max(float(positions.mean()), 1.0)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    step = 0
    network = initial(make_network, recipe)
    device = next(network.parameters()).device
    optimizer = _optimizer(network, recipe)
    network.train()
    # The seed of dropout; weights were drawn from the same, which does no harm.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for epoch in range(recipe.epochs):
            total, count = 0.0, 0
            for batch in batches(lengths, recipe, epoch):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step, steps)
                step += 1
                present = batch[kept[batch]]
                predictions = int(positions[present].sum())
                if not predictions:
                    continue
                inputs, targets = (one.to(device) for one in data.batch(present))
                with torch.autocast(device.type, torch.bfloat16, recipe.dtype == "bfloat16"):
                    outputs = data.outputs(network, inputs)
                outputs = outputs.to(DTYPES[recipe.dtype])
                loss = -data.likelihood.log_prob(outputs, targets).sum()
                (loss / (usual if recipe.loss == "sum" else predictions)).backward()
                if recipe.clip is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
                optimizer.step()
                optimizer.zero_grad()
                total, count = total + loss.item(), count + predictions
            if progress is not None:
                progress(epoch, total / max(count, 1))
    return network.eval()


def network_fingerprint(network: nn.Module) -> str:
    """A digest of a network's modules, its transformers config and its weights."""
    to_dict = getattr(getattr(network, "config", None), "to_dict", dict)
    described: dict[str, Any] = to_dict()
    # Where it was loaded from and by which version does not change what it is.
    for name in ("_name_or_path", "transformers_version"):
        described.pop(name, None)
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    text = json.dumps([repr(network), described, list(state)], sort_keys=True, default=str)
    return digest((_bits(value) for value in state.values()), text)


def _bits(value: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes; numpy has no bfloat16."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


def _kept(ids: Sequence[int] | Ids, count: int) -> NDArray[np.bool_]:
    """Which of `count` points are among `ids`, [N]."""
    given = np.asarray(ids, np.int64)
    if not given.size:
        raise ValueError("there is no point to train on")
    if given.min() < 0 or given.max() >= count:
        raise ValueError(f"ids of points go from 0 to {count - 1}")
    if len(np.unique(given)) < len(given):
        raise ValueError("a point is given twice")
    kept = np.zeros(count, np.bool_)
    kept[given] = True
    return kept


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    kinds = [group for group in groups if group["params"]]
    return torch.optim.AdamW(kinds, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
