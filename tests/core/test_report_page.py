"""The report in a real browser: it shows, fits a telephone, prints, loads nothing, and can be read by everybody."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from test_report import AT, TRACES
from test_story import regressed
from world import START

from canaryd.report import html
from canaryd.story import Gap, Story

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # never skipped there
        missing("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = [replace(r, body={**r.body, "traces": TRACES}) if r.kind == "rollback" else r for r in regressed()]
    story = Story.of(found)
    gap = Gap(START + timedelta(seconds=100), START + timedelta(seconds=120), "blind", "no answer")
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(html(replace(story, gaps=(gap,)), AT), encoding="utf-8")
    return page


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and everything that it complained of or asked for."""
    page, heard = browser.new_context(**options).new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: None if request.url == file.as_uri() else heard.append(request.url))
    page.goto(file.as_uri())
    return page, heard


@pytest.mark.parametrize("width", [400, 1000])
def test_it_shows_without_a_complaint_and_fits_the_screen(browser: Any, file: Path, width: int) -> None:
    page, heard = opened(browser, file, viewport={"width": width, "height": 900})
    assert heard == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").inner_text() == "▼ api r2 rolled back"
    assert page.locator("h1").bounding_box()["y"] < 200
    assert page.locator("svg.cd-chart").count() == 5
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(browser: Any, file: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(browser, file, color_scheme=scheme)
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in SERIOUS]
    assert [(v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in found] == []
    page.context.close()


def test_it_prints_on_a_few_sheets_in_black_on_white(browser: Any, file: Path, tmp_path: Path) -> None:
    page, _ = opened(browser, file, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    sheets = (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n")
    assert 2 <= sheets <= 8
    page.context.close()
