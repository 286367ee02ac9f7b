"""make runs what is not up to date and nothing else: one stage, one query set, or everything, with
what query sets have in common made once.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from corpus_fixtures import environment, write_queries
from served import Served

ROOT = Path(__file__).resolve().parents[1]
OF_A_SET = ["precondition", "tfidf-filter", "scan", "attribute", "report"]
OF_ALL = ["prepare", "fit-factors"]


@dataclass
class Make:
    """`make` in this checkout, on a tiny model; variables in a call go before the usual ones."""

    served: Served
    run: Path
    variables: dict[str, object]

    def __call__(self, *goals: str, code: int = 0, **more: object) -> list[str]:
        """The stages that it ran. Fails where it ends with another code."""
        self.done = self._start(*goals, **more)
        assert self.done.returncode == code, self.done.stdout + self.done.stderr
        self.calls = self.served.take_calls()
        return [call[0] for call in self.calls]

    def _start(self, *goals: str, **more: object) -> subprocess.CompletedProcess[str]:
        words = [f"{name}={value}" for name, value in {**self.variables, **more}.items()]
        return subprocess.run(
            ["make", "--no-print-directory", "-C", ROOT, *goals, *words],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="module")
def make(tiny_model, tiny_text, tmp_path_factory) -> Iterator[Make]:
    binaries = tmp_path_factory.mktemp("venv") / "bin"
    binaries.mkdir()
    served = Served(binaries)
    run = tmp_path_factory.mktemp("runs") / "run"
    variables = {
        "VENV": binaries.parent,
        "RUN": run,
        "MODEL": tiny_model("gpt2"),
        "TEXT": tiny_text,
        "PREPARE": "--per-line --seq-len 24",
    }
    yield Make(served, run, variables)
    served.close()


@pytest.fixture
def sets(tmp_path) -> list[Path]:
    pairs = ("The sun is", " a star."), ("Water boils at", " one hundred")
    return [write_queries(tmp_path / f"set{n}.jsonl", pair) for n, pair in enumerate(pairs)]


def as_words(paths: list[Path]) -> str:
    return " ".join(map(str, paths))


def status(run: Path) -> dict[str, str]:
    from inflcli.stages.status import status

    return {one["name"]: one["state"] for one in status(run)["artifacts"]}


def test_several_sets_share_corpus_and_factors(make, sets):
    ran = make("-j2", "report", QUERIES=as_words(sets))
    assert sorted(ran) == sorted([*OF_ALL, *OF_A_SET, *OF_A_SET])
    # The filter needs the corpus alone, and may be called before the fit.
    assert ran[0] == "prepare" and ran.index("fit-factors") < ran.index("precondition")
    found = status(make.run)
    shared = ["corpus", "factors"]
    own = ["queries", "candidates", "scan", "attribution", "report"]
    assert list(found) == [*shared, *(f"set{n}/{name}" for n in range(2) for name in own)]
    assert set(found.values()) == {"complete"}
    for number, completion in enumerate((" a star.", " one hundred")):
        assert completion in (make.run / f"set{number}/report/index.html").read_text()
    assert make("-j2", "report", QUERIES=as_words(sets)) == []
    # One query file is written anew: only its set runs.
    write_queries(sets[1], ("Two and two", " four"))
    assert sorted(make("-j2", "report", QUERIES=as_words(sets))) == sorted(OF_A_SET)
    assert all("set1" in " ".join(call) for call in make.calls)
    assert set(status(make.run).values()) == {"complete"}


def test_a_moved_run_of_sets_finds_what_they_share(make, sets):
    moved = make.run.with_name("moved")
    make("scan", QUERIES=as_words(sets), RUN=make.run.with_name("first"))
    make.run.with_name("first").rename(moved)
    assert set(status(moved).values()) == {"complete"}
    done = subprocess.run(
        [make.served.folder / "inflcli", "report", "--run", moved / "set0", "--format", "terminal"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    make.served.take_calls()
    assert done.returncode == 0, done.stderr
    assert "a star" in done.stdout


def test_one_stage_alone(make, sets, tmp_path):
    """What it needs and it; then it by itself, where only its own settings change."""
    variables = {"RUN": tmp_path / "alone", "QUERIES": sets[0]}
    assert make("scan", **variables) == [*OF_ALL, "precondition", "scan"]
    assert make("scan", **variables) == []
    assert make("scan", SCAN="--top-k 3", **variables) == ["scan"]
    assert make("report", SCAN="--top-k 3", **variables) in (
        ["tfidf-filter", "attribute", "report"],
        ["attribute", "tfidf-filter", "report"],
    )
    assert make("report", SCAN="--top-k 3", **variables) == []
    assert make("report", SCAN="--top-k 3", REPORT="--format jsonl", **variables) == ["report"]
    assert (tmp_path / "alone/report/report.jsonl").is_file()
    for goal, folder in [("prepare", "corpus"), ("attribute", "attribution")]:
        variables["RUN"] = tmp_path / goal
        assert make(goal, **variables)[-1] == goal
        assert list(status(tmp_path / goal))[-1] == folder


def test_a_run_by_gradient_dot_products_beside_it(make, sets, tmp_path):
    own = {"QUERIES": sets[0], "RUN": tmp_path / "run"}
    make("report", **own)
    assert make("report", **own, COMPARE="gradient") == ["precondition", "scan", "report"]
    page = (tmp_path / "run/report/index.html").read_text()
    assert "Beside gradient" in page and "Curvature: identity" in page
    assert make("report", **own, COMPARE="gradient") == []
    assert make("report", **own) == ["report"]


def test_what_compression_costs(make, sets, tmp_path):
    own = {"QUERIES": sets[0], "RUN": tmp_path / "run", "PRECONDITION": "--rank 1"}
    make("report", **own)
    page = tmp_path / "run/report/index.html"
    assert "COMPARE=full-rank" in page.read_text()
    both = {**own, "PRECONDITION": "", "COMPARE": "full-rank", "COMPARE_SCAN": "--range 0:5"}
    make("report", **both)
    assert "at full rank, over 5 sequences" in page.read_text()
    assert make("report", **both) == []
    assert make("report", **own, COMPARE="nothing", code=2) == []


def test_kfac_is_not_compared_with_other_factors(make, sets, tmp_path):
    own = {"QUERIES": sets[0], "RUN": tmp_path, "FIT": "--curvature ec-shampoo"}
    assert make("report", **own, COMPARE="kfac", code=2) == []
    assert "factors of ekfac" in make.done.stderr


def test_a_chosen_damping_is_of_ekfac_alone(make, sets, tmp_path):
    """Runs by dot products and K-FAC beside it leave `--damping auto` out."""
    run = tmp_path / "run"
    own = {"QUERIES": sets[0], "RUN": run, "PRECONDITION": "--rank 1 --damping auto"}
    names = ["queries", "gradient/queries", "kfac/queries", "full-rank/queries"]
    goals = [str(run / name / "manifest.json") for name in names]
    make(*goals, **own, COMPARE="gradient kfac full-rank")
    found = []
    for goal in goals:
        config = json.loads(Path(goal).read_text())["config"]
        found.append((config["damping"], config["damping_factor"]))
    usual, chosen = (None, 0.1), ("auto", None)
    assert found == [chosen, usual, usual, chosen]
    assert make(*goals, **own, COMPARE="gradient kfac full-rank") == []


def test_a_failed_stage_is_not_taken_for_done(make, sets, tmp_path):
    variables = {"RUN": tmp_path / "failed", "QUERIES": sets[0]}
    make("scan", **variables)
    assert make("scan", SCAN="--layers none", code=2, **variables) == ["scan"]
    assert make("scan", SCAN="--layers none", code=2, **variables) == ["scan"]
    # What stands there is that of the earlier options.
    assert make("scan", **variables) == []
    assert status(tmp_path / "failed")["scan"] == "complete"


def test_a_prepared_corpus(make, sets, tmp_path):
    """CORPUS goes without prepare, in whatever run it lies; it takes no text."""
    make("prepare", RUN=tmp_path / "one")
    text = make.variables.pop("TEXT")
    try:
        variables = {"RUN": tmp_path / "two", "QUERIES": sets[0]}
        corpus = tmp_path / "one/corpus"
        ran = make("report", CORPUS=corpus, **variables)
        assert ran[0] == "fit-factors" and "prepare" not in ran and ran[-1] == "report"
        assert not (tmp_path / "two/corpus").exists()
        assert make("report", CORPUS=corpus, **variables) == []
        assert make("scan", CORPUS=text, code=2, **variables) == []
        assert "no folder that prepare made" in make.done.stderr
        assert make("scan", CORPUS=corpus, TEXT=text, code=2, **variables) == []
        assert "not both" in make.done.stderr
    finally:
        make.variables["TEXT"] = text


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a/x.jsonl", "b/x.jsonl"], "same name"), (["queries.jsonl", "x.jsonl"], "rename")],
)
def test_sets_that_would_share_a_folder(make, names, message):
    assert make("report", QUERIES=" ".join(names), code=2) == []
    assert message in make.done.stderr


def test_the_demos_variables_are_the_default(make):
    """`make demo` without variables is the embedded model and one set, in RUN itself."""
    usual, make.variables = make.variables, {"VENV": make.variables["VENV"]}
    try:
        make("-n", "report", RUN=make.run / "none")
    finally:
        make.variables = usual
    plan = make.done.stdout
    for words in ("--input inflcli/demo/corpus.jsonl --per-line", "--out {}/scan", "none/report"):
        assert words.format(make.run / "none") in plan
    assert not (make.run / "none").exists()


def test_the_manifest_records_how_it_was_made(make, sets, tmp_path):
    """Beside it, so that the artifact itself is what its manifest says."""
    make("prepare", RUN=tmp_path / "run")
    beside = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert ".corpus.command" in beside and "corpus" in beside
    files = json.loads((tmp_path / "run/corpus/manifest.json").read_text())["files"]
    assert not any("command" in name for name in files)
