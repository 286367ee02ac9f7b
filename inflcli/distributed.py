"""The processes that torchrun starts: how they share out work and add up what each has found.

One process, without torchrun, is a group of one, for which everything here is trivial.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# A rank waits for the slowest; one that fails is noticed by torchrun, which then ends them all.
_PATIENCE = timedelta(days=30)


def rank() -> int:
    """This process's number among those of its torchrun; 0 without one."""
    return int(os.environ.get("RANK", "0")) if _is_torchrun() else 0


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _is_torchrun() else 1


def local_rank() -> int:
    """This process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _is_torchrun() else 0


def _is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


class Ranks:
    """A group of one process."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._tallies: Counter[str] = Counter()

    def claims(self, what: str, items: Sequence[T]) -> Iterator[T]:
        """Go through `items`, of which each goes to whichever rank asks next.

        All ranks give the same items, and a name that was not used before.
        """
        yield from items

    def tally(self, what: str, amount: int) -> int:
        """Add to a count that all ranks share; returns what it is now."""
        self._tallies[what] += amount
        return self._tallies[what]

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        return value

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order."""
        return [value]

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)

    def add_up(self, tensor: torch.Tensor, owner: int) -> None:
        """Make `tensor` the sum over all ranks, in place, on the rank `owner`."""


class _Processes(Ranks):
    """The processes of one torchrun: NCCL on GPUs, gloo on CPUs."""

    def __init__(self, on_gpu: bool) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

        self.rank, self.size = rank(), size()
        if on_gpu:
            torch.cuda.set_device(local_rank())
        store, *_ = next(rendezvous("env://", timeout=_PATIENCE))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore(f"collectives/{attempt}", store),
            rank=self.rank,
            world_size=self.size,
            timeout=_PATIENCE,
        )
        self._dist, self._store = dist, PrefixStore(f"inflcli/{attempt}", store)

    def claims(self, what: str, items: Sequence[T]) -> Iterator[T]:
        while (number := self._store.add(f"claims/{what}", 1) - 1) < len(items):
            yield items[number]

    def tally(self, what: str, amount: int) -> int:
        return int(self._store.add(f"tally/{what}", amount))

    def broadcast(self, value: T) -> T:
        values: list[Any] = [value]
        self._dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._dist.all_gather_object(values, value)
        return values

    def add_up(self, tensor: torch.Tensor, owner: int) -> None:
        self._dist.reduce(tensor, dst=owner)


@functools.cache
def connect(on_gpu: bool) -> Ranks:
    """The group that this process belongs to; waits until all of it are there."""
    return _Processes(on_gpu) if size() > 1 else Ranks()


def disconnect() -> None:
    """Leave the group, once all is done."""
    if size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def leave(code: int | str | None) -> None:
    """End one of several processes at once, with the exit code of its command.

    Not by way of the interpreter's end: caches of torch can still hold the group then, and with it
    gloo's threads, of which one that drops a tensor so late aborts the process, now and then.
    """
    if size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else bool(code))
