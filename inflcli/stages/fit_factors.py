"""`fit-factors`: two passes over a corpus, an eigendecomposition between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.manifest import Identity, Input, Manifest
from inflcli.config import FitFactorsConfig, Runtime
from inflcli.model.load import arithmetic, identify
from inflcli.stages import common
from inflcli.stages.fit import Fit

STAGE = "fit-factors"


@common.exclusively_by_ranks
def fit_factors(
    model: str, corpus: Path, out: Path, config: FitFactorsConfig, runtime: Runtime
) -> dict[str, Any]:
    """Fit the curvature of `model` on `corpus` and write the factors to `out`.

    Cost: for `ekfac` two forward passes and 2 · label_samples activations-only backward passes,
    and the covariances' M² + P² MACs a token; for `ec-shampoo` the same passes and at most
    T M P + P M² + M P² MACs a sequence of T tokens and label sample; `kfac` takes one of the two
    passes, `identity` none. Raises BadInput, StaleArtifact, NumericalFault.
    """
    reader, config, inputs = open_inputs(model, corpus, config, runtime)
    identity = Identity(STAGE, config.identity(), inputs)
    begun = common.begin(out, identity, runtime, salvaged)
    if begun is None:
        return common.up_to_date(out, STAGE)
    loaded = common.load(model, config.dtype, runtime)
    common.require_context(reader, loaded)
    artifact = Fit(begun, loaded, reader, config, runtime).run()
    counts = artifact.manifest.counts
    summary = (
        f"{config.curvature} of {counts['modules']} modules from {counts['sequences']} sequences, "
        f"{counts['predicted_tokens']} predicted tokens"
    )
    stability = artifact.manifest.details["stability"]
    if "corrected" in stability:
        summary += f"; its halves agree to r = {stability['corrected']['median']:.2f}"
    return common.result(artifact, fresh=False, summary=summary)


def salvaged(manifest: Manifest, damaged: Collection[str]) -> dict[str, Any]:
    """The progress of damaged factors: the modules that are to be fitted again."""
    modules = common.tracked_from(manifest.details["modules"])
    bad = {side: store.modules_in(damaged, side) for side in ("A", "S", "corrected")}
    groups = {m.shares_input_with for m in modules if m.name in bad["A"] | bad["S"]}
    first = [module.name for module in modules if module.shares_input_with in groups]
    # Λ goes with the eigenvectors that it was computed in.
    second = [m.name for m in modules if m.name in bad["corrected"] or m.name in first]
    tokens = manifest.counts["predicted_tokens"]
    return {"only": {"covariance": first, "corrected": second}, "tokens": tokens}


def open_inputs(
    model: str, corpus: Path, config: FitFactorsConfig, runtime: Runtime
) -> tuple[CorpusReader, FitFactorsConfig, dict[str, Input]]:
    """The corpus, the settings with nothing left to choose, and what the fit reads.

    Raises BadInput, StaleArtifact.
    """
    reader = CorpusReader.open(corpus)
    dtype, precision = arithmetic(config.dtype, config.precision, model, runtime.device)
    weights, tokenizer = identify(model)
    common.require_same_tokenizer(reader, tokenizer)
    inputs = {"model": weights, "corpus": reader.artifact.as_input()}
    return reader, replace(config, dtype=dtype, precision=precision), inputs
