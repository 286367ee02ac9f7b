"""The estimators that `validate` holds to account, by their names on the command line."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.config import ValidateConfig
from inflcli.corpus import bm25
from inflcli.corpus.queries import EncodedQuery
from inflcli.ekfac import Inverse
from inflcli.model.load import LoadedModel
from inflcli.model.memory import budget
from inflcli.retrieval import tfidf
from inflcli.stages.validate_problem import Question, given_inverse
from inflcli.validation import (
    Result,
    ekfac,
    gradient_cosine,
    gradient_dot,
    lissa,
    refined,
    sampled_cg,
)


class Estimates:
    """Makes one estimate after another; all have one λ a module, that of the factors."""

    def __init__(
        self,
        question: Question,
        model: LoadedModel,
        corpus: CorpusReader,
        factors: FactorsReader,
        queries: Sequence[EncodedQuery],
        config: ValidateConfig,
    ) -> None:
        self.question, self.config = question, config
        self._model, self._corpus, self._factors = model, corpus, factors
        self._queries = queries
        self._inverse: Inverse | None = None

    def inverse(self) -> Inverse:
        """That of the factors on disk, read once."""
        if self._inverse is None:
            self._inverse = self._given(self._factors.curvature)
        return self._inverse

    def make(self, name: str) -> Result:
        """Scores [K, N], and the seconds for all K measurements, fitting included."""
        problem, config = self.question.problem, self.config
        if name in ("tfidf", "bm25"):
            return self._lexical(name)
        if name == "gradient":
            return gradient_dot(problem)
        if name == "cosine":
            return gradient_cosine(problem)
        inverse, seconds = self.inverse(), self._fit_seconds()
        damping = inverse.damping
        if name == "lissa":
            rows = self.question.rows
            return lissa(problem, depth=config.depth, damping=damping, seed=config.seed, rows=rows)
        if name == "cg":
            return sampled_cg(
                problem,
                inverse=inverse,
                fit_seconds=seconds,
                label_samples=self._label_samples,
                tolerance=config.tolerance,
                seed=config.seed,
                room=budget(None, problem.model.device),
            )
        if name == "refined":
            return refined(
                problem,
                inverse=inverse,
                fit_seconds=seconds,
                steps=config.refine,
                rows=self.question.rows,
            )
        if name == self._factors.curvature:
            return ekfac(problem, kind=name, inverse=inverse, fit_seconds=seconds)
        if name == "kfac" and self._factors.curvature == "ekfac":
            inverse, seconds = self._given(name), self._fit_seconds(without="corrected")
            return ekfac(problem, kind=name, inverse=inverse, damping=damping, fit_seconds=seconds)
        blocks = int(name.removeprefix("blocks-")) if name.startswith("blocks-") else 1
        kind = "ekfac" if name.startswith("blocks-") else name
        return ekfac(
            problem,
            kind=kind,
            blocks=blocks,
            damping=damping,
            label_samples=self._label_samples,
            seed=config.seed,
        )

    def _given(self, curvature: str) -> Inverse:
        folder = self._factors.artifact.path
        return given_inverse(folder, self._factors, curvature, self.config, self._model)

    @property
    def _label_samples(self) -> int:
        """As many as the factors have, so that sampling costs all estimators alike."""
        return int(self._factors.artifact.manifest.config["label_samples"])

    def _fit_seconds(self, without: str = "") -> float:
        """What fitting the factors took: its passes and decompositions."""
        timings = self._factors.artifact.manifest.timings
        parts = ("covariance", "eigenvectors", "corrected")
        return sum(timings.get(part, 0.0) for part in parts if part != without)

    def _lexical(self, name: str) -> Result:
        """TF-IDF of Eq. 28, or rank-bm25's BM25, over the whole corpus; the points' columns."""
        started = time.perf_counter()
        queries = [query.tokens for query in self._queries]
        corpus, points = self._corpus, self.question.points
        scores: NDArray[np.floating]
        if name == "tfidf":
            every = corpus.tokens(0, corpus.n_sequences)
            scores = tfidf.all_scores(every, corpus.lengths, queries)[:, points]
        else:
            index = bm25.build(corpus, "okapi")
            scores = np.stack([one[points] for one in bm25.scores(index, queries)])
        seconds = {"fit": 0.0, "solve": 0.0, "score": time.perf_counter() - started}
        return Result(torch.from_numpy(scores.astype(np.float64)), seconds, {})
