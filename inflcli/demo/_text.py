"""Text helpers of the demo corpus: cleaning, splitting into sentences, packing into paragraphs."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence

MAX_CHARS = 800
MAX_WORDS = 118
MIN_WORDS = 24

_ABBREVIATIONS = (
    "St", "Mt", "Dr", "Mr", "Mrs", "Jr", "Sr", "Gen", "No", "Col", "Ft", "approx", "ca",
)  # fmt: skip
_NO_SPLIT = "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS)
_SENTENCE_END = re.compile(rf"(?<=[a-z0-9)\"”’%é]\.){_NO_SPLIT}\s+(?=[A-Z0-9\"“(])")
_PLAIN = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xA0: " ", 0x2212: "-"}
_CAPS_WORD = re.compile(r"\b[A-ZÀ-Þ][A-ZÀ-Þ]+(?:['’-][A-ZÀ-Þ]+)*\b")
_SHORT_NAMES = {
    "ALI", "BIN", "BIO", "BOM", "DEL", "DOE", "FOX", "KIM", "LEE", "MOI", "OLI", "VAN",
    "VAZ",
}  # fmt: skip
_ACRONYM = re.compile(r"\(\s*([A-Z][A-Z-]+)\s*[;,)]|\bor ([A-Z][A-Z-]{1,9})\b(?=\s*(?:<|$|;|,))")


def clean(raw: str) -> str:
    """Strip HTML, notes' labels, estimate years and odd white space from one source field."""
    text = html.unescape(html.unescape(raw))
    label = r"<(?:strong|b|em)>\s*(?:note|description|meaning)\s*\d*\s*:?\s*</\w+>:?"
    text = re.sub(label, "; ", text)
    text = re.sub(r"\s*<br\s*/?>\s*|\s*</p>\s*<p>\s*", "; ", text)
    text = re.sub(r"<[^>]*>", "", text)
    text = unicodedata.normalize("NFC", text)
    text = text.translate(_PLAIN)
    text = re.sub(r",? as shown in this (?:population )?distribution map", "", text)
    text = re.sub(r" \([^()]*(?:ahead of|behind|same time as) Washington[^()]*\)", "", text)
    text = re.sub(r"\(s\)|\(es\)| \(singular and plural\)", "", text)
    text = re.sub(r"[\u200b\u200e\ufeff\u00ad]", "", text)
    text = re.sub(r"\s*\((?:\d{4}(?:-\d{2,4})?\s+est\.|[^()]{0,20}\d{4} est\.)\)", "", text)
    text = re.sub(r"\s*\(\d{4}(?:-\d{2,4})?\)\s*$", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([,;.])", r"\1", text)
    text = re.sub(r"(?<=[a-z]),(?=[a-z])", ", ", text)
    text = re.sub(r"(?:[;:]\s*){2,}", "; ", text)
    text = re.sub(r"([.,])\s*;\s+", r"\1 ", text)
    return text.strip(" ;:")


def find_acronyms(raw: str) -> set[str]:
    """Words in capitals that the source introduces as an abbreviation, e.g. ``(KANU)``."""
    return {first or second for first, second in _ACRONYM.findall(html.unescape(raw))}


def soften_caps(text: str, keep: set[str]) -> str:
    """Write surnames that the Factbook sets in capitals (``KENYATTA``) in ordinary case.

    Words in ``keep`` (abbreviations), words without a vowel and words of three letters or fewer
    stay as they are: those are nearly always abbreviations too (``_SHORT_NAMES`` not).
    """

    def ordinary(match: re.Match[str]) -> str:
        word = match.group(0)
        abbreviation = word in keep or len(word) < 4 or not re.search("[AEIOUY]", word)
        if abbreviation and word not in _SHORT_NAMES:
            return word
        parts = re.split(r"(['’-])", word)
        return "".join(part.capitalize() for part in parts)

    return _CAPS_WORD.sub(ordinary, text)


def capitalise(text: str) -> str:
    """Upper-case the first letter and leave the rest alone."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Make one sentence: capital letter first, full stop last."""
    text = capitalise(text.strip(" ;,"))
    return text if text[-1:] in ".!?" or text[-2:] in ('."', '!"', '?"') else text + "."


def sentences(text: str) -> list[str]:
    """Split flowing prose at the ends of its sentences."""
    return [sentence(part) for part in _SENTENCE_END.split(text) if part.strip(" ;")]


def clauses(text: str) -> list[str]:
    """Split Factbook shorthand at the semicolons outside brackets, one sentence for each clause.

    Clauses of one to four words ("soil erosion") stay with the one before them.
    """
    depth, start = 0, 0
    parts: list[str] = []
    for i, char in enumerate(text + ";"):
        depth += (char in "([") - (char in ")]")
        if char == ";" and (depth <= 0 or i == len(text)):
            part = text[start:i].strip(" ;,")
            if parts and len(part.split()) < 5 and part[:1].islower():
                parts[-1] += f"; {part}"
            elif len(part) > 2:
                parts.append(part)
            start = i + 1
    return [s for part in parts for s in sentences(part)]


def pick(key: str, options: Sequence[str]) -> str:
    """Choose one phrasing by a hash of ``key``, so that every run makes the same choice."""
    digest = hashlib.sha256(key.encode()).digest()
    return options[int.from_bytes(digest[:4], "big") % len(options)]


def _fits(parts: list[str]) -> bool:
    joined = " ".join(parts)
    return len(joined) <= MAX_CHARS and len(joined.split()) <= MAX_WORDS


def _fill(parts: list[str]) -> list[list[str]]:
    """Fill paragraphs one after the other; a sentence too long for any paragraph is left out."""
    paragraphs: list[list[str]] = [[]]
    for part in dict.fromkeys(parts):
        if _fits([*paragraphs[-1], part]):
            paragraphs[-1].append(part)
        elif _fits([part]):
            paragraphs.append([part])
    return paragraphs


def pack(parts: list[str], limit: int = 99) -> list[str]:
    """Join sentences into at most ``limit`` paragraphs of similar length below the size limits.

    What does not fit is cut off at the end, and so is a last paragraph that is too short.
    """
    kept = _fill(parts)[:limit]
    target = sum(len(part) + 1 for group in kept for part in group) / len(kept)
    even: list[list[str]] = [[]]
    for part in (part for group in kept for part in group):
        full = len(" ".join(even[-1])) + len(part) / 2 > target and len(even) < len(kept)
        if even[-1] and (full or not _fits([*even[-1], part])):
            even.append([])
        even[-1].append(part)
    texts = [" ".join(group) for group in (even if len(even) <= len(kept) else kept)]
    return [text for text in texts if len(text.split()) >= MIN_WORDS]
