"""kronfluence's EK-FAC factors and pairwise scores, timed: a worker of the benchmark's driver.

It measures kronfluence's public calls. `fit` is what `fit_all_factors` runs, called part by part;
`score` is one `compute_pairwise_scores`, which holds all queries at once so that it reads the
training data once.

What had to be worked around:
- One call preconditions and scans. The function that scans is wrapped with a timer: "scan" is the
  time inside it and all that follows it (joining and saving), "precondition" the rest, the reading
  of the factors included.
- A sequence's last position predicts nothing, yet kronfluence would count it in the covariances.
  The model gets the sequences without their last token instead of a mask, which is also faster.
- kronfluence knows nn.Linear, not GPT-2's Conv1D; as in its own example those modules are replaced
  before anything is timed.
- Its scores are products of two gradients. With the training loss on one side, -log p as the
  measurement gives the influence on log p with its sign.
- Its examples draw labels with torch.multinomial, which on a CPU takes more than a forward pass.
  That is the user's code and not the library's, so here it is a cumulative sum and a search, unless
  a job asks for `multinomial`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # kronfluence's release_memory would import it inside the first step
from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
from kronfluence.score import pairwise
from protocol import claim_stdout, disk_bytes, measured, now, read_bench, serve
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

FACTORS = "bench"


class NextToken(Task):
    """Cross-entropy summed over the predicted tokens."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules
        self.multinomial = False

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        logits = self._logits(batch[0], model)
        targets = self._sample(logits) if sample else batch[0][:, 1:].flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        tokens, starts = batch
        place = torch.arange(1, tokens.shape[1], device=tokens.device)
        targets = tokens[:, 1:].masked_fill(place < starts[:, None], -100).flatten()
        return nn.functional.cross_entropy(self._logits(tokens, model), targets, reduction="sum")

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    @staticmethod
    def _logits(tokens: Tensor, model: nn.Module) -> Tensor:
        return model(input_ids=tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)

    @torch.no_grad()
    def _sample(self, logits: Tensor) -> Tensor:
        if self.multinomial:
            return torch.multinomial(logits.softmax(-1), num_samples=1).flatten()
        sums = logits.softmax(-1).cumsum(-1)
        wanted = torch.rand(len(sums), 1, device=sums.device) * sums[:, -1:]
        return torch.searchsorted(sums, wanted).clamp_(max=sums.shape[1] - 1).flatten()


class ScanTimer:
    """Stands in for kronfluence's pass over the training data, and times it."""

    def __init__(self, scan: Callable[..., Any]) -> None:
        self.scan = scan
        self.seconds, self.ended = 0.0, 0.0

    def __call__(self, **arguments: Any) -> Any:
        begun = now()
        found = self.scan(**arguments)
        self.ended = now()
        self.seconds += self.ended - begun
        return found


class Worker:
    def __init__(self, work: Path) -> None:
        bench = read_bench(work)
        if bench["damping_factor"] != 0.1:
            raise ValueError("kronfluence's relative damping is fixed at 0.1 times the mean")
        dtype = getattr(torch, bench["dtype"])
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=dtype)
        replace_conv1d(model, bench["modules"])
        self.task = NextToken(bench["modules"])
        model, cpu = prepare_model(model, self.task), bench["device"] == "cpu"
        self.analyzer = Analyzer(
            "kronfluence", model, self.task, cpu, disable_tqdm=True, output_dir=str(work)
        )
        arrays = (np.load(work / f"{name}.npy") for name in ("tokens", "queries", "starts"))
        self.tokens, self.queries, self.starts = map(torch.from_numpy, arrays)

    def fit(self, batch: int, multinomial: bool = False) -> dict[str, Any]:
        self.task.multinomial = multinomial
        # float32 throughout but for the eigendecomposition, whose default is float64.
        settings = {
            "factor_args": FactorArguments(
                use_empirical_fisher=False, covariance_max_examples=None, lambda_max_examples=None
            ),
            "overwrite_output_dir": True,
        }
        data = {"dataset": TensorDataset(self.tokens), "per_device_batch_size": batch}
        analyzer = self.analyzer
        with measured() as answer:
            begun = now()
            analyzer.fit_covariance_matrices(FACTORS, **data, **settings)
            covariance = now()
            analyzer.perform_eigendecomposition(FACTORS, **settings)
            eigen = now()
            analyzer.fit_lambda_matrices(FACTORS, **data, **settings)
            corrected = now()
        parts = (covariance - begun, eigen - covariance, corrected - eigen)
        answer["parts"] = dict(zip(("covariance", "eigen", "corrected"), parts, strict=True))
        answer["disk_bytes"] = disk_bytes(analyzer.factors_output_dir(FACTORS))
        return answer

    def score(
        self,
        queries: int,
        batch: int,
        rank: int | None = None,
        tokens: bool = False,
    ) -> dict[str, Any]:
        asked = TensorDataset(self.queries[:queries], self.starts[:queries])
        together = min(batch, len(asked))
        settings = ScoreArguments(
            damping_factor=None,
            query_gradient_low_rank=rank,
            query_gradient_accumulation_steps=-(-len(asked) // together),
            compute_per_token_scores=tokens,
        )
        name = f"q{queries}_r{rank}_b{batch}" + "_tokens" * tokens
        timer = ScanTimer(pairwise.compute_dot_products_with_loader)
        pairwise.compute_dot_products_with_loader = timer
        try:
            with measured() as answer:
                begun = now()
                self.analyzer.compute_pairwise_scores(
                    name,
                    FACTORS,
                    asked,
                    TensorDataset(self.tokens),
                    per_device_query_batch_size=together,
                    per_device_train_batch_size=batch,
                    score_args=settings,
                    overwrite_output_dir=True,
                )
                done = now()
        finally:
            pairwise.compute_dot_products_with_loader = timer.scan
        scan = timer.seconds + done - timer.ended
        answer["parts"] = {"precondition": done - begun - scan, "scan": scan}
        folder = self.analyzer.scores_output_dir(name)
        answer["disk_bytes"] = disk_bytes(folder)
        saved = self.analyzer.load_pairwise_scores(name)
        assert saved is not None
        # [queries, N], or [queries, N, T - 1] with a score for each position that predicts.
        found = saved["all_modules"].float().numpy()
        if tokens:
            answer["token_scores"] = str(folder / "token_scores.npy")
            np.save(answer["token_scores"], found)
            found = found.sum(-1)
        answer["scores"] = str(folder / "scores.npy")
        np.save(answer["scores"], found)
        return answer


def replace_conv1d(model: nn.Module, names: list[str]) -> None:
    for name in names:
        old = model.get_submodule(name)
        if isinstance(old, Conv1D):
            new = nn.Linear(*old.weight.shape, dtype=old.weight.dtype)
            new.weight.data = old.weight.data.T.contiguous()
            new.bias.data = old.bias.data
            model.set_submodule(name, new)


def main() -> None:
    answers = claim_stdout()
    worker = Worker(Path(sys.argv[1]))
    serve(answers, {"fit": worker.fit, "score": worker.score}, ("kronfluence",))


if __name__ == "__main__":
    main()
