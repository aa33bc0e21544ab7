"""Slack by the real slack-sdk against a server that speaks Slack's shapes: what arrives, also when things go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from slack_server import CHANNEL, TOKEN, WEBHOOK_PATH, Slack, limited, refusal, reset, running, slow, status, swallowed

from canaryd.adapters.memory import MemoryNotifier, MemoryStore
from canaryd.adapters.slack import SlackBot, SlackWebhook, Style
from canaryd.delivery import Delivery
from canaryd.errors import NotifyError
from canaryd.model import DecisionKind, Phase, Record, RolloutState
from canaryd.notices.kinds import Wish
from canaryd.notices.words import Words
from canaryd.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BODIES = json.loads((Path(__file__).parents[1] / "core" / "bodies.json").read_text())


@pytest.fixture
def slack() -> Iterator[Slack]:
    with running() as made:
        yield made


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


def record(n: int, kind: str = "advance", *, canary: str = "shop/api", rollout: str = "api-1", **body: Any) -> Record:
    said = {"rollout": rollout, "revision": "7f3c", "severity": "info", "namespace": "shop", "phase": "Progressing"}
    told = {**said, "step": 1, "stepWeights": [5, 25, 100], "weight": {"desired": 25}, "kind": kind, **body}
    return Record(f"{canary}/{n}", canary, NOW + n * SECOND, DecisionKind(kind), f"decision {n}", told, tell=True)


class Clock:
    """Time that is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def bot(slack: Slack, token: Path, store: Any, clock: Any = None, **more: Any) -> SlackBot:
    style = more.pop("style", None) or Style(clock=clock or Clock(), timeout=timedelta(seconds=1))
    channel = more.pop("channel", CHANNEL)
    return SlackBot("ops", Secret(str(token)), channel, store, api_url=slack.url, style=style, **more)


def stored(*records: Record) -> MemoryStore:
    store = MemoryStore()
    for canary in dict.fromkeys(r.canary for r in records):
        store.save(canary, RolloutState(phase=Phase.PROGRESSING), 0, [r for r in records if r.canary == canary])
    return store


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rollout_is_one_thread_whose_head_shows_where_it_is(slack: Slack, token: Path) -> None:
    store = MemoryStore()
    ops = bot(slack, token, store)
    ops.notify(record(1, "start", step=0, weight={"desired": 5}))
    ops.notify(record(2))
    ops.notify(record(3, "succeed", phase="Succeeded"))
    ops.notify(record(4, "start", rollout="api-2"))
    first, second = slack.heads()
    assert [m["text"] for m in slack.replies(first["ts"])] == [f"shop/api: decision {n}" for n in (1, 2, 3)]
    assert [m["text"] for m in slack.replies(second["ts"])] == ["shop/api: decision 4"]
    assert "promoted" in first["blocks"][0]["text"]["text"]
    assert "step 3 of 3" in first["blocks"][0]["text"]["text"]
    assert store.memo("shop/api") == {
        "ops/api-1": f"{CHANNEL} {first['ts']}",
        "ops/api-2": f"{CHANNEL} {second['ts']}",
    }


def test_a_new_daemon_goes_on_in_the_same_thread(slack: Slack, token: Path) -> None:
    store = MemoryStore()
    bot(slack, token, store).notify(record(1, "start"))
    bot(slack, token, store, channel="#releases").notify(record(2))
    assert len(slack.heads()) == 1
    assert len(slack.replies()) == 2


def test_what_a_killed_daemon_has_posted_is_found_and_not_posted_again(slack: Slack, token: Path) -> None:
    bot(slack, token, MemoryStore()).notify(record(1, "start"))  # and dies before anything is noted
    ops = bot(slack, token, MemoryStore())
    ops.notify(record(1, "start"))
    ops.notify(record(2))
    assert len(slack.heads()) == 1
    assert slack.texts() == ["shop/api: decision 1", "shop/api: decision 2"]


def test_a_bot_that_may_not_read_repeats_one_message_at_most_and_says_so_once(slack: Slack, token: Path) -> None:
    slack.scopes, store = False, MemoryStore()
    bot(slack, token, store).notify(record(1, "start"))
    ops = bot(slack, token, store)
    with structlog.testing.capture_logs() as logs:
        ops.notify(record(1, "start"))
        ops.notify(record(2))
        ops.notify(record(3, rollout="api-2"))
    assert len(slack.replies(slack.heads()[0]["ts"])) == 3
    assert [e["event"] for e in logs] == ["the channel cannot be read"]


