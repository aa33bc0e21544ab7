"""The dashboard as people see and use it, in a real Chromium: live, explained, operated, attacked, read aloud."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pictures import small_png
from stage import START, Make, Stage, World, canary, fleet, spec

from canaryd.dashboard.feed import Lead
from canaryd.model import Action, Phase

pytestmark = [pytest.mark.browser]
DOCS = Path(__file__).parents[2] / "docs"
EVIL = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}"
LARGEST = 150_000  # bytes of a picture in the documents


def picture(page: Any, name: str, **more: Any) -> None:
    """A screenshot for the documents, written when CANARYD_PICTURES is set: tests alone leave the tree as it is."""
    if os.environ.get("CANARYD_PICTURES"):
        text = small_png(page, page.screenshot(**more))
        assert len(text) <= LARGEST, f"{name}: {len(text)} bytes"
        (DOCS / f"dashboard-{name}.png").write_bytes(text)


def settle(page: Any) -> None:
    """The stream is open."""
    page.wait_for_selector("#live:not(.lost)")


def serious(page: Any) -> list[str]:
    """What axe-core finds that keeps somebody out."""
    from axe_playwright_python.sync_playwright import Axe

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
    found = Axe().run(page, options={"runOnly": tags, "resultTypes": ["violations"]}).response["violations"]
    return [
        f"{one['id']}: {[n['target'] for n in one['nodes']][:3]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def shop(staged: Make) -> Stage:
    """Three stories in a fleet of sixty: checkout is rolling out, pay was rolled back, search is done."""
    world = World(canary("checkout", **spec()), canary("pay", **spec()), canary("search", **spec()), rps=400, seed=3)
    stage = staged(world, actions=True)
    stage.turn(3)
    world.start("5d02", "search")
    stage.turn(19)
    world.start("7f3c", "pay")
    stage.turn(8)
    world.start("9e41", "checkout")
    stage.turn(4)
    world.errors["pay-b"] = 0.02
    stage.turn(7)
    stage.feed.by_hand = fleet(60, world.now)
    return stage


# ── seeing ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_overview_says_what_every_canary_is_at_most_pressing_first(shop: Stage, visitor: Any) -> None:
    page = visitor(shop)
    settle(page)
    assert page.locator("#rows tr").count() == 63
    tiles = dict(re.findall(r"(\d+) ([A-Z][a-z ]+)", page.locator(".tiles").inner_text().replace("\n", " ")))
    assert int(next(iter(tiles))) == page.locator('#rows tr[data-g="attention"]').count()
    groups = page.locator("#rows tr").evaluate_all("rows => rows.map(r => r.dataset.g)")
    order = ["attention", "rolling", "back", "rest"]
    assert groups == sorted(groups, key=order.index)
    row = page.locator('tr[data-k="checkout"]')
    words = row.inner_text()
    for said in ("checkout", "Progressing", "/5", "errors"):
        assert said in words
    assert re.search(r"\d+ s|\d+ min", row.locator("time[data-age]").inner_text())
    picture(page, "overview")


def test_filter_and_order_work_at_once_by_mouse_and_by_keyboard_and_stay_in_the_address(
    shop: Stage, visitor: Any
) -> None:
    page = visitor(shop)
    page.keyboard.press("/")
    page.keyboard.type("rolledback pay")
    visible = page.locator("#rows tr:visible")
    assert visible.count() > 0
    assert all("pay" in t and "RolledBack" in t for t in visible.all_inner_texts())
    assert page.url.endswith("/?q=rolledback+pay")
    page.keyboard.press("Escape")
    page.click('[data-show="attention"]')
    assert page.locator("#rows tr:visible").count() == page.locator('#rows tr[data-g="attention"]').count()
    page.reload()
    assert page.locator("#rows tr:visible").count() == page.locator('#rows tr[data-g="attention"]').count()
    page.click('[data-show="attention"]')
    page.select_option("#sort", "name")
    names = page.locator("#rows tr").evaluate_all("rows => rows.map(r => r.dataset.k.split('/').pop())")
    assert names == sorted(names)
    page.keyboard.press("Escape")
    page.locator("body").click(position={"x": 5, "y": 500})
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/canaries/**")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.fill("#q", "nothing-like-it") if page.locator("#q").count() else page.keyboard.press("Escape")


def test_an_overview_without_a_match_and_one_without_canaries_say_what_to_do(make_stage: Make, visitor: Any) -> None:
    empty = make_stage(World(canary("api", **spec())), auth={"anonymous": "viewer"})
    empty.feed.canaries.clear()
    page = visitor(empty)
    page.goto(empty.url)
    assert page.locator("#no-canaries").is_visible()
    assert "No canaries yet" in page.locator("#no-canaries").inner_text()
    empty.feed.by_hand = fleet(3)
    page.wait_for_selector("#rows tr")  # it comes by itself
    assert page.locator("#no-canaries").is_hidden()
    page.fill("#q", "nothing like it")
    assert page.locator("#no-match").is_visible()
    page.click("#no-match a")
    assert page.locator("#rows tr:visible").count() == 3
    empty.feed.by_hand = {}
    page.wait_for_selector("#no-canaries:visible")


def test_a_rollout_is_seen_live_from_its_first_step_to_its_end(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(
        World(canary("api", **spec(steps=[{"weight": 20, "bake": "10s"}, {"weight": 100, "bake": "10s"}])), rps=400)
    )
    stage.turn(3)
    stage.world.start("7f3c")
    page = visitor(stage)
    settle(page)
    row = page.locator('tr[data-k="api"]')
    stage.turn(2)
    page.wait_for_selector('tr[data-k="api"] >> text=20 / 20')
    row.locator("a").click()
    settle(page)
    seen = [page.locator(".pill").first.inner_text()]
    stage.until("Succeeded")
    page.wait_for_selector(".pill >> text=Succeeded")
    assert seen == ["Progressing"]
    assert "was promoted" in page.locator(".answers").inner_text()
    assert page.locator(".plan .done").count() == 2
    stage.world.start("8a00")
    stage.turn(2)
    page.goto(stage.url + "/canaries/api")
    assert page.url.endswith("/canaries/api/rollouts/api-2")
    assert "api-1" in page.locator(".past").inner_text()


def test_a_rollback_is_explained_with_its_numbers_its_charts_and_what_was_not_the_cause(
    shop: Stage, visitor: Any
) -> None:
    page = visitor(shop)
    page.goto(shop.url + "/canaries/pay")
    settle(page)
    top = page.locator("[data-part=top]").inner_text()
    assert "Rolled back" in top
    assert "was rolled back from" in top
    assert "Not the cause: latency" in top
    assert "tolerated" in top
    row = page.locator(".findings tbody tr").first.inner_text()
    assert re.search(r"errors.*\d %.*\+\d.*pt.*regressed", row, re.DOTALL)
    charts = page.locator(".chart svg[role=img]")
    assert charts.count() == 5
    assert all(one.get_attribute("aria-labelledby") or one.locator("title").count() for one in charts.all())
    log = page.locator(".log").first.inner_text()
    assert "begins by anna" in log
    assert page.locator(".gauge.bad + b").inner_text() == "100 %"
    picture(page, "rollback", full_page=True)
    page.click("text=Report")
    assert "was rolled back from" in page.locator("body").inner_text()
    assert page.evaluate("document.styleSheets.length && document.styleSheets[0].cssRules.length") > 10


def test_a_rollout_under_way_shows_how_far_each_decision_is(shop: Stage, visitor: Any) -> None:
    page = visitor(shop)
    page.goto(shop.url + "/canaries/checkout")
    settle(page)
    facts = page.locator(".facts").inner_text()
    assert re.search(r"Towards rollback\s+\d+ %", facts)
    assert re.search(r"Towards next step\s+\d+ %", facts)
    assert re.match(r"\d\d:\d\d", page.locator("time[data-left]").first.inner_text())
    picture(page, "rollout", full_page=True)


def test_traces_are_shown_with_links_that_lead_to_web_pages_only(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), rps=400), auth={"anonymous": "viewer"})
    stage.turn(3)
    stage.world.errors["api-b"] = 0.4
    stage.world.start("7f3c")
    stage.turn(6)
    assert stage.world.state().phase is Phase.ROLLED_BACK
    arms = {"canaryN": 40, "stableN": 800}
    exemplar = {
        "at": START.isoformat(),
        "service": "api",
        "operation": "GET /pay " + EVIL,
        "durationMs": 812.4,
        "error": True,
    }
    traces = {
        "note": "",
        "exemplars": [
            {**exemplar, "trace": "83a9ff", "url": "https://jaeger.example.com/trace/83a9ff", "status": "503"},
            {**exemplar, "trace": "77aa", "url": "javascript:alert(3)", "status": "200"},
        ],
        "onlyCanaryFails": [{"service": "api", "operation": EVIL, "canaryErrors": 12, "stableErrors": 0, **arms}],
        "newCalls": [
            {"service": "ledger", "operation": "POST /book", "canaryPerRequest": 1.0, "stablePerRequest": 0.0, **arms}
        ],
        "criticalPath": [{"service": "ledger", "operation": "POST /book", "canaryMs": 310.2, "stableMs": 12.1, **arms}],
    }
    last = stage.world.store.records("api", limit=1)[0]
    last.body["traces"] = traces  # type: ignore[index]
    page = visitor(stage)
    page.goto(stage.url + "/canaries/api")
    section = page.locator("[data-part=traces]")
    assert section.locator("a").count() == 1
    link = section.locator("a")
    assert link.get_attribute("href") == "https://jaeger.example.com/trace/83a9ff"
    assert link.get_attribute("rel") == "noopener noreferrer"
    text = section.inner_text()
    for said in ("12 of 40 failed", "0 of 800 failed", "310 ms", "1 per request", EVIL):
        assert said in text


# ── safety ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_reasons_sentences_and_troubles_are_text_and_never_markup(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), rps=400), actions=True)
    stage.turn(3)
    stage.world.start("7f3c")
    stage.turn(4)
    stage.world.say(Action.PAUSE, reason=EVIL)
    body = {
        "canary": EVIL,
        "phase": EVIL,
        "verdict": EVIL,
        "sentence": EVIL,
        "revision": EVIL,
        "trouble": [EVIL],
        "since": EVIL,
    }
    stage.feed.by_hand = {
        f"shop/{EVIL.replace('/', '')}": {**body, "stepWeights": [EVIL], "weight": EVIL, "findings": [{"metric": EVIL}]}
    }
    stage.feed.now_lead = Lead(leading=False, holder=EVIL, trouble=(EVIL,), problems=(EVIL,))
    page = visitor(stage)
    settle(page)
    assert EVIL in page.locator("#rows tr", has_text="shop").first.inner_text()
    stage.turn(1)  # and through the stream
    stage.feed.by_hand = {f"shop/{EVIL.replace('/', '')}": {**body, "trouble": [EVIL + "2"]}}
    page.wait_for_selector("text={{7*7}}2")
    page.locator("#rows tr", has_text="shop").first.locator("a").click()
    assert EVIL in page.locator("#main").inner_text()
    page.goto(stage.url + "/canaries/api")
    assert EVIL in page.locator("[data-part=log]").inner_text()
    assert EVIL in page.locator("[data-part=people]").inner_text()
    page.goto(f"{stage.url}/?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&show=%22%3E%3Cscript%3E&sort=%3Cb%3E")
    assert page.locator("img[src=x], #main script").count() == 0
    assert page.input_value("#q") == "<img src=x onerror=alert(1)>"


def test_a_wrong_token_is_said_and_a_right_one_leads_to_where_one_wanted(shop: Stage, visitor: Any) -> None:
    page = visitor(shop, "")
    page.goto(shop.url + "/canaries/pay")
    assert "/login?next=" in page.url
    page.fill("#token", "not-the-token-of-anybody-here")
    page.keyboard.press("Enter")
    assert page.locator("[role=alert]").inner_text() == "This token is not known."
    page.fill("#token", "a-viewers-token-with-32-letters.")
    page.keyboard.press("Enter")
    page.wait_for_url("**/canaries/pay/rollouts/pay-1")
    assert page.locator(".acts").count() == 0
    assert page.locator(".who").inner_text().split() == ["vera", "viewer"]
    page.click("text=Sign out")
    page.goto(shop.url + "/")
    assert "/login" in page.url


# ── acting ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_action_is_taken_with_a_reason_and_its_answer_is_shown_to_everybody(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), rps=400), actions=True)
    stage.turn(3)
    stage.world.start("7f3c")
    stage.turn(4)
    vera, anna = visitor(stage, "vera"), visitor(stage, "anna")
    for page in (vera, anna):
        page.goto(stage.url + "/canaries/api")
        settle(page)
    assert vera.locator(".act").count() == 0
    assert anna.locator(".act:visible summary").all_inner_texts() == ["Promote", "Pause", "Abort"]
    anna.click(".act.pause summary")
    anna.keyboard.type("lunch")
    picture(anna, "action")
    anna.keyboard.press("Enter")
    anna.wait_for_selector("#answer.accepted")
    assert "paused by anna ('lunch')" in anna.locator("#answer").inner_text()
    vera.wait_for_selector(".pill >> text=Paused")  # without looking again
    vera.wait_for_selector("[data-part=people] >> text=lunch")
    anna.wait_for_selector(".act.resume:visible")
    anna.click(".act.abort summary")
    anna.click(".act.abort button")
    assert anna.locator(".act.abort input:invalid").count() == 1  # no reason, no word
    anna.fill(".act.abort input[name=reason]", "customers complain")
    anna.click(".act.abort button")
    anna.wait_for_selector("#answer >> text=customers complain")
    stage.turn(1)
    assert stage.world.state().phase is Phase.ROLLED_BACK
    vera.wait_for_selector(".pill >> text=Rolled back")


def test_a_word_that_is_refused_says_why(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), rps=400), actions=True)
    stage.turn(3)
    stage.world.start("7f3c")
    stage.turn(4)
    page = visitor(stage)
    page.goto(stage.url + "/canaries/api")
    settle(page)
    page.click(".act.promote summary")
    page.keyboard.type("looks fine")
    stage.world.start("8b00")  # a newer revision comes while somebody types
    stage.turn(1)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer.refused")
    assert "it was said for revision 7f3c, but 8b00 is being rolled out" in page.locator("#answer").inner_text()


# ── living on ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_comes_back_by_itself_when_the_daemon_starts_again(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), rps=400))
    stage.turn(3)
    page = visitor(stage)
    settle(page)
    port = stage.server.address[1]
    stage.server.close()
    page.wait_for_selector("#live.lost")
    assert page.locator("#live").inner_text() == "reconnecting"
    assert page.locator('tr[data-k="api"]').is_visible()  # what was known stays
    stage.world.start("7f3c")
    stage.turn(3)
    stage.restart(port)
    page.wait_for_selector('tr[data-k="api"] >> text=Progressing', timeout=15_000)
    settle(page)


def test_a_page_whose_session_is_over_asks_to_sign_in_again(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec())), auth=None)
    page = visitor(stage, "vera")
    settle(page)
    Path(str(stage.settings.auth.tokens_file)).write_text("anna operator an-operators-token-of-32-letters\n")
    port = stage.server.address[1]
    stage.server.close()
    stage.restart(port)
    page.wait_for_url("**/login**", timeout=15_000)


# ── for everybody ────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_keeps_anybody_out_at_any_width_light_or_dark(shop: Stage, visitor: Any) -> None:
    page = visitor(shop)
    kept, shop.feed.by_hand = shop.feed.by_hand, fleet(12, shop.world.now)
    try:
        for width, theme, path in (
            (1280, "light", "/"),
            (400, "dark", "/"),
            (1280, "dark", "/canaries/pay"),
            (400, "light", "/canaries/checkout"),
        ):
            page.set_viewport_size({"width": width, "height": 860})
            page.emulate_media(color_scheme=theme)
            page.goto(shop.url + path)
            if path.endswith("checkout"):
                page.click(".act.pause summary")
            assert serious(page) == [], (width, theme, path)
    finally:
        shop.feed.by_hand = kept


@pytest.mark.parametrize("path", ["/", "/canaries/pay", "/canaries/checkout", "/login", "/nowhere"])
def test_at_four_hundred_pixels_nothing_has_to_be_pushed_sideways(shop: Stage, visitor: Any, path: str) -> None:
    page = visitor(shop, viewport={"width": 400, "height": 860})
    page.goto(shop.url + path)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    if path == "/":
        picture(page, "narrow")


def test_dark_is_what_the_system_says_until_somebody_chooses_and_then_it_stays(shop: Stage, visitor: Any) -> None:
    page = visitor(shop, color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60
    picture(page, "dark")
    page.keyboard.press("d")
    light = page.evaluate(back)
    assert min(map(int, re.findall(r"\d+", light)[:3])) > 200
    page.reload()
    assert page.evaluate(back) == light


def test_changes_are_read_aloud_once_and_what_has_the_focus_keeps_it(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), canary("pay", **spec()), rps=400))
    stage.turn(3)
    stage.world.start("7f3c", "api")
    stage.turn(3)
    page = visitor(stage)
    settle(page)
    assert page.locator("#say").get_attribute("aria-live") == "polite"
    page.focus('tr[data-k="api"] a')
    stage.world.errors["api-b"] = 0.5
    stage.turn(2)
    page.wait_for_selector('tr[data-k="api"] >> text=RolledBack')
    assert page.evaluate("document.activeElement.closest('tr').dataset.k") == "api"
    page.wait_for_function("document.getElementById('say').textContent === 'api: rolled back'")


def test_without_a_script_everything_can_be_read_filtered_and_done(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec()), canary("pay", **spec()), rps=400), actions=True)
    stage.turn(3)
    stage.world.start("7f3c", "api")
    stage.turn(4)
    page = visitor(stage, java_script_enabled=False)
    page.fill("#q", "progressing")
    page.click("text=Apply")
    assert page.locator("#rows tr:visible").count() == 1
    page.click("#rows tr:visible a")
    page.click(".act.pause summary")
    page.fill(".act.pause input[name=reason]", "lunch")
    page.click(".act.pause button")
    assert "paused by anna" in page.locator("#main").inner_text()
    page.click("text=Back to api")
    assert "Paused" in page.locator(".pill").first.inner_text()


def test_five_hundred_canaries_are_painted_within_a_second(make_stage: Make, visitor: Any) -> None:
    stage = make_stage(World(canary("api", **spec())), auth={"anonymous": "viewer"})
    stage.feed.by_hand = fleet(500, stage.world.now + timedelta(0))
    page = visitor(stage)
    page.goto(stage.url)
    paints = []
    for _ in range(3):  # the best of three: what else this machine does is not the page's
        page.reload()
        settle(page)
        entry = "performance.getEntriesByName('first-contentful-paint')[0]"
        page.wait_for_function(f"!!{entry}")
        paints.append(page.evaluate(f"{entry}.startTime"))
    assert page.locator("#rows tr").count() == 501
    assert min(paints) <= 1000, paints
    page.fill("#q", "login blind")
    assert 0 < page.locator("#rows tr:visible").count() < 20
