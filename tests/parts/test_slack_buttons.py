"""Buttons in Slack over a real WebSocket (Socket Mode): who may press, what becomes of it, and what when it is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from slack_server import APP_TOKEN, CHANNEL, TOKEN, Slack, refusal, running

from canaryd.adapters.memory import MemoryStore
from canaryd.adapters.slack_buttons import SlackButtons
from canaryd.demo.processes import wait_until
from canaryd.model import Action, DecisionKind, Phase, Record, RolloutState
from canaryd.notices import blocks
from canaryd.notices.notice import notice
from canaryd.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UNDER_WAY = RolloutState(rollout="api-3", revision="7f3c", phase=Phase.PROGRESSING, weight=25)
ANNA = "U1ANNA"


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "app").write_text(APP_TOKEN)
    (directory / "bot").write_text(TOKEN)
    return directory / "app", directory / "bot"


class Heard:
    """Buttons that are connected, with a store behind them."""

    def __init__(self, slack: Slack, secrets: tuple[Path, Path]) -> None:
        self.slack = slack
        self.store = MemoryStore()
        app, bot = (Secret(str(file)) for file in secrets)
        self.buttons = SlackButtons(
            "ops", app, bot, self.store, [ANNA], api_url=slack.url, timeout=timedelta(seconds=2), clock=lambda: NOW,
            ping=0.5,
        )  # fmt: skip
        self.buttons.start()
        assert slack.connected.acquire(timeout=10)

    def press(self, envelope: str, *, user: str = ANNA, action: str = "pause", ts: str = "1.1", **about: str) -> None:
        value = {"canary": "shop/api", "revision": "7f3c", "rollout": "api-3", **about}
        self.slack.press(envelope, user, f"canaryd:{action}", json.dumps(value), ts=ts)
        wait_until(lambda: envelope in self.slack.acks, f"{envelope} to be acknowledged", timeout=5, every=0.02)

    def answer(self, n: int) -> dict[str, Any]:
        """The n-th that somebody alone was told."""
        wait_until(lambda: len(self.slack.ephemeral) >= n, "an answer", timeout=5, every=0.02)
        return self.slack.ephemeral[n - 1]

    def words(self) -> list[Any]:
        return list(self.store.load("shop/api").overrides)


@pytest.fixture(scope="module")
def connected(slack: Slack, secrets: tuple[Path, Path]) -> Iterator[Heard]:
    made = Heard(slack, secrets)
    yield made
    made.buttons.close()


@pytest.fixture
def heard(connected: Heard) -> Heard:
    """Afresh, on the connection that is there."""
    store = MemoryStore()
    store.save("shop/api", UNDER_WAY, 0, [])
    connected.store = connected.buttons._store = store
    connected.slack.ephemeral.clear()
    connected.slack.acks.clear()
    return connected


def test_a_press_is_a_word_for_the_revision_that_the_message_spoke_of_by_who_pressed(heard: Heard) -> None:
    heard.press("e1")
    said = heard.answer(1)
    (word,) = heard.words()
    assert (word.action, word.revision, word.by, word.at) == (Action.PAUSE, "7f3c", f"slack:{ANNA} (anna)", NOW)
    assert (said["user"], said["channel"]) == (ANNA, CHANNEL)
    assert "pause of shop/api 7f3c is on its way" in said["text"]


def test_a_press_that_slack_reports_again_is_acknowledged_again_and_is_one_word(heard: Heard) -> None:
    for envelope in ("e2", "e2", "e3"):  # the same envelope, and the same press in another one
        heard.press(envelope, ts="5.5")
    heard.answer(2)
    wait_until(lambda: len(heard.slack.acks) == 3, "three receipts", timeout=5)
    assert len(heard.words()) == 1
    heard.press("e4", ts="6.6")
    heard.answer(3)
    assert len(heard.words()) == 2


def test_who_is_not_on_the_list_changes_nothing_and_is_told_so(heard: Heard) -> None:
    with structlog.testing.capture_logs() as logs:
        heard.press("e5", user="U2MALLORY", action="abort")
        assert "not on canaryd's list" in heard.answer(1)["text"]
    assert heard.words() == []
    assert [e["by"] for e in logs if e["event"] == "press refused"] == ["slack:U2MALLORY (anna)"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        pytest.param({"revision": "old"}, "revision 7f3c is under way by now, not old", id="revision"),
        pytest.param({"rollout": "api-2"}, "nothing was done", id="rollout"),
        pytest.param({"canary": "shop/none"}, "no rollout is under way", id="no-such-canary"),
    ],
)
def test_a_message_that_speaks_of_something_else_than_what_is_under_way_does_nothing(
    heard: Heard, about: dict[str, str], words: str
) -> None:
    heard.press(f"e-{words}", **about)
    assert words in heard.answer(1)["text"]
    assert heard.words() == []


def test_what_is_none_of_canaryds_buttons_is_acknowledged_and_nothing_else(heard: Heard) -> None:
    heard.slack.press("x1", ANNA, "other:button", "{}")
    for n, value in enumerate(("", "[]", "not json", '{"canary": 1, "revision": "r", "rollout": ""}', "{}")):
        heard.slack.press(f"x2{n}", ANNA, "canaryd:abort", value)
    heard.slack.press("x3", ANNA, "canaryd:skip", json.dumps({"canary": "shop/api", "revision": "7f3c", "rollout": ""}))
    heard.slack.press("x4", ANNA, "canaryd:abort", "{}", type="view_submission")
    wait_until(lambda: len(heard.slack.acks) == 8, "all to be acknowledged", timeout=5)
    assert (heard.words(), heard.slack.ephemeral) == ([], [])


def test_a_store_that_fails_is_said_to_the_person(heard: Heard) -> None:
    heard.store.fail("the disk is full")
    heard.press("e6")
    assert "could not take it: the disk is full" in heard.answer(1)["text"]


def test_a_connection_that_is_cut_is_made_again(heard: Heard) -> None:
    heard.slack.sockets[-1].close()
    assert heard.slack.connected.acquire(timeout=15)
    wait_until(lambda: not heard.buttons.trouble, "the trouble to be over", timeout=5)
    heard.press("e7", action="abort")
    heard.answer(1)
    assert [w.action for w in heard.words()] == [Action.ABORT]


def test_a_wrong_token_is_one_line_and_heals_when_it_is_replaced(slack: Slack, secrets: tuple[Path, Path]) -> None:
    app = secrets[0].with_name("other")
    app.write_text(TOKEN)
    buttons = SlackButtons("ops", Secret(str(app)), Secret(str(secrets[1])), MemoryStore(), [ANNA], api_url=slack.url)
    try:
        with structlog.testing.capture_logs() as logs:
            buttons.start()
            wait_until(lambda: "Socket Mode needs the app's" in buttons.trouble, "the trouble to be said", timeout=5)
            slack.faults.append(refusal("invalid_auth"))
            app.write_text(APP_TOKEN)
            assert slack.connected.acquire(timeout=10)
        assert "planted" not in json.dumps(logs)
    finally:
        buttons.close()


def test_buttons_stand_under_a_rollout_that_is_under_way_and_ask_before_they_act() -> None:
    body = {"rollout": "api-3", "revision": "7f3c", "phase": "Paused", "stepWeights": [5], "step": 0}
    paused = notice(
        Record("shop/api/1", "shop/api", NOW, DecisionKind.OVERRIDE, "paused", body), NOW, timedelta(minutes=1)
    )
    (row,) = [b for b in blocks.head(paused, buttons=True)[1] if b["type"] == "actions"]
    assert [b["action_id"] for b in row["elements"]] == ["canaryd:promote", "canaryd:resume", "canaryd:abort"]
    assert all(b["confirm"]["text"]["text"] for b in row["elements"])
    over = notice(
        Record("shop/api/2", "shop/api", NOW, DecisionKind.SUCCEED, "done", {**body, "phase": "Succeeded"}),
        NOW, timedelta(minutes=1),
    )  # fmt: skip
    assert not [b for b in blocks.head(over, buttons=True)[1] if b["type"] == "actions"]
    assert not [b for b in blocks.head(paused)[1] if b["type"] == "actions"]
