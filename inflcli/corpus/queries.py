"""Queries: what the model said, whose causes are asked for.

A query file has one JSON object a line with `id`, `prompt`, `completion` and free `metadata`.
Text is tokenised as it stands: no chat template, no special token but a bos when asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflcli.errors import BadInput

_KEYS = ("id", "prompt", "completion")
_HINT = 'each line is an object such as {"id": "a", "prompt": "2 + 2 =", "completion": " 4"}'


@dataclass(frozen=True)
class Query:
    """One line of a query file."""

    id: str
    prompt: str
    completion: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedQuery:
    """A query as tokens; those from `completion_start` on are the completion's."""

    query: Query
    tokens: list[int]
    completion_start: int
    merged: bool
    """Whether the first completion token holds characters of the prompt, too."""
    message: str | None = None
    """What the user should know about it: a merge, or a token without a prediction."""


def read_queries(path: Path) -> list[Query]:
    """Read a query file in its order.

    Raises BadInput, naming the file, line and id, for malformed JSON, a missing or mistyped key,
    an id used twice, an empty completion, and a file without queries.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise BadInput(f"cannot read the queries {path}: {error.strerror}", _HINT) from error
    queries: list[Query] = []
    where: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        query = _parse(line, f"{path}:{number}")
        if query.id in where:
            raise BadInput(
                f"{path}:{number}: the id {query.id!r} is already used in line {where[query.id]}"
            )
        where[query.id] = number
        queries.append(query)
    if not queries:
        raise BadInput(f"{path} holds no queries", _HINT)
    return queries


def _parse(line: bytes, place: str) -> Query:
    try:
        raw = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise BadInput(f"{place}: not a JSON object ({error})", _HINT) from error
    if not isinstance(raw, dict):
        raise BadInput(f"{place}: not a JSON object", _HINT)
    if isinstance(raw.get("id"), int) and not isinstance(raw["id"], bool):
        raw["id"] = str(raw["id"])
    name = f"{place} (query {raw['id']!r})" if raw.get("id") else place
    for key in _KEYS:
        if key not in raw:
            raise BadInput(f"{name}: no {key!r}", _HINT)
        if not isinstance(raw[key], str):
            raise BadInput(f"{name}: {key!r} is not a string", _HINT)
        if not _encodable(raw[key]):
            raise BadInput(f"{name}: {key!r} holds half of a surrogate pair", _HINT)
    if not raw["id"]:
        raise BadInput(f"{place}: the id is empty", _HINT)
    if not raw["completion"]:
        raise BadInput(f"{name}: the completion is empty", "there is nothing to explain")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise BadInput(f"{name}: 'metadata' is not an object")
    return Query(raw["id"], raw["prompt"], raw["completion"], metadata)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def query_tokens(query: Query, tokenizer: Any) -> list[int]:
    """Prompt and completion tokenised as one text, without special tokens."""
    return _ids(tokenizer, query.prompt + query.completion)


def encode_query(
    query: Query, tokenizer: Any, *, bos: bool, max_tokens: int | None
) -> EncodedQuery:
    """Tokenise a query and find where its completion begins.

    The completion begins where the tokens of the whole depart from those of the prompt alone. If
    that is before the prompt's own end, the tokenizer merged characters across the border; the
    merged token counts as the completion's. Raises BadInput, naming the query, when it is longer
    than `max_tokens`, when the completion adds no token, when no token would be predicted (the
    first token of a sequence never is), or when `bos` is asked of a tokenizer without one.
    """
    prompt, tokens = _ids(tokenizer, query.prompt), query_tokens(query, tokenizer)
    start = _common_prefix(prompt, tokens)
    merged = start < len(prompt)
    name = f"query {query.id!r}"
    if start == len(tokens):
        raise BadInput(f"{name}: the completion {query.completion!r} adds no token to the prompt")
    notes = [_merge_note(tokenizer, prompt, tokens, start)] if merged else []
    if bos:
        if tokenizer.bos_token_id is None:
            raise BadInput("the tokenizer has no bos token", "leave out --bos")
        tokens, start = [tokenizer.bos_token_id, *tokens], start + 1
    if max_tokens is not None and len(tokens) > max_tokens:
        raise BadInput(f"{name} has {len(tokens)} tokens; the model's context is {max_tokens}")
    if len(tokens) == 1:
        raise BadInput(
            f"{name}: its only token has nothing before it, so no prediction to explain",
            "give it a prompt, or put a bos token first with --bos",
        )
    if start == 0:
        notes.append("the first completion token has nothing before it, so it is not predicted")
    message = f"{name}: {'; '.join(notes)}" if notes else None
    return EncodedQuery(query, tokens, start, merged, message)


def _merge_note(tokenizer: Any, prompt: list[int], tokens: list[int], start: int) -> str:
    lost = tokenizer.decode(prompt[start:])
    token = tokenizer.decode(tokens[start : start + 1])
    return (
        f"the tokenizer merges {lost!r} at the prompt's end with the completion; "
        f"the token {token!r} counts as the completion's"
    )


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next(
        (index for index, (one, other) in enumerate(pairs) if one != other),
        min(len(first), len(second)),
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: transformers would print its own remark on texts beyond the context.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
