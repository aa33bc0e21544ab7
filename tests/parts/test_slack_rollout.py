"""A whole rollout while Slack is down for a while, in real threads; and daemons killed while they tell Slack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from slack_server import CHANNEL, TOKEN, Slack, running

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("core", "e2e"))

from test_kills import KILLED, Nursery, nursery  # noqa: F401
from world import World, canary

from canaryd.adapters.slack import SlackBot, Style
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.delivery import Delivery
from canaryd.demo.processes import wait_until
from canaryd.model import Phase
from canaryd.reconcile import Reconciler
from canaryd.secret import Secret

STEPS: dict[str, Any] = {"steps": [{"weight": w, "bake": "20s"} for w in (10, 50)]}


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    monkeypatch.setenv("SLACK_TOKEN", TOKEN)
    with running() as made, structlog.testing.capture_logs():
        yield made


def test_slack_is_down_during_a_whole_rollout_which_goes_on_and_is_told_later_once_in_order_and_marked_late(
    slack: Slack,
) -> None:
    world = World(canary(**STEPS, metrics=[{"name": "errors", "kind": "errors"}]))
    clock: Callable[[], Any] = lambda: world.now  # noqa: E731
    bot = SlackBot("ops", Secret(env="SLACK_TOKEN"), CHANNEL, world.store, api_url=slack.url, style=Style(clock=clock))
    delivery = Delivery((world.notifier, bot), world.store)
    world.reconciler.close()
    world.reconciler = Reconciler(replace(world.ports, notifiers=()))  # the threads tell, not the ticks
    delivery.start(clock, lambda: True)
    try:
        slack.down = True
        world.start()
        world.turn()
        turns = world.until("Succeeded", "RolledBack")
        assert world.state().phase is Phase.SUCCEEDED
        kept = [r for r in reversed(world.store.records("api", limit=1000)) if r.tell]
        wait_until(lambda: len(world.notifier.told) == len(kept), "the log to be told", timeout=10, every=0.02)
        assert slack.messages == []
        slack.down = False
        world.now += timedelta(minutes=10)
        delivery.doubt_nothing()
        wait_until(lambda: not world.store.owed(), "Slack to be told", timeout=10, every=0.02)
    finally:
        delivery.stop()
    assert turns > 5
    assert [r.id for r in world.notifier.told] == [r.id for r in kept]
    assert [text.partition(" (sent ")[0] for text in slack.texts()] == [f"api: {r.sentence}" for r in kept]
    assert all(text.endswith(" late)") for text in slack.texts())
    (head,) = slack.heads()
    assert "promoted" in head["blocks"][0]["text"]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("scopes", [True, False], ids=["may-read", "may-not-read"])
@pytest.mark.parametrize("point", ["post", "told", "remember"])
def test_a_kill_while_slack_is_told_loses_nothing_repeats_one_message_at_most_and_keeps_one_thread(
    slack: Slack, request: pytest.FixtureRequest, point: str, scopes: bool
) -> None:
    nursery: Nursery = request.getfixturevalue("nursery")  # noqa: F811 - born with the token in its environment
    slack.scopes = scopes
    for side in ("before", "after"):
        for k in range(1 if side == "before" else 2, 30, 1 if point == "remember" else 4):
            slack.messages.clear()
            place = f"slack-{scopes}-{point}-{side}-{k}"
            nursery.order(place=place, world="remembers")
            nursery.order(place=place, revision="bad1")
            where = {"slack": slack.url, "channel": CHANNEL}
            killed = nursery.live(place, point=point, side=side, k=k, **where) == KILLED
            nursery.live(place, **where)
            check_told(slack, nursery.directory / place, killed, scopes)
            if not killed:
                break
        assert k > 1, "nobody was killed"


def check_told(slack: Slack, place: Path, killed: bool, scopes: bool) -> None:
    store = SqliteStore(place / "state.db", create=False)
    try:
        told = [f"shop: {r.sentence}" for r in reversed(store.records("shop", limit=1000)) if r.tell]
        assert store.owed() == ()
        noted = store.memo("shop")["ops/shop-1"].partition(" ")[2]
    finally:
        store.close()
    heads, texts = slack.heads(), slack.texts()
    assert list(dict.fromkeys(t.partition(" (sent")[0] for t in texts)) == list(dict.fromkeys(told))
    assert len(texts) - len(told) <= int(killed and not scopes)
    if scopes:
        assert len(texts) == len(told)
        assert len(heads) == 1
    assert len(heads) - 1 <= int(killed and not scopes)
    assert {m["thread_ts"] for m in slack.replies()} == {noted}
