"""Options that several commands share, and the start and end of every command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from inflcli import console, distributed
from inflcli.config import DTYPES, Runtime, Shard
from inflcli.errors import BadInput

PIPELINE = "Pipeline, in its order"
INSPECT = "Look"

Model = Annotated[
    str,
    typer.Option("--model", help="A Hugging Face model folder or hub name.", show_default=False),
]
Corpus = Annotated[Path, typer.Option("--corpus", help="A corpus made by prepare.")]
Out = Annotated[Path, typer.Option("--out", help="The artifact folder to write.")]
QueryFile = Annotated[
    Path, typer.Option("--queries", help="JSONL with id, prompt, completion on each line.")
]
Queries = Annotated[Path, typer.Option("--queries", help="Queries made by precondition.")]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:1; auto takes a GPU if any.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto spreads a model that is too large for one GPU over all of this host's, the CPU "
        "and the disk (needs accelerate).",
        metavar="auto",
    ),
]
Fsdp = Annotated[
    bool,
    typer.Option(
        "--fsdp",
        help="Shard the model's layers over the processes of torchrun (FSDP2), instead of a copy "
        "on each.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help=f"The model's floating-point type: {', '.join(DTYPES)}. auto is float32 on a CPU, "
        "the model's own on a GPU.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of the programme's own products: exact (float32, decomposed in float64), single "
        "(in float32, too), or fast (inputs rounded to bfloat16). auto is fast where the processor "
        "has matrix units, else single.",
    ),
]
MaxMemory = Annotated[
    float | None,
    typer.Option(
        "--max-memory",
        min=0.0,
        help="GiB to plan with, beside the model; half of what is free if not given. Changes the "
        "route or the number of passes, no result.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Do only part I of N, as I/N from 0/N to N-1/N, into OUT.shards; inflcli merge joins "
        "them. Parts need no connection to each other.",
        metavar="I/N",
    ),
]
DampingFactor = Annotated[
    float | None,
    typer.Option(
        "--damping-factor",
        help="Damping of a module as a share of its mean eigenvalue.",
        show_default="0.1",
    ),
]
Damping = Annotated[
    str | None,
    typer.Option(
        "--damping",
        help="The same absolute damping for every module instead; or auto: for each module the "
        "share of its mean eigenvalue by which one half of the fit's sequences best whitens "
        "the other half's gradients.",
        metavar="NUMBER|auto",
    ),
]
BatchSize = Annotated[
    str, typer.Option("--batch-size", help="Sequences a batch, or auto. Changes no result.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sampled pseudo-labels.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what was made with other settings or inputs, or is damaged."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More details.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

_debug = False


def debugging() -> bool:
    return _debug


def start(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """Apply the options on what is shown."""
    global _debug
    _debug = debug
    if distributed.rank():  # the first process speaks for all
        quiet, verbose = True, False
    console.set_level(console.QUIET if quiet else console.VERBOSE if verbose else console.NORMAL)


def runtime(
    *,
    device: str = "auto",
    batch_size: str = "auto",
    overwrite: bool = False,
    max_memory: float | None = None,
    chunk_size: int | None = None,
    device_map: str | None = None,
    fsdp: bool = False,
) -> Runtime:
    """Build the runtime settings. Raises BadInput for a batch size that is not one."""
    size = None
    if batch_size != "auto":
        if not batch_size.isdigit() or int(batch_size) == 0:
            raise BadInput(f"--batch-size {batch_size} is neither auto nor a positive number")
        size = int(batch_size)
    command = ("inflcli", *sys.argv[1:])
    if fsdp and device_map:
        raise BadInput("--fsdp and --device-map exclude each other", "use one of them")
    if device_map not in (None, "auto"):
        raise BadInput(f"--device-map {device_map} is not auto")
    if fsdp and distributed.size() < 2:
        raise BadInput(
            "--fsdp shards the model over the processes of torchrun, and here is only one",
            "torchrun --nproc-per-node N -m inflcli ...",
        )
    if device_map and distributed.size() > 1:
        raise BadInput(
            "--device-map spreads the model over all GPUs for one process",
            "leave torchrun out, or shard the model with --fsdp",
        )
    return Runtime(
        device,
        "fsdp" if fsdp else device_map or "device",
        batch_size=size,
        chunk_size=chunk_size,
        overwrite=overwrite,
        command=command,
        memory_gib=max_memory,
    )


def choice(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Check an option that takes one of a few words."""
    if value not in allowed:
        raise BadInput(f"--{option} {value} is not one of {', '.join(allowed)}")
    return value


def shard(text: str | None) -> Shard | None:
    """Parse --shard. Raises BadInput."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise BadInput(f"--shard {text} is not I/N with I from 0 to N-1")
    return Shard(int(found[1]), int(found[2]))


def checked_seed(seed: int) -> int:
    """A seed that fits the generators' keys. Raises BadInput."""
    if not 0 <= seed < 2**47:
        raise BadInput(f"--seed {seed} is not from 0 to 2^47 - 1")
    return seed


def finish(result: dict[str, Any], as_json: bool) -> None:
    """Report what a stage returned: a line for a person, or JSON for a script.

    `result` holds `artifact` (a path), `fresh` (True when there was nothing to do) and `summary`.
    """
    distributed.disconnect()
    if distributed.rank():
        return
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    elif result.get("fresh"):
        console.info(f"{result['artifact']} is up to date")
    else:
        console.info(f"{result['artifact']}: {result['summary']}")
