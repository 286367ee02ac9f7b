"""Invariant: the display strings of tokens join to the real text, and no character is ever cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inflcli.report.tokens import TokenText, Units

TEXTS = [
    "The sun is a star.",
    " leading space, trailing space ",
    "emoji 🙂🙂🏽 family 👨\u200d👩\u200d👧 flag 🇰🇪",
    "Ελληνικά, русский, 中文, العربية, हिन्दी, é e\u0301",
    "a\n\n\tb\r\nc   d",
    "a real replacement mark: \ufffd and another \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd end",
    "\u202eright to left\u202c \x1b[31mred\x1b[0m \x00",
    "x" * 500,
    "🙂" * 40,
]


def _byte_level(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def _byte_fallback(folder: Path) -> Any:
    """As Llama's: SentencePiece pieces, unknown characters as bytes, a dummy space in front."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in "▁ abcdefghijklmnopqrstuvwxyzTE.,:":
        vocabulary.setdefault(piece, len(vocabulary))
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _words(folder: Path) -> Any:
    """Pieces that no rule of ours can read: the decoder puts spaces between words itself."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[EOS]"])
    tokenizer.train_from_iterator(["the sun is a star that shines", "stars are suns"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")


@pytest.fixture(params=[_byte_level, _byte_fallback])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Path) -> Any:
    return request.param(tiny_tokenizer)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _joins(units: Units, text: str) -> bool:
    """Whether the units make the text. SentencePiece's dummy space may stand before it, as the
    only thing that its token has to show."""
    joined = "".join(units.texts)
    return joined == text or (units.texts[0] == " " and joined == " " + text)


@pytest.mark.parametrize("text", TEXTS)
def test_units_join_to_the_text(tokenizer: Any, text: str) -> None:
    ids = _ids(tokenizer, text)
    units = TokenText(tokenizer).units(ids)
    assert _joins(units, text)
    assert sum(units.counts) == len(ids)
    assert all("\ufffd" not in unit for unit in units.texts) or "\ufffd" in text


def test_units_are_single_tokens_where_a_token_is_text(tokenizer: Any) -> None:
    units = TokenText(tokenizer).units(_ids(tokenizer, "ab 🙂 c"))
    assert [unit for unit, count in zip(units.texts, units.counts, strict=True) if count > 1] == [
        "🙂"
    ]


def test_random_text_joins(tokenizer: Any) -> None:
    draw = random.Random(0)
    ranges = [(0x20, 0x7E), (0xA1, 0x24F), (0x400, 0x4FF), (0x4E00, 0x4EFF), (0x1F300, 0x1F64F)]
    reader = TokenText(tokenizer)
    for _ in range(30):
        text = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(40))
        assert _joins(reader.units(_ids(tokenizer, text)), text)


def test_a_sequence_cut_within_a_character_loses_only_that_character(tokenizer: Any) -> None:
    ids = _ids(tokenizer, "ab 🙂 c 🙂")[:-1]
    units = TokenText(tokenizer).units(ids)
    assert "".join(units.texts).lstrip(" ").startswith("ab 🙂 c ")
    assert sum(units.counts) == len(ids)


def test_words_join_as_their_own_decoder_joins_them() -> None:
    tokenizer = _words(Path())
    ids = _ids(tokenizer, "the sunshine is a star")
    units = TokenText(tokenizer).units(ids)
    assert "".join(units.texts) == tokenizer.decode(ids)
    assert units.counts == [1] * len(ids)


def test_special_tokens_are_marked_and_influence_is_kept(tiny_tokenizer: Path) -> None:
    tokenizer = _byte_level(tiny_tokenizer)
    ids = [*_ids(tokenizer, "sun 🙂"), tokenizer.eos_token_id, *_ids(tokenizer, "star")]
    units = TokenText(tokenizer).units(ids)
    assert {units.texts[unit] for unit in units.special} == {"<|endoftext|>"}
    values = [float(number) for number in range(len(ids))]
    pooled = units.pool(values)
    assert sum(pooled) == sum(values)
    emoji = units.texts.index("🙂")
    first = sum(units.counts[:emoji])
    assert pooled[emoji] == sum(values[first : first + units.counts[emoji]])
