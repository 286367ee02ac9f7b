"""Bad input to the stages that compute gets one clear line and its exit code, and destroys nothing.

2 bad input, 3 missing or stale artifact, 4 corrupt artifact or NaN, 5 out of resources. After every
refusal the files that were there are the same bytes, and no new artifact passes for complete.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import (
    Chain,
    call,
    contents,
    cut,
    edit_json,
    edit_tensor,
    error_line,
    refuse,
    scale_weights,
)
from tiny import CONTEXT, SHAPES, save_model

STAGES = ("fit", "precondition", "scan", "attribute")
OUTS = {"fit": "factors", "precondition": "queries", "scan": "scan", "attribute": "attribution"}


@pytest.fixture(scope="module")
def finished(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("chain"))
    shutil.copytree(tiny_model("gpt2"), chain.model)
    shutil.copy(tiny_queries, chain.folder / "queries.jsonl")
    common = ("--tokenizer", chain.model, "--input", tiny_text, "--seq-len", 24, "--per-line")
    assert call("prepare", *common, "--out", chain.folder / "corpus").exit_code == 0
    for stage in STAGES:
        result = getattr(chain, stage)()
        assert result.exit_code == 0, result.output
    return chain


@pytest.fixture
def chain(finished, tmp_path) -> Chain:
    """A copy of the finished chain, to be damaged."""
    return finished.copy(tmp_path / "chain")


@pytest.fixture
def unharmed(chain) -> Iterator[Callable[[], None]]:
    """Call it when the damage is done: what is there then must be there in the end, and nothing
    else that is complete."""
    before: dict[str, str] = {}
    yield lambda: before.update(contents(chain.folder))
    after = contents(chain.folder)
    assert before
    assert {name: after.get(name) for name in before} == before
    fresh = {name for name in after if name not in before}
    assert not [n for n in fresh if ".partial/" not in n and not n.endswith(".lock")], fresh


# The model


@pytest.mark.parametrize("stage", STAGES)
def test_no_such_model(chain, unharmed, stage):
    unharmed()
    refuse(getattr(chain, stage)(model="absent"), 2, "absent is not a model folder")


def test_no_such_hub_name(chain, unharmed):
    unharmed()
    refuse(chain.fit("--model", "nobody/nothing"), 2, "nobody/nothing is no local folder")


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_without_config(chain, unharmed, stage):
    (chain.model / "config.json").unlink()
    unharmed()
    refuse(getattr(chain, stage)(), 2, "holds no config.json")


def test_a_config_of_no_causal_model(chain, unharmed):
    (chain.model / "config.json").write_text('{"model_type": "t5"}')
    unharmed()
    refuse(chain.fit(out="other"), 2, "cannot load a causal language model")


def test_a_config_that_is_no_json(chain, unharmed):
    (chain.model / "config.json").write_text("{")
    unharmed()
    refuse(chain.fit(out="other"), 2, "cannot read a model config")


def test_truncated_weights(chain, unharmed):
    cut(chain.model / "model.safetensors")
    unharmed()
    refuse(chain.fit(out="other"), 4, "cannot load a causal language model")


def test_nan_in_the_weights_names_the_parameter(chain, unharmed):
    name = edit_tensor(chain.model / "model.safetensors", "mlp.c_fc.weight", float("nan"))
    unharmed()
    refuse(chain.fit(out="other"), 4, name, "NaN")


@pytest.mark.parametrize("stage", ["precondition", "scan", "attribute"])
def test_another_model_than_the_one_before(chain, unharmed, stage):
    save_model(chain.folder / "model", SHAPES["gpt2"], seed=1)
    unharmed()
    refuse(getattr(chain, stage)("--overwrite"), 3, "was made with another model", "inflcli ")


@pytest.mark.parametrize("stage", ["fit", "scan", "attribute"])
def test_another_tokenizer_than_the_corpus(chain, unharmed, stage):
    tokenizer = chain.model / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"].pop()
    tokenizer.write_text(json.dumps(content))
    unharmed()
    refuse(getattr(chain, stage)("--overwrite"), 3, "another tokenizer", "inflcli prepare")


def test_a_corpus_beyond_the_context(chain, unharmed, tiny_text):
    common = ("--tokenizer", chain.model, "--input", tiny_text, "--seq-len", CONTEXT + 1)
    assert call("prepare", *common, "--out", chain.folder / "long").exit_code == 0
    unharmed()
    refuse(
        chain.fit(corpus="long", out="other"), 2, f"{CONTEXT + 1} tokens", f"--seq-len {CONTEXT}"
    )


def test_a_query_beyond_the_context(chain, unharmed):
    line = {"id": "endless", "prompt": "water " * CONTEXT, "completion": " boils"}
    (chain.folder / "endless.jsonl").write_text(json.dumps(line))
    unharmed()
    result = chain.precondition(queries="endless.jsonl", out="other")
    refuse(result, 2, "'endless'", f"context is {CONTEXT}")


# Options


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("fit", "--curvature", "hessian"),
        ("fit", "--labels", "false"),
        ("fit", "--modules", "*.absent"),
        ("fit", "--dtype", "int8"),
        ("fit", "--device", "abacus"),
        ("fit", "--batch-size", "0"),
        ("fit", "--batch-size", "many"),
        ("fit", "--seed", "-1"),
        ("precondition", "--curvature", "hessian"),
        ("precondition", "--rank", "0"),
        ("precondition", "--rank", "half"),
        ("precondition", "--damping", "-1"),
        ("precondition", "--damping", "nan"),
        ("precondition", "--damping-factor", "inf"),
        ("scan", "--route", "scenic"),
        ("scan", "--range", "5"),
        ("scan", "--range", "5:5"),
        ("scan", "--range", "5:999"),
        ("scan", "--layers", "upstairs"),
        ("attribute", "--dtype", "float8"),
    ],
)
def test_values_that_no_option_takes(chain, unharmed, stage, option, value):
    unharmed()
    result = getattr(chain, stage)(option, value, out="other")
    refuse(result, 2, value)
    assert option in error_line(result) or option == "--modules"


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("fit", "--blocks", "0"),
        ("fit", "--label-samples", "none"),
        ("fit", "--label-samples", "1025"),
        ("fit", "--max-sequences", "0"),
        ("scan", "--top-k", "0"),
        ("attribute", "--top-k", "-3"),
        ("fit", "--absent", "1"),
    ],
)
def test_values_that_the_parser_refuses(chain, unharmed, stage, option, value):
    unharmed()
    result = getattr(chain, stage)(option, value, out="other")
    assert result.exit_code == 2
    assert option in result.stderr
    assert "Traceback" not in result.output


def test_both_kinds_of_damping(chain, unharmed):
    unharmed()
    result = chain.precondition("--damping", "1", "--damping-factor", "1", out="other")
    refuse(result, 2, "exclude each other")


# Artifacts


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("fit", "corpus"),
        ("precondition", "factors"),
        ("scan", "queries"),
        ("scan", "corpus"),
        ("attribute", "scan"),
    ],
)
def test_missing_unfinished_and_other_artifacts(chain, stage, gone):
    before = contents(chain.folder)
    run = getattr(chain, stage)
    refuse(
        run(**{gone: "absent"}, out="other"), 3, "no artifact at", "absent", "make it with inflcli"
    )
    other = "scan" if gone != "scan" else "queries"
    refuse(run(**{gone: other}, out="other"), 2, f"{other} was written by inflcli")
    (chain.folder / gone).rename(chain.folder / f"{gone}.partial")
    refuse(run(out="other"), 3, f"{gone} is not finished", "resume")
    (chain.folder / f"{gone}.partial").rename(chain.folder / gone)
    assert contents(chain.folder) == before


INPUTS = [
    ("fit", "corpus"),
    ("precondition", "factors"),
    ("scan", "queries"),
    ("attribute", "scan"),
]


@pytest.mark.parametrize(("stage", "artifact"), INPUTS)
def test_a_manifest_of_another_schema(chain, unharmed, stage, artifact):
    edit_json(chain.folder / artifact / "manifest.json", schema=99)
    unharmed()
    refuse(getattr(chain, stage)(out="other"), 4, "has schema 99", "--overwrite")


@pytest.mark.parametrize(("stage", "artifact"), INPUTS)
def test_an_edited_manifest(chain, unharmed, stage, artifact):
    path = chain.folder / artifact / "manifest.json"
    edit_json(path, config={**json.loads(path.read_text())["config"], "seed": 77})
    unharmed()
    refuse(getattr(chain, stage)(out="other"), 4, "was edited", artifact)


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', "{"])
def test_a_manifest_that_is_none(chain, unharmed, content):
    (chain.folder / "factors/manifest.json").write_text(content)
    unharmed()
    refuse(chain.precondition(out="other"), 4, "is not a manifest")


@pytest.mark.parametrize(
    ("stage", "artifact"),
    [("precondition", "factors"), ("scan", "queries"), ("fit", "corpus"), ("attribute", "scan")],
)
def test_a_truncated_or_missing_file(chain, unharmed, stage, artifact):
    files = json.loads((chain.folder / artifact / "manifest.json").read_text())["files"]
    files = [chain.folder / artifact / name for name in files]
    largest = max(files, key=lambda path: path.stat().st_size)
    cut(largest)
    unharmed()
    refuse(getattr(chain, stage)(out="other"), 4, largest.name, "bytes instead of", "--overwrite")
    moved = largest.rename(largest.with_name("moved"))
    refuse(getattr(chain, stage)(out="other"), 4, largest.name, "is missing")
    moved.rename(largest)


@pytest.mark.parametrize(("stage", "artifact"), [("precondition", "factors"), ("scan", "queries")])
def test_a_damaged_file_of_the_right_size(chain, unharmed, stage, artifact):
    path = sorted((chain.folder / artifact / "modules").iterdir())[0]
    path.write_bytes(b"\xff" * path.stat().st_size)
    unharmed()
    refuse(getattr(chain, stage)(out="other"), 4, path.name, "damaged")


def test_nan_in_the_factors_names_the_module(chain, unharmed):
    path = sorted((chain.folder / "factors/corrected").iterdir())[1]
    edit_tensor(path, "corrected", float("nan"))
    unharmed()
    refuse(chain.precondition(out="other"), 4, path.stem, "not finite")


def test_nan_in_the_scores_names_the_module(chain, unharmed):
    path = sorted((chain.folder / "queries/modules").iterdir())[1]
    edit_tensor(path, "left", float("inf"))
    unharmed()
    refuse(chain.scan(out="other"), 4, f"score of module {path.stem} is not finite")


def test_a_type_too_narrow_for_the_model_names_the_module(chain, unharmed):
    scale_weights(chain.model, 60.0)
    unharmed()
    result = chain.fit("--dtype", "float16", out="other")
    refuse(result, 4, "of module transformer.h.", "not finite", "float32")


# Writing


@pytest.mark.parametrize("stage", STAGES)
def test_an_out_that_cannot_be_written(chain, unharmed, stage):
    """Below a file. (Permissions would not stop a test that is run by root.)"""
    (chain.folder / "file").write_text("in the way")
    unharmed()
    refuse(getattr(chain, stage)(out="file/out"), 2, "cannot write", "--out")


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_file_system(chain, unharmed, monkeypatch, stage):
    def mkdir(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    unharmed()
    monkeypatch.setattr(Path, "mkdir", mkdir)
    refuse(getattr(chain, stage)(out="new"), 2, "cannot write", "Read-only", "--out")


@pytest.mark.parametrize("stage", STAGES)
def test_an_out_that_is_no_artifact(chain, unharmed, stage):
    (chain.folder / "mine").mkdir()
    (chain.folder / "mine/thesis.txt").write_text("do not lose this")
    unharmed()
    for more in ((), ("--overwrite",)):
        refuse(getattr(chain, stage)(*more, out="mine"), 2, "is not an artifact")


@pytest.mark.parametrize("stage", STAGES)
def test_an_out_of_another_stage(chain, unharmed, stage):
    unharmed()
    refuse(getattr(chain, stage)(out="corpus"), 2, "was written by inflcli prepare")


CHANGES = {
    "fit": ("--blocks", 2, "blocks was 1, now 2"),
    "precondition": ("--keep", 0.9, "keep was 0.995, now 0.9"),
    "scan": ("--range", "3:9", "start was 0, now 3"),
    "attribute": ("--top-k", 2, "top-k was 20, now 2"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_other_settings_need_overwrite(chain, stage):
    option, value, words = CHANGES[stage]
    before, out = contents(chain.folder), OUTS[stage]
    refuse(getattr(chain, stage)(option, value), 3, words, "--overwrite")
    assert contents(chain.folder) == before
    assert getattr(chain, stage)(option, value, "--overwrite").exit_code == 0
    after = contents(chain.folder)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert f"{out}/manifest.json" in changed
    assert {name.partition("/")[0] for name in changed} == {out}


@pytest.mark.parametrize("stage", STAGES)
def test_the_old_artifact_stays_until_the_new_one_is_complete(chain, monkeypatch, stage):
    option, value, _ = CHANGES[stage]
    before = contents(chain.folder)

    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("inflcli.artifacts.writer.describe_files", fail)
        result = getattr(chain, stage)(option, value, "--overwrite")
    refuse(result, 130, "interrupted", "resumes")
    after = contents(chain.folder)
    assert {name: after.get(name) for name in before} == before
    assert getattr(chain, stage)(option, value, "--overwrite").exit_code == 0
    assert contents(chain.folder) != before


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_again_does_nothing(chain, unharmed, stage):
    unharmed()
    result = getattr(chain, stage)("--batch-size", 3, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["fresh"] is True


NO_SPACE = """
import json, resource, sys
from typer.testing import CliRunner
from inflcli.cli import app

