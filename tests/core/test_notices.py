"""Facts for people from whatever a record holds, and templates that can say much but not everything."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.config.notify import Channel
from canaryd.model import DecisionKind, Record
from canaryd.notices import blocks, cloudevent
from canaryd.notices.kinds import KINDS, WORDS, Wish, is_wanted
from canaryd.notices.notice import notice
from canaryd.notices.press import press
from canaryd.notices.templates import LONGEST, TemplateError, problem, render

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BODIES = json.loads((Path(__file__).parent / "bodies.json").read_text())
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = sorted({*BODIES["pay"], "traces", "labels", "override"})


def record(body: Any, kind: DecisionKind = DecisionKind.ROLLBACK) -> Record:
    return Record("shop/pay/8", "shop/pay", NOW, kind, str(body.get("sentence", "")), body, tell=True)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING), st.sampled_from(list(DecisionKind)))
def test_whatever_a_record_holds_slack_takes_the_layout_and_a_program_the_event(body: Any, kind: DecisionKind) -> None:
    told = notice(record(body, kind), NOW + timedelta(hours=9), MINUTE, "https://x.example.com")
    for _, made in (blocks.head(told, buttons=True), blocks.decision(told, alone=True, mentions=["U1", "here"])):
        assert blocks.problems(made) == []
        json.dumps(made).encode()
    assert json.loads(cloudevent.event(record(body, kind), told, "/canaryd"))["specversion"] == "1.0"


@given(ANYTHING)
def test_no_payload_of_slack_is_an_exception(payload: Any) -> None:
    if isinstance(payload, dict):
        press(payload)
        press({"type": "block_actions", "user": payload, "actions": [payload]})
        action = {"action_id": "canaryd:abort", "value": json.dumps(payload), "action_ts": "1"}
        press({"type": "block_actions", "user": {"id": "U1"}, "actions": [action]})


def test_every_kind_of_decision_has_a_word_that_routes_know() -> None:
    assert set(WORDS) == set(DecisionKind)
    assert set(WORDS.values()) == set(KINDS)


def test_a_wish_must_fit_in_all_that_it_names() -> None:
    told = record({"namespace": "shop", "severity": "critical", "labels": {"team": "pay"}})
    assert is_wanted(told, ())
    for fits in (
        Wish(),
        Wish(("sh?p",)),
        Wish(labels={"team": "pay"}),
        Wish(severities=("critical",), kinds=("rollback",)),
    ):
        assert is_wanted(told, (Wish(("none",)), fits))
    for misses in (
        Wish(("Shop",)),
        Wish(labels={"team": "x"}),
        Wish(severities=("info",)),
        Wish(("shop",), kinds=("step",)),
    ):
        assert not is_wanted(told, (misses,))


def test_a_record_of_an_older_canaryd_has_the_facts_that_it_has() -> None:
    told = notice(record({"phase": "RolledBack"}), NOW, MINUTE)
    assert (told.harmed, told.rows, told.page, told.late, told.steps) == ("", (), "", "", (0, 0))
    late = notice(record({}), NOW + timedelta(minutes=9), MINUTE)
    assert late.late == "sent 9 min late"


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ canary }} {{ weight.desired }} %", "pay 0 %"),
        ("{% for f in findings %}{{ f.metric }}: {{ percent(f.canary) }}{% endfor %}", "errors: 1.9 %"),
        ("{{ sentence | upper | truncate(9) }}", "PAY..."),
        ("{% if harmed.failures > 30 %}bad{% else %}fine{% endif %}", "bad"),
        ("{{ stepWeights | join(', ') }} and {{ (1 + 2) * 3 }}", "5, 10, 25, 50, 100 and 9"),
        ("{{ nothing | default('none') }}", "none"),
        ("{{ findings[0].metric ~ '!' }}", "errors!"),
    ],
)
def test_a_template_shows_values_of_the_record(template: str, said: str) -> None:
    assert problem(template) == ""
    assert render(template, BODIES["pay"]) == said


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ canary.__class__ }}",
        "{{ canary.upper() }}",
        "{{ cycler }}{{ range(9) }}",
        "{% set a = canary %}{{ a }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% macro m() %}{% endmacro %}{{ m() }}",
        "{% for a in findings %}{% for b in findings %}{% for c in findings %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in findings recursive %}{{ loop(a) }}{% endfor %}",
        "{{ 2 ** 999999999 }}",
        "{{ canary | attr('x') }}",
        "{{ canary | replace('a', canary) }}",
        "{{ canary | center(10**9) }}",
        "{{ unfinished",
        "{% if %}",
        "{{ '%s' % canary }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_what_could_reach_out_or_run_for_ever_is_refused_when_the_settings_are_read(template: str) -> None:
    refused = problem(template) or _failing(template)
    assert refused, template
    if problem(template):
        with pytest.raises(ValueError, match="template"):
            Channel.model_validate({"name": "x", "slack": {"webhookURLEnv": "X"}, "templates": {"step": template}})


def _failing(template: str) -> str:
    try:
        render(template, BODIES["pay"])
    except TemplateError as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ canary * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ canary + canary }}",
        "{% for a in many %}{% for b in many %}{{ a ~ a ~ a }}{% endfor %}{% endfor %}",
        "{% for a in many %}{% for b in many %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}",
        "{% for a in [long ~ long ~ long] %}{{ a ~ a }}{% endfor %}",
        "{{ 10 / 0 }}",
        "{{ findings }}",
        "{{ many[999] }}",
        "{{ weight.nobody }}",
        "{{ long | truncate(99999999) ~ long }}",
    ],
)
def test_a_template_ends_soon_with_an_error_in_words_and_never_with_more_than_a_message(template: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        render(template, {**BODIES["pay"], "many": list(range(100_000)), "long": "x" * 100_000})
    assert time.perf_counter() - began < 2
    assert 0 < len(str(caught.value)) < 400
    assert LONGEST == 3000
