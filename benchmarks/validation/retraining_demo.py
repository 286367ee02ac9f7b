"""The demo's architecture, paragraphs and queries for `retraining.py`, and inflcli's own scores."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.demo_facts import MODEL, QUERIES, TEXT, read_jsonl, states
from inflcli.artifacts.candidates import CandidateReader
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.scan import ScanReader
from inflcli.config import (
    FitFactorsConfig,
    PreconditionConfig,
    PrepareConfig,
    Runtime,
    ScanConfig,
    TfidfConfig,
)
from inflcli.corpus.queries import encode_query, read_queries
from inflcli.stages.fit_factors import fit_factors
from inflcli.stages.precondition import precondition
from inflcli.stages.prepare import prepare
from inflcli.stages.scan import scan
from inflcli.stages.tfidf_filter import tfidf_filter
from inflcli.validation.points import Sequences

MORE = Path(__file__).parent.parent / "more-facts.jsonl"
CURVATURES = ("ekfac", "kfac", "identity")


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and what it is asked."""

    run: Path
    config: Any
    tokenizer: Any
    data: Sequences
    queries: Sequences
    query_ids: list[str]
    facts: NDArray[np.bool_]
    """Whether a paragraph, as cut, states what a query asks for, [K, N]."""

    def make_network(self) -> nn.Module:
        """The demo's architecture with fresh weights."""
        network: nn.Module = AutoModelForCausalLM.from_config(
            copy.deepcopy(self.config), dtype=torch.float32
        )
        return network


def load(options: Namespace) -> Experiment:
    """Choose and prepare the paragraphs in `options.run`, or read what was prepared there.

    The sequences are those that `prepare --per-line` makes, so that row n of a scan is point n.
    Queries whose fact no paragraph states within its first tokens are left out.
    """
    run: Path = options.run
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    corpus, asked = run / "corpus.jsonl", run / "queries.jsonl"
    run.mkdir(parents=True, exist_ok=True)
    documents, facts, queries = _choose(tokenizer, options)
    for path, rows in ((corpus, documents), (asked, queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Workers find it written already.
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    config = PrepareConfig(seq_len=options.seq_len, per_line=True)
    prepare([str(corpus)], MODEL, run / "corpus", config, Runtime(device="cpu", overwrite=True))
    reader = CorpusReader.open(run / "corpus")
    if reader.n_sequences != len(documents):
        raise SystemExit("a paragraph is empty, or too short to train on")
    encoded = [
        encode_query(query, tokenizer, bos=False, max_tokens=None) for query in read_queries(asked)
    ]
    lengths = np.array([len(one.tokens) for one in encoded])
    tokens = np.zeros((len(encoded), lengths.max()), np.int64)
    for row, one in enumerate(encoded):
        tokens[row, : lengths[row]] = one.tokens
    return Experiment(
        run,
        AutoConfig.from_pretrained(MODEL),
        tokenizer,
        Sequences(reader.tokens(0, reader.n_sequences), reader.lengths),
        Sequences(tokens, lengths, np.array([one.completion_start for one in encoded])),
        [one.query.id for one in encoded],
        facts,
    )


def _choose(
    tokenizer: Any, options: Namespace
) -> tuple[list[dict[str, Any]], NDArray[np.bool_], list[dict[str, Any]]]:
    """Paragraphs that state the queries' facts, and random ones, in the corpus's order."""
    documents, queries = read_jsonl(TEXT), read_jsonl(QUERIES) + read_jsonl(MORE)
    ids = tokenizer([one["text"] for one in documents], add_special_tokens=False)["input_ids"]
    cut = [tokenizer.decode(one[: options.seq_len]) for one in ids]
    facts = np.array(
        [[states(text, query["metadata"]["fact"]) for text in cut] for query in queries]
    )
    stated = facts.any(1)
    stating = np.flatnonzero(facts.any(0))
    room = options.paragraphs - len(stating)
    if room < 0:
        raise SystemExit(f"{len(stating)} paragraphs state facts: ask for more --paragraphs")
    others = np.setdiff1d(np.arange(len(documents)), stating)
    drawn = np.random.default_rng(options.seed).permutation(others)[:room]
    chosen = np.sort(np.concatenate([stating, drawn]))
    kept = [query for query, there in zip(queries, stated, strict=True) if there]
    return [documents[i] for i in chosen], facts[stated][:, chosen], kept


def pipeline_scores(demo: Experiment, folder: Path, modules: str) -> dict[str, NDArray[Any]]:
    """Scores [K, N] of the model in `folder`/model by inflcli's stages, by estimator.

    EK-FAC, K-FAC and the gradient dot product at full rank, TF-IDF, and whether a paragraph states
    the fact, which is no estimate but tells what such an oracle would reach.
    """
    model, corpus, asked = str(folder / "model"), demo.run / "corpus", demo.run / "queries.jsonl"
    runtime = Runtime(device="cpu", overwrite=True)
    factors = folder / f"factors-{modules}"
    fit_factors(model, corpus, factors, FitFactorsConfig(modules=modules), runtime)
    found: dict[str, NDArray[Any]] = {}
    for curvature in CURVATURES:
        name = f"{modules}-{curvature}"
        queries, scores = folder / f"queries-{name}", folder / f"scan-{name}"
        config = PreconditionConfig(curvature=curvature, rank=None, keep=None)
        precondition(model, factors, asked, queries, config, runtime)
        scan(model, queries, corpus, scores, ScanConfig(), runtime)
        reader = ScanReader.open(scores)
        assert list(reader.query_ids) == demo.query_ids
        found[curvature] = np.stack([reader.scores(q) for q in range(len(demo.query_ids))])
    tfidf_filter(corpus, asked, folder / "candidates", TfidfConfig(top=len(demo.data)), runtime)
    candidates = CandidateReader.open(folder / "candidates")
    found["tfidf"] = np.zeros(demo.facts.shape)
    for row, (ids, values) in enumerate(zip(candidates.ids, candidates.scores, strict=True)):
        there = ids >= 0
        found["tfidf"][row, ids[there]] = values[there]
    found["states-the-fact"] = demo.facts.astype(np.float64)
    return found
