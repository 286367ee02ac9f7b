"""A query's completion begins where its tokens depart from the prompt's, a merge across the border
is reported, and a query that cannot be used is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpus_fixtures import write_queries
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inflcli.corpus.queries import Query, encode_query, read_queries
from inflcli.errors import BadInput


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


@pytest.fixture(scope="module")
def merging() -> Any:
    """One token a letter, but `ab` is a token of its own."""
    vocab = {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4}
    bare = Tokenizer(models.BPE(vocab, [("a", "b")]))
    bare.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>")


def test_completion_start(tokenizer: Any) -> None:
    query = Query("q", "The sun is", " a star.")
    encoded = encode_query(query, tokenizer, bos=False, max_tokens=None)
    assert not encoded.merged and encoded.message is None
    start = encoded.completion_start
    assert tokenizer.decode(encoded.tokens[:start]) == query.prompt
    assert tokenizer.decode(encoded.tokens[start:]) == query.completion


def test_bos_shifts_the_completion(tokenizer: Any) -> None:
    query = Query("q", "The sun is", " a star.")
    plain = encode_query(query, tokenizer, bos=False, max_tokens=None)
    led = encode_query(query, tokenizer, bos=True, max_tokens=None)
    assert led.tokens == [tokenizer.bos_token_id, *plain.tokens]
    assert led.completion_start == plain.completion_start + 1


def test_merge_across_the_border_is_reported(merging: Any) -> None:
    encoded = encode_query(Query("q7", "ca", "bc"), merging, bos=False, max_tokens=None)
    assert encoded.tokens == [3, 4, 3]
    assert (encoded.completion_start, encoded.merged) == (1, True)
    assert encoded.message is not None
    assert "q7" in encoded.message and "'ab'" in encoded.message and "'a'" in encoded.message


def test_no_special_tokens_but_written_ones(tokenizer: Any) -> None:
    encoded = encode_query(Query("q", "The", " sun"), tokenizer, bos=False, max_tokens=None)
    assert not set(encoded.tokens) & set(tokenizer.all_special_ids)
    eos = tokenizer.eos_token
    written = encode_query(Query("q", f"The{eos}", " sun"), tokenizer, bos=False, max_tokens=None)
    assert tokenizer.eos_token_id in written.tokens


def test_too_long_is_refused_by_name(tokenizer: Any) -> None:
    query = Query("lengthy", "The sun is", " a star.")
    count = len(encode_query(query, tokenizer, bos=False, max_tokens=None).tokens)
    encode_query(query, tokenizer, bos=False, max_tokens=count)
    with pytest.raises(BadInput, match=f"lengthy.*{count + 1} tokens.*context is {count}"):
        encode_query(query, tokenizer, bos=True, max_tokens=count)


def test_nothing_predicted_is_refused_by_name(merging: Any) -> None:
    with pytest.raises(BadInput, match="lone"):
        encode_query(Query("lone", "", "a"), merging, bos=False, max_tokens=None)
    assert encode_query(Query("q", "", "a"), merging, bos=True, max_tokens=None).tokens == [0, 1]
    first = encode_query(Query("first", "", "cc"), merging, bos=False, max_tokens=None)
    assert first.message is not None and "not predicted" in first.message


def test_completion_without_tokens_is_refused_by_name(merging: Any) -> None:
    with pytest.raises(BadInput, match="blank"):
        encode_query(Query("blank", "c", " "), merging, bos=False, max_tokens=None)


def test_read_queries(tmp_path: Path) -> None:
    path = write_queries(tmp_path / "q.jsonl", ("a", "b"), ("", " c"))
    path.write_text(path.read_text() + '\n{"id": 5, "prompt": "", "completion": "d", '
                    '"metadata": {"k": 1}}\n')  # fmt: skip
    assert read_queries(path) == [
        Query("q0", "a", "b"), Query("q1", "", " c"), Query("5", "", "d", {"k": 1}),
    ]  # fmt: skip


BAD = {
    "not a JSON object": "{",
    "no 'completion'": '{"id": "x", "prompt": ""}',
    "no 'id'": '{"prompt": "", "completion": "a"}',
    "'prompt' is not a string": '{"id": "x", "prompt": 1, "completion": "a"}',
    "the completion is empty": '{"id": "x", "prompt": "", "completion": ""}',
    "the id is empty": '{"id": "", "prompt": "", "completion": "a"}',
    "already used in line 1": '{"id": "q0", "prompt": "", "completion": "a"}',
    "'metadata' is not an object": '{"id": "x", "prompt": "", "completion": "a", "metadata": 3}',
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_query_is_named(tmp_path: Path, reason: str) -> None:
    path = write_queries(tmp_path / "q.jsonl", ("a", "b"))
    path.write_text(path.read_text() + BAD[reason])
    with pytest.raises(BadInput, match=reason) as caught:
        read_queries(path)
    assert caught.value.message.startswith(f"{path}:2")
    if '"id": "x"' in BAD[reason]:
        assert "'x'" in caught.value.message


def test_no_queries(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n")
    with pytest.raises(BadInput, match="holds no queries"):
        read_queries(path)
    with pytest.raises(BadInput, match="cannot read"):
        read_queries(tmp_path / "missing.jsonl")
