"""The plain passes of a model, timed: what nothing that reads gradients can go below.

`forward` computes the loss; `activations` also goes backward with every parameter frozen, down to
the lowest tracked module; `full` also forms the gradient of every parameter. The loss is the usual
cross-entropy over the whole batch's logits, summed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import claim_stdout, measured, read_bench, serve
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


class Worker:
    def __init__(self, work: Path) -> None:
        bench = read_bench(work)
        dtype = getattr(torch, bench["dtype"])
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=dtype)
        self.model = model.eval().to(bench["device"])
        self.tokens = torch.from_numpy(np.load(work / "tokens.npy")).to(bench["device"])
        self.modules = bench["modules"]

    def plain(self, kind: str, batch: int) -> dict[str, Any]:
        self.model.requires_grad_(kind == "full")
        handles = []
        if kind == "activations":
            # Whichever tracked module runs first finds no graph below it, and begins one.
            for name in self.modules:
                handles.append(self.model.get_submodule(name).register_forward_hook(_begin))
        with measured() as answer, torch.set_grad_enabled(kind != "forward"):
            for part in self.tokens.split(batch):
                loss = self._loss(part)
                if kind != "forward":
                    loss.backward()
                    self.model.zero_grad()
        for handle in handles:
            handle.remove()
        return answer

    def _loss(self, tokens: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        )


def _begin(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_(True)


def main() -> None:
    answers = claim_stdout()
    serve(answers, {"plain": Worker(Path(sys.argv[1])).plain}, ())


if __name__ == "__main__":
    main()