def test_a_reply_that_arrived_although_the_answer_was_lost_is_not_repeated(slack: Slack, token: Path) -> None:
    ops = bot(slack, token, MemoryStore())
    ops.notify(record(1, "start"))
    slack.faults.append(swallowed)
    with pytest.raises(NotifyError):
        ops.notify(record(2))
    fresh = bot(slack, token, MemoryStore())
    fresh.notify(record(2))
    assert slack.texts() == ["shop/api: decision 1", "shop/api: decision 2"]


def test_a_thread_that_somebody_deleted_begins_anew(slack: Slack, token: Path) -> None:
    store = MemoryStore()
    ops = bot(slack, token, store)
    ops.notify(record(1, "start"))
    slack.messages.clear()
    slack.faults.append(refusal("thread_not_found"))
    with pytest.raises(NotifyError):
        ops.notify(record(2))
    ops.notify(record(2))
    assert len(slack.heads()) == 1
    assert slack.texts() == ["shop/api: decision 2"]


def test_late_messages_leave_the_head_at_the_present(slack: Slack, token: Path) -> None:
    now, clock = record(9, "succeed", phase="Succeeded"), Clock()
    store = stored(now)
    body = {**now.body, "at": now.at.isoformat(), "sentence": "promoted"}
    store.save("shop/api", RolloutState(phase=Phase.SUCCEEDED, latest=body), 1, [])
    clock.now = NOW + timedelta(minutes=9)
    bot(slack, token, store, clock).notify(record(2))
    (head,) = slack.heads()
    assert "promoted" in head["blocks"][0]["text"]["text"]
    (reply,) = slack.replies()
    assert "sent 8 min 58 s late" in json.dumps(reply["blocks"])


def test_a_word_about_no_rollout_is_a_message_of_its_own(slack: Slack, token: Path) -> None:
    ops = bot(slack, token, MemoryStore())
    held = Record("shop/api/held/1", "shop/api", NOW, DecisionKind.HOLD, "the route is gone", {"severity": "warning"})
    ops.notify(held)
    ops.notify(held)
    assert [m["text"] for m in slack.heads()] == ["shop/api: the route is gone"]


def test_only_what_was_wished_for_is_sent(slack: Slack, token: Path) -> None:
    wish = Wish(namespaces=("sh*",), labels={"team": "checkout"}, kinds=("rollback", "step"))
    ops = bot(slack, token, MemoryStore(), style=Style(wishes=(wish,), clock=Clock()))
    assert ops.notify(record(1)) is False
    assert ops.notify(record(2, "start", labels={"team": "checkout"})) is False
    assert ops.notify(record(3, namespace="lab", labels={"team": "checkout"})) is False
    assert ops.notify(record(4, labels={"team": "checkout", "tier": "1"})) is True
    assert slack.texts() == ["shop/api: decision 4"]


# ── what a message says ──────────────────────────────────────────────────────────────────────────────────────


def rollback(**more: Any) -> Record:
    body = {**BODIES["pay"], "kind": "rollback", "severity": "critical", "next": "retry, or a new revision", **more}
    second = {**body["findings"][0], "metric": "latency", "verdict": "healthy", "difference": 0.0001}
    body["findings"] = [*body["findings"], second]
    body["traces"] = {
        "note": "",
        "exemplars": [
            {"trace": "83a9", "url": "https://jaeger.example.com/trace/83a9", "service": "pay", "operation": "GET /pay",
             "durationMs": 812.4, "error": True, "status": "503", "facts": {"response_flags": "UF"}}
        ],
        "newCalls": [
            {"service": "ledger", "operation": "POST /book", "canaryPerRequest": 1.0, "stablePerRequest": 0.0}
        ],
    }  # fmt: skip
    return Record("shop/pay/8", "shop/pay", NOW, DecisionKind.ROLLBACK, body["sentence"], body, tell=True)


