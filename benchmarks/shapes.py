"""What the benchmark runs on: models with random weights, SmolLM2, random tokens and queries."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import PrepareConfig, Runtime
from inflcli.model.tracked import find_tracked
from inflcli.stages.prepare import prepare

QUERY_TOKENS = 32
COMPLETION_TOKENS = 8
_END = "<end>"


@dataclass(frozen=True)
class Shape:
    """A model, and how much it is fed: `sequences` of `length` tokens, batches of `batch`."""

    config: Any
    """A transformers config, or the folder of a model that `make smollm2` converted."""
    sequences: int
    length: int
    batch: int
    queries: int
    tracked: str = "mlp"
    """As --modules takes it. Passes go through the whole model whatever is tracked of it."""


def _llama(width: int, inner: int, layers: int, vocabulary: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


def _gpt2(width: int, layers: int, vocabulary: int, heads: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=1024
    )


def _mlps(layers: Iterable[int]) -> str:
    return ",".join(f"model.layers.{layer}.mlp.*" for layer in layers)


SHAPES = {
    "llama-256x4": Shape(_llama(256, 688, 4, 4096, 4), 96, 256, 16, 1024),
    "gpt2-256x4": Shape(_gpt2(256, 4, 4096, 4), 32, 256, 16, 16),
    "llama-576x12": Shape(_llama(576, 1536, 12, 8192, 9), 16, 192, 8, 16),
    "smollm2": Shape(Path("downloads/smollm2/model"), 16, 128, 16, 16),
    "llama-2048x1": Shape(_llama(2048, 5504, 1, 4096, 16), 32, 256, 16, 16),
    "llama-1b": Shape(_llama(2048, 5632, 22, 32000, 32), 512, 512, 32, 128),
    "llama-7b": Shape(_llama(4096, 11008, 32, 32000, 32), 128, 512, 16, 16),
}
# In three rounds of these three on two cores, eigenvectors and preconditioning alone take the three
# tools 22 minutes, however few tokens are read: where all are to fit in 20, a part is tracked.
SHAPES |= {
    "llama-576x12-part": replace(SHAPES["llama-576x12"], tracked=_mlps((0, 6)), sequences=8),
    "smollm2-part": replace(
        SHAPES["smollm2"], tracked=_mlps((0, 15)), sequences=8, length=64, batch=8, queries=8
    ),
    "llama-2048x1-part": replace(
        SHAPES["llama-2048x1"], tracked="model.layers.0.mlp.down_proj", sequences=8, batch=8
    ),
}


def make_work(folder: Path, shape: Shape, *, dtype: str, device: str, threads: int) -> None:
    """Fill the folder that the workers of one shape share (see `workers/protocol.py`)."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    if isinstance(shape.config, Path):
        network = AutoModelForCausalLM.from_pretrained(shape.config, dtype=getattr(torch, dtype))
    else:
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(shape.config, dtype=getattr(torch, dtype))
    network.save_pretrained(folder / "model")
    vocabulary = network.config.vocab_size
    names = [module.name for module in find_tracked(network, shape.tracked)]
    bench = {"modules": names, "damping_factor": 0.1, "threads": threads}
    bench |= {"device": device, "dtype": dtype}
    (folder / "bench.json").write_text(json.dumps(bench))
    tokens = draw.integers(1, vocabulary, (shape.sequences, shape.length))
    queries = draw.integers(1, vocabulary, (shape.queries, QUERY_TOKENS))
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "starts.npy", np.full(shape.queries, QUERY_TOKENS - COMPLETION_TOKENS))
    _write_ours(folder, tokens, queries, vocabulary)


def _write_ours(folder: Path, tokens: Any, queries: Any, vocabulary: int) -> None:
    """The same tokens as text, for a tokenizer whose words are numbers."""
    # The end-of-text token is cut out of any text that holds it: it must not be a number.
    words = {_END: 0, **{f"{number}": number for number in range(1, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END).save_pretrained(
        folder / "model"
    )
    ours = folder / "ours"
    ours.mkdir(exist_ok=True)
    text = ours / "text.jsonl"
    text.write_text("".join(json.dumps({"text": _spell(row)}) + "\n" for row in tokens))
    asked = []
    for number, row in enumerate(queries):
        prompt, completion = _spell(row[:-COMPLETION_TOKENS]), _spell(row[-COMPLETION_TOKENS:])
        asked.append({"id": f"q{number}", "prompt": prompt, "completion": " " + completion})
    (ours / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    config = PrepareConfig(seq_len=tokens.shape[1], per_line=True)
    prepare([str(text)], str(folder / "model"), ours / "corpus", config, Runtime(overwrite=True))
    stored = CorpusReader.open(ours / "corpus")
    if not np.array_equal(stored.tokens(0, len(tokens)), tokens):
        raise RuntimeError("the corpus does not hold the tokens that the peers get")


def _spell(row: Any) -> str:
    return " ".join(map(str, row))
