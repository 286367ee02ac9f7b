"""Fact probes: short prompts with known answers, read out of the corpus itself.

They measure what the demo model has learnt. The prompts are worded in one fixed way, while the
corpus words the same facts in several ways, so a right answer is more than a recited paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Probe = tuple[str, str, str]

# kind of fact -> (prompt, sentences of the corpus that state it); {c} is what the fact is about and
# {x} the answer
_FACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "capital": (
        "The capital of {c} is",
        (
            r"^The capital of {c} is {x}\. ",
            r"^{c} has its capital in {x}\. ",
            r"^The capital city of {c} is called {x}\. ",
            r"^In {c} the capital is {x}\. ",
        ),
    ),
    "currency": (
        "People in {c} pay with",
        (
            r"^Prices in {c} are given in {x} \(",
            r"^People in {c} pay with {x} \(",
            r"^The currency used in {c} is called {x} \(",
        ),
    ),
    "symbol": (
        "The chemical symbol for {c} is",
        (
            r"^The element {c} has the atomic number .* symbol {x}\.",
            r"^The atomic number of {c} is .* symbol is {x}\.",
            r"^In the periodic table {c} is element number .* symbol {x}\.",
            r"^Chemists write {c} as {x} and",
        ),
    ),
    "number": (
        "The atomic number of {c} is",
        (
            r"^Every atom of {c} has {x} protons",
            r"^The atomic number of {c} is {x}\. ",
            r"^In the periodic table {c} stands at number {x}\.",
        ),
    ),
    "discoverer": (
        "The discoverer of {c} was",
        (
            r"^The element {c} was discovered by {x} in ",
            r"^The discoverer of {c} was {x}, in ",
            r"^The discovery of {c} goes back to {x} \(",
        ),
    ),
}


def make_probes(documents: Iterable[dict[str, object]]) -> list[Probe]:
    """Return (kind, prompt, completion) for every fact that one of the patterns finds."""
    groups = {"c": "(?P<c>[^.]+?)", "x": "(?P<x>[^.]+?)"}
    probes: list[Probe] = []
    for document in documents:
        for kind, (prompt, patterns) in _FACTS.items():
            matches = (re.search(p.format(**groups), str(document["text"])) for p in patterns)
            match = next(filter(None, matches), None)
            if match:
                is_element = kind not in ("capital", "currency")
                name = match["c"] if is_element else match["c"].replace("The ", "the ", 1)
                probes.append((kind, prompt.format(c=name), f" {match['x']}"))
    return probes


@torch.no_grad()
def completion_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[list[float], bool]:
    """Probability of each completion token, and whether greedy decoding yields the completion."""
    start = tokenizer(prompt)["input_ids"]
    rest = tokenizer(completion)["input_ids"]
    logits = model(torch.tensor([start + rest])).logits[0].float()
    logits = logits[len(start) - 1 : -1]
    chosen = logits.softmax(-1)[range(len(rest)), rest]
    return chosen.tolist(), bool((logits.argmax(-1) == torch.tensor(rest)).all())


def probe_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: list[Probe]
) -> dict[str, tuple[int, int]]:
    """Count right answers by kind of fact: (right, all)."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, prompt, completion in probes:
        right, total = counts.get(kind, (0, 0))
        _, greedy = completion_probabilities(model, tokenizer, prompt, completion)
        counts[kind] = (right + greedy, total + 1)
    return counts
