"""Points to train on or to ask about, in memory: token sequences, or examples of any network.

Both know how to make a batch, how a network takes it, and what its outputs say about the targets,
so that retraining works for language models and for any other network with a likelihood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inflcli.ekfac.likelihood import IGNORED, Categorical, Likelihood
from inflcli.ekfac.linear import Batch

Ids = NDArray[np.int64]
_WIDTH = 16
"""Batches are padded to a multiple of it, so that few shapes occur."""


class Points(Protocol):
    """N points."""

    @property
    def likelihood(self) -> Likelihood:
        """What a network's outputs say about the targets."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """By which points are grouped to batches, [N]."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """How many predictions each point has, [N]."""

    def __len__(self) -> int: ...

    def batch(self, ids: Ids) -> Batch:
        """Inputs and targets of points `ids` [B], in their order, on the CPU."""

    def outputs(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """What the network gives for a batch's inputs."""

    def fingerprint(self) -> str:
        """A digest of all that `batch` can give."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token sequences of a transformers causal language model.

    `tokens` [N, T], of which the first `lengths` [N] count; the tokens `starts` [N] to the end are
    predicted, all but the first one unless said otherwise. So a query is a sequence whose start is
    that of its completion. No special token is added. Raises ValueError for arrays that do not fit
    together.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        tokens, lengths = np.asarray(self.tokens, np.int64), np.asarray(self.lengths, np.int64)
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(f"tokens {tokens.shape} and lengths {lengths.shape} do not fit")
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= tokens.shape[1]:
            raise ValueError(f"lengths are not all within 1 and {tokens.shape[1]}")
        starts = np.ones_like(lengths)
        if self.starts is not None:
            starts = np.asarray(self.starts, np.int64)
            if starts.shape != lengths.shape:
                raise ValueError(f"starts {starts.shape} and lengths {lengths.shape} do not fit")
        object.__setattr__(self, "lengths", lengths)
        # The first token has nothing before it that could predict it.
        object.__setattr__(self, "starts", starts.clip(min=1))
        object.__setattr__(
            self, "tokens", np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
        )

    @property
    def likelihood(self) -> Likelihood:
        return Categorical()

    @property
    def positions(self) -> NDArray[np.int64]:
        return (self.lengths - self._starts).clip(min=0)

    @property
    def _starts(self) -> NDArray[np.int64]:
        assert self.starts is not None
        return self.starts

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, ids: Ids) -> Batch:
        width = -(-int(self.lengths[ids].max()) // _WIDTH) * _WIDTH
        tokens = self.tokens[ids, : min(width, self.tokens.shape[1])]
        successors = np.full_like(tokens, IGNORED)
        successors[:, :-1] = tokens[:, 1:]
        place = np.arange(1, tokens.shape[1] + 1)  # of the successor
        predicted = (self._starts[ids, None] <= place) & (place < self.lengths[ids, None])
        targets = np.where(predicted, successors, IGNORED)
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def outputs(self, network: nn.Module, inputs: Tensor) -> Tensor:
        # Attention is causal, and padding on the right: no mask is needed.
        logits: Tensor = network(input_ids=inputs, use_cache=False).logits
        return logits

    def fingerprint(self) -> str:
        return digest((self.tokens, self.lengths, self._starts))


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of any network: inputs [N, ...] as it takes them, targets [N, ...] as the
    likelihood does. Raises ValueError where their numbers differ."""

    inputs: Tensor
    targets: Tensor
    likelihood: Likelihood

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs, but {len(self.targets)} targets")

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self.inputs), np.int64)

    @property
    def positions(self) -> NDArray[np.int64]:
        mask = self.likelihood.predicted(self.targets)
        return self.lengths if mask is None else mask.flatten(1).sum(1).numpy()

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, ids: Ids) -> Batch:
        rows = torch.from_numpy(ids)
        return self.inputs[rows], self.targets[rows]

    def outputs(self, network: nn.Module, inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs

    def fingerprint(self) -> str:
        return digest((self.inputs.numpy(), self.targets.numpy()), repr(self.likelihood))


def log_probs(network: nn.Module, points: Points, *, batch_size: int = 32) -> NDArray[np.float64]:
    """log p of every point, summed over its predictions, [N]. Cost: a forward pass over them.

    Computed in the network's own type, on its device, without dropout.
    """
    device = next(network.parameters()).device
    found = np.zeros(len(points))
    training = network.training
    network.eval()
    order = np.argsort(points.lengths, kind="stable")
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            ids = order[first : first + batch_size]
            inputs, targets = (one.to(device) for one in points.batch(ids))
            log_p = points.likelihood.log_prob(points.outputs(network, inputs), targets)
            found[ids] = log_p.double().cpu().numpy()
    network.train(training)
    return found


def digest(arrays: Iterable[NDArray[Any]], text: str = "") -> str:
    """Hex SHA-256 of arrays' types, shapes and content, and of a text."""
    found = hashlib.sha256(text.encode())
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
