"""How a run came about, in words, from the manifests of its artifacts."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Manifest
from inflcli.config import AUTO
from inflcli.report.model import Fact, Provenance, QueryView, StageRecord
from inflcli.report.text import percent

Manifests = Mapping[str, Manifest]

_CURVATURES = {
    "ekfac": "EK-FAC: Kronecker-factored eigenbasis, corrected eigenvalues",
    "ec-shampoo": "EC-Shampoo: eigenbases of sequence gradients, corrected eigenvalues",
    "kfac": "K-FAC: Kronecker-factored, eigenvalues not corrected",
    "identity": "none: gradient dot product",
}
COMPRESSION, FULL = "Compression", "none (full rank)"
_LOSSY = 0.95
_UNSTABLE = 0.8


def provenance(
    artifacts: Mapping[str, Artifact], views: Sequence[QueryView], command: Sequence[str]
) -> Provenance:
    """The provenance of a run's `artifacts`, by name in the pipeline's order."""
    manifests = {name: artifact.manifest for name, artifact in artifacts.items()}
    records = [_record(artifact) for artifact in artifacts.values()]
    warned = caveats(manifests, views)
    return Provenance(facts(artifacts, views), records, warned, shlex.join(command))


def facts(artifacts: Mapping[str, Artifact], views: Sequence[QueryView] = ()) -> list[Fact]:
    """What was computed from what, a line each."""
    manifests = {name: artifact.manifest for name, artifact in artifacts.items()}
    return [*_model_facts(manifests), *_query_facts(manifests, views), *_scan_facts(manifests)]


def _record(artifact: Artifact) -> StageRecord:
    manifest = artifact.manifest
    return StageRecord(
        manifest.stage,
        str(artifact.path),
        manifest.fingerprint,
        manifest.version,
        shlex.join(manifest.command),
        float(manifest.timings.get("seconds", 0.0)),
    )


def _model_facts(manifests: Manifests) -> list[Fact]:
    queries, scan = manifests["queries"], manifests["scan"]
    scanned = set(scan.details["modules"])
    modules = [item for item in queries.details["modules"] if item["name"] in scanned]
    kinds = Counter(str(item["name"]).rsplit(".", 1)[-1] for item in modules)
    model = scan.inputs["model"]
    share = percent(queries.details["share_tracked"])
    tracked = sum(item["inputs"] * item["outputs"] for item in queries.details["modules"])
    facts = [
        Fact("Model", model.path, f"fingerprint {model.fingerprint[:12]}"),
        Fact("Parameters tracked", f"{share} of the model", _size(tracked)),
        Fact(
            "Modules",
            f"{len(modules)}",
            ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
        ),
    ]
    curvature = str(queries.config["curvature"])
    facts.append(Fact("Curvature", curvature, _CURVATURES.get(curvature, "")))
    if curvature != "identity":
        facts.append(_damping(manifests))
        facts += _refinement_facts(queries)
        facts += _fit_facts(manifests["factors"]) if "factors" in manifests else []
    return facts


def _refinement_facts(queries: Manifest) -> list[Fact]:
    found = queries.details.get("refinement")
    if found is None:
        return []
    before, after = (found[f"residual_{when}"]["median"] for when in ("before", "after"))
    steps = f"{found['steps']} steps of {found['solver']} on {found['sequences']:,} sequences"
    note = f"relative residual {before:.2g} with EK-FAC alone, {after:.2g} now, in the median query"
    return [Fact("Refined", steps, note)]


def _fit_facts(factors: Manifest) -> list[Fact]:
    counts, config = factors.counts, factors.config
    note = (
        f"{counts['predicted_tokens']:,} predicted tokens, "
        f"{config['label_samples']} × {config['labels']} labels, seed {config['seed']}"
    )
    fitted = Fact("Curvature fitted on", f"{counts['sequences']:,} sequences", note)
    return [fitted, *_stability_facts(factors)]


def _stability_facts(factors: Manifest) -> list[Fact]:
    """How far two halves of the fit's sequences agree, where the fit kept them apart."""
    stability = factors.details["stability"]
    if not stability:
        return [Fact("Split-half stability", "not known", "fit-factors --splits 2 measures it")]
    covariances, corrected = stability["covariances"], stability.get("corrected")
    cosine = f"cosine of the covariances {_over_modules(covariances)}"
    if corrected is None:
        return [Fact("Split-half stability", f"{covariances['median']:.2f}", cosine)]
    note = f"r of log(Λ + λ) {_over_modules(corrected)}; {cosine}"
    return [Fact("Split-half stability", f"{corrected['median']:.2f}", note)]


def _over_modules(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} in the median module, {found['least']:.3f} in the least"


def _damping(manifests: Manifests) -> Fact:
    queries = manifests["queries"]
    values = [float(value) for value in queries.details["damping"].values()]
    spread = f"λ from {min(values):.2e} to {max(values):.2e} over the modules" if values else ""
    if queries.config["damping"] == AUTO:
        return Fact("Damping", f"{_chosen(manifests)} mean eigenvalue, chosen by module", spread)
    if queries.config["damping"] is not None:
        return Fact("Damping", f"{queries.config['damping']:g}, the same for every module", "")
    return Fact("Damping", f"{queries.config['damping_factor']:g} × mean eigenvalue", spread)


