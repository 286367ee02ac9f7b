"""A run folder with made-up numbers, written through the artifact modules; no model is run."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts import attribution, candidates, fingerprint, queries, scan
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact
from inflcli.artifacts.manifest import Identity, Input
from inflcli.artifacts.writer import ArtifactWriter
from inflcli.config import PreconditionConfig, PrepareConfig, Runtime, ScanConfig
from inflcli.corpus.queries import encode_query, read_queries
from inflcli.model.resolve import load_tokenizer
from inflcli.stages.prepare import prepare

LAYERS = 3
GROUPS = [f"layer {layer}" for layer in range(LAYERS)]
TOP = 6
CHUNK = ScanConfig().chunk_size
_MODEL = Input("m" * 32, "some/model")


def modules(layers: int = LAYERS) -> list[dict[str, Any]]:
    """One of each layer, so that a layer is a depth group."""
    return [
        {"name": f"layers.{layer}.mlp", "inputs": 9, "outputs": 7, "bias": False, "layer": layer,
         "shares_input_with": f"layers.{layer}.mlp"}
        for layer in range(layers)
    ]  # fmt: skip


def documents(count: int = 24) -> list[dict[str, Any]]:
    """Short documents, no two nearly the same, some with a title."""
    return [
        {
            "id": f"set/{number}",
            "text": f"The house number {number} is by the river. It has {number * number} stones "
            f"and {7 * number + 3} windows, of which {number % 5} are open. " * (1 + number % 3),
            "metadata": {"title": f"House {number}"} if number % 2 else {},
        }
        for number in range(count)
    ]


QUERIES = [
    {"id": "first", "prompt": "The old house is", "completion": " by the river."},
    {"id": "second", "prompt": "Two and two is", "completion": " four."},
]


def make_run(
    folder: Path,
    tokenizer: Path,
    texts: Sequence[dict[str, Any]] | None = None,
    asked: Sequence[dict[str, Any]] | None = None,
    *,
    filtered: bool = True,
    attributed: bool = True,
    counterfactual: bool = False,
    evenness: float = 0.1,
    seed: int = 0,
    top: int = TOP,
    seq_len: int = 40,
    layers: int = LAYERS,
    shared: bool = True,
    per_line: bool = False,
    rank: int = 32,
) -> Path:
    """Write corpus, queries, scan and, if wanted, candidates and attribution to `folder`.

    The `top` sequences of both signs are kept; the first `top` of the corpus are among them, for
    all queries, if they are to be `shared`. The last
    sequence is not scanned. With less `evenness`, fewer tokens carry a sequence's influence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, query_file = folder / "documents.jsonl", folder / "queries.jsonl"
    for path, records in ((text, texts or documents()), (query_file, asked or QUERIES)):
        lines = [json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n")
    config = PrepareConfig(seq_len=seq_len, per_line=per_line)
    prepare([str(text)], str(tokenizer), folder / "corpus", config, Runtime(command=("inflcli",)))
    draw = np.random.default_rng(seed)
    _queries(folder, tokenizer, query_file, draw, layers, rank)
    if filtered:
        _candidates(folder, draw)
    _scan(folder, draw, top, layers, shared)
    if attributed:
        _attribution(folder, draw, counterfactual, evenness, layers)
    return folder


def _begin(path: Path, stage: str, config: dict[str, Any], inputs: dict[str, Input]) -> Any:
    writer = ArtifactWriter.begin(
        path, Identity(stage, config, inputs), overwrite=True, command=("inflcli", stage, "--x")
    )
    assert writer is not None
    return writer


def _input(path: Path, stage: str) -> Input:
    return Artifact.open(path, stage).as_input()


def _queries(
    folder: Path, tokenizer: Path, source: Path, draw: np.random.Generator, layers: int, rank: int
) -> None:
    loaded = load_tokenizer(tokenizer)
    inputs = {
        "model": _MODEL,
        "tokenizer": Input("t" * 32, "some/model"),
        "factors": Input("f" * 32, "factors"),
        "queries": fingerprint.of_files([source], str(source)),
    }
    settings = {
        **PreconditionConfig().identity(),
        "curvature": "ekfac",
        "keep": None,
        "rank": rank,
        "seed": int(draw.integers(9)),
    }
    writer = _begin(folder / "queries", "precondition", settings, inputs)
    described = []
    for query in read_queries(source):
        encoded = encode_query(query, loaded, bos=False, max_tokens=None)
        log_p = (-draw.random(len(encoded.tokens) - max(encoded.completion_start, 1))).tolist()
        described.append(
            {
                "id": query.id, "prompt": query.prompt, "completion": query.completion,
                "metadata": query.metadata, "tokens": encoded.tokens,
                "completion_start": encoded.completion_start, "merged": encoded.merged,
                "token_log_p": log_p, "log_p": sum(log_p), "kept_energy": 0.97,
                "bytes": rank * 1000,
            }
        )  # fmt: skip
    queries.write_queries(writer.folder, described)
    details = {
        "modules": modules(layers),
        "damping": {module["name"]: 0.01 for module in modules(layers)},
        "dtype": "float32",
        "share_tracked": 0.52,
    }
    writer.finish(counts={"queries": len(described)}, details=details)


def _candidates(folder: Path, draw: np.random.Generator) -> None:
    corpus = CorpusReader.open(folder / "corpus")
    asked = queries.QueriesReader.open(folder / "queries")
    inputs = {
        "corpus": corpus.artifact.as_input(),
        "queries": asked.artifact.manifest.inputs["queries"],
        "tokenizer": corpus.artifact.manifest.inputs["tokenizer"],
    }
    writer = _begin(folder / "candidates", "tfidf-filter", {"top": 5}, inputs)
    shape = (len(asked.ids), min(5, corpus.n_sequences))
    ids = np.stack([draw.permutation(corpus.n_sequences)[: shape[1]] for _ in asked.ids])
    ids = ids.astype(np.int64)
    ids[:, -1] = -1
    candidates.write(writer.folder, ids, np.ones(shape, np.float32), asked.ids, {})
    writer.finish(counts={"queries": shape[0]})


def _scan(folder: Path, draw: np.random.Generator, top: int, layers: int, shared: bool) -> None:
    corpus = CorpusReader.open(folder / "corpus")
    asked = queries.QueriesReader.open(folder / "queries")
    inputs = {
        "model": _MODEL,
        "queries": asked.artifact.as_input(),
        "corpus": corpus.artifact.as_input(),
    }
    writer = _begin(folder / "scan", "scan", ScanConfig(dtype="float32").identity(), inputs)
    count = corpus.n_sequences
    top = min(top, count)
    groups = [f"layer {layer}" for layer in range(layers)]
    group = scan.create(writer.folder, asked.ids, count, groups, top, None, CHUNK)
    parts = draw.standard_t(2, (len(asked.ids), count, layers)).astype(np.float32) * 100
    if shared:
        parts[:, top:] /= 1e4
    parts[:, -1] = np.nan
    scores = parts.sum(-1, dtype=np.float64).astype(np.float32)
    for first in range(0, count, CHUNK):
        span = slice(first, first + CHUNK)
        scan.write(group, span, scores[:, span], parts[:, span])
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")
    down = order[:, 1:] if count > 1 else order  # NaN counts as lowest
    ids = np.full((len(asked.ids), 2, top), -1, np.int64)
    best, worst = down[:, ::-1][:, :top], down[:, :top]
    ids[:, 0, : best.shape[1]], ids[:, 1, : worst.shape[1]] = best, worst
    found = np.take_along_axis(scores[:, None, :], np.maximum(ids, 0), axis=2)
    scan.write_top(group, ids, np.where(ids < 0, np.nan, found).astype(np.float32))
    details = {
        "routes": {module["name"]: "factored" for module in modules(layers)},
        "groups": groups,
        "dtype": "float32",
        "modules": [module["name"] for module in modules(layers)],
        "group_of": list(range(layers)),
    }
    writer.finish(counts={"sequences": count - 1, "queries": len(asked.ids)}, details=details)


def _attribution(
    folder: Path, draw: np.random.Generator, counterfactual: bool, evenness: float, layers: int
) -> None:
    corpus, reader = CorpusReader.open(folder / "corpus"), scan.ScanReader.open(folder / "scan")
    inputs = {
        "model": _MODEL,
        "queries": _input(folder / "queries", "precondition"),
        "corpus": corpus.artifact.as_input(),
        "scan": reader.artifact.as_input(),
    }
    writer = _begin(folder / "attribution", "attribute", {"top_k": TOP}, inputs)
    ids, scores = reader.top()
    ids, scores = ids.reshape(len(ids), -1), scores.reshape(len(scores), -1)
    width = int(corpus.lengths.max())
    group = attribution.create(
        writer.folder,
        reader.query_ids,
        modules(layers),
        ids.shape[1],
        width,
        counterfactual=counterfactual,
    )
    for query in range(len(ids)):
        parts: NDArray[np.float32] = np.zeros((ids.shape[1], layers, width), np.float32)
        outputs, inputs = np.zeros((2, ids.shape[1], width), np.float32)
        for rank, sequence in enumerate(ids[query]):
            if sequence < 0:
                continue
            last = max(int(corpus.lengths[sequence]) - 1, 1)  # the last token predicts nothing
            share = draw.dirichlet(np.full(last * layers, evenness)).reshape(layers, last)
            parts[rank, :, :last] = share * scores[query, rank]
            outputs[rank, :last] = parts[rank, :, :last].sum(0)[::-1]
            if counterfactual:
                inputs[rank, :last] = draw.standard_normal(last)
        found = {"token_scores": parts}
        if counterfactual:
            found |= {attribution.OUTPUTS: outputs, attribution.INPUTS: inputs}
        attribution.write(group, query, found)
    attribution.write_ranking(group, ids, scores)
    details = {
        "worst_difference_from_scan": 1e-7,
        "counterfactual_error": 0.0,
        "dtype": "float32",
    }
    writer.finish(counts={"pairs": int((ids >= 0).sum())}, details=details)


def read_page(page: str) -> dict[str, Any]:
    """What a page's script reads, with its packed numbers: each text's `strings`, and each
    sequence's `shadings` by name and `values` [group, unit]."""
    data = json.loads(element(page, "data"))
    data |= {"queries": [], "texts": []}
    for number in range(1, page.count('<article class="query"') + 1):
        packed = zlib.decompress(base64.b64decode(element(page, f"packed{number}")))
        stop = 4 + int.from_bytes(packed[:4], "little")
        query = json.loads(packed[4:stop])
        _read_numbers(data, query, packed, stop)
        data["queries"].append(query)
        data["texts"] += query["texts"]
    return dict(data)


def _read_numbers(data: dict[str, Any], query: dict[str, Any], packed: bytes, at: int) -> None:
    kind = np.dtype("<u4" if data["wide"] else "<u2")
    for text in query["texts"]:
        mine = np.frombuffer(packed, kind, text["units"], at)
        text["strings"] = [data["strings"][number] for number in mine]
        at += mine.nbytes
    units = {text["n"]: text["units"] for text in query["texts"]}
    entries = [entry for entry in [*query["positive"], *query["negative"]] if entry["w"]]
    count = sum(units[entry["n"]] for entry in entries) * len(data["shadings"])
    low = np.frombuffer(packed, "u1", count, at)
    high = np.frombuffer(packed, "i1", count, at + count)
    whole, at = low + 256 * high.astype(np.int16), at + 2 * count
    for entry in entries:
        entry["shadings"] = {}
        for name in data["shadings"]:
            steps, whole = np.split(whole, [units[entry["n"]]])
            entry["shadings"][name] = steps * entry["w"][name]
    for entry in entries:
        size = units[entry["n"]] * len(data["groups"])
        steps = np.frombuffer(packed, "i1", size, at).reshape(len(data["groups"]), -1)
        entry["values"] = steps * entry["map"]
        at += size
    assert at == len(packed)


def element(page: str, name: str) -> str:
    found = re.search(rf'<script type="[a-z/-]+" id="{name}">(.*?)</script>', page, re.S)
    assert found is not None
    return found[1]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
