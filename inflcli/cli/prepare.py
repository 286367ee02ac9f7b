"""`inflcli prepare`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from inflcli.cli import common
from inflcli.config import PrepareConfig

NAME = "prepare"
PANEL = common.PIPELINE
_INPUT = "--input"


class CLASS(TyperCommand):
    """Lets one `--input` be followed by several paths, as a shell's `*.jsonl` gives them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_inputs(args))


def spread_inputs(args: list[str]) -> list[str]:
    """`--input a b` as `--input a --input b`, up to the next word that begins with a dash."""
    spread: list[str] = []
    following = False
    for word in args:
        if word.startswith("-"):
            # `--input` brings its own first path; `--input=a` has it already.
            following = word == _INPUT or word.startswith(f"{_INPUT}=")
        elif following and spread[-1] != _INPUT:
            spread.append(_INPUT)
        spread.append(word)
    return spread


def command(
    out: common.Out,
    inputs: Annotated[
        list[str],
        typer.Option(
            _INPUT,
            metavar="PATH...",
            help="Text: files (.jsonl, .parquet, .txt; .gz and .zst of these), folders of them, "
            "Hugging Face datasets (saved, or a hub name). Several paths, or several times.",
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", help="A tokenizer: model folder or hub name.", show_default=False
        ),
    ],
    seq_len: Annotated[int, typer.Option("--seq-len", min=2, help="Tokens a sequence.")] = 512,
    per_line: Annotated[
        bool,
        typer.Option(
            "--per-line",
            help="Each document (each line of a text file) is one sequence, cut at --seq-len; "
            "without it documents are packed, with the end-of-text token between them.",
        ),
    ] = False,
    bos: Annotated[
        bool, typer.Option("--bos", help="Begin every sequence with the tokenizer's bos token.")
    ] = False,
    text_field: Annotated[
        str, typer.Option("--text-field", help="The JSON key or column that holds the text.")
    ] = "text",
    split: Annotated[
        str, typer.Option("--split", help="The split of a Hugging Face dataset.")
    ] = "train",
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="Which files of a folder, such as '*.py'; by default those of a known format.",
            show_default=False,
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count malformed records instead of refusing them.")
    ] = False,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
    as_json: common.Json = False,
) -> None:
    """Tokenise text into a corpus of fixed-length sequences.

    A JSON line or table row has the text in `text`, and may have `id` and `metadata`.
    An interrupted run goes on where it was when it is called again.

    Example: inflcli prepare --tokenizer gpt2 --input docs/*.jsonl --out run/corpus
    """
    common.start(quiet=quiet, verbose=verbose, debug=debug)
    from inflcli.stages.prepare import prepare

    config = PrepareConfig(
        seq_len=seq_len,
        per_line=per_line,
        text_field=text_field,
        split=split,
        bos=bos,
        include=tuple(include or ()),
        skip_bad=skip_bad,
    )
    runtime = common.runtime(overwrite=overwrite)
    common.finish(prepare(inputs, tokenizer, out, config, runtime), as_json)