def _chosen(manifests: Manifests) -> str:
    """What `--damping auto` takes, if the factors are there."""
    found = manifests["factors"].details.get("damping_factors") if "factors" in manifests else None
    return f"{found['least']:.2g} to {found['most']:.2g} ×" if found else "a share of the"


def _query_facts(manifests: Manifests, views: Sequence[QueryView]) -> list[Fact]:
    queries = manifests["queries"]
    kept, how = [view.kept_energy for view in views], _compression(queries)
    note = f"keeps {percent(min(kept))} or more of a query's energy" if how and kept else ""
    return [
        Fact("Queries", f"{len(views)}", queries.inputs["queries"].path),
        Fact(COMPRESSION, how or FULL, note),
    ]


def _compression(queries: Manifest) -> str:
    """How the queries were compressed; "" if they were not."""
    config = queries.config
    if config.get("keep") is not None:
        limit = f", rank {config['max_rank']} at most"
        return f"ranks for {config['keep'] * 100:g}% of the energy{limit}"
    return "" if config["rank"] is None else f"rank {config['rank']}"


def _scan_facts(manifests: Manifests) -> list[Fact]:
    scan = manifests["scan"]
    how = "the TF-IDF candidates of all queries" if "candidates" in scan.inputs else "no filter"
    routes = Counter(scan.details["routes"].values())
    chosen = ", ".join(f"{route} for {count} modules" for route, count in sorted(routes.items()))
    facts = [
        _corpus_fact(manifests["corpus"]),
        Fact("Scanned", f"{scan.counts['sequences']:,} sequences", how),
        Fact("Scoring", chosen),
    ]
    if scan.config.get("layers"):
        facts.append(Fact("Layers", str(scan.config["layers"]), "the scan left out the others"))
    used = {
        name: str(manifests[name].details["dtype"])
        for name in ("queries", "scan", "attribution")
        if name in manifests
    }
    differ = len(set(used.values())) > 1
    note = ", ".join(f"{name} {kind}" for name, kind in used.items()) if differ else ""
    facts.append(Fact("Computed in", " and ".join(sorted(set(used.values()))), note))
    if "attribution" in manifests:
        worst = float(manifests["attribution"].details["worst_difference_from_scan"])
        note = f"adds up to the score within {worst:.1e} of the absolute sum"
        facts.append(Fact("Attribution", "by token and module, exact", note))
    return facts


def _corpus_fact(corpus: Manifest) -> Fact:
    counts: dict[str, Any] = corpus.counts
    size = counts.get("sequences")
    documents = counts.get("documents")
    value = f"{size:,} sequences" if isinstance(size, int) else "see its manifest"
    note = f"of at most {corpus.config['seq_len']} tokens"
    if isinstance(documents, int):
        note += f", from {documents:,} documents"
    return Fact("Corpus", value, note)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e5 else f"{count:,}"


def caveats(manifests: Manifests, views: Sequence[QueryView]) -> list[str]:
    """What a reader should know before believing a score."""
    queries, scan = manifests["queries"], manifests["scan"]
    share = percent(queries.details["share_tracked"])
    found = [
        "A score estimates how the query's log-probability would change if training put more "
        "weight on the sequence. It is a linear approximation around the finished model, good for "
        "ranking and for comparing sequences; its absolute size is not to be taken at its word.",
        f"Only {share} of the parameters are tracked: what a sequence taught the others is not in "
        "its score.",
        "The curvature is approximated module by module; interactions between modules are left "
        "out, and damping hides directions in which the model is nearly flat.",
        "The scores say what the model could have learnt the answer from, not that a sequence "
        "alone is the reason: without it, others like it would have taught the same.",
        "A strong token sits just before what it teaches: its influence comes from the prediction "
        "of its successor.",
    ]
    if "refinement" in queries.details:
        found[2] = (
            "The curvature was solved with over a sample of sequences, and only so far as the "
            "residuals say; damping hides directions in which the model is nearly flat."
        )
    if queries.config["curvature"] == "identity":
        found[2] = (
            "These scores are gradient dot products, without a curvature: sequences with large "
            "gradients rank high whatever the query is."
        )
    if "candidates" in scan.inputs:
        found.append(
            "Only sequences that share words with a query were scanned. Influential ones in other "
            "words, or in another language, cannot appear."
        )
    factors = manifests.get("factors")
    if factors and factors.inputs["corpus"].fingerprint != scan.inputs["corpus"].fingerprint:
        found.append("The curvature was fitted on another corpus than the one that was scanned.")
    corrected = factors.details["stability"].get("corrected") if factors else None
    if corrected and corrected["median"] < _UNSTABLE:
        found.append(
            f"Two halves of the fit's sequences agree on the curvature only to r = "
            f"{corrected['median']:.2f} in the median module: a fit on more of them would be "
            "another one."
        )
    lossy = [view.id for view in views if view.kept_energy < _LOSSY]
    how = _compression(queries)
    if lossy and how:
        found.append(
            f"Compression ({how}) keeps less than {_LOSSY:.0%} of the energy of "
            f"{len(lossy)} of {len(views)} queries; their scores carry that error."
        )
    return found
