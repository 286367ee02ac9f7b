"""A report of refined queries says how they were refined, and how far that came."""

from __future__ import annotations

import json

from refining import MODULES, refining


def test_a_report(tiny_model, tiny_text, tiny_queries, tmp_path):
    pipeline = refining(tiny_model("llama"), tmp_path, tiny_text, MODULES["llama"], "float32")
    folder = pipeline.precondition(
        tiny_queries, rank=3, refine=4, refine_sequences=2, refine_corpus="few"
    )
    pipeline.scan()
    page = (pipeline.report() / "index.html").read_text()
    assert "4 steps of cg on 2 sequences" in page
    found = json.loads((folder / "manifest.json").read_text())["details"]["refinement"]
    before, after = (found[f"residual_{when}"]["median"] for when in ("before", "after"))
    assert after < before
    assert f"relative residual {before:.2g} with EK-FAC alone, {after:.2g} now" in page
    assert "interactions between modules are left out" not in page
