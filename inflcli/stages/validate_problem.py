"""What `validate` asks, as tensors: the model, its curvature's sequences, points and queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.config import AUTO, FitFactorsConfig, PreconditionConfig, Shard, ValidateConfig
from inflcli.corpus.queries import EncodedQuery
from inflcli.ekfac import IGNORED, Categorical, Inverse, LinearModel
from inflcli.ekfac.linear import Batch
from inflcli.model.batches import plan_batches
from inflcli.model.load import LoadedModel
from inflcli.stages import common
from inflcli.stages.fit_plan import chosen_sequences
from inflcli.stages.inverses import chosen_damping, read_inverses
from inflcli.validation import Problem

_TOKENS = 1024
"""In a batch of what is fitted, which is what a step of LiSSA sees."""
_POSITIONS = 8192
"""In one pass of a product: more take a third longer, in memory that comes and goes."""


@dataclass(frozen=True)
class Question:
    """A problem, and where its parts come from."""

    problem: Problem
    fitted: NDArray[np.int64]
    """Sequences of the corpus whose mean curvature G is: those of the factors."""
    points: NDArray[np.int64]
    """Sequences that are scored, in the order of the problem's batches."""

    @property
    def rows(self) -> int:
        """Sequences times queries in one pass of a product with G."""
        longest = max(batch[0].shape[1] for batch in self.problem.fitted)
        return max(1, _POSITIONS // longest)


def pose(
    loaded: LoadedModel,
    corpus: CorpusReader,
    factors: FactorsReader,
    queries: Sequence[EncodedQuery],
    config: ValidateConfig,
) -> Question:
    """The problem that `config` describes. Points are drawn from all sequences that predict."""
    usable = np.flatnonzero(corpus.lengths >= 2)
    points = usable
    if config.points is not None and config.points < len(usable):
        points = np.random.default_rng(config.seed).choice(usable, config.points, replace=False)
    fitted = chosen_sequences(corpus, _fit_config(factors))
    names = [module.name for module in common.tracked_from(factors.modules)]
    model = LinearModel(loaded.network, Categorical(), modules=names, forward=_logits)
    fitted_plan = plan_batches(fitted, corpus.lengths[fitted], None, _TOKENS)
    points_plan = plan_batches(points, corpus.lengths[points], None)
    problem = Problem(
        model,
        [sequences_batch(corpus, ids, loaded.device) for ids in fitted_plan],
        [sequences_batch(corpus, ids, loaded.device) for ids in points_plan],
        _queries_batch(queries, loaded.device),
    )
    return Question(problem, np.concatenate(fitted_plan), np.concatenate(points_plan))


def _fit_config(factors: FactorsReader) -> FitFactorsConfig:
    settings = dict(factors.artifact.manifest.config)
    shard = settings.pop("shard", None)
    return FitFactorsConfig(**settings, shard=None if shard is None else Shard(**shard))


def given_inverse(
    folder: Path,
    factors: FactorsReader,
    curvature: str,
    config: ValidateConfig,
    model: LoadedModel,
) -> Inverse:
    """The inverse of the factors on disk. Raises BadInput where `--damping auto` has no choice."""
    if config.damping == AUTO:
        own = PreconditionConfig(curvature=factors.curvature, damping=AUTO, damping_factor=None)
        chosen_damping(factors, own)
    settings = PreconditionConfig(
        curvature=curvature,
        damping_factor=config.damping_factor if config.damping is None else None,
        damping=config.damping,
        dtype=config.dtype,
        precision="exact",
    )
    modules = common.tracked_from(factors.modules)
    inverses = read_inverses(folder, factors.mean_tokens, modules, settings, model)
    return Inverse(inverses)


def _logits(network: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = network(input_ids=tokens, use_cache=False).logits
    return logits


def sequences_batch(corpus: CorpusReader, ids: NDArray[np.int64], device: torch.device) -> Batch:
    """Tokens [B, T], and the successor of each as its target."""
    lengths = corpus.lengths[ids].astype(np.int64)
    tokens = torch.from_numpy(corpus.take(ids)[:, : lengths.max()].astype(np.int64))
    return _batch(tokens, torch.from_numpy(lengths), torch.zeros(len(ids)), device)


def _queries_batch(queries: Sequence[EncodedQuery], device: torch.device) -> Batch:
    """The same of queries, of which only the completions are predicted."""
    lengths = torch.tensor([len(query.tokens) for query in queries])
    tokens = torch.zeros(len(queries), int(lengths.max()), dtype=torch.int64)
    for row, query in enumerate(queries):
        tokens[row, : len(query.tokens)] = torch.tensor(query.tokens)
    first = torch.tensor([query.completion_start for query in queries])
    return _batch(tokens, lengths, first, device)


def _batch(tokens: Tensor, lengths: Tensor, first: Tensor, device: torch.device) -> Batch:
    following = torch.arange(1, tokens.shape[1] + 1)
    predicted = (following < lengths[:, None]) & (following >= first[:, None])
    targets = torch.where(predicted, tokens.roll(-1, 1), IGNORED)
    return tokens.to(device), targets.to(device)
