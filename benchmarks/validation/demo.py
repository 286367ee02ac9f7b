"""The paper's accuracy results on the demo language model, and how many sequences a fit takes.

    python benchmarks/validation/demo.py exact     # correlation with the exact damped solve
    python benchmarks/validation/demo.py labels    # the same by label samples, after `exact`
    python benchmarks/validation/demo.py pbrf      # with the proximal Bregman response (Figure 6)
    python benchmarks/validation/demo.py blocks    # block-diagonal factors: bytes (Figure 30)
    python benchmarks/validation/demo.py noise     # split-half noise against the size of a fit

Every step is a command of inflcli in a process of its own, which is kept in the results; what they
write is below runs/validation/demo, and a part that was stopped goes on. The queries are the demo's
eight and the first two of its further facts, and the points a seeded sample: nothing is chosen by
what comes out. Writes `results/demo-PART.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflcli.artifacts.files import read_tensors
from inflcli.artifacts.scan import ScanReader
from inflcli.statistics.agreement import agreement

HERE = Path(__file__).parent
DEMO = Path("inflcli/demo")
MODEL, TEXT = DEMO / "model", DEMO / "corpus.jsonl"
QUERIES, POINTS = 10, 500
SEQ_LEN = 64
"""Tokens at which paragraphs are cut: exact products with G take a second a step for every query of
128 such sequences."""
TRACKED = "model.layers.3.mlp.down_proj"
"""Of the last layer, in `exact` and `pbrf`. G of some hundred sequences is close to zero in most of
the 2.4 million directions of all MLPs' weights: an exact solve with so small a λ would be about
what G does not see, which is no question to ask of an estimator."""
TOLERANCES = {"ggn": 1e-3, "ggn,pbrf": 1e-2}
"""Relative residual of the exact solve, and gradient norm of the PBRF."""
LABELS = 4
"""Label samples a sequence, of all estimators that sample any: of so few sequences one would leave
more noise than approximation."""
LABEL_COUNTS = (1, 4, 16, 64)
DEPTH = 256
"""Steps of LiSSA, of a batch of some 16 sequences each."""
REFINE = 30
"""Steps of the refined estimator: ten leave a residual of more than half."""
SIZES = (32, 64, 128, 256, 512, 1024)
"""Sequences of a fit."""


class Run:
    """Runs inflcli's commands below a folder, and keeps what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        words = [str(one) for one in arguments]
        self.commands.append(shlex.join(["inflcli", *words]))
        print(self.commands[-1], flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "inflcli", *words, "--json"], stdout=subprocess.PIPE, check=True
        )
        return dict(json.loads(done.stdout))

    def corpus(self, name: str = "corpus", text: Path = TEXT) -> Path:
        out = self.folder / name
        self("prepare", "--input", text, "--tokenizer", MODEL, "--out", out, "--seq-len", SEQ_LEN,
             "--per-line")  # fmt: skip
        return out

    def fit(self, name: str, corpus: Path, sequences: int, *more: Any) -> Path:
        out = self.folder / name
        self("fit-factors", "--model", MODEL, "--corpus", corpus, "--out", out,
             "--max-sequences", sequences, "--precision", "exact", *more)  # fmt: skip
        return out

    def queries(self) -> Path:
        """Those of the demo, and the first of the further facts that the model knows."""
        path = self.folder / "queries.jsonl"
        files = (DEMO / "queries.jsonl", HERE.parent / "more-facts.jsonl")
        lines = [line for file in files for line in file.read_text().splitlines()][:QUERIES]
        path.write_text("\n".join(lines) + "\n")
        return path


