"""Invariant: text of the corpus and of the queries stays text: in no format does it act on the
page, the document or the terminal."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixtures import make_run, read_json_lines, read_page
from rich.console import Console
from rich.text import Text

from inflcli.config import ReportConfig, Runtime
from inflcli.report import terminal
from inflcli.report.markdown import escape
from inflcli.report.model import RunView
from inflcli.report.text import visible
from inflcli.stages.report import report

SCRIPT = "<script>alert(1)</script>"
NASTY = [
    f"Text {SCRIPT} and </script><img src=x onerror=alert(2)> and <!-- comment",
    "control \x00\x07\x08\x1b[31m\x1b]0;title\x07\x7f\x9b5A end",
    "marks \u202eevil\u202c \u2066x\u2069 \u200f\u200e\u061c \ufeff\u200b\u2028\u2029 end",
    "[bold red]markup[/bold red] [link=http://evil.test]x[/link] [/] \\[x] :smile:",
    "| pipe | `code` **bold** [a](http://evil.test) ![i](http://evil.test/i.png) <b>x</b> & &lt;",
    "emoji 🙂🙂 family 👨\u200d👩\u200d👧 and Arabic العربية",
    "   \n\n\t\t   \n {{ 7 * 7 }} {% raw %} ]]> \"quoted\" 'single' \n\n\n    ",
    "one line " + "x" * 100_000,
]
OURS = {"b", "i", "br"}
"""The tags that the Markdown has of its own."""


@dataclass
class Rendered:
    view: RunView
    html: str
    markdown: str
    jsonl: Path
    terminal: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Rendered:
    folder = tmp_path_factory.mktemp("hostile")
    texts = [
        {"id": text[:300], "text": text, "metadata": {"title": f"{text[:300]} \ud800"}}
        for text in NASTY
    ]
    asked = [
        {"id": f"{number} {text[:100]}", "prompt": text[:400], "completion": f" {text[:80]}"}
        for number, text in enumerate(NASTY)
    ]
    make_run(folder / "run", tiny_tokenizer, texts, asked, top=12, seq_len=512)
    config = ReportConfig(("html", "markdown", "jsonl", "terminal"), top_k=40)
    done = report(folder / "run", folder / "out", config, Runtime(command=("inflcli", SCRIPT)))
    assert done.view is not None
    page, marked, lines = (
        folder / "out" / name for name in ("index.html", "report.md", "report.jsonl")
    )
    found = Rendered(done.view, page.read_text("utf-8"), marked.read_text("utf-8"), lines)
    for colours in ("none", "truecolor"):
        out = io.StringIO()
        console = Console(
            file=out,
            width=80,
            force_terminal=colours != "none",
            color_system=None if colours == "none" else "truecolor",
        )
        console.print(terminal.render(done.view, (40, 40)))
        found.terminal[colours] = out.getvalue()
    return found


class Page(HTMLParser):
    """Collects the tags of a page and what lies in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text.append(data)


def test_no_tag_of_the_text_reaches_the_page(rendered: Rendered) -> None:
    page = Page(rendered.html)
    # The program, data and a table, and each query.
    assert len(page.scripts) == 3 + len(rendered.view.queries)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "link", "base")]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not str(attributes.get("href", "#")).startswith(("http", "javascript", "data"))
        assert "src" not in attributes
    assert any("<script>alert(1)" in text for text in page.text)


def test_the_embedded_texts_are_whole_and_cannot_end_their_element(rendered: Rendered) -> None:
    (program,) = (text for text in Page(rendered.html).scripts if "use strict" in text)
    others = [text for text in Page(rendered.html).scripts if text != program]
    assert all(text.startswith("{") or re.fullmatch(r"[A-Za-z0-9+/]+=*", text) for text in others)
    assert not any("<" in text for text in others)
    shown = ["".join(text["strings"]) for text in read_page(rendered.html)["texts"]]
    assert any(SCRIPT in text for text in shown)
    assert any("🙂🙂" in text for text in shown)
    assert not any(mark in program for mark in ("innerHTML", "insertAdjacentHTML", "eval("))


@pytest.mark.parametrize("form", ["html", "markdown", "none", "truecolor"])
def test_no_hidden_character_is_shown(rendered: Rendered, form: str) -> None:
    text = rendered.terminal.get(form) or getattr(rendered, form)
    if form == "truecolor":
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # rich's own shading
    hidden = {
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        and character not in "\n\t\u200d"
    }
    assert hidden == set()
    assert "␛" in text and "⟨U+202E⟩" in text.replace("\\", "")


def test_markup_is_not_read_on_the_terminal(rendered: Rendered) -> None:
    text = " ".join(rendered.terminal["none"].split())
    assert "[bold red]" in text and "[link=http" in text and ":smile:" in text
    assert "http" not in "".join(re.findall(r"\x1b\]8;.*?\x1b", rendered.terminal["truecolor"]))


def test_no_line_of_the_terminal_is_wider_than_it(rendered: Rendered) -> None:
    assert max(Text(line).cell_len for line in rendered.terminal["none"].split("\n")) <= 80


def test_no_markdown_of_the_text_is_read(rendered: Rendered) -> None:
    lines = rendered.markdown.split("\n")
    read = "\n".join(line for line in lines if not line.startswith("    "))  # indented is code
    tags = set(re.findall(r"(?<!\\)</?([a-zA-Z!][a-z-]*)", read))
    assert tags <= OURS
    assert "http://" not in read
    rows = [line for line in lines if line.startswith("| ")]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(bars) == {4, 6}  # provenance; rank, influence, TF-IDF rank, source, text
    assert max(map(len, rows)) < 5000


@pytest.mark.parametrize("clean", [escape, visible])
def test_cleaning_keeps_what_is_harmless(clean: Callable[[str], str]) -> None:
    kept = "Nairobi 🙂 العربية हिन्दी é\u200d"
    assert clean(kept) == kept


def test_json_lines_give_the_text_as_it_is(rendered: Rendered) -> None:
    assert rendered.jsonl.read_bytes().isascii()
    lines = read_json_lines(rendered.jsonl)
    texts = ["".join(line["tokens"]) for line in lines if line["kind"] == "sequence"]
    assert any("\u202eevil" in text for text in texts)
