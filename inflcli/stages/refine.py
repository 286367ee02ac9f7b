"""Refining preconditioned queries: a solve of (G + λI) x = ∇f by products with G itself.

G is the Gauss-Newton Hessian over sequences of a corpus, all tracked modules together, λ the same
damping of each module as EK-FAC's. The solve goes on from EK-FAC's answer, and EK-FAC's inverse is
its preconditioner. Only the queries pay for it: a scan takes what comes out as any other query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflcli import console
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import PreconditionConfig
from inflcli.ekfac import DampedInverse, GaussNewton, conjugate_gradient, damped, neumann
from inflcli.ekfac.capture import Capture
from inflcli.ekfac.gauss_newton import Matrices
from inflcli.ekfac.solve import Apply, Solution, largest_eigenvalue, relative_residual
from inflcli.errors import BadInput, NumericalFault
from inflcli.model.batches import TOKENS_A_BATCH, Batch, make_batch, plan_batches, read_batches
from inflcli.model.memory import Kept
from inflcli.model.passes import Passes
from inflcli.model.tracked import TrackedModule
from inflcli.stages.fit_plan import sampled_sequences

VECTORS = 9
"""Of the size of all modules' V that a solve holds of each query: those of conjugate gradients
(∇f, the start, x, r, p, the answer and its residual), a product and what a batch adds to it."""
_ATTENTION_MAPS = 8
"""Of one layer, [heads, T, T], while it runs in forward mode: scores, softmax, both moving, and
what is made of them."""
_TOGETHER = 8
"""Queries that share the forward passes of a product."""
_TAIL = 0.5
_NAMED = 5
"""Queries named, at most, of those that did not come as far as they should."""


@dataclass(frozen=True)
class Sizes:
    """How many queries are solved together, and of how many tokens the batches of all are."""

    queries: int
    tokens: int


def fit_into(
    memory: float, modules: Sequence[TrackedModule], width: int, element: int, a_token: float
) -> Sizes:
    """The sizes that fit `memory` bytes; one query and one sequence of `width` tokens at least.

    `element` is the bytes of a vector's number, `a_token` what passes hold of a token. More queries
    together would share little more, and leave each fewer tokens of a batch.
    """
    each = VECTORS * element * sum(module.parameters for module in modules)
    fitting = int(memory // (each + width * a_token))
    queries = max(1, min(fitting, TOKENS_A_BATCH // width, _TOGETHER))
    return Sizes(queries, batch_tokens(memory - queries * each, queries, width, a_token))


def batch_tokens(memory: float, queries: int, width: int, a_token: float) -> int:
    """Tokens of a batch of that many queries in `memory` bytes; of a sequence of each at least."""
    return max(queries * width, min(TOKENS_A_BATCH, int(memory / a_token)))


def attention_bytes(heads: int, width: int, itemsize: int) -> int:
    """Of a token, while a layer's attention runs in forward mode."""
    return _ATTENTION_MAPS * heads * width * max(4, itemsize)


def held_a_token(passes: Passes, width: int) -> float:
    """Bytes of a token of sequences of `width` tokens that the passes of a product hold.

    Cost: a forward pass of one sequence.
    """
    ids, tokens = np.zeros(1, np.int64), np.zeros((1, width), np.int64)
    batch = make_batch(ids, tokens, np.array([width], np.int32), passes.model.device)
    kept = Kept(passes.network)
    capture = Capture(passes.network, passes.modules, _ignore, batch.tokens.shape)
    with torch.enable_grad(), capture, kept:
        passes.top(batch)
        for inputs in capture.held():
            kept.keep(inputs)
    heads = int(getattr(passes.network.config, "num_attention_heads", 1))
    return kept.bytes / width + attention_bytes(heads, width, passes.model.dtype.itemsize)


def _ignore(module: TrackedModule, a: Tensor, g: Tensor) -> None:
    pass


