"""Chromium, headless and without a network, that notes what a page complains of or asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """A page, its errors, and what it asked for besides itself."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def style(self, selector: str, name: str) -> str:
        """A computed property of the first element."""
        script = "([s, n]) => getComputedStyle(document.querySelector(s)).getPropertyValue(n)"
        return str(self.page.evaluate(script, [selector, name]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of the system. Skips where there is none, but not in CI, which installs it."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        assert not os.environ.get("CI"), "CI has no chromium"
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **settings: Any) -> Iterator[Seen]:
    """The page at `path`, from file://, once its first cards are there; it must be silent."""
    context = browser.new_context(
        offline=True, viewport={"width": 1400, "height": 1000}, accept_downloads=True, **settings
    )
    page = context.new_page()
    seen = Seen(page)
    page.on("console", lambda message: seen.errors.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("article:not([hidden]) .card")
    yield seen
    assert seen.errors == []
    own = [url for url in seen.requests if not url.startswith(("blob:", "data:"))]
    assert own == [path.resolve().as_uri()]
    context.close()
