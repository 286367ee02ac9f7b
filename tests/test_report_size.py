"""Invariant: a page of 50 queries, 100 sequences each, of 512 tokens, stays below 20 MB, and shows
its first query within a second, and any other."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium, opened
from playwright.sync_api import Browser
from report_fixtures import make_run

import inflcli
from inflcli.config import ReportConfig, Runtime
from inflcli.stages.report import report

DEMO = Path(inflcli.__file__).parent / "demo"
QUERIES, SEQUENCES, TOKENS, GROUPS = 50, 100, 512, 9


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of the demo's texts, nearly all of full length. The page holds the texts of each query
    by themselves, whichever others show them, too."""
    lines = (DEMO / "corpus.jsonl").read_text().splitlines()
    words, draw = " ".join(json.loads(line)["text"] for line in lines).split(), random.Random(0)
    starts = [draw.randrange(len(words) - 450) for _ in range(800)]
    texts = [
        {"id": f"piece/{number}", "text": " ".join(words[start : start + 450])}
        for number, start in enumerate(starts)
    ]
    asked = [
        {"id": f"query-{number}", "prompt": f"Fact {number} is", "completion": " known."}
        for number in range(QUERIES)
    ]
    folder = tmp_path_factory.mktemp("size")
    run = make_run(
        folder / "run", DEMO / "model", texts, asked,
        top=SEQUENCES // 2, seq_len=TOKENS, layers=GROUPS, shared=False,
    )  # fmt: skip
    done = report(run, folder / "out", ReportConfig(top_k=SEQUENCES // 2), Runtime())
    assert done.view is not None
    shown = [one for query in done.view.queries for one in query.sequences]
    assert len(shown) == QUERIES * SEQUENCES
    assert sum(len(one.text.token_counts) for one in shown) > 0.95 * len(shown) * TOKENS
    return folder / "out" / "index.html"


def test_it_is_below_20_mb(page: Path) -> None:
    assert page.stat().st_size < 20e6


@pytest.mark.long  # by the clock: nothing may run beside it
def test_queries_are_shown_within_a_second(browser: Browser, page: Path) -> None:
    with opened(browser, page) as seen:
        first = seen.page.evaluate("performance.getEntriesByName('shown')[0].startTime")
        assert first < 1000
        for number in (2, 50):
            took = seen.page.evaluate(
                """async (number) => {
                  const begun = performance.now(), article = document.querySelector(`#q${number}`);
                  location.hash = `#q${number}`;
                  while (!article.querySelector(".card")) await new Promise(requestAnimationFrame);
                  return performance.now() - begun;
                }""",
                number,
            )
            assert took < 1000
