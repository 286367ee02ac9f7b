"""Paragraphs about the chemical elements, from the data base of the ``mendeleev`` package."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ._text import clean, pack, pick, sentence, sentences

Row = dict[str, object]

_QUERY = """
select e.*, s.name as series, g.name as group_name, p.melting_point, p.boiling_point
from elements e
left join series s on s.id = e.series_id
left join groups g on g.group_id = e.group_id
left join (
    select atomic_number, min(melting_point) as melting_point, max(boiling_point) as boiling_point
    from phasetransitions group by atomic_number
) p on p.atomic_number = e.atomic_number
order by e.atomic_number
"""

_IDENTITY = (
    "The element {lower} has the atomic number {atomic_number} and the symbol {symbol}.",
    "The atomic number of {lower} is {atomic_number}, and its chemical symbol is {symbol}.",
    "In the periodic table {lower} is element number {atomic_number}, with the symbol {symbol}.",
    "Chemists write {lower} as {symbol} and give it the atomic number {atomic_number}.",
)
_SYMBOL = (
    "The chemical symbol for {lower} is {symbol}.",
    "Chemists write {lower} as {symbol}.",
    "The symbol {symbol} stands for {lower}.",
    "{name} has the symbol {symbol}.",
)
_NUMBER = (
    "The atomic number of {lower} is {atomic_number}.",
    "{name} has atomic number {atomic_number}.",
    "An atom of {lower} has {atomic_number} protons.",
)
_DISCOVERY = (
    "The element {lower} was discovered by {discoverers} in {discovery_location} "
    "({discovery_year}).",
    "The discoverer of {lower} was {discoverers}, in {discovery_location} "
    "in the year {discovery_year}.",
    "The discovery of {lower} goes back to {discoverers} ({discovery_location}, {discovery_year}).",
)
_CREDIT = (
    "Credit for finding {lower} goes to {discoverers}.",
    "The element {lower} was first found by {discoverers}.",
    "The discoverer of {lower} was {discoverers}.",
)


def _phrase(row: Row, slot: str, options: tuple[str, ...], turn: int = 0) -> str:
    """One phrasing of a fact; another ``turn`` words it in another way."""
    turned = options[turn:] + options[:turn]
    return sentence(pick(f"{row['name']}/{slot}", turned).format(**row))


def _celsius(kelvin: object) -> str:
    return f"{float(str(kelvin)) - 273.15:.0f} degrees Celsius"


def _identity(row: Row) -> list[str]:
    """What the element is called and where it stands in the periodic table."""
    out = [_phrase(row, "identity", _IDENTITY)]
    place = f"It belongs to period {row['period']}"
    if row["group_id"]:
        place += f" and group {row['group_id']}"
    out.append(f"{place} of the periodic table, in the {row['block']} block.")
    out.append(f"It is counted among the {str(row['series']).lower()}.")
    if row["atomic_weight"]:
        out.append(f"The atomic weight of {row['lower']} is {row['atomic_weight']:g}.")
    if row["electronic_configuration"]:
        shells = row["electronic_configuration"]
        out.append(f"The electrons of {row['symbol']} are arranged as {shells}.")
    if row["is_radioactive"]:
        out.append("All of its isotopes are radioactive.")
    return out + sentences(clean(str(row["description"] or "")))[:1]


def _origin(row: Row) -> list[str]:
    """Who found the element, when and where, and what the name means."""
    out = []
    if row["discoverers"] and row["discovery_year"] and row["discovery_location"]:
        out.append(_phrase(row, "discovery", _DISCOVERY))
    elif row["discoverers"]:
        out.append(f"The element {row['lower']}: {str(row['discoverers']).lower()}.")
    if row["name_origin"]:
        origin = sentence(clean(str(row["name_origin"])))
        out.append(f"On the origin of the name {row['lower']}: {origin}")
    out.append(_phrase(row, "symbol", _SYMBOL))
    out.append(_phrase(row, "number", _NUMBER))
    return out + sentences(clean(str(row["description"] or "")))


def _uses(row: Row) -> list[str]:
    """What the element is good for and where it comes from."""
    out = []
    if row["uses"]:
        out.append(f"Uses of {row['lower']} ({row['symbol']}): {sentence(clean(str(row['uses'])))}")
    if row["sources"]:
        out.append(f"Sources of {row['lower']}: {sentence(clean(str(row['sources'])))}")
    places_of = {"top_3_producers": "producers", "top_3_reserve_holders": "reserves"}
    for field, text in places_of.items():
        if row[field]:
            places = ", ".join(p.strip() for p in re.split(r"\d\)", str(row[field])) if p.strip())
            out.append(f"Largest {text} of {row['lower']}: {places}.")
    year = row["discovery_year"]
    if row["discoverers"] and year:
        out.append(_phrase(row, "credit", _CREDIT))
    out.append(_phrase(row, "symbol", _SYMBOL, turn=1))
    return out


def _properties(row: Row) -> list[str]:
    """Numbers that can be measured: temperatures, density, abundance."""
    out = [
        _phrase(row, "symbol", _SYMBOL, turn=2),
        _phrase(row, "number", _NUMBER, turn=1),
    ]
    if row["melting_point"]:
        out.append(f"The element {row['lower']} melts at {_celsius(row['melting_point'])}.")
    if row["boiling_point"]:
        out.append(f"The boiling point of {row['lower']} is {_celsius(row['boiling_point'])}.")
    if row["density"]:
        out.append(f"Its density is {row['density']:g} grams per cubic centimetre.")
    if row["en_pauling"]:
        out.append(f"On the Pauling scale its electronegativity is {row['en_pauling']:g}.")
    if row["abundance_crust"]:
        crust = f"{row['abundance_crust']:g}"
        out.append(f"A kilogram of the Earth's crust holds about {crust} mg of it.")
    rocks = row["goldschmidt_class"]
    if rocks not in (None, "", "synthetic"):
        out.append(f"In the classification of Goldschmidt, {row['symbol']} is {rocks}.")
    if row["group_name"]:
        group = str(row["group_name"]).lower()
        out.append(f"Its neighbours in the column of the table are the {group}.")
    if row["price_per_kg"]:
        price = f"{row['price_per_kg']:g}"
        out.append(f"One kilogram of {row['lower']} has cost about {price} US dollars.")
    return out


def element_documents() -> Iterator[dict[str, object]]:
    """Yield the paragraphs of all elements in the order of their atomic numbers."""
    spec = find_spec("mendeleev")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("first: pip install mendeleev==1.3.0")
    base = Path(spec.submodule_search_locations[0]) / "elements.db"
    connection = sqlite3.connect(f"file:{base}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    topics = {"identity": _identity, "origin": _origin, "uses": _uses, "properties": _properties}
    for record in connection.execute(_QUERY):
        row: Row = dict(record)
        row["lower"] = str(row["name"]).lower()
        row["discoverers"] = clean(str(row["discoverers"] or "")).rstrip(".")
        for topic, make in topics.items():
            for i, text in enumerate(pack(make(row), 1)):
                yield {
                    "id": f"elements/{row['lower']}/{topic}" + (f"-{i + 1}" if i else ""),
                    "text": text,
                    "metadata": {"source": "mendeleev", "title": row["name"], "topic": topic},
                }
    connection.close()
