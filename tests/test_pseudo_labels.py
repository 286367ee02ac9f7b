"""Pseudo-labels are draws from the model's softmax that depend on nothing but the seed, the stream
and the sequence: not on the batch, the order or the padding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tiny import SHAPES

from inflcli.config import FitFactorsConfig
from inflcli.model.batches import Batch, make_batch
from inflcli.model.labels import SampledLabels, TrueLabels, sample
from inflcli.model.load import LoadedModel, load_model
from inflcli.model.passes import Passes
from inflcli.stages.fit_plan import draw_labels

CPU = torch.device("cpu")
SEQUENCES = [[5, 17, 200, 31, 9, 77, 12], [40, 3, 3], [260, 11, 7, 90], [8] * 7, [1, 2]]


def batch_of(ids: list[int], width: int | None = None) -> Batch:
    lengths = np.array([len(SEQUENCES[i]) for i in ids], np.int32)
    tokens = np.zeros((len(ids), width or int(lengths.max())), np.int64)
    for row, i in enumerate(ids):
        tokens[row, : lengths[row]] = SEQUENCES[i]
    if width is None:
        return make_batch(np.array(ids), tokens, lengths, CPU)
    # Padding beyond the longest, which make_batch would cut.
    predicted = np.arange(width)[None] + 1 < lengths[:, None]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(predicted), np.array(ids))


def drawn_labels(
    model: LoadedModel, batch: Batch, *, seed: int = 0, stream: int = 0
) -> NDArray[np.int64]:
    """What was drawn at each position [B, T], from the log-probabilities that a pass reports."""
    found = Passes.for_model(model, []).log_probabilities(batch, SampledLabels(seed, stream))
    with torch.no_grad():
        logits = model.network(input_ids=batch.tokens, use_cache=False).logits
    return (logits.log_softmax(-1) - found[..., None]).abs().argmin(-1).numpy()


def labels(model: LoadedModel, batch: Batch, **draw: int) -> dict[int, list[int]]:
    """The labels of each sequence of a batch, by its number."""
    rows = zip(batch.ids.tolist(), drawn_labels(model, batch, **draw), strict=True)
    return {i: row[: len(SEQUENCES[i]) - 1].tolist() for i, row in rows}


@pytest.fixture(params=SHAPES)
def model(request, tiny_model) -> LoadedModel:
    return load_model(str(tiny_model(request.param)), device="cpu", dtype="float64")


def test_they_do_not_depend_on_the_batch(model):
    expected = {i: labels(model, batch_of([i]))[i] for i in range(5)}
    assert [len(expected[i]) for i in range(5)] == [6, 2, 3, 6, 1]
    for ids, width in (([0, 1, 2, 3, 4], None), ([4, 2, 0], None), ([1, 3], None), ([1, 4], 20)):
        assert labels(model, batch_of(ids, width)) == {i: expected[i] for i in ids}


def test_seeds_streams_and_sequences_differ(model):
    batch = batch_of([0, 3])
    first = labels(model, batch)
    assert labels(model, batch) == first
    assert labels(model, batch, seed=1) != first
    assert labels(model, batch, stream=1) != first
    # The same tokens under another number are another draw.
    renamed = replace(batch, ids=np.array([6, 7]))
    assert drawn_labels(model, renamed).tolist() != drawn_labels(model, batch).tolist()


def test_every_draw_of_a_fit_is_its_own():
    """The two passes, the label samples and the seeds never share a generator."""
    rows = [
        SampledLabels(seed, kind.stream).uniforms(batch_of([0]))
        for seed in (0, 1)
        for stream in (0, 1)
        for kind in draw_labels(FitFactorsConfig(seed=seed, label_samples=5), stream)
    ]
    assert len({tuple(row[0].tolist()) for row in rows}) == len(rows) == 20
    true = draw_labels(FitFactorsConfig(labels="true", label_samples=5), 0)
    assert true == [TrueLabels()]


def test_the_distribution_is_the_softmax(tiny_model):
    """Chi-square over 20,000 draws at each of two positions, rare labels pooled."""
    model = load_model(str(tiny_model("gpt2")), device="cpu", dtype="float64")
    tokens, copies, streams = np.tile(SEQUENCES[1], (2000, 1)), np.arange(2000), 10
    batch = make_batch(copies, tokens, np.full(2000, 3, np.int32), CPU)
    drawn = np.concatenate([drawn_labels(model, batch, stream=s)[:, :2] for s in range(streams)])
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([SEQUENCES[1]])).logits[0]
    for position in (0, 1):
        found = np.bincount(drawn[:, position], minlength=logits.shape[-1])
        expected = torch.softmax(logits[position], -1).numpy() * len(drawn)
        rare = expected < 60
        assert 20 < (~rare).sum() < len(rare)
        pooled = [np.append(row[~rare], row[rare].sum()) for row in (found, expected)]
        assert stats.chisquare(*pooled).pvalue > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 40, 64])
def test_a_label_of_probability_zero_is_never_drawn(dtype, spread):
    """At the front, in the middle and at the end, for the extreme uniform numbers, too.

    `spread` puts the labels into one block of the search or into several.
    """
    p = torch.zeros(8 * spread, dtype=dtype)
    p[::spread] = torch.tensor([0.0, 0.3, 0.0, 0.0, 0.7 - 1e-7, 1e-7, 0.0, 0.0], dtype=dtype)
    below_one = float(np.nextafter(1.0, 0.0))
    uniforms = torch.tensor([0.0, 1e-300, 0.3, 0.5, 1 - 1e-8, below_one], dtype=torch.float64)
    drawn, _ = sample(p.expand(len(uniforms), -1), uniforms)
    assert set(drawn.tolist()) <= {1 * spread, 4 * spread, 5 * spread}
    assert drawn[0] == spread
    assert drawn[-1] in (4 * spread, 5 * spread)


@pytest.mark.parametrize("vocabulary", [30, 64, 200, 256])
def test_probabilities_need_not_be_normalised(vocabulary):
    """Against a plain cumulative sum, for vocabularies that are whole blocks and that are not."""
    torch.manual_seed(0)
    p = torch.rand(300, vocabulary, dtype=torch.float64)
    uniforms = torch.rand(300, dtype=torch.float64)
    expected = [
        int(np.argmax(np.cumsum(row / row.sum()) > u))
        for row, u in zip(p.numpy(), uniforms.numpy(), strict=True)
    ]
    labels, sums = sample(p * 7.5, uniforms)
    assert labels.tolist() == expected
    torch.testing.assert_close(sums, (p * 7.5).sum(1))
