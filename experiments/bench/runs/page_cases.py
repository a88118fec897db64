"""How long the page of a run takes to open in Chromium, as it is and with its questions repeated to more.

Opened from a file, without a window, at two widths. The page is that of the finished run below `runs/` with the most
questions; a run of real texts says more than one of an organism.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from experiments.bench.timing import Skipped
from experiments.report.page.embedded import data_element
from semcal.runs.run import Run

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUESTIONS, WIDTHS, LOADS = (1000, 2000), (1280, 400), 7
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Opening:
    """One page in one window; medians of several loads.

    Attributes:
        case: Questions and width.
        megabytes: Size of the file.
        loaded_ms: From the start of navigation until everything was drawn, wall clock.
        busy_ms: Time that the page's thread was at work: reading, scripts, layout.
        script_ms: Of it, in scripts.
    """

    case: str
    megabytes: float
    loaded_ms: float
    busy_ms: float
    script_ms: float

    @property
    def line(self) -> str:
        return (
            f"{self.case}: {self.megabytes:.2f} MB, loaded after {self.loaded_ms:.0f} ms, "
            f"busy {self.busy_ms:.0f} ms, of which scripts {self.script_ms:.0f} ms"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def page_cases(device: str = "auto") -> Iterator[Opening | Skipped]:  # noqa: ARG001 - the signature of all benches
    """The page as it is, then with more questions; skipped without a finished run, a Chromium or playwright."""
    run = max(_finished(Path("runs")), key=lambda run: len(run.questions()), default=None)
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if run is None or found is None:
        yield Skipped("page", "no Chromium: `make browser`" if run else "no finished run below runs/")
        return
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield Skipped("page", "playwright is not installed: `pip install playwright`")
        return
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    own = len(run.questions())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for n in (own, *(n for n in QUESTIONS if n > own)):
            path = Path(folder) / f"{n}.html"
            path.write_text(page if n == own else with_questions(page, n), encoding="utf-8")
            for width in WIDTHS:
                yield _opening(browser, path, width, f"{run.folder.name}, {n} questions, {width} px")
        browser.close()


def with_questions(page: str, n: int) -> str:
    """The page of a run with its questions repeated, under new names, until there are n."""
    found = _DATA.search(page)
    assert found is not None, "the page of a run carries its data"
    data = json.loads(found[1])
    own = len(data["questions"]["id"])

    def repeated(column: list[Any]) -> list[Any]:
        return [column[at % own] for at in range(n)]

    data["questions"] = {name: repeated(column) for name, column in data["questions"].items()}
    data["questions"]["id"] = [f"{name}-{at // own}" for at, name in enumerate(data["questions"]["id"])]
    for name in ("prompts", "classes", "samples"):
        data[name] = repeated(data[name])
    for layer in data.get("layers", []):
        layer["gaps"] = repeated(layer["gaps"])
    return page[: found.start()] + str(data_element(data)) + page[found.end() :]


def _finished(runs: Path) -> Iterator[Run]:
    for report in runs.glob("*/*/report.html"):
        if (run := Run(report.parent)).calibration():
            yield run


def _opening(browser: Any, path: Path, width: int, case: str) -> Opening:
    loads = [_load(browser, path, width) for _ in range(LOADS)]
    return Opening(case, path.stat().st_size / 1e6, *(median(column) for column in zip(*loads, strict=True)))


def _load(browser: Any, path: Path, width: int) -> tuple[float, float, float]:
    """Milliseconds until everything was drawn, at work, and in scripts."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    devtools.send("Performance.enable")
    page.goto(path.as_uri(), wait_until="load")
    page.locator(".rows tbody.real tr").first.wait_for()
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    spent = {each["name"]: 1000 * each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
    context.close()
    return loaded, spent["TaskDuration"], spent["ScriptDuration"]
