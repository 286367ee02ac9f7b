"""`validate`: how right each estimator of influence is for a model, against ground truths.

Every ground truth and every estimate is a piece of work that is recorded when it is done, and so is
every model that is retrained; see `Truths` for what is kept of a long one. A run that was stopped
goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli import console
from inflcli.artifacts import fingerprint
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.files import read_tensors, write_bytes, write_json, write_tensors
from inflcli.artifacts.manifest import Identity
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import Runtime, ValidateConfig
from inflcli.corpus.queries import EncodedQuery, encode_query, read_queries
from inflcli.errors import BadInput
from inflcli.model.load import LoadedModel, identify
from inflcli.model.resolve import load_tokenizer
from inflcli.report import validation as report
from inflcli.stages import common
from inflcli.stages.validate_estimates import Estimates
from inflcli.stages.validate_problem import Question, pose
from inflcli.stages.validate_retraining import Retraining
from inflcli.stages.validate_truths import Truths
from inflcli.validation import Result, correlation

STAGE = "validate"
FILE = "validation.json"
RETRAINED = ("lds", "topk")


@common.exclusively
def validate(
    model: str,
    corpus: Path,
    factors: Path,
    queries: Path,
    out: Path,
    config: ValidateConfig,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write what each estimator scores, the ground truths, and how far they agree.

    G is that of the sequences that `factors` were fitted on. Cost: for `ggn` some tens of exact
    Gauss-Newton products over them for each query; for `pbrf` an optimisation for each point; for
    `lds` and `topk` a training for each subset. Raises BadInput, StaleArtifact, NumericalFault.
    """
    reader, curvature = CorpusReader.open(corpus), FactorsReader.open(factors)
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    mend = f"fit them again: inflcli fit-factors --model {model} --corpus {corpus} ... --overwrite"
    curvature.artifact.require_input("model", weights, mend)
    curvature.artifact.require_input("corpus", reader.artifact.as_input(), mend)
    if curvature.curvature not in ("ekfac", "ec-shampoo"):
        raise BadInput(
            f"{factors} holds {curvature.curvature}: an estimator is validated with EK-FAC's λ",
            "fit them with --curvature ekfac",
        )
    asked = read_queries(queries)
    inputs = {
        "model": weights,
        "tokenizer": tokenizer,
        "corpus": reader.artifact.as_input(),
        "factors": curvature.artifact.as_input(),
        "queries": fingerprint.of_files([queries], str(queries)),
    }
    if config.initial is not None:
        inputs["initial"] = identify(config.initial)[0]
    writer = ArtifactWriter.begin(
        out,
        Identity(STAGE, config.identity(), inputs),
        overwrite=runtime.overwrite,
        command=runtime.command,
    )
    if writer is None:
        found = json.loads((out / FILE).read_text())
        return {**common.up_to_date(out, STAGE), "validation": found}
    loaded = common.load(model, config.dtype, runtime)
    common.require_context(reader, loaded)
    text = load_tokenizer(loaded.folder)
    encoded = [encode_query(one, text, bos=False, max_tokens=loaded.context) for one in asked]
    run = Validation(writer, loaded, reader, curvature, encoded, config)
    found = run.run()
    counts = {"queries": len(encoded), "points": len(run.question.points)}
    counts["fitted"] = len(run.question.fitted)
    artifact = writer.finish(counts=counts)
    summary = (
        f"{len(config.estimators)} estimators against {', '.join(config.truths)}: "
        f"{counts['queries']} queries, {counts['points']} points, {counts['fitted']} fitted"
    )
    return {**common.result(artifact, fresh=False, summary=summary), "validation": found}


