"""Chromium for tests of the pages: a browser without a window, and what a page did in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments.bench.runs.page_cases import CHROMIUM

SIZES = {"wide": (1280, 900), "narrow": (400, 800)}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the pages are tested with playwright")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed; `make browser` installs it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page of a file, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, *, size: str = "wide", theme: str = "light", at: str = "") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri() + at)

    def rows(self, column: str) -> list[str]:
        """What the rows in view show under a title."""
        found = self.page.locator(".rows tbody.real tr")
        of = f"[...r.cells].find(c => c.dataset.title.replaceAll('\\u00ad', '') === '{column}').textContent"
        return found.evaluate_all(f"rows => rows.map(r => {of})")

    def choose(self, name: str) -> None:
        """Press the filter whose name begins so."""
        self.page.locator(".tools button", has_text=name).first.click()

    def beyond(self) -> list[str]:
        """What reaches beyond the right edge of the window, every part unfolded; cells of rows end in dots."""
        self.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        return self.page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => !e.matches('.rows td *') && e.getBoundingClientRect().right > "
            "document.documentElement.clientWidth + 1).map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)"
        )