def test_a_rollback_alone_lets_a_person_understand_it(slack: Slack, token: Path) -> None:
    style = Style(clock=Clock(), mentions=lambda s: ("here", "U1", "S2") if s == "critical" else (),
                  external_url="https://canaryd.example.com/")  # fmt: skip
    bot(slack, token, MemoryStore(), style=style).notify(rollback())
    (reply,) = slack.replies()
    shown = json.dumps(reply["blocks"], ensure_ascii=False)
    for words in (
        *("1.9 %", "0.1 %", "+1.8 pt (+1.1..+2.6)", "+0.03 pt", "(n 2 310)", "(n 43 870)", "regressed"),
        *(
            "31 requests failed of 2 100",
            "*Not the cause:* latency",
            "*Decided by:* errors",
            "retry, or a new revision",
        ),
        *("<https://jaeger.example.com/trace/83a9|pay GET /pay, 503, UF, 812 ms>", "ledger POST /book"),
        *("<!here> <@U1> <!subteam^S2>", "https://canaryd.example.com/canaries/shop/pay/rollouts/pay-1|dashboard"),
    ):
        assert words in shown, words
    assert reply["reply_broadcast"] is True


def test_names_and_reasons_call_nobody_and_link_nowhere(slack: Slack, token: Path) -> None:
    evil = "<!channel> <@U1> <https://evil.example.com|here> & ```x``` \u202eabc\n@here"
    spoilt = rollback()
    findings = [{**f, "metric": evil, "verdict": evil} for f in spoilt.body["findings"]]
    body = {**spoilt.body, "revision": evil, "rollout": evil, "decisive": evil, "findings": findings, "next": evil}
    bot(slack, token, MemoryStore(), buttons=True).notify(replace(spoilt, sentence=evil * 400, body=body))
    for message in slack.messages:
        shown = json.dumps([b for b in message["blocks"] if b["type"] != "actions"], ensure_ascii=False)
        assert "<!channel>" not in shown
        assert "<@U1>" not in shown
        assert "evil.example.com|" not in shown.replace("&gt;", "").replace("&lt;https://evil.example.com|", "")
        assert "\u202e" not in shown
        assert all(b["text"]["verbatim"] for b in message["blocks"] if b["type"] == "section")


def test_the_layout_stays_within_slacks_limits_whatever_a_record_holds(slack: Slack, token: Path) -> None:
    huge = rollback()
    finding = {**huge.body["findings"][0], "metric": "m&" * 40}
    trace = {
        **huge.body["traces"]["exemplars"][0],
        "operation": "<" * 2000,
        "url": "https://j.example.com/" + "a" * 900,
    }
    body = {**huge.body, "findings": [finding] * 200, "traces": {"exemplars": [trace] * 90, "note": "&" * 5000}}
    bot(slack, token, MemoryStore()).notify(replace(huge, body=body, sentence="<" * 9000))
    assert len(slack.replies()) == 1
    assert re.search(r"… and \d+ metrics more", json.dumps(slack.replies()[0]["blocks"], ensure_ascii=False))


def test_a_layout_that_slack_refuses_goes_as_plain_text(slack: Slack, token: Path) -> None:
    ops = bot(slack, token, MemoryStore())
    ops.notify(record(1, "start"))
    slack.faults.append(refusal("invalid_blocks"))
    with structlog.testing.capture_logs() as logs:
        ops.notify(record(2))
    assert "blocks" not in slack.replies()[-1]
    assert logs[0]["log_level"] == "error"


def test_a_template_has_the_word_and_a_broken_one_gives_the_usual_words_and_says_so(slack: Slack, token: Path) -> None:
    templates = {
        "step": "{{ name }} at {{ weight.desired }} % <!date^1^{time}|x> {{ labels.a }}",
        "start": "{{ nobody }}",
    }
    ops = bot(slack, token, MemoryStore(), style=Style(clock=Clock(), words=Words(templates)))
    ops.notify(record(1, "start"))
    ops.notify(record(2, labels={"a": "<!here>"}))
    first, second = (m["blocks"][0]["text"]["text"] for m in slack.replies())
    assert "decision 1" in first
    assert "the template for start failed: UndefinedError: 'nobody' is undefined" in first
    assert "api at 25 % <!date^1^{time}|x> &lt;!here&gt;" in second


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(refusal("token_revoked"), "the token was revoked", id="revoked"),
        pytest.param(refusal("is_archived"), f"the channel {CHANNEL} is archived", id="archived"),
        pytest.param(refusal("not_in_channel"), "/invite it there", id="not-in-channel"),
        pytest.param(refusal("missing_scope", needed="chat:write"), "lacks a scope (chat:write)", id="scope"),
        pytest.param(refusal("strange_new_error"), "strange_new_error", id="unknown"),
        pytest.param(refusal("xoxb-" + "planted"), "no reason", id="a-code-that-is-none"),
        pytest.param(status(500), "HTTP 500", id="500"),
        pytest.param(status(200, "not json"), "HTTP 200 and no reason", id="no-json"),
        pytest.param(reset, "Slack at 127.0.0.1: ", id="reset"),
        pytest.param(slow(1.6), "no answer in time", id="slow"),
    ],
)
def test_each_trouble_is_one_clear_line_and_over_when_it_is_over(
    slack: Slack, token: Path, fault: Any, words: str
) -> None:
    ops = bot(slack, token, MemoryStore())
    ops.notify(record(1, "start"))
    slack.faults.append(fault)
    with pytest.raises(NotifyError) as caught:
        ops.notify(record(2))
    assert words in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "\n" not in str(caught.value)
    ops.notify(record(2))
    assert "shop/api: decision 2" in slack.texts()


