"""Tiny tokenizer, texts and random models for the tests. Nothing is fetched."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 300
CONTEXT = 64

_WORDS = (
    *("sun", "star", "water", "boils", "river", "stone", "green", "light", "moon", "hundred"),
    *("degrees", "two", "four", "road", "house", "tree", "bird", "sings", "over", "under", "the"),
    *("a", "of", "and", "is", "was", "with", "by", "near", "many", "old", "new"),
)


def _text(seed: int) -> str:
    draw = random.Random(seed)
    words = [draw.choice(_WORDS) for _ in range(draw.randint(3, 30))]
    return " ".join(words).capitalize() + "."


TEXTS = [_text(seed) for seed in range(40)]

SHAPES: dict[str, Any] = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    ),
    "llama-bias": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        mlp_bias=True,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, n_inner=24
    ),
    "neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=16,
        activation_function="gelu",
    ),
}


def save_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer on the texts and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end
    ).save_pretrained(folder)


def save_model(folder: Path, config: Any, seed: int = 0) -> None:
    """A random model of that config, with the tokenizer, in float64.

    The weights are scaled up, so that the softmax is far from uniform and every statistic of full
    rank.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2:
                value.mul_(4.0)
            elif name.endswith("bias"):
                value.normal_(std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
