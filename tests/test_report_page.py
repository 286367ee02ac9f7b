"""Invariant: the page needs nothing but itself, and its policy admits its own script and style
and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from report_fixtures import make_run

from inflcli.config import ReportConfig, Runtime
from inflcli.report.charts import histogram_chart, nice_ticks
from inflcli.report.excerpt import excerpt
from inflcli.report.model import Histogram
from inflcli.stages.report import report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> str:
    run = make_run(tmp_path_factory.mktemp("page") / "run", tiny_tokenizer)
    report(run, run / "report", ReportConfig(), Runtime())
    return (run / "report" / "index.html").read_text()


def _policy(page: str) -> dict[str, str]:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    text = found[1].replace("&#39;", "'")
    return {part.split()[0]: part.strip().partition(" ")[2] for part in text.split("; ")}


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def test_the_policy_names_the_page_s_own_script_and_style(page: str) -> None:
    policy = _policy(page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    styles = re.findall(r"<style>(.*?)</style>", page, re.S)
    assert len(scripts) == len(styles) == 1
    assert policy["script-src"] == _hash(scripts[0])
    assert policy["style-src"] == _hash(styles[0])
    assert policy["default-src"] == "'none'" and policy["base-uri"] == "'none'"


def test_the_page_refers_to_nothing_outside(page: str) -> None:
    assert not re.search(r"""(src|href|action|data)=["'](?!#)""", page)
    assert not re.search(r"url\((?!#)", page.replace('fill="url(#', ""))
    assert "@import" not in page
    assert "fetch(" not in page and "XMLHttpRequest" not in page


def test_the_page_has_no_inline_handler_or_style(page: str) -> None:
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
    assert not re.search(r"<[^>]*\s(on[a-z]+|style)=", body)


def test_the_page_says_what_is_shaded(page: str) -> None:
    assert "predicting the token after it" in page


def test_an_excerpt_holds_the_strongest_token_and_keeps_to_its_budget() -> None:
    units = [f" w{number}" for number in range(400)]
    for peak in (0, 3, 200, 396, 399):
        values = [0.01] * 400
        values[peak] = -5.0
        start, stop = excerpt(units, values, 120)
        assert start <= peak < stop
        assert sum(map(len, units[start:stop])) <= 120
    assert excerpt(units[:5], None, 120) == (0, 5)
    assert excerpt(["x" * 1000, "y"], [1.0, 0.0], 50) == (0, 1)


def test_ticks_are_round_and_zero_is_among_them() -> None:
    for low, high in ((-1563.0, 8667.0), (0.0, 3e-7), (-2.0, 0.0), (-1e9, 1e9)):
        ticks = nice_ticks(low, high)
        assert 0 in ticks and 2 <= len(ticks) <= 8


def test_a_bar_of_one_sequence_can_be_seen() -> None:
    histogram = Histogram([-1.0, 0.0, 1.0], [1, 100_000], [0, 1], 100_000, 1)
    bars = histogram_chart(histogram, []).bars
    assert bars[0].height >= 3 and bars[1].candidate_height >= 3
    assert bars[0].candidate_height == 0
