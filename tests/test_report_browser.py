"""Invariant: in a browser the page shows what its data say, silently, for everybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from browser import Seen, chromium, opened
from playwright.sync_api import Browser
from pyarrow import parquet
from report_fixtures import GROUPS, QUERIES, TOP, make_run, read_page

from inflcli.config import ReportConfig, Runtime
from inflcli.stages.report import report

OPEN = "article:not([hidden]) "
CARD = OPEN + ".side-positive .cards > .card"


def documents() -> list[dict[str, object]]:
    """With a copy of a query, and two that are nearly the same."""
    story = "An ordinary day in the village, as any other there was, and nothing more to be told. "
    copied = "They all knew that the old house is by the river. And so on."
    texts = [copied, *(f"{story * 3}The end of tale {number}." for number in range(2))]
    texts += [f"The stone bridge number {number} is over the brook. " * 2 for number in range(30)]
    return [{"id": f"set/{number}", "text": text} for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    made = {"counterfactual": True, "evenness": 0.01, "top": TOP, "seq_len": 100, "per_line": True}
    make_run(folder / "run", tiny_tokenizer, documents(), **made)
    make_run(
        folder / "plain",
        tiny_tokenizer,
        documents(),
        QUERIES[:1],
        seed=7,
        seq_len=100,
        per_line=True,
    )
    report(
        folder / "run", folder / "out", ReportConfig(top_k=20), Runtime(),
        compared=[folder / "plain"],
    )  # fmt: skip
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def data(out: Path) -> dict:
    return read_page(out.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def seen(browser: Browser, out: Path) -> Iterator[Seen]:
    with opened(browser, out) as found:
        yield found


def _strongest(values: np.ndarray) -> int:
    return int(np.abs(values).argmax())


def _shown(seen: Seen, unit: int) -> str:
    return f"{CARD}:first-child .tokens .t[data-i='{unit}']"


def test_the_strongest_token_is_shaded_by_its_sign(seen: Seen, data: dict) -> None:
    entry = data["queries"][0]["positive"][0]
    unit = _strongest(entry["shadings"]["tokens"])
    plus = entry["shadings"]["tokens"][unit] > 0
    assert seen.style(_shown(seen, unit), "background-color") not in ("rgba(0, 0, 0, 0)", "")
    kind = seen.style(_shown(seen, unit), "text-decoration-style")
    assert kind == ("solid" if plus else "dotted")
    assert seen.style(_shown(seen, unit), "text-decoration-line") == "underline"


def test_the_switch_shades_by_another_attribution(seen: Seen, data: dict) -> None:
    entry = data["queries"][0]["positive"][0]
    for name in ("output_tokens", "input_tokens", "tokens"):
        seen.page.click(f"{OPEN}[data-shade={name}]")
        strongest = data["queries"][0]["strongest"][name]
        for unit, value in enumerate(entry["shadings"][name]):
            classes = seen.page.get_attribute(_shown(seen, unit), "class") or ""
            level = [one for one in classes.split() if one[0] in "pn" and one[1:].isdigit()]
            share = abs(value) / strongest
            if 0.019 < share < 0.021:
                continue
            assert bool(level) == (share >= 0.02), (name, unit, share)
            assert not level or level[0][0] == ("p" if value > 0 else "n")
        assert seen.page.is_visible(f"{OPEN}.how[data-for={name}]")


def test_a_layer_group_shades_by_itself(seen: Seen, data: dict) -> None:
    entry = data["queries"][0]["positive"][0]
    for group in range(len(GROUPS)):
        seen.page.select_option(f"{OPEN}[data-layer]", str(group))
        unit = _strongest(entry["values"][group])
        seen.page.hover(_shown(seen, unit))
        sign = "+" if entry["values"][group][unit] > 0 else "−"
        assert f": {sign}" in seen.page.inner_text("#tip")
    seen.page.click(f"{OPEN}[data-shade=output_tokens]")
    assert seen.page.is_disabled(f"{OPEN}[data-layer]")


def test_pointing_at_a_token_names_what_it_predicts(seen: Seen, data: dict) -> None:
    entry = data["queries"][0]["positive"][0]
    (text,) = [one for one in data["queries"][0]["texts"] if one["n"] == entry["n"]]
    seen.page.hover(_shown(seen, 1))
    told = seen.page.inner_text("#tip")
    assert text["strings"][1].strip() in told and text["strings"][2].strip() in told
    seen.page.focus(f"{CARD}:first-child .tokens")
    seen.page.keyboard.press("End")
    assert "the last token: it predicts nothing" in seen.page.inner_text("#tip")


def test_the_map_has_a_cell_for_each_layer_and_token(seen: Seen, data: dict) -> None:
    entry = data["queries"][0]["positive"][0]
    seen.page.click(f"{CARD}:first-child >> text=Layers × tokens")
    label = seen.page.get_attribute(f"{CARD}:first-child canvas", "aria-label") or ""
    group = int(np.abs(entry["values"]).max(axis=1).argmax())
    assert GROUPS[group] in label
    assert seen.page.locator(f"{CARD}:first-child .names span").all_inner_texts() == GROUPS[::-1]
    seen.page.hover(f"{CARD}:first-child canvas", position={"x": 2, "y": 2})
    assert GROUPS[-1] in seen.page.inner_text("#tip")
    seen.page.click(f"{CARD}:first-child >> text=Layers × tokens")
    assert seen.page.locator("canvas").count() == 0


def test_searching_leaves_the_queries_that_match(seen: Seen) -> None:
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("two and")
    assert seen.page.locator("#list li:visible").count() == 1
    seen.page.keyboard.press("Enter")
    assert QUERIES[1]["prompt"] in seen.page.inner_text(f"{OPEN}h1")
    seen.page.wait_for_selector(CARD)
    seen.page.fill("#find", "nothing like it")
    assert seen.page.is_visible("#none")
    seen.page.keyboard.press("Escape")
    seen.page.keyboard.press("k")
    assert QUERIES[0]["prompt"] in seen.page.inner_text(f"{OPEN}h1")


def test_one_sign_and_what_one_token_carries_can_be_left_out(seen: Seen, data: dict) -> None:
    seen.page.click(f"{OPEN}[data-show=negative]")
    assert not seen.page.is_visible(f"{OPEN}.side-positive")
    seen.page.click(f"{OPEN}[data-show=both]")
    marked = [
        entry
        for sign in ("positive", "negative")
        for entry in data["queries"][0][sign]
        if entry["spurious"] and entry["duplicate"] is None
    ]
    assert marked
    flags = seen.page.locator(f"{OPEN}.card .spurious >> visible=true")
    assert flags.count() == len(marked)
    seen.page.check(f"{OPEN}[data-hide]")
    assert flags.count() == 0


def test_copies_are_outlined_and_near_duplicates_folded(seen: Seen, data: dict) -> None:
    outlined = seen.page.locator(f"{OPEN}.copied").all_inner_texts()
    assert any(text.endswith("house is by the river.") for text in outlined)
    assert seen.style(f"{OPEN}.copied", "outline-style") == "dashed"
    heads = [e for s in ("positive", "negative") for e in data["queries"][0][s] if e["duplicates"]]
    folded = seen.page.locator(f"{OPEN}details.duplicates")
    assert folded.count() == len(heads) > 0
    folded.first.locator("summary").click()
    # The page fills it when the browser reports the toggle, which may be after the click.
    folded.first.locator(".card").first.wait_for()
    assert folded.first.locator(".card").count() == len(heads[0]["duplicates"])


def test_the_other_run_stands_beside(seen: Seen, data: dict) -> None:
    assert "plain" in seen.page.inner_text(f"{OPEN}.compare h2")
    assert seen.page.locator(f"{OPEN}.scatter circle").count() > 10
    assert "plain: rank" in seen.page.inner_text(f"{CARD}:first-child header")
    seen.page.keyboard.press("j")
    seen.page.wait_for_selector(CARD)
    assert "no query of this id" in seen.page.inner_text(f"{OPEN}.compare")


def test_tables_and_lists_can_be_taken(seen: Seen, data: dict, tmp_path: Path) -> None:
    def take(selector: str) -> Path:
        with seen.page.expect_download() as waiting:
            seen.page.click(selector)
        waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
        return tmp_path / waiting.value.suggested_filename

    shown = [e for q in data["queries"] for s in ("positive", "negative") for e in q[s]]
    lines = [json.loads(line) for line in take("[data-save=jsonl]").open()]
    rows = parquet.read_table(take("[data-save=parquet]")).to_pylist()
    assert len(lines) == len(rows) == len(shown)
    for line, row, entry in zip(lines, rows, shown, strict=True):
        assert line["sequence"] == row["sequence"] == entry["n"]
        assert line["documents"] == row["documents"]
        assert line["score"] == pytest.approx(row["score"], rel=1e-3)
    scores = sorted((entry["score"] for entry in data["queries"][0]["positive"]), reverse=True)
    seen.page.fill("#least", str(scores[2]))
    expected = [e["n"] for e in data["queries"][0]["positive"] if e["score"] >= scores[2]]
    seen.page.wait_for_function(
        "count => document.querySelector('#counted').textContent.startsWith(count + ' ')",
        arg=len(expected),
    )
    listed = take("#documents button").read_text().split()
    assert listed == [f"set/{number}" for number in expected]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_nothing(browser: Browser, out: Path, scheme: str, width: int) -> None:
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    with opened(browser, out, color_scheme=scheme) as seen:
        seen.page.set_viewport_size({"width": width, "height": 1000})
        seen.page.click(f"{CARD}:first-child >> text=Layers × tokens")
        seen.page.evaluate(axe)
        found = seen.page.evaluate("axe.run().then((result) => result.violations)")
        told = [(one["id"], [node["html"][:160] for node in one["nodes"]]) for one in found]
        assert told == []
