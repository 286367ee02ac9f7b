"""Clocks that jump by hours at any call, for tests in this process and in others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

HOURS = 3600.0
_NAMES = ("time", "monotonic")


def jumping(clock: Callable[[], float], seed: int) -> Callable[[], float]:
    """`clock`, which at a third of the calls is set back or forward by up to nine hours."""
    draw, offset = random.Random(seed), [0.0]

    def now() -> float:
        if draw.random() < 1 / 3:
            offset[0] = draw.uniform(-9 * HOURS, 9 * HOURS)
        return clock() + offset[0]

    return now


def jump(seed: int, set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Let this process's clocks jump; `set_attribute` may be monkeypatch's."""
    for name in _NAMES:
        set_attribute(time, name, jumping(getattr(time, name), seed))
