"""A dashboard for each module, and one Chromium for all of them; whatever its console complains of is a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

for folder in ("core", "e2e"):  # where `world` and `scene` are
    sys.path.append(str(Path(__file__).parents[1] / folder))

from stage import TOKENS, Make, Stage, World, canary, spec, tokens_file  # noqa: E402
from talk import sign_in  # noqa: E402

from canaryd.config.dashboard import Auth, Dashboard  # noqa: E402


@contextmanager
def staging(directory: Path) -> Iterator[Make]:
    """Makes dashboards; all of them have ended afterwards."""
    with ExitStack() as stack:

        def make(world: World | None = None, *, auth: dict[str, Any] | None = None, **settings: Any) -> Stage:
            found = world or World(canary("api", **spec()), canary("pay", **spec()), rps=300, seed=3)
            given = {"tokens_file": tokens_file(directory)} if auth is None else auth
            made = Stage(found, Dashboard(listen="127.0.0.1:0", auth=Auth(**given), **settings))
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Make]:
    with staging(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """The same for a whole module."""
    with staging(tmp_path_factory.mktemp("stage")) as make:
        yield make


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests; each gets a context of its own."""
    from playwright.sync_api import sync_playwright

    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=as_root)
        yield browser
        browser.close()


class Complaints(list[str]):
    """What the console said that it should not have said."""


@pytest.fixture
def visitor(chromium: Any) -> Iterator[Any]:
    """Opens pages: visitor(stage, role, **context) is signed in as who has the role. Complaints fail the test."""
    complaints, contexts = Complaints(), []

    def visit(stage: Stage, name: str = "anna", **more: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "base_url": stage.url, "reduced_motion": "reduce", **more}
        )
        contexts.append(context)
        context.set_default_timeout(8000)
        page = context.new_page()
        page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        page.on("console", lambda m: complaints.append(m.text) if _is_complaint(m) else None)
        page.on("dialog", lambda d: (complaints.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(stage.url) else complaints.append(f"asked {r.url}"))
        if stage.settings.auth.tokens_file and name:
            key, _, value = sign_in(stage.url, TOKENS[name][1])["cookie"].partition("=")
            context.add_cookies([{"name": key, "value": value, "url": stage.url}])
            page.goto(stage.url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def _is_complaint(message: Any) -> bool:
    """A stream or an answer that is refused on purpose is told by the console, too, as are ends of connections."""
    return (
        message.type in ("error", "warning")
        and "Failed to load resource" not in message.text
        and ("net::ERR" not in message.text)
    )
