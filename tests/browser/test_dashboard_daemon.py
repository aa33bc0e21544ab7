"""A real `canaryd run` with its dashboard, a real Envoy under load, and a real Chromium that looks on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, service, under_load
from stage import TOKENS, tokens_file
from talk import HTML, ask, sign_in

from canaryd.demo.lab import Lab
from canaryd.demo.processes import Nursery, free_port, wait_until
from canaryd.demo.site import from_page
from canaryd.model import Phase

pytestmark = [pytest.mark.browser, pytest.mark.envoy, pytest.mark.slow]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """One service with a canary that fails when it is told to."""
    with Lab(tmp_path / "lab", [service("shop")]) as lab, Nursery(tmp_path / "log") as nursery:
        scene = Scene(lab, tmp_path / "site", nursery, from_page(lab.metrics_url))
        yield scene
        scene.close()


def configure(scene: Scene, port: int) -> str:
    """The dashboard of this site on this port; its address."""
    tokens_file(scene.site.directory)
    section = f'dashboard: {{listen: "127.0.0.1:{port}", actions: true, auth: {{tokensFile: tokens}}}}\n'
    scene.site.config.write_text(scene.site.config.read_text() + section)
    return f"http://127.0.0.1:{port}"


def test_a_release_is_watched_paused_and_rolled_back_before_ones_eyes_across_a_restart(
    scene: Scene, chromium: Any
) -> None:
    url = configure(scene, free_port())
    scene.canary("shop", steps=[{"weight": 20, "bake": "60s"}, 100])
    scene.run()
    context = chromium.new_context(base_url=url)
    key, _, value = sign_in(url, TOKENS["anna"][1])["cookie"].partition("=")
    context.add_cookies([{"name": key, "value": value, "url": url}])
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(url)
    page.wait_for_selector("#live:not(.lost)")
    with under_load(scene.lab, "shop"):
        scene.release("shop", "r1")
        page.wait_for_selector('tr[data-k="shop"] >> text=20 / 20')  # without looking again
        page.click('tr[data-k="shop"] a')
        page.wait_for_selector(".gauge.good")
        page.click(".act.pause summary")
        page.fill(".act.pause input[name=reason]", "let me look")
        page.click(".act.pause button")
        page.wait_for_selector("#answer.accepted")
        assert scene.state("shop").phase is Phase.PAUSED
        assert "let me look" in scene.say("explain", "shop")[1]
        scene.daemon.stop()
        page.wait_for_selector("#live.lost")
        scene.run()  # the session is still good
        page.wait_for_selector("#live:not(.lost)")
        scene.lab.behave("shop-green", errors=1.0)
        page.wait_for_selector(".pill >> text=Rolled back")
    scene.until_phase("shop", Phase.ROLLED_BACK)
    assert "regressed" in page.locator(".findings").inner_text()
    context.close()


def test_one_that_waits_for_its_turn_shows_what_it_sees_and_who_decides(scene: Scene) -> None:
    configure(scene, free_port())
    scene.canary("shop")
    scene.run()
    second = scene.site.directory / "second.yaml"
    port, web = free_port(), free_port()
    lines = [line for line in scene.site.config.read_text().splitlines() if not line.startswith(("dashboard:", "web:"))]
    section = f'dashboard: {{listen: "127.0.0.1:{port}", actions: true, auth: {{anonymous: operator}}}}'
    second.write_text("\n".join([*lines, section, f'web: {{listen: "127.0.0.1:{web}"}}']) + "\n")
    import sys

    waiting = scene.nursery.start("waiting", [sys.executable, "-m", "canaryd", "run", "--config", str(second)])
    try:
        url = f"http://127.0.0.1:{port}"

        def there() -> str:
            try:
                page = ask(url, "/", **HTML).text
            except OSError:
                return ""
            return page if 'data-k="shop"' in page else ""

        page = wait_until(there, "the one that waits to show shop", timeout=20)
        assert page is not None
        assert "This one watches." in page
        assert f"pid {scene.daemon.pid}" in page
        with under_load(scene.lab, "shop"):
            scene.release("shop", "r1")
            scene.until_weight("shop", 20)
            form = {"action": "abort", "reason": "from afar", "revision": "r1", "form": ""}
            form["form"] = ask(url, "/canaries/shop/rollouts/shop-1", **HTML).text.partition('name="form" value="')[2][
                :64
            ]
            answer = ask(url, "/canaries/shop/say", form=form, accept="application/json")
            assert (answer.status, answer.json["answer"]) == (200, "accepted")
            scene.until_phase("shop", Phase.ROLLED_BACK)
    finally:
        waiting.stop()


def test_an_unsafe_or_broken_dashboard_keeps_the_daemon_from_starting_and_says_why(scene: Scene) -> None:
    config = scene.site.config.read_text()
    for section, code, words in (
        ('dashboard: {listen: "0.0.0.0:9096", auth: {anonymous: viewer}}', 65, "it is for loopback"),
        ('dashboard: {listen: "127.0.0.1:9096"}', 65, "auth is empty"),
        ('dashboard: {listen: "127.0.0.1:0", auth: {tokensFile: gone}}', 69, "gone: No such file or directory"),
    ):
        scene.site.config.write_text(config + section + "\n")
        began = time.monotonic()
        done = scene.site.command("run")
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
        assert time.monotonic() - began < 15


def test_without_a_dashboard_nothing_of_it_is_loaded() -> None:
    import subprocess
    import sys

    program = "import sys, canaryd.daemon, canaryd.cluster; print([m for m in sys.modules if m.split('.')[0] in"
    program += " ('starlette', 'uvicorn', 'jinja2', 'anyio') or m.startswith('canaryd.dashboard')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
