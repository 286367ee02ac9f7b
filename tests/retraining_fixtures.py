"""A tiny Llama and random sequences to retrain it on."""

from __future__ import annotations

import copy

import numpy as np
from tiny import SHAPES, VOCABULARY
from torch import nn
from transformers import AutoModelForCausalLM

from inflcli.validation.points import Sequences
from inflcli.validation.retraining import Recipe

RECIPE = Recipe(epochs=2, batch_size=4, learning_rate=1e-2)


def make_llama() -> nn.Module:
    return AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES["llama"]))


def random_sequences(count: int, seed: int = 0, *, low: int = 3, high: int = 20) -> Sequences:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(low, high + 1, count)
    return Sequences(draw.integers(0, VOCABULARY, (count, high)), lengths)


def some_queries(count: int = 3) -> Sequences:
    """Of 6 tokens, the last two of which are completions."""
    tokens = np.random.default_rng(99).integers(0, VOCABULARY, (count, 6))
    return Sequences(tokens, np.full(count, 6), np.full(count, 4))
