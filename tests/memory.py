"""Runs one stage in this process and prints RSS in KiB: before it, its peak from there on, and the
peak of the whole process. LEAK as a last argument keeps hold of every block of tokens or scores.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any


def main(stage: str, model: str, run: str, text: str, leak: bool) -> None:
    import torch

    torch.set_num_threads(1)
    from pipeline import CPU, Pipeline

    pipeline = Pipeline(Path(model), Path(run), "float32", replace(CPU, batch_size=64))
    if stage == "scan":
        from inflcli.model.load import load_model

        load_model(model, device="cpu", dtype="float32")
    else:
        from inflcli.model.resolve import load_tokenizer

        load_tokenizer(Path(model))
    if leak:
        hold(stage)
    # Imports have a peak of their own, which would hide the stage's.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if stage == "scan":
        pipeline.scan()
    else:
        pipeline.prepare(Path(text), seq_len=64)
    print(before, resident("VmHWM"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def hold(stage: str) -> None:
    """Keep what a stage has done with."""
    held: list[Any] = []
    if stage == "scan":
        from inflcli.stages import scan as module

        write = module.store.write

        def kept(*arguments: Any) -> None:
            held.append(arguments)
            write(*arguments)

        module.store.write = kept
    else:
        from inflcli.artifacts.corpus import CorpusWriter

        add = CorpusWriter.add_sequences

        def kept_sequences(self: Any, tokens: Any, spans: Any) -> None:
            held.append([list(one) for one in tokens])
            add(self, tokens, spans)

        CorpusWriter.add_sequences = kept_sequences


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:5], leak=sys.argv[5:] == ["LEAK"])