class Refinement:
    """Solves for chunks of queries; `sizes` say how large they and their batches are."""

    def __init__(
        self,
        passes: Passes,
        corpus: CorpusReader,
        config: PreconditionConfig,
        memory: float,
        queries: int | None,
    ) -> None:
        """Choose the sizes for `memory` bytes, and for chunks of so many `queries` if given."""
        self.passes, self.corpus, self.config = passes, corpus, config
        self.inverses: Mapping[str, DampedInverse] = {}
        width = int(corpus.lengths.max())
        element = passes.model.statistics_dtype.itemsize
        a_token = held_a_token(passes, width)
        self.sizes = fit_into(memory, passes.modules, width, element, a_token)
        if queries is not None:
            left = memory - queries * VECTORS * element * sum(m.parameters for m in passes.modules)
            self.sizes = Sizes(queries, batch_tokens(left, queries, width, a_token))

    @property
    def products(self) -> int:
        """With each query, at most: the first is for the start's residual, or the answer's."""
        return self.config.refine + 1 + (self._rounds and self.config.refine_solver == "cg")

    def solve(self, b: Matrices, advance: Callable[[], None]) -> tuple[Matrices, list[list[float]]]:
        """x [K, P, M] by module of gradients b, and each query's relative residuals by step.

        `advance` is called after every product. The last residual is that of x. Cost: see
        `conjugate_gradient` and `neumann`. Raises NumericalFault.
        """
        try:
            if self.config.refine_solver == "cg":
                solution = self._conjugate_gradient(b, advance)
            else:
                solution = self._neumann(b, advance)
        except ArithmeticError as error:
            raise NumericalFault(
                f"the refinement failed: {error}", "try --dtype float32, or a higher damping"
            ) from error
        return solution.x, torch.stack(solution.residuals, 1).tolist()

    def _conjugate_gradient(self, b: Matrices, advance: Callable[[], None]) -> Solution:
        config, apply = self.config, self._product(0, len(_first(b)), advance)
        found = conjugate_gradient(
            apply,
            b,
            precondition=self._inverse,
            start=self._inverse(b),
            steps=config.refine,
            tolerance=config.refine_tolerance,
        )
        if self._rounds:
            found.residuals[-1] = relative_residual(apply, found.x, b)
        return found

    @property
    def _rounds(self) -> bool:
        """Whether products round so much that the recursion of residuals does not say what is
        left: the last one is then measured."""
        return self.passes.model.dtype.itemsize < 4

    def _neumann(self, b: Matrices, advance: Callable[[], None]) -> Solution:
        config = self.config
        return neumann(
            lambda step: self._product(step, len(_first(b)), advance),
            b,
            precondition=self._inverse,
            start=self._inverse(b),
            steps=config.refine,
            step_size=self._step_size,
            # Without noise there is nothing to average.
            tail=_TAIL if self._minibatches else 0.0,
            tolerance=config.refine_tolerance,
        )

    @cached_property
    def _step_size(self) -> float:
        """One over the largest eigenvalue of P (G + λI), of the first minibatch."""
        like = {
            module.name: torch.empty(
                (1, module.outputs, module.inputs),
                dtype=self.passes.model.statistics_dtype,
                device=self.passes.model.device,
            )
            for module in self.passes.modules
        }
        first = self._product(0, 1, lambda: None)
        return 1.0 / largest_eigenvalue(lambda v: self._inverse(first(v)), like)

    @property
    def _minibatches(self) -> bool:
        wanted, usable = self.config.refine_sequences, int((self.corpus.lengths >= 2).sum())
        return wanted is not None and wanted < usable

    def _inverse(self, v: Matrices) -> Matrices:
        return {name: self.inverses[name].solve(one) for name, one in v.items()}

    def _product(self, step: int, queries: int, advance: Callable[[], None]) -> Apply:
        """v to (G + λI) v of `queries` vectors, over the sequences of a step."""
        batches = partial(self._batches, self.sequences(step), queries)
        product = GaussNewton(self.passes, batches).product

        def counted(v: Matrices) -> Matrices:
            found = product(v)
            advance()
            return found

        return damped(counted, {name: one.damping for name, one in self.inverses.items()})

    def _batches(self, ids: NDArray[np.int64], queries: int) -> Iterable[Batch]:
        lengths = self.corpus.lengths
        tokens = max(1, self.sizes.tokens // queries)
        plans = plan_batches(ids, lengths[ids], None, tokens)
        return read_batches(plans, self.corpus.take, lengths, self.passes.model.device)

    def sequences(self, step: int) -> NDArray[np.int64]:
        """Those of a step, whatever the queries: for conjugate gradients always the same."""
        config = self.config
        seed = [config.seed, step] if config.refine_solver == "neumann" else config.seed
        return sampled_sequences(self.corpus, config.refine_sequences, seed)


def _first(b: Matrices) -> Tensor:
    return next(iter(b.values()))


def require_refinable(config: PreconditionConfig, corpus: CorpusReader | None) -> None:
    """Raises BadInput where there is nothing to refine on, or nothing to refine."""
    if not config.refine:
        return
    if corpus is None:
        raise BadInput(
            "--refine needs sequences to take the curvature over",
            "name a prepared corpus with --refine-corpus",
        )
    if config.curvature == "identity":
        raise BadInput(
            "--refine needs a damped inverse to start from, and --curvature identity has none",
            "take --curvature ekfac or kfac",
        )


def describe_refined(residuals: Sequence[float]) -> dict[str, Any]:
    """What queries.json says of one query's refinement."""
    return {
        "refinement": {
            "steps": len(residuals) - 1,
            "residual_before": residuals[0],
            "residual_after": residuals[-1],
            "residuals": list(residuals),
        }
    }


def summarise(
    described: Sequence[Mapping[str, Any]], config: PreconditionConfig, sequences: int
) -> dict[str, Any]:
    """Print how far the refinement came; what the manifest says of it."""
    found = [query["refinement"] for query in described]
    before, after = (
        np.array([one[f"residual_{when}"] for one in found]) for when in ("before", "after")
    )
    summary = {
        "solver": config.refine_solver,
        "sequences": sequences,
        "steps": max(one["steps"] for one in found),
        "residual_before": {"median": float(np.median(before)), "worst": float(before.max())},
        "residual_after": {"median": float(np.median(after)), "worst": float(after.max())},
        "reached": int((after <= config.refine_tolerance).sum()),
    }
    each = " a step" if config.refine_solver == "neumann" else ""
    console.info(
        f"refined by {summary['steps']} steps of {config.refine_solver} on {sequences} sequences"
        f"{each}: relative residual {np.median(before):.2e} before, {np.median(after):.2e} after "
        f"(median of {len(found)} queries; worst {before.max():.2e}, {after.max():.2e})"
    )
    for query, one in zip(described, found, strict=True):
        shown = ", ".join(f"{value:.2e}" for value in one["residuals"])
        console.detail(f"  {query['id']}: {shown}")
    risen = [query["id"] for query, rose in zip(described, after > before, strict=True) if rose]
    if risen:
        console.warn(
            f"{len(risen)} queries, {risen[0]!r} the first, end with a larger residual than "
            "EK-FAC's answer has: more --refine-sequences, or --refine-solver cg, come nearer"
        )
    _name_unfinished(described, config)
    return summary


def _name_unfinished(described: Sequence[Mapping[str, Any]], config: PreconditionConfig) -> None:
    late = [
        (float(query["refinement"]["residual_after"]), str(query["id"]))
        for query in described
        if query["refinement"]["residual_after"] > config.refine_tolerance
    ]
    if not late:
        return
    late.sort(reverse=True)
    names = ", ".join(f"{name!r} ({residual:.1e})" for residual, name in late[:_NAMED])
    more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
    console.info(
        f"a relative residual of {config.refine_tolerance:g} was not reached by {len(late)} of "
        f"{len(described)} queries: {names}{more}"
    )
