"""Small networks on data that come with a package, as in Appendix C of the paper.

Examples are split 70/20/10 at random into training, validation and test; inputs, and a regression's
targets, are brought to zero mean and unit variance by the training examples. Networks have two
hidden layers (128 wide for the regressions and 256 for digits as there, and 32 for digits again),
and are trained by SGD with momentum in batches of 128. Learning rate and weight
decay are those of least loss on the validation examples; the test examples, from which the queries
are taken, take no part in it. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

from inflcli.ekfac import Categorical, Gaussian, LinearModel
from inflcli.validation import Problem

BATCH = 128
LEARNING_RATES = (0.003, 0.01, 0.03)
DECAYS = (0.0, 1e-3, 1e-2)


@dataclass(frozen=True)
class Data:
    """A data set, and the network it gets."""

    title: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    classes: int
    """0 of a regression."""
    hidden: int
    activation: type[nn.Module]
    epochs: int


def _friedman() -> tuple[np.ndarray, np.ndarray]:
    return datasets.make_friedman1(n_samples=716, n_features=10, noise=1.0, random_state=0)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    return datasets.load_digits(return_X_y=True)


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    return datasets.load_diabetes(return_X_y=True)


DATA = {
    "diabetes": Data("Diabetes (scikit-learn)", _diabetes, 0, 128, nn.Tanh, 100),
    "friedman": Data("Friedman #1 (synthetic)", _friedman, 0, 128, nn.Tanh, 100),
    "digits": Data("Digits 8x8 (scikit-learn)", _digits, 10, 32, nn.ReLU, 50),
    "digits-wide": Data("Digits 8x8, 256 wide", _digits, 10, 256, nn.ReLU, 50),
}


def make(name: str, *, queries: int, points: int, batch: int, seed: int) -> tuple[Problem, dict]:
    """The validation problem of that name, and facts about it for the record.

    `points` training examples are scored, fewer where there are not so many; the curvature is that
    of all training examples, in batches of `batch`.
    """
    data = DATA[name]
    inputs, targets = (torch.from_numpy(np.asarray(one)) for one in data.load())
    inputs = inputs.double()
    targets = targets.long() if data.classes else targets.double()[:, None]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    sizes = [int(0.7 * len(order)), int(0.2 * len(order))]
    train, validation, test = order.split([*sizes, len(order) - sum(sizes)])
    inputs = _standard(inputs, train)
    if not data.classes:
        targets = _standard(targets, train)
    likelihood = Categorical() if data.classes else Gaussian()

    def some(index: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[index], targets[index]

    best: tuple[float, float, float, nn.Module] | None = None
    for rate in LEARNING_RATES:
        for decay in DECAYS:
            network = _network(data, inputs.shape[1], seed)
            model = LinearModel(network, likelihood)
            _train(model, some(train), rate, decay, data.epochs, seed)
            loss = -float(model.log_prob(some(validation)).mean())
            if best is None or loss < best[0]:  # a diverged NaN is never less
                best = (loss, rate, decay, network)
    assert best is not None
    model = LinearModel(best[3], likelihood)
    scored = train[torch.randperm(len(train), generator=generator)[:points]]
    measured = test[torch.randperm(len(test), generator=generator)[:queries]]

    def batches(index: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [some(part) for part in index.split(batch)]

    facts: dict[str, Any] = {
        "title": data.title,
        "examples": len(order),
        "fitted": len(train),
        "points": len(scored),
        "queries": len(measured),
        "batch": batch,
        "outputs": data.classes or 1,
        "parameters": sum(module.inputs * module.outputs for module in model.modules),
        "hidden": [data.hidden, data.hidden],
        "activation": data.activation.__name__,
        "epochs": data.epochs,
        "learning_rate": best[1],
        "weight_decay": best[2],
        "loss": {
            part: -float(model.log_prob(some(index)).mean())
            for part, index in (("train", train), ("validation", validation), ("test", test))
        },
    }
    if data.classes:
        guess = model.outputs(inputs[test]).argmax(-1)
        facts["test_accuracy"] = float((guess == targets[test]).double().mean())
    else:
        error = (model.outputs(inputs[test]) - targets[test]).square().mean()
        facts["test_mean_squared_error"] = float(error.detach())
    return Problem(model, batches(train), batches(scored), some(measured)), facts


def _standard(values: Tensor, train: Tensor) -> Tensor:
    """By the training examples' mean and deviation; what never varies there becomes zero."""
    mean, deviation = values[train].mean(0), values[train].std(0)
    return torch.where(deviation > 0, (values - mean) / deviation.clamp(min=1e-12), 0.0)


def _network(data: Data, inputs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [inputs, data.hidden, data.hidden, data.classes or 1]
    layers: list[nn.Module] = []
    for first, second in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(first, second), data.activation()]
    return nn.Sequential(*layers[:-1]).double().eval()


def _train(
    model: LinearModel,
    data: tuple[Tensor, Tensor],
    rate: float,
    decay: float,
    epochs: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
    for _ in range(epochs):
        for index in torch.randperm(len(data[0]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            outputs = model.outputs(data[0][index])
            loss = -model.likelihood.log_prob(outputs, data[1][index]).mean()
            loss.backward()
            optimizer.step()