def test_an_unknown_channel_and_a_wrong_token_are_named_with_what_to_do(slack: Slack, token: Path) -> None:
    with pytest.raises(NotifyError, match=r"knows no channel C0WRONG .*invite"):
        bot(slack, token, MemoryStore(), channel="C0WRONG").notify(record(1))
    token.write_text("xoxb-wrong")
    with pytest.raises(NotifyError, match=f"into the file {token}") as caught:
        bot(slack, token, MemoryStore()).notify(record(1))
    assert "xoxb-wrong" not in str(caught.value)


def test_slack_says_how_long_to_wait(slack: Slack, token: Path) -> None:
    slack.faults.append(limited(17))
    with pytest.raises(NotifyError) as caught:
        bot(slack, token, MemoryStore()).notify(record(1))
    assert caught.value.retry_after == 17


def test_a_token_that_is_replaced_is_used_for_the_next_message(slack: Slack, token: Path) -> None:
    ops = bot(slack, token, MemoryStore())
    token.write_text("xoxb-old")
    with pytest.raises(NotifyError):
        ops.notify(record(1))
    token.write_text(TOKEN)
    ops.notify(record(1))
    for text, words in (("", "is empty"), ("two words", "one line"), ("a\x00b", "one line")):
        token.write_text(text)
        with pytest.raises(NotifyError, match=words):
            ops.notify(record(2))
    token.unlink()
    with pytest.raises(NotifyError, match="cannot be read: No such file"):
        ops.notify(record(2))


# ── incoming webhooks ────────────────────────────────────────────────────────────────────────────────────────


def test_an_incoming_webhook_gets_each_decision_as_a_message_of_its_own(slack: Slack, tmp_path: Path) -> None:
    url = tmp_path / "url"
    url.write_text(slack.url.removesuffix("/api/") + WEBHOOK_PATH)
    hook = SlackWebhook("ops", Secret(str(url)), style=Style(clock=Clock(), timeout=timedelta(seconds=1)))
    hook.notify(rollback())
    assert "pay" in slack.posts[0]["blocks"][0]["text"]["text"]
    for fault, words in (
        (limited(3), "pause"),
        (status(404, "no_service"), "make a new one"),
        (status(410, "channel_is_archived"), "archived"),
        (status(500, "planted"), "no reason that is known"),
        (reset, "Slack's webhook: "),
    ):
        slack.faults.append(fault)
        with pytest.raises(NotifyError, match=words) as caught:
            hook.notify(record(1))
        assert "planted" not in str(caught.value)
    url.write_text("file:///etc/passwd")
    with pytest.raises(NotifyError, match="holds no URL"):
        hook.notify(record(1))


# ── down for a while ─────────────────────────────────────────────────────────────────────────────────────────


def test_while_slack_is_down_others_are_told_and_later_all_arrives_once_in_order_and_marked_late(
    slack: Slack, token: Path
) -> None:
    told = [record(n, "start" if n == 1 else "advance") for n in range(1, 9)]
    store, clock, log = stored(*told), Clock(), MemoryNotifier("log")
    delivery = Delivery((log, bot(slack, token, store, clock)), store)
    slack.down = True
    with structlog.testing.capture_logs() as lines:
        for minute in range(10):
            clock.now = NOW + timedelta(minutes=minute)
            for courier in delivery.couriers:
                courier.tell(clock.now)
    assert log.told == told
    assert slack.messages == []
    assert [line["event"] for line in lines] == ["not told"]  # the same words are said once in ten minutes
    slack.down, clock.now = False, NOW + timedelta(minutes=15)
    for courier in delivery.couriers:
        courier.tell(clock.now)
    assert slack.texts() == [f"shop/api: decision {n} (sent 14 min {60 - n} s late)" for n in range(1, 9)]
    assert len(slack.heads()) == 1
    assert store.owed() == ()
