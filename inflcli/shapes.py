"""Sizes rounded up, so that few shapes occur.

A product in a matrix unit is compiled for its shape, which takes longer than a small one itself;
and what is compiled stays in memory, between blocks that come and go.
"""

from __future__ import annotations

SEQUENCES = 4
"""That are multiplied together, where products are compiled for their shape."""


def round_up(size: int, an_octave: int = 4) -> int:
    """The next of so many sizes an octave (a power of two): up to one part in as many more."""
    grain = 1 << max(0, size.bit_length() - an_octave.bit_length())
    return size + -size % grain
