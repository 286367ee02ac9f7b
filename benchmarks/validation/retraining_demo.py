"""The demo's architecture, paragraphs and queries for `retraining.py`, and its scores."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.demo_facts import MODEL, QUERIES, TEXT, read_jsonl, states
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.factors import FactorsReader
from inflcli.config import AUTO as CHOSEN
from inflcli.config import ESTIMATORS, FitFactorsConfig, PrepareConfig, Runtime, ValidateConfig
from inflcli.corpus.queries import EncodedQuery, encode_query, read_queries
from inflcli.stages.common import load as load_model
from inflcli.stages.fit_factors import fit_factors
from inflcli.stages.prepare import prepare
from inflcli.stages.validate_estimates import Estimates
from inflcli.stages.validate_problem import given_inverse, pose
from inflcli.validation import Result, ekfac, refined
from inflcli.validation.points import Sequences

MORE = Path(__file__).parent.parent / "more-facts.jsonl"
AUTO = "ekfac-auto"
"""EK-FAC with `--damping auto`."""


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
    Queries whose fact no paragraph states within its first tokens are left out, and those after
    the first `options.queries`.
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
    encoded = encoded_queries(run, tokenizer)
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


def encoded_queries(run: Path, tokenizer: Any) -> list[EncodedQuery]:
    """Those that `load` wrote."""
    queries = read_queries(run / "queries.jsonl")
    return [encode_query(query, tokenizer, bos=False, max_tokens=None) for query in queries]


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
    stated = np.flatnonzero(facts.any(1))[: options.queries]
    facts = facts[stated]
    stating = np.flatnonzero(facts.any(0))
    room = options.paragraphs - len(stating)
    if room < 0:
        raise SystemExit(f"{len(stating)} paragraphs state facts: ask for more --paragraphs")
    others = np.setdiff1d(np.arange(len(documents)), stating)
    drawn = np.random.default_rng(options.seed).permutation(others)[:room]
    chosen = np.sort(np.concatenate([stating, drawn]))
    return [documents[i] for i in chosen], facts[:, chosen], [queries[i] for i in stated]


def estimated_scores(
    demo: Experiment, folder: Path, options: Namespace
) -> dict[str, NDArray[np.float64]]:
    """Scores [K, N] of the model in `folder`/model by every estimator of `inflcli validate`.

    At full rank, with factors of all paragraphs; refined on every fourth batch of them. Beside
    these EK-FAC with the damping that the fit's halves choose, and whether a paragraph states the
    fact, which is no estimate but tells what such an oracle would reach. Each is kept once done.
    """
    model, corpus = str(folder / "model"), demo.run / "corpus"
    runtime = Runtime(device="cpu")
    factors, kept = folder / f"factors-{options.modules}", folder / f"scores-{options.modules}"
    kept.mkdir(exist_ok=True)
    fit_factors(model, corpus, factors, FitFactorsConfig(modules=options.modules), runtime)
    config = ValidateConfig(points=None, dtype="float32", depth=options.depth, tolerance=1e-4)
    reader, curvature = CorpusReader.open(corpus), FactorsReader.open(factors)
    loaded = load_model(model, config.dtype, runtime)
    asked = encoded_queries(demo.run, demo.tokenizer)
    question = pose(loaded, reader, curvature, asked, config)
    estimates = Estimates(question, loaded, reader, curvature, asked, config)

    def make(name: str) -> Result:
        if name == "refined":
            return refined(
                question.problem,
                inverse=estimates.inverse(),
                steps=config.refine,
                subset=question.problem.fitted[::4],
                rows=question.rows,
            )
        if name == AUTO:
            chosen = replace(config, damping=CHOSEN)
            inverse = given_inverse(factors, curvature, "ekfac", chosen, loaded)
            return ekfac(question.problem, inverse=inverse)
        return estimates.make(name)

    found = {}
    for name in (*ESTIMATORS, AUTO):
        path = kept / f"{name}.npy"
        if not path.exists():
            result = make(name)
            scores = np.empty(demo.facts.shape)
            scores[:, question.points] = result.scores.numpy()
            partial = path.with_suffix(".partial.npy")
            np.save(partial, scores)
            partial.rename(path)
            print(f"{name}: {result.total:.1f} s", flush=True)
        found[name] = np.load(path)
    found["states-the-fact"] = demo.facts.astype(np.float64)
    return found
