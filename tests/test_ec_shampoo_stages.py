"""What holds of a fit of EK-FAC holds of ec-shampoo's: stopped, sharded, in parts, in several
processes or mended it leaves the same factors, and what they do not serve is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, contents, refuse
from pipeline import CPU, Pipeline, scores
from ranks import fit_command, same_factors, torchrun
from tiny import TEXTS
from torch.utils.flop_counter import FlopCounterMode

from inflcli.artifacts.factors import FactorsReader
from inflcli.artifacts.ledger import Ledger
from inflcli.artifacts.queries import QueriesReader
from inflcli.config import Shard
from inflcli.ekfac import sequences
from inflcli.stages import statistics
from inflcli.stages.fit import Fit
from inflcli.stages.fit_shards import fit_shard
from inflcli.stages.merge import merge

CURVATURE = "ec-shampoo"
LAYER = "model.layers.0.mlp.{}_proj"


@pytest.fixture(scope="module")
def pipeline(tiny_model, tmp_path_factory) -> Iterator[Pipeline]:
    """Of documents some of which are so short that the Gram matrices are the cheaper way."""
    run = tmp_path_factory.mktemp("run")
    texts = [one for text in TEXTS for one in (text, " ".join(text.split()[:2]))]
    (run / "text.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    made = Pipeline(tiny_model("llama-bias"), run, "float32")
    made.prepare(run / "text.jsonl")
    made.fit(curvature=CURVATURE)
    made.fit("tokens")
    yield made


def data(folder: Path) -> dict[str, str]:
    found = contents(folder)
    del found["manifest.json"]
    return found


def facts(folder: Path) -> dict:
    """The manifest but for when and how it was made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in manifest.items() if key not in ("timings", "command")}


def test_both_ways_are_taken(pipeline, monkeypatch):
    """By the batches of this corpus: else what follows would hold of one of them."""
    taken = set()
    right = sequences.through_gram

    def watched(*shape):
        taken.add(right(*shape))
        return right(*shape)

    monkeypatch.setattr(sequences, "through_gram", watched)
    out = pipeline.fit("watched", curvature=CURVATURE)
    assert taken == {True, False}
    assert data(out) == data(pipeline.run / "factors")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_shards_of_whole_splits_merge_to_the_same_bytes(pipeline, shards, precision):
    settings = {"curvature": CURVATURE, "splits": 4, "precision": precision, "blocks": 2}
    whole = pipeline.run / f"whole-{precision}"
    if not whole.is_dir():
        pipeline.fit(whole.name, **settings)
    out, config = pipeline.run / f"{precision}-{shards}", pipeline.fit_config(**settings)
    for _ in range(2):
        for number in range(shards):
            part = replace(config, shard=Shard(number, shards))
            fit_shard(str(pipeline.model), pipeline.run / "corpus", out, part, CPU)
        merge(out, CPU)
    assert data(out) == data(whole)
    assert facts(out) == facts(whole)


@pytest.mark.parametrize("stop_at", [1, 4, 9, 14])
@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_stopped_fit_resumes_to_the_same_bytes(pipeline, monkeypatch, stop_at, memory):
    """In one part or in as many as there are modules."""
    runtime = replace(CPU, checkpoint_seconds=0.0, memory_gib=memory)
    patient, record, calls = replace(pipeline, runtime=runtime), Ledger.record, []

    def stop(self, *arguments):
        record(self, *arguments)
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    out = f"stopped-{stop_at}-{memory}"
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            patient.fit(out, curvature=CURVATURE)
    assert data(patient.fit(out, curvature=CURVATURE)) == data(pipeline.run / "factors")


def test_without_memory_every_module_is_a_part(pipeline, monkeypatch):
    passes, right = [], Fit._pass

    def counted(self, title, modules, *arguments, **options):
        passes.append((title.split()[0], len(modules)))
        right(self, title, modules, *arguments, **options)

    monkeypatch.setattr(Fit, "_pass", counted)
    runtime = replace(CPU, memory_gib=0.0)
    out = replace(pipeline, runtime=runtime).fit("parts", curvature=CURVATURE)
    assert passes == [("covariance", 1)] * 6 + [("corrected", 1)] * 6
    assert data(out) == data(pipeline.run / "factors")


@pytest.mark.parametrize("victim", ["inputs", "modules", "corrected"])
def test_only_the_damaged_module_is_fitted_again(pipeline, monkeypatch, victim):
    """Not what reads the same tensor."""
    out = pipeline.fit("mended", curvature=CURVATURE)
    path = out / victim / f"{LAYER.format('up')}.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    passes, right = [], Fit._pass

    def counted(self, title, modules, *arguments, **options):
        passes.append((title.split()[0], [module.name for module in modules]))
        right(self, title, modules, *arguments, **options)

    monkeypatch.setattr(Fit, "_pass", counted)
    again = replace(pipeline, runtime=replace(CPU, overwrite=True))
    assert data(again.fit("mended", curvature=CURVATURE)) == data(pipeline.run / "factors")
    phases = ["corrected"] if victim == "corrected" else ["covariance", "corrected"]
    assert passes == [(phase, [LAYER.format("up")]) for phase in phases]