def exact(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Every estimator against the exact damped solve, G being that of `--fit` sequences."""
    corpus = run.corpus()
    return _validated(run, corpus, "ggn", options)


def pbrf(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The same against the PBRF: an optimisation for each query, and some for points."""
    corpus = run.corpus()
    return _validated(run, corpus, "ggn,pbrf", options)


def _validated(run: Run, corpus: Path, truth: str, options: argparse.Namespace) -> dict[str, Any]:
    name = f"factors-{options.fit}"
    how = ("--label-samples", LABELS, "--modules", TRACKED)
    factors = run.fit(name, corpus, options.fit, *how)
    out = run.folder / f"{truth.replace(',', '-')}-{options.fit}-{options.points}"
    found = run("validate", "--model", MODEL, "--corpus", corpus, "--factors", factors,
                "--queries", run.queries(), "--out", out, "--ground-truth", truth,
                "--points", options.points, "--tolerance", TOLERANCES[truth], "--dtype", "float32",
                "--refine", REFINE, "--depth", DEPTH,
                "--estimators", options.estimators)  # fmt: skip
    return dict(found["validation"])


def labels(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """How far EK-FAC is from the exact solve that `exact` found, by its label samples."""
    corpus, queries = run.corpus(), run.queries()
    solved = run.folder / f"ggn-{options.fit}-{options.points}"
    points = json.loads((solved / "validation.json").read_text())["points"]
    right = read_tensors(solved / "truths" / "ggn.safetensors")["scores"].numpy()
    found = []
    for count in LABEL_COUNTS:
        how = ("--label-samples", count, "--modules", TRACKED)
        factors = run.fit(f"labels-{count}", corpus, options.fit, *how)
        scores = _scores(run, corpus, factors, queries, f"labels-{count}")[:, points]
        pairs = zip(scores, right, strict=True)
        found.append({"samples": count, "pearson": [agreement(*pair).pearson for pair in pairs]})
    return {"fit": options.fit, "label_samples": found}


def blocks(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of factors cut into O diagonal blocks; their accuracy is in `exact`'s results."""
    corpus, found = run.corpus(), {}
    for count in (1, 2, 4, 8):
        out = run.fit(f"blocks-{count}", corpus, options.fit, "--blocks", count)
        parts = {
            part: sum(path.stat().st_size for path in (out / part).glob("*.safetensors"))
            for part in ("inputs", "modules", "corrected")
        }
        found[str(count)] = {"eigenvectors": parts["inputs"] + parts["modules"], **parts}
    return {"fit": options.fit, "bytes": found}


def noise(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """How far two fits on disjoint sequences agree: factors by the fit's own halves, scores by two
    fits of the same size on two halves of the corpus."""
    whole, queries = run.corpus(), run.queries()
    lines = TEXT.read_text().splitlines()
    halves = []
    for number in range(2):
        text = run.folder / f"half-{number}.jsonl"
        text.write_text("\n".join(lines[number::2]) + "\n")
        halves.append(run.corpus(f"half-{number}", text))
    scores: dict[tuple[int, int], NDArray[np.float64]] = {}
    stability = {}
    sizes = [size for size in SIZES if size <= len(lines) // 2]
    for size in sizes:
        for number, half in enumerate(halves):
            factors = run.fit(f"noise-{size}-{number}", half, size)
            manifest = json.loads((factors / "manifest.json").read_text())
            stability[size, number] = manifest["details"]["stability"]
            scores[size, number] = _scores(run, whole, factors, queries, f"{size}-{number}")
    found = []
    for size in sizes:
        pairs = zip(scores[size, 0], scores[size, 1], strict=True)
        between = [agreement(one, other).pearson for one, other in pairs]
        # The other half's largest fit shares no sequence with this one.
        largest = [
            agreement(one, other).pearson
            for number in range(2)
            for one, other in zip(scores[size, number], scores[sizes[-1], 1 - number], strict=True)
        ]
        found.append({
            "sequences": size,
            "between": between,
            "with_largest": largest,
            "factors": [stability[size, number] for number in range(2)],
        })  # fmt: skip
    return {"sizes": found}


def _scores(run: Run, corpus: Path, factors: Path, queries: Path, name: str) -> Any:
    """Full rank scores [Q, N] of the whole corpus."""
    solved, scanned = run.folder / f"queries-{name}", run.folder / f"scan-{name}"
    run("precondition", "--model", MODEL, "--factors", factors, "--queries", queries, "--out",
        solved, "--rank", "full", "--precision", "exact")  # fmt: skip
    run("scan", "--model", MODEL, "--queries", solved, "--corpus", corpus, "--out", scanned,
        "--precision", "exact")  # fmt: skip
    reader = ScanReader.open(scanned)
    return np.stack([reader.scores(query) for query in range(len(reader.query_ids))])


PARTS = {"exact": exact, "labels": labels, "pbrf": pbrf, "blocks": blocks, "noise": noise}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--fit", type=int, default=256, help="sequences of the fit, and of G")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--estimators", default="all", help="as inflcli validate takes them")
    parser.add_argument("--work", type=Path, default=Path("runs/validation/demo"))
    options = parser.parse_args()
    run = Run(options.work)
    found = PARTS[options.part](run, options)
    about = {
        "command": shlex.join(["python", "benchmarks/validation/demo.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("inflcli", "torch", "transformers")},
        "machine": platform.machine(),
        "steps": run.commands,
    }
    path = HERE / "results" / f"demo-{options.part}.json"
    path.write_text(json.dumps({**about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
