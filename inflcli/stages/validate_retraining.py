"""The ground truths of `validate` that train the model again, on parts of the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from inflcli import console
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import ValidateConfig
from inflcli.corpus.queries import EncodedQuery
from inflcli.model.load import LoadedModel
from inflcli.model.resolve import resolve_folder
from inflcli.validation.bank import Bank, Progress
from inflcli.validation.lds import lds, subsets
from inflcli.validation.points import Sequences
from inflcli.validation.removal import measure_removals, plan_removals
from inflcli.validation.retraining import Recipe

Scores = Mapping[str, NDArray[np.float64]]


class Retraining:
    """Models trained on parts of the points, kept in the bank in `folder`."""

    def __init__(
        self,
        folder: Path,
        model: LoadedModel,
        corpus: CorpusReader,
        points: NDArray[np.int64],
        queries: Sequence[EncodedQuery],
        config: ValidateConfig,
    ) -> None:
        self.config, self.model, self.folder = config, model, folder
        self.recipe = Recipe(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
        )
        self._corpus, self._points, self._queries = corpus, points, queries

    def measure(self, truth: str, scores: Scores) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is to be said of `lds` or `topk`, and of each estimator against it."""
        bank = self._bank()
        return self._lds(bank, scores) if truth == "lds" else self._topk(bank, scores)

    def _lds(self, bank: Bank, scores: Scores) -> tuple[dict[str, Any], dict[str, Any]]:
        halves = subsets(len(self._points), self.config.subsets, seed=self.config.seed)
        with console.progress("retrain (lds)", len(halves), unit="models") as meter:
            found = bank.fill(
                [(half, self.recipe) for half in halves], lambda at: meter.reach(at.done)
            )
        outputs = np.stack([one.queries for one in found])
        by_estimator = {}
        for name, values in scores.items():
            result = lds(values, halves, outputs)
            by_estimator[name] = {
                "mean": result.mean,
                "interval": list(result.interval),
                "by_query": result.per_query.tolist(),
            }
        about = self._about(found)
        about["summary"] = (
            f"lds: {len(halves)} models on random halves of {len(self._points)} points, "
            f"{about['seconds']['train']:.0f} s; bootstrap over subsets and queries"
        )
        return about, by_estimator

    def _topk(self, bank: Bank, scores: Scores) -> tuple[dict[str, Any], dict[str, Any]]:
        queries = range(len(self._queries))
        plan = plan_removals(scores, queries, self.config.removals, seed=self.config.seed)
        seen: list[Any] = []

        def watch(at: Progress) -> None:
            seen.append(at.measured)
            meter.reach(at.done)

        with console.progress("retrain (topk)", len(plan) + 1, unit="models") as meter:
            rises = measure_removals(bank, plan, [self.recipe], watch)
        by_estimator: dict[str, Any] = {}
        for name in scores:
            own = [one for one in rises if one.estimator == name]
            by_estimator[name] = {
                "rise": _mean(own, "rise"),
                "random": _mean(own, "random_mean"),
                "by_query": [[one.query, one.size, one.rise, one.random_mean] for one in own],
            }
        about = self._about(seen)
        about["summary"] = (
            f"topk: nats that a query's loss rises, mean over queries, without its top k of "
            f"{len(self._points)} points; {len(seen)} models, {about['seconds']['train']:.0f} s"
        )
        return about, by_estimator

    def _about(self, found: Sequence[Any]) -> dict[str, Any]:
        details = {
            "models": len(found),
            "last_loss": float(np.mean([one.loss for one in found])),
            "epochs": self.recipe.epochs,
        }
        return {"seconds": {"train": sum(one.seconds for one in found)}, "details": details}

    def _bank(self) -> Bank:
        self.folder.mkdir(exist_ok=True)
        queries = [query.tokens for query in self._queries]
        lengths = np.array([len(tokens) for tokens in queries], np.int64)
        padded = np.zeros((len(queries), int(lengths.max())), np.int64)
        for row, tokens in enumerate(queries):
            padded[row, : len(tokens)] = tokens
        starts = np.array([query.completion_start for query in self._queries], np.int64)
        data = Sequences(
            self._corpus.take(self._points), self._corpus.lengths[self._points].astype(np.int64)
        )
        return Bank(self.folder, self._network, data, Sequences(padded, lengths, starts))

    def _network(self) -> nn.Module:
        """What a training begins with."""
        from transformers import AutoModelForCausalLM

        if self.config.initial is None:
            fresh: nn.Module = AutoModelForCausalLM.from_config(self.model.network.config)
            return fresh.to(self.model.device)
        folder = resolve_folder(self.config.initial, weights=True)
        given: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
        return given.to(self.model.device)


def _mean(rises: Sequence[Any], what: str) -> dict[str, float]:
    """By the number of points removed, over queries."""
    sizes = sorted({one.size for one in rises})
    return {
        str(size): float(np.mean([getattr(one, what) for one in rises if one.size == size]))
        for size in sizes
    }
