"""What several stages need: checks between inputs, and loops that record their progress."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch

from inflcli import console, distributed
from inflcli.artifacts import lock
from inflcli.artifacts.corpus import CorpusReader
from inflcli.artifacts.folder import Artifact, partial_path
from inflcli.artifacts.ledger import Ledger
from inflcli.artifacts.manifest import Identity, Input
from inflcli.artifacts.writer import ArtifactWriter, Salvage
from inflcli.config import Runtime
from inflcli.distributed import Ranks
from inflcli.errors import BadInput, NumericalFault, StaleArtifact
from inflcli.model.load import LoadedModel, load_model, pick_device
from inflcli.model.parallel import share_held
from inflcli.model.tracked import TrackedModule

P = ParamSpec("P")
R = TypeVar("R")


def exclusively(stage: Callable[P, R]) -> Callable[P, R]:
    """Let one process at a time run `stage` on its `out`: a second one waits, and says for whom.

    An `out` of None writes nothing. Raises BadInput under torchrun.
    """
    return _locked(stage, by_ranks=False)


def exclusively_by_ranks(stage: Callable[P, R]) -> Callable[P, R]:
    """As `exclusively`, for a stage that the processes of a torchrun run together."""
    return _locked(stage, by_ranks=True)


def _locked(stage: Callable[P, R], *, by_ranks: bool) -> Callable[P, R]:
    signature = inspect.signature(stage)

    @functools.wraps(stage)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        if distributed.size() > 1 and not by_ranks:
            name = stage.__name__.replace("_", "-")
            raise BadInput(f"{name} runs in one process", f"run inflcli {name} without torchrun")
        out = signature.bind(*args, **options).arguments["out"]
        # The first rank holds the lock for all; the others do nothing before it tells them to.
        mine = out is not None and distributed.rank() == 0
        with lock.exclusive(out, console.info) if mine else nullcontext():
            return stage(*args, **options)

    return wrapped


@dataclass(frozen=True)
class Begun:
    """An artifact in the making, by all ranks."""

    ranks: Ranks
    writer: ArtifactWriter
    before: dict[str, Any]
    """What earlier runs did, the same on every rank."""

    def finish(self, **described: Any) -> Artifact:
        """Publish what all ranks have written; see `ArtifactWriter.finish`."""
        self.ranks.wait()
        if self.ranks.rank == 0:
            self.writer.finish(**described)
        self.ranks.wait()
        return Artifact.open(self.writer.path, self.writer.identity.stage, shard=True)


def begin(
    out: Path, identity: Identity, runtime: Runtime, salvage: Salvage | None = None
) -> Begun | None:
    """`ArtifactWriter.begin` on the first rank, for all of them."""
    ranks = distributed.connect(on_gpu=pick_device(runtime.device).type == "cuda")
    writer = None
    if ranks.rank == 0:
        writer = ArtifactWriter.begin(
            out,
            identity,
            overwrite=runtime.overwrite,
            command=runtime.command,
            salvage=salvage,
        )
    state = None if writer is None else (writer.ledger.said(), writer.ledger.epoch)
    found = ranks.broadcast(state)
    if found is None:
        return None
    before, epoch = found
    if writer is None:
        ledger = Ledger(partial_path(out), ranks.rank, epoch=epoch)
        writer = ArtifactWriter(out, identity, ledger)
    return Begun(ranks, writer, before)


def result(artifact: Artifact, *, fresh: bool, summary: str) -> dict[str, Any]:
    """What every stage returns. `fresh` says that there was nothing to do."""
    return {
        "artifact": str(artifact.path),
        "stage": artifact.manifest.stage,
        "fingerprint": artifact.fingerprint,
        "fresh": fresh,
        "summary": summary,
        "counts": artifact.manifest.counts,
    }


def up_to_date(path: Path, stage: str) -> dict[str, Any]:
    return result(Artifact.open(path, stage, shard=True), fresh=True, summary="up to date")


def load(model: str, dtype: str, runtime: Runtime) -> LoadedModel:
    """`load_model` as the runtime settings have it."""
    loaded = load_model(model, device=runtime.device, dtype=dtype, placement=runtime.placement)
    if loaded.lockstep:
        share = share_held(loaded.network)
        console.info(f"model sharded: this process holds {share:.0%} of its parameters")
    return loaded


def require_same_tokenizer(corpus: CorpusReader, tokenizer: Input) -> None:
    """Refuse a model whose tokenizer did not make the corpus. Raises StaleArtifact."""
    if corpus.tokenizer_fingerprint != tokenizer.fingerprint:
        raise StaleArtifact(
            f"{corpus.artifact.path} was tokenised with another tokenizer than {tokenizer.path}'s",
            f"prepare it again: inflcli prepare --tokenizer {tokenizer.path} ...",
        )


def require_context(corpus: CorpusReader, model: LoadedModel) -> None:
    """Refuse sequences longer than the model's positions. Raises BadInput."""
    if model.context is not None and corpus.seq_len > model.context:
        raise BadInput(
            f"the corpus has sequences of {corpus.seq_len} tokens, the model takes {model.context}",
            f"prepare it again with --seq-len {model.context} or less",
        )


def tracked_from(fields: list[dict[str, Any]]) -> list[TrackedModule]:
    """Tracked modules as an artifact's manifest lists them."""
    return [TrackedModule(**item) for item in fields]


def require_finite(value: torch.Tensor, what: str, module: str) -> None:
    """Stop at NaN or infinity. Raises NumericalFault naming the module."""
    # A sum is finite only if all that it adds is, and takes a fraction of looking at each; it may
    # overflow where nothing else is wrong.
    if not (torch.isfinite(value.sum()) or torch.isfinite(value).all()):
        raise not_finite(what, module)


def not_finite(what: str, module: str) -> NumericalFault:
    return NumericalFault(
        f"{what} of module {module} is not finite",
        "try --dtype float32; if it stays, look for NaN in the model or a damping of 0",
    )


class Behind:
    """Runs one job at a time in another thread, behind the computation.

    An error of a job is raised by the next `do`, or on leaving the context.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Start `job` once the one before it has ended."""
        self._wait()
        self._job = self._pool.submit(job)

    def _wait(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()  # what was handed over is finished, also after an interrupt
        if error is None:
            self._wait()


_LONGEST_WAIT = 3600.0


@dataclass
class Checkpoints:
    """Says when to record progress: every `seconds`, but seldom enough to cost at most 5 %.

    However long a record seems to have taken, the next is due within the hour, or `seconds`.
    """

    seconds: float
    _since: float = 0.0
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._wait(time.monotonic(), self.seconds)

    def due(self) -> bool:
        # A clock that stands before the last record was set back: its times mean nothing now.
        return not self._since <= time.monotonic() < self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Wraps the saving, to learn what it costs."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        # Zero asks for every chance, as the tests do.
        cost = min(20 * (ended - started), _LONGEST_WAIT) * (self.seconds > 0)
        self._wait(ended, max(self.seconds, cost))

    def _wait(self, now: float, seconds: float) -> None:
        self._since, self._next = now, now + seconds