def test_two_processes(tiny_model, tiny_text, tmp_path):
    alone = Pipeline(tiny_model("llama-bias"), tmp_path)
    alone.prepare(tiny_text)
    alone.fit(curvature=CURVATURE)
    command = [*fit_command(alone, "two"), "--curvature", CURVATURE]
    said = torchrun(alone, "-m", "quiet_exit", *command)
    assert said.count(f"two: {CURVATURE}") == 1
    same_factors(alone.run / "two", alone.run / "factors")


def test_precision(pipeline, tiny_queries):
    """As in test_precision.py, from the fit to the scan."""
    found = {}
    for precision in ("exact", "single", "fast"):
        pipeline.fit(f"f-{precision}", curvature=CURVATURE, precision=precision)
        settings = {"rank": 12, "precision": precision}
        pipeline.precondition(tiny_queries, f"q-{precision}", f"f-{precision}", **settings)
        out = pipeline.scan(f"s-{precision}", f"q-{precision}", precision=precision)
        found[precision] = scores(out)
    for precision, bar in (("single", 1 - 1e-6), ("fast", 0.9999)):
        assert not np.array_equal(found["exact"], found[precision])
        for exact, other in zip(found["exact"], found[precision], strict=True):
            assert np.corrcoef(exact, other)[0, 1] > bar


@pytest.mark.parametrize(
    ("factors", "curvature"),
    [("factors", "ekfac"), ("factors", "kfac"), ("tokens", CURVATURE)],
)
def test_what_the_factors_do_not_serve(pipeline, tiny_queries, factors, curvature):
    done = call(
        "precondition", "--model", pipeline.model, "--factors", pipeline.run / factors,
        "--queries", tiny_queries, "--out", pipeline.run / "refused", "--curvature", curvature,
    )  # fmt: skip
    holds = {"factors": CURVATURE, "tokens": "ekfac"}[factors]
    refuse(done, 2, f"--curvature {curvature} needs", f"holds {holds}")
    assert not (pipeline.run / "refused").exists()


def test_what_they_serve(pipeline, tiny_queries):
    """auto is what was fitted, and the identity is what it is with any factors."""
    pipeline.precondition(tiny_queries, "auto")
    taken = QueriesReader.open(pipeline.run / "auto").artifact.manifest.config
    assert taken["curvature"] == CURVATURE
    found = [
        QueriesReader.open(
            pipeline.precondition(tiny_queries, f"identity-{name}", name, curvature="identity")
        )
        for name in ("factors", "tokens")
    ]
    for module in FactorsReader.open(pipeline.run / "factors").modules:
        one, other = (reader.matrices(module["name"])["dense"] for reader in found)
        assert torch.equal(one, other)


def test_the_report_says_what_it_is(pipeline, tiny_queries):
    pipeline.precondition(tiny_queries)
    pipeline.tfidf_filter(tiny_queries)
    pipeline.scan()
    pipeline.attribute()
    page = (pipeline.report() / "index.html").read_text()
    assert "EC-Shampoo" in page
    assert "Split-half stability" in page


def test_a_plan_knows_its_flops(tiny_model, tiny_text, tmp_path, monkeypatch):
    """What it takes more than ekfac, by torch's count: the passes and Λ are the same. torch does
    not count eigenvectors, nor does a plan what fills batches up."""
    monkeypatch.setattr(statistics, "round_up", lambda size, an_octave: size)
    packed, counted, planned = Pipeline(tiny_model("llama"), tmp_path), {}, {}
    packed.prepare(tiny_text, per_line=False)
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    for curvature in ("ekfac", CURVATURE):
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            packed.fit(curvature, curvature=curvature, max_sequences=14)
        counted[curvature] = counter.get_total_flops()
        done = call(
            "plan", "--model", packed.model, "--corpus", packed.run / "corpus", "--n-queries", 1,
            "--curvature", curvature, "--dtype", "float64", "--device", "cpu", "--batch-size", 7,
            "--no-calibrate", "--json", "--max-sequences", 14,
        )  # fmt: skip
        stages = {row["stage"]: row for row in json.loads(done.stdout)["stages"]}
        planned[curvature] = stages["fit-factors"]["flops"]
    of_gate_and_up = 2 * 9 * 16**3
    more = planned[CURVATURE] - planned["ekfac"] - of_gate_and_up
    assert more == pytest.approx(counted[CURVATURE] - counted["ekfac"], rel=0.02)
    assert more > 0
