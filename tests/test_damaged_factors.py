"""Of damaged factors only the modules are fitted again whose files are not what was written, with
those that share their input; the factors are then what they were, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from commands import contents
from pipeline import Pipeline

from inflcli.stages.fit import Fit

LAYERS = "model.layers.{}.mlp.{}_proj"
SHARED = [LAYERS.format(0, "gate"), LAYERS.format(0, "up")]


@pytest.fixture(scope="module", params=["float32", "float64"])
def whole(request, tiny_model, tiny_text, tmp_path_factory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tiny_model("llama-bias"), tmp_path_factory.mktemp("run"), request.param)
    pipeline.prepare(tiny_text)
    pipeline.fit(blocks=2)
    return pipeline


@pytest.mark.parametrize(
    ("victims", "covariance", "corrected"),
    [
        (["corrected/" + LAYERS.format(1, "down")], [], [LAYERS.format(1, "down")]),
        (["modules/" + SHARED[1]], SHARED, SHARED),
        (["inputs/" + SHARED[0]], SHARED, SHARED),
        (
            ["inputs/" + LAYERS.format(1, "down"), "corrected/" + SHARED[1]],
            [LAYERS.format(1, "down")],
            [SHARED[1], LAYERS.format(1, "down")],
        ),
    ],
)
def test_only_damaged_modules_are_fitted(whole, monkeypatch, victims, covariance, corrected):
    folder = whole.run / "factors"
    before = contents(folder)
    for victim in victims:
        path = folder / f"{victim}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    passes = []
    right = Fit._pass

    def counted(self, title, modules, *arguments, **options):
        passes.append((title.split()[0], [module.name for module in modules]))
        right(self, title, modules, *arguments, **options)

    monkeypatch.setattr(Fit, "_pass", counted)
    runtime = replace(whole.runtime, overwrite=True)
    replace(whole, runtime=runtime).fit(blocks=2)
    expected = [("covariance", covariance)] if covariance else []
    assert passes == [*expected, ("corrected", corrected)]
    after = contents(folder)
    del before["manifest.json"], after["manifest.json"]
    assert after == before