for command in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    full = CliRunner().invoke(app, command.split())
    resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (resource.RLIM_INFINITY,))
    again = CliRunner().invoke(app, command.split())
    print(json.dumps([full.exit_code, full.stderr, again.exit_code]))
"""


def test_no_space_left(chain):
    """A limit on the size of a file stands for a full disk; the same command then completes."""
    common = "--model model --queries queries --corpus corpus"
    commands = [
        "fit-factors --model model --corpus corpus --out factors2",
        "precondition --model model --factors factors --queries queries.jsonl --out queries2",
        f"scan {common} --out scan2",
        f"attribute {common} --scan scan --out attribution2",
    ]
    before = contents(chain.folder)
    done = subprocess.run(
        [sys.executable, "-c", NO_SPACE, json.dumps(commands)],
        cwd=chain.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(commands)
    for code, stderr, again in results:
        assert code == 5, stderr
        assert stderr.rstrip().splitlines()[-1].startswith("error: no space left to write")
        assert again == 0
    after = contents(chain.folder)
    assert {name: after.get(name) for name in before} == before
    for stage in STAGES:
        assert same_data(chain.folder / OUTS[stage], chain.folder / f"{OUTS[stage]}2")


def same_data(first: Path, second: Path) -> bool:
    """Whether two artifacts are the same but for their manifests' timings and commands."""
    found = [contents(folder) for folder in (first, second)]
    for one in found:
        del one["manifest.json"]
    return found[0] == found[1]


def test_a_real_process(chain, unharmed):
    """Nothing but the line on stderr, nothing on stdout; --debug adds the traceback."""
    unharmed()
    command = [sys.executable, "-m", "inflcli", "fit-factors", "--model", "model",
               "--corpus", "corpus", "--out", "other", "--labels", "false"]  # fmt: skip
    for more in ([], ["--debug"]):
        done = subprocess.run(
            [*command, *more], cwd=chain.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("error: --labels false")
        assert ("Traceback" in done.stderr) == bool(more)
        assert len(lines) == 1 or more
