"""The report: everything in one harmless file, the same facts in each form, small however long the rollout was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from test_charts import HOSTILE, point
from test_story import STEPS, records, regressed
from world import START, World, canary

from canaryd.model import Action
from canaryd.report import FORMAT, document, html, markdown
from canaryd.report.contents import link, steps, timeline
from canaryd.story import Metric, Moment, Story

AT = START + timedelta(hours=1)
TRACES: dict[str, Any] = {
    "note": "",
    "exemplars": [
        {
            "trace": "83a9f1c2d4e5b6a7",
            "url": "https://jaeger.example.com/trace/83a9f1c2d4e5b6a7",
            "service": "api",
            "operation": "GET /pay",
            "durationMs": 812.4,
            "error": True,
            "status": "503",
            "facts": {"response_flags": "UF"},
        }
    ],
    "onlyCanaryFails": [
        {
            "service": "api",
            "operation": "GET /pay",
            "canaryErrors": 12,
            "canaryN": 40,
            "stableErrors": 0,
            "stableN": 800,
        }
    ],
    "newCalls": [
        {
            "service": "ledger",
            "operation": "POST /book",
            "canaryPerRequest": 1.0,
            "stablePerRequest": 0.0,
            "canaryN": 40,
        }
    ],
    "criticalPath": [
        {"service": "ledger", "operation": "POST /book", "canaryMs": 1310.2, "stableMs": 12.1, "canaryN": 40}
    ],
}


class Page(HTMLParser):
    """What a browser would make of it: tags, attributes, and whether everything is closed."""

    VOID = ("meta", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def story() -> Story:
    found = [replace(r, body={**r.body, "traces": TRACES}) if r.kind == "rollback" else r for r in regressed()]
    return Story.of(found, World(canary(steps=STEPS)).canaries[0])


def test_the_page_is_whole_and_loads_nothing(story: Story) -> None:
    page = Page(html(story, AT))
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    outside = [value for _, key, value in page.attributes if key in ("href", "src") and value]
    assert outside == ["https://jaeger.example.com/trace/83a9f1c2d4e5b6a7"]
    assert not any(key == "style" or key.startswith("on") for _, key, _ in page.attributes)
    assert "@import" not in html(story, AT)


def test_the_first_screen_says_what_happened_why_and_what_now(story: Story) -> None:
    head = html(story, AT).partition("<main>")[0]
    for words in (
        "What happened",
        "Why",
        "What now",
        "rolled back",
        "1.8 %",
        "0.18 %",
        "Not the cause: latency",
        "retry",
    ):
        assert words in head
    assert "requests to the canary" in head


def test_every_form_tells_the_same_facts(story: Story) -> None:
    page, text, machine = html(story, AT), markdown(story, AT), document(story, AT)
    plain = re.sub(r"\\(.)", r"\1", text)
    for fact in (story.what, "12:02:20", "+1.6 pt (+0.8..+3)", "GET /pay", "1.31 s (n 40)", "istio_requests_total"):
        assert fact in plain
        assert fact in page
    assert machine["what"] == story.what
    assert machine["metrics"][0]["points"][-1]["difference"] == pytest.approx(0.0157, abs=1e-4)
    assert machine["traces"]["exemplars"][0]["trace"] == "83a9f1c2d4e5b6a7"


def test_the_document_of_the_rollout_is_the_one_it_began_with() -> None:
    found = regressed()
    changed = canary(steps=[{"weight": 77, "bake": "60s"}])
    story = Story.of(found, changed)
    assert story.document_note == ""
    assert "weight: 5\n" in html(story, AT).replace("&quot;", '"')
    assert "weight: 77" not in html(story, AT)


def test_a_secret_in_a_url_of_the_document_is_left_out() -> None:
    hook = {"webhook": "https://example.com/hook?token=s3cret"}
    world = World(canary(steps=STEPS, afterPromotion=hook))
    world.turn(6)
    world.start("r2")
    world.turn(3)
    story = Story.of(records(world), world.canaries[0])
    for text in (html(story, AT), markdown(story, AT), json.dumps(document(story, AT))):
        assert "s3cret" not in text
    assert "https://example.com/hook?…" in html(story, AT)


def test_hostile_names_reasons_and_operations_stay_text(story: Story) -> None:
    bad = {"trace": HOSTILE, "url": "javascript:alert(1)", "operation": HOSTILE, "facts": {HOSTILE: HOSTILE}}
    hostile = replace(
        story,
        canary=HOSTILE,
        revision=HOSTILE,
        moments=tuple(
            replace(m, sentence=HOSTILE, kind=HOSTILE if m.kind == "hold" else m.kind) for m in story.moments
        ),
        metrics=(Metric(HOSTILE, (point(8, event=HOSTILE), point(9, event=HOSTILE)), is_decisive=True),),
        traces={"note": HOSTILE, "exemplars": [bad], "newCalls": [{"service": HOSTILE}]},
        decided={**story.decided, "sentence": HOSTILE, "decisive": HOSTILE},
        document={
            "metadata": {"name": HOSTILE},
            "spec": {"metrics": [{"name": HOSTILE, "kind": "query", "query": HOSTILE}]},
        },
    )
    page = html(hostile, AT)
    assert Page(page).open == []
    assert "<script" not in page
    assert "javascript:" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    text = markdown(hostile, AT)
    assert "<script" not in text
    assert "\x1b" not in text
    json.dumps(document(hostile, AT), allow_nan=False)


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "data:text/html,x", "https://a b", 'https://a"onclick=x', "//x", None, 7, "https:// "],
)
def test_only_web_addresses_become_links(url: object) -> None:
    assert link(url) == ""
    assert link("https://jaeger.example.com/trace/1?x=2&y=3") != ""


def test_a_rollout_of_ten_thousand_looks_is_a_page_of_bounded_size(story: Story) -> None:
    points = tuple(point(i) for i in range(10_000))
    quiet = [
        Moment(f"api/{i}", p.at, "hold", f"look {i}", "info", "Progressing", 0, 5.0, "healthy")
        for i, p in enumerate(points)
    ]
    loud = [replace(m, kind="drift", severity="warning") for m in quiet[::10]]
    moments = tuple(sorted([*quiet, *loud], key=lambda m: m.at))
    long = replace(story, metrics=(Metric("errors", points),) * 3, moments=moments, until=points[-1].at)
    assert len(html(long, AT)) < 700_000
    assert len(markdown(long, AT)) < 30_000
    machine = document(long, AT)
    assert len(json.dumps(machine)) < 6_000_000
    assert machine["thinned"] is True
    rows, left = timeline(long)
    assert len(rows) <= 120
    assert left > 0


def test_looks_without_a_change_are_one_line(story: Story) -> None:
    rows, left = timeline(story)
    assert left == 0
    assert [(r.kind, r.times) for r in rows] == [
        ("start", 1),
        ("advance", 1),
        ("hold", 5),
        ("advance", 1),
        ("hold", 1),
        ("rollback", 1),
        ("rolled-back", 1),
    ]


def test_each_step_has_its_requests_its_differences_and_its_end(story: Story) -> None:
    first, second = steps(story)
    assert (first[0], first[2], first[3], first[5]) == ("5 %", "1 min", "574", "advance")
    assert (second[0], second[5]) == ("25 %", "rollback")
    assert "errors +1.6 pt (+0.8..+3)" in second[4]


def test_what_people_said_is_in_every_form() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(3)
    world.say(Action.ABORT, reason="pager | <b>")
    story = Story.of(records(world), world.canaries[0])
    assert "pager | &lt;b&gt;" in html(story, AT)
    assert "pager \\| &lt;b&gt;" in markdown(story, AT)
    assert document(story, AT)["overrides"][0]["by"] == "anna"
    assert "abort" in story.why


def test_the_shape_for_machines_has_a_version_and_only_json_values(story: Story) -> None:
    machine = document(story, AT)
    assert machine["format"] == FORMAT == "canaryd.io/report/v1"
    assert json.loads(json.dumps(machine, allow_nan=False)) == json.loads(json.dumps(machine))
    assert set(machine) >= {"what", "why", "now", "decisions", "metrics", "weights", "evidence", "steps", "traces"}


def test_before_anything_happened_the_report_says_so() -> None:
    story = Story.of([])
    assert "There has been no rollout." in html(story, AT)
    assert "There has been no rollout." in markdown(story, AT)
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(1)
    first = html(Story.of(records(world), world.canaries[0]), AT)
    assert "nothing has been compared yet" in first
    assert Page(first).open == []


def test_a_server_with_a_policy_gives_its_nonce_to_the_style(story: Story) -> None:
    page = html(story, AT, nonce="abc")
    assert '<style nonce="abc">' in page
    assert "Content-Security-Policy" not in page
    assert "default-src &#x27;none&#x27;" in html(story, AT) or "default-src 'none'" in html(story, AT)
