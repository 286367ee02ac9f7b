"""What a fit is made of: its sequences, its labels, and the modules of each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inflcli.artifacts import factors as store
from inflcli.artifacts.corpus import CorpusReader
from inflcli.config import FitFactorsConfig
from inflcli.ekfac import Basis
from inflcli.errors import BadInput
from inflcli.model.labels import Labels, SampledLabels, TrueLabels
from inflcli.model.tracked import TrackedModule


def partition(
    modules: Sequence[TrackedModule], sizes: Mapping[str, int], memory: float
) -> list[list[str]]:
    """Names of the modules in parts whose sizes add up to at most `memory`, in their order.

    Modules that share an input stay together; a group that is too large alone is a part alone.
    """
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(module.shares_input_with, []).append(module.name)
    parts: list[list[str]] = []
    filled = 0.0
    for names in groups.values():
        size = sum(sizes[name] for name in names)
        if parts and filled + size <= memory:
            parts[-1] += names
            filled += size
        else:
            parts.append(list(names))
            filled = size
    return parts


def chosen_sequences(corpus: CorpusReader, config: FitFactorsConfig) -> NDArray[np.int64]:
    """The sequences of the fit that predict something: all, or a seeded sample, ascending."""
    return sampled_sequences(corpus, config.max_sequences, config.seed)


def sampled_sequences(
    corpus: CorpusReader, wanted: int | None, seed: int | Sequence[int]
) -> NDArray[np.int64]:
    """So many of the sequences that predict something (None: all), ascending. Raises BadInput."""
    usable = np.flatnonzero(corpus.lengths >= 2)
    if len(usable) == 0:
        raise BadInput(f"{corpus.artifact.path} holds no sequence of two tokens or more")
    if wanted is None or wanted >= len(usable):
        return usable
    # A sample, not the first ones: corpora are often sorted by source.
    return np.sort(np.random.default_rng(seed).choice(usable, wanted, replace=False))


def draw_labels(config: FitFactorsConfig, stream: int) -> list[Labels]:
    """The label sets of a pass; `stream` tells the two passes' draws apart."""
    if config.labels == "true":
        return [TrueLabels()]
    count = config.label_samples
    return [SampledLabels(config.seed, stream * 1024 + sample) for sample in range(count)]


def read_bases(
    folder: Path, modules: Sequence[TrackedModule], device: torch.device, element: torch.dtype
) -> dict[str, tuple[Basis, Basis]]:
    """Q_A and Q_S of every module; modules that share their input share its Q_A in memory."""

    def basis(eigen: store.Eigen) -> Basis:
        return Basis(eigen.vectors).to(element, device)

    shared = {module.shares_input_with for module in modules}
    inputs = {name: basis(store.read_input(folder, name)) for name in shared}
    return {
        module.name: (
            inputs[module.shares_input_with],
            basis(store.read_output(folder, module.name)),
        )
        for module in modules
    }
