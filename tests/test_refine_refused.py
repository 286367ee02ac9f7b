"""A refinement without what it needs is refused before any work, and nothing is written."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import call, refuse
from pipeline import Pipeline
from refining import MODULES, refining
from tiny import save_tokenizer

from inflcli.config import PreconditionConfig


@pytest.fixture(scope="module")
def base(tiny_model, tiny_text, tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("run")
    return refining(tiny_model("llama"), folder, tiny_text, MODULES["llama"], "float32")


@pytest.fixture
def refined(base, tiny_queries):
    """`inflcli precondition` with options."""
    where = ("--model", base.model, "--factors", base.run / "factors", "--queries", tiny_queries)
    return lambda out, *options: call("precondition", *where, "--out", base.run / out, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--refine", 2), ("--refine-corpus",)),
        (("--refine-corpus", "few"), ("--refine-corpus goes with --refine",)),
        (("--refine-solver", "cg"), ("--refine-solver goes with --refine",)),
        (("--refine-sequences", 3), ("--refine-sequences goes with --refine",)),
        (("--refine-tolerance", 0.1), ("--refine-tolerance goes with --refine",)),
        (("--seed", 3), ("--seed goes with --refine",)),
        (("--refine", 2, "--refine-corpus", "few", "--refine-solver", "lu"), ("lu", "cg, neumann")),
        (("--refine", 2, "--refine-corpus", "few", "--refine-sequences", "-3"), ("-3", "all")),
        (("--refine", 2, "--refine-corpus", "few", "--refine-tolerance", "nan"), ("nan",)),
        (("--refine", 2, "--refine-corpus", "few", "--curvature", "identity"), ("identity",)),
    ],
)
def test_options(base, refined, options, words):
    given = [base.run / word if word == "few" else word for word in options]
    refuse(refined("refused", *given), 2, *words)
    assert not (base.run / "refused").exists()


def test_no_corpus_there(base, refined):
    refuse(refined("refused", "--refine", 2, "--refine-corpus", base.run / "none"), 3, "none")
    refuse(refined("refused", "--refine", 2, "--refine-corpus", base.run / "factors"), 2, "factors")


def test_another_tokenizer(base, refined, tiny_text, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base.model, other)
    save_tokenizer(other)
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["model"]["vocab"]["sun-"] = len(settings["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(settings))
    Pipeline(other, tmp_path).prepare(tiny_text, "foreign")
    done = refined("refused", "--refine", 2, "--refine-corpus", tmp_path / "foreign")
    refuse(done, 3, "foreign", "another tokenizer")
    assert not (base.run / "refused").exists()


def test_the_corpus_is_an_input(base, refined, tiny_queries):
    """Queries refined on one corpus are not those of another, nor of other settings."""
    options = ("--refine", 1, "--refine-corpus", base.run / "few")
    assert refined("known", *options).exit_code == 0
    again = refined("known", *options, "--json")
    assert json.loads(again.stdout)["fresh"] is True
    for other in (
        ("--refine", 1, "--refine-corpus", base.run / "corpus"),
        ("--refine", 2, "--refine-corpus", base.run / "few"),
        (*options, "--refine-solver", "neumann"),
        (*options, "--refine-sequences", 3),
        (*options, "--seed", 3),
        (),
    ):
        refuse(refined("known", *other), 3, "refine" if other[4:5] != ("--seed",) else "seed")


def test_identity_holds_it_only_where_there_is_any():
    fields = {"refine", "refine_solver", "refine_sequences", "refine_tolerance", "seed"}
    plain = PreconditionConfig(refine_solver="neumann", seed=4).identity()
    assert not fields & plain.keys()
    assert fields < PreconditionConfig(refine=1).identity().keys()
    assert plain == PreconditionConfig().identity()
