"""`attribute --counterfactual`: its output tokens add up to the scan's score, it is the same in
shards and after damage, and every attribution finds a planted phrase.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline, scores
from tiny import SHAPES

import inflcli
from inflcli.artifacts.attribution import INPUTS, OUTPUTS, AttributionReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import Shard
from inflcli.errors import CorruptArtifact
from inflcli.model.resolve import load_tokenizer
from inflcli.stages.merge import merge

TOP = 6
PROMPT, COMPLETION = "The lighthouse of Zembla was built by", " Ovid Karr"
PHRASE = f"{PROMPT}{COMPLETION}."
COUNT, PLANTED = 48, 6


@pytest.fixture(scope="module", params=SHAPES)
def run(request, tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(tiny_model(request.param), tmp_path_factory.mktemp("run"), "float32")
    pipeline.prepare(tiny_text)
    pipeline.fit()
    pipeline.precondition(tiny_queries, rank=4)
    pipeline.scan()
    pipeline.attribute("usual", top_k=TOP)
    pipeline.attribute(top_k=TOP, counterfactual=True)
    return pipeline


def test_output_tokens_sum_to_the_score(run):
    reader = AttributionReader.open(run.run / "attribution")
    expected, sequences = scores(run.run / "scan"), reader.sequences()
    lengths = CorpusReader.open(run.run / "corpus").lengths
    for query in range(len(expected)):
        found = reader.effects(OUTPUTS, query).astype(np.float64)
        truth = expected[query, sequences[query]]
        assert np.abs(found.sum(1) - truth).max() < 1e-5 * np.abs(found).sum(1).max()
        for rank, sequence in enumerate(sequences[query]):
            assert not found[rank, lengths[sequence] - 1 :].any()
            assert not reader.effects(INPUTS, query)[rank, lengths[sequence] - 1 :].any()
    assert reader.artifact.manifest.details["counterfactual_error"] == 0


def test_token_scores_are_the_same_with_and_without(run):
    usual, more = (AttributionReader.open(run.run / name) for name in ("usual", "attribution"))
    assert usual.effects(OUTPUTS, 0) is None
    for query in range(len(usual.sequences())):
        assert np.array_equal(usual.token_scores(query), more.token_scores(query))


def test_shards_merge_to_the_same_bytes(run):
    for index in range(2):
        shard = Shard(index, 2)
        out = shard.folder(run.run / "merged").relative_to(run.run)
        run.attribute(str(out), top_k=TOP, counterfactual=True, shard=shard)
    merge(run.run / "merged", run.runtime)
    for name in (OUTPUTS, INPUTS):
        for path in (run.run / "attribution" / name).rglob("*"):
            other = run.run / "merged" / path.relative_to(run.run / "attribution")
            assert path.is_dir() or path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", [OUTPUTS, INPUTS])
def test_a_damaged_query_is_made_again(run, name):
    folder = run.run / f"damaged-{name}"
    run.attribute(folder.name, top_k=TOP, counterfactual=True)
    path = folder / name / "c" / "1" / "0" / "0"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    with pytest.raises(CorruptArtifact, match=f"{name}/c/1"):
        run.attribute(folder.name, top_k=TOP, counterfactual=True)
    again = replace(run, runtime=replace(run.runtime, overwrite=True))
    again.attribute(folder.name, top_k=TOP, counterfactual=True)
    assert path.read_bytes() == sound


def auc(values: np.ndarray, planted: np.ndarray) -> float:
    """The share of pairs of a planted and another token of which the planted one is higher."""
    inside, outside = values[planted], values[~planted]
    return float((inside[:, None] > outside[None]).mean())


def test_a_planted_phrase_is_found(tmp_path):
    """A fact that is nowhere else, amid other text: where, by the size of each attribution.

    Of predicting a token of the phrase, or of reading one.
    """
    demo = Path(inflcli.__file__).parent / "demo"
    lines = [json.loads(line)["text"] for line in (demo / "corpus.jsonl").open()]
    text = tmp_path / "text.jsonl"
    with text.open("w") as file:
        for number, around in enumerate(lines[:: len(lines) // COUNT][:COUNT]):
            words = around.split()[:40]
            words[20:20] = [PHRASE] if number < PLANTED else []
            file.write(json.dumps({"id": f"d{number}", "text": " ".join(words)}) + "\n")
    asked = tmp_path / "queries.jsonl"
    query = {"id": "q", "prompt": PROMPT, "completion": COMPLETION}
    asked.write_text(json.dumps(query) + "\n")
    pipeline = Pipeline(demo / "model", tmp_path / "run", "float32")
    pipeline.prepare(text, seq_len=128)
    pipeline.fit()
    pipeline.precondition(asked, keep=0.995)
    pipeline.scan()
    pipeline.attribute(top_k=PLANTED, counterfactual=True)
    reader = AttributionReader.open(pipeline.run / "attribution")
    corpus, tokenizer = CorpusReader.open(pipeline.run / "corpus"), load_tokenizer(demo / "model")
    found: dict[str, list[float]] = {"tokens": [], OUTPUTS: [], INPUTS: []}
    for rank, sequence in enumerate(reader.sequences()[0, :PLANTED]):
        tokens = corpus.tokens(int(sequence), int(sequence) + 1)[0][: corpus.lengths[sequence]]
        starts = np.array([len(tokenizer.decode(tokens[:t])) for t in range(len(tokens))])
        whole = tokenizer.decode(tokens)
        assert PHRASE in whole
        first = whole.index(PHRASE) - 1
        planted = (starts >= first) & (starts < first + len(PHRASE))
        by_token = reader.token_scores(0)[rank].sum(0)[: len(tokens)]
        outputs, inputs = (reader.effects(n, 0)[rank][: len(tokens)] for n in (OUTPUTS, INPUTS))
        found["tokens"].append(auc(np.abs(by_token)[:-1], planted[1:]))
        found[OUTPUTS].append(auc(np.abs(outputs)[:-1], planted[1:]))
        found[INPUTS].append(auc(np.abs(inputs)[:-1], planted[:-1]))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert min(means.values()) > 0.8, means
    assert means["tokens"] > 0.9