class Validation:
    """One run of the stage. Progress: what is done, with the seconds and details of each."""

    def __init__(
        self,
        writer: ArtifactWriter,
        model: LoadedModel,
        corpus: CorpusReader,
        factors: FactorsReader,
        queries: list[EncodedQuery],
        config: ValidateConfig,
    ) -> None:
        self.writer, self.config, self.queries = writer, config, queries
        self.question: Question = pose(model, corpus, factors, queries, config)
        self.estimates = Estimates(self.question, model, corpus, factors, queries, config)
        self.retraining = Retraining(
            writer.folder / "bank", model, corpus, self.question.points, queries, config
        )
        self.done: dict[str, Any] = dict(writer.progress.get("done", {}))
        self.truths = Truths(writer, self.question, config)

    def run(self) -> dict[str, Any]:
        """Everything that is left; then what is found, which is written, too."""
        truths = [name for name in self.config.truths if name not in RETRAINED]
        inverse = self.estimates.inverse()
        names = self.config.estimators
        done = sum(f"estimates/{name}" in self.done for name in names)
        with console.progress("estimates", len(names), done=done, unit="estimators") as meter:
            for name in names:
                meter.note(name)
                if self._piece("estimates", name, partial(self.estimates.make, name)):
                    meter.advance(1)
        for name in truths:
            self._piece("truths", name, partial(self.truths.make, name, inverse))
        scores = {name: self._scores("estimates", name) for name in self.config.estimators}
        found = self._found(scores, truths)
        write_json(self.writer.folder / FILE, found)
        try:
            for name, content in report.figure(found).items():
                write_bytes(self.writer.folder / name, content)
        except BadInput as error:
            console.warn(f"no figure: {error.message} ({error.hint})")
        return found

    def _piece(self, kind: str, name: str, make: Callable[[], Result]) -> bool:
        """Whether it was made now; else it was there."""
        key = f"{kind}/{name}"
        if key in self.done:
            return False
        result = make()
        common.require_finite(result.scores, f"{kind} {name}", "all")
        path = self.writer.folder / kind / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, {"scores": result.scores.contiguous()}, {})
        self.done[key] = {"seconds": result.seconds, "details": result.details}
        ledger = self.writer.ledger
        ledger.drop_state({**ledger.said(), "done": self.done}, [path])
        return True

    def _scores(self, kind: str, name: str) -> NDArray[np.float64]:
        tensors = read_tensors(self.writer.folder / kind / f"{name}.safetensors")
        return tensors["scores"].numpy().astype(np.float64)

    def _found(
        self, scores: Mapping[str, NDArray[np.float64]], truths: list[str]
    ) -> dict[str, Any]:
        against: dict[str, dict[str, Any]] = {name: {} for name in scores}
        about: dict[str, Any] = {}
        for truth in truths:
            right = self._scores("truths", truth)
            about[truth] = {**self.done[f"truths/{truth}"]}
            about[truth]["summary"] = _summary(truth, about[truth])
            for name, values in scores.items():
                against[name][truth] = _agreement(values, right)
        for truth in (name for name in self.config.truths if name in RETRAINED):
            about[truth], by_estimator = self.retraining.measure(truth, scores)
            for name, values in by_estimator.items():
                against[name][truth] = values
        estimators = {
            name: {**self.done[f"estimates/{name}"], "against": against[name]} for name in scores
        }
        return {
            "queries": [query.query.id for query in self.queries],
            "points": self.question.points.tolist(),
            "fitted": len(self.question.fitted),
            "damping": self.estimates.inverse().damping,
            "truths": about,
            "estimators": estimators,
        }


def _agreement(scores: NDArray[np.float64], right: NDArray[np.float64]) -> dict[str, Any]:
    """Correlations over points, by query; None where one is not defined."""
    both = correlation(torch.from_numpy(scores), torch.from_numpy(right))
    found = {}
    for measure, values in (("pearson", both.pearson), ("spearman", both.spearman)):
        known = [value for value in values if not np.isnan(value)]
        found[measure] = {
            "by_query": [None if np.isnan(value) else value for value in values],
            "mean": float(np.mean(known)) if known else None,
            "min": min(known, default=None),
        }
    return found


def _summary(truth: str, about: Mapping[str, Any]) -> str:
    details, seconds = about["details"], sum(about["seconds"].values())
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in details.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    return f"{truth}: {seconds:.1f} s; {shown}"
