"""Telling people: who waits for whom, when it is tried again, when it is given up, and what is never printed."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from canaryd.adapters.memory import MemoryNotifier, MemoryStore
from canaryd.delivery import LONGEST_S, Delivery, pause
from canaryd.demo.processes import wait_until
from canaryd.errors import NotifyError, StoreError
from canaryd.model import DecisionKind, Record, RolloutState

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


def record(n: int, canary: str = "api", **body: Any) -> Record:
    return Record(f"{canary}/{n}", canary, NOW + n * SECOND, DecisionKind.ADVANCE, f"{n}", {"n": n, **body}, tell=True)


def store_with(*records: Record) -> MemoryStore:
    store = MemoryStore()
    for canary in dict.fromkeys(r.canary for r in records):
        store.save(canary, RolloutState(), 0, [r for r in records if r.canary == canary])
    return store


class Scripted(MemoryNotifier):
    """Fails as it is told to, call by call; None: delivers."""

    def __init__(self, *script: Exception | None, name: str = "chat", evidence: bool = False) -> None:
        super().__init__(name)
        self.script = list(script)
        self.wants_evidence = evidence
        self.tries = 0

    def notify(self, record: Record) -> None:
        self.tries += 1
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        super().notify(record)


class Tally:
    """What a delivery reports."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, notifier: str, outcome: str) -> None:
        self.seen[notifier, outcome] += 1


def numbers(notifier: MemoryNotifier) -> list[int]:
    return [r.body["n"] for r in notifier.told]


def test_a_failure_is_tried_again_later_and_later_and_others_of_the_canary_wait_behind_it() -> None:
    down = NotifyError("down")
    chat = Scripted(down, down, down)
    store = store_with(record(1), record(2))
    (courier,) = Delivery((chat,), store).couriers
    waited, now = [], NOW
    while store.owed():
        before = chat.tries
        courier.tell(now)
        if chat.tries > before:
            waited.append(now)
        now += timedelta(milliseconds=100)
    gaps = [(b - a).total_seconds() for a, b in pairwise(waited)]
    assert [low < gap < high for gap, low, high in zip(gaps, (0.7, 1.4, 2.9), (1.4, 2.7, 5.2), strict=True)] == [
        True
    ] * 3
    assert numbers(chat) == [1, 2]
    assert all(0.74 <= pause(n) / min(2.0 ** (n - 1), LONGEST_S) <= 1.26 for n in range(1, 30))


def test_one_canary_that_fails_holds_up_no_other_but_when_three_fail_the_chat_rests() -> None:
    class Picky(MemoryNotifier):
        def notify(self, record: Record) -> None:
            if record.canary.startswith("bad"):
                raise NotifyError("no such channel")
            super().notify(record)

    store = store_with(record(1, "bad"), record(2, "good"))
    picky = Picky("chat")
    (courier,) = Delivery((picky,), store).couriers
    courier.tell(NOW)
    assert numbers(picky) == [2]
    assert courier.paused is None
    store = store_with(*(record(n, f"bad-{n}") for n in range(9)), record(9, "good"))
    dead = Picky("chat")
    (courier,) = Delivery((dead,), store).couriers
    courier.tell(NOW)
    assert courier.paused is not None
    assert numbers(dead) == []  # nine canaries do not each hammer a chat that is down
    for minute in range(1, 60):
        courier.tell(NOW + timedelta(minutes=minute))
    assert numbers(dead) == [9]


def test_a_pause_that_was_asked_for_is_kept_for_all_canaries() -> None:
    chat = Scripted(NotifyError("slow down", retry_after=60))
    (courier,) = Delivery((chat,), store_with(record(1, "a"), record(2, "b"))).couriers
    courier.tell(NOW)
    courier.tell(NOW + 59 * SECOND)
    assert chat.tries == 1
    assert courier.failing == "slow down"
    courier.tell(NOW + 61 * SECOND)
    assert sorted(numbers(chat)) == [1, 2]
    assert courier.failing == ""


def test_what_is_too_old_is_tried_once_more_and_then_given_up_with_a_line_and_a_count() -> None:
    chat, tally = Scripted(NotifyError("gone"), None), Tally()
    store = store_with(record(1), record(2))
    (courier,) = Delivery((chat,), store, report=tally).couriers
    with capture_logs() as logs:
        courier.tell(NOW + DAY + 5 * SECOND)
    assert numbers(chat) == [2]
    assert store.owed() == ()
    assert tally.seen == {("chat", "given_up"): 1, ("chat", "sent"): 1}
    assert [(e["event"], e["record"], e["log_level"]) for e in logs] == [("never told", "api/1", "error")]


def test_what_is_refused_for_good_is_let_go_at_once() -> None:
    chat, tally = Scripted(NotifyError("never", final=True)), Tally()
    store = store_with(record(1), record(2))
    Delivery((chat,), store, report=tally).tell(NOW)
    assert numbers(chat) == [2]
    assert tally.seen == {("chat", "refused"): 1, ("chat", "sent"): 1}


def test_what_was_delivered_and_could_not_be_marked_is_marked_later_and_not_repeated() -> None:
    store = store_with(record(1), record(2))

    class Breaking(Scripted):
        """The disk is full right after the first delivery."""

        def notify(self, record: Record) -> None:
            super().notify(record)
            if self.tries == 1:
                store.fail("the disk is full")

    chat = Breaking()
    delivery = Delivery((chat,), store)
    with pytest.raises(StoreError, match="disk is full"):
        delivery.tell(NOW)
    store.heal()
    delivery.tell(NOW + 9 * SECOND)
    assert numbers(chat) == [1, 2]
    assert store.owed() == ()


def test_a_defect_of_one_notifier_silences_no_other_and_prints_no_text() -> None:
    bad = Scripted(ValueError("https://hooks.example.com/planted-secret"), name="bad")
    good = MemoryNotifier("good")
    with capture_logs() as logs:
        Delivery((bad, good), store_with(record(1))).tell(NOW)
    assert numbers(good) == [1]
    assert "planted" not in str(logs)
    assert "defect: ValueError at test_delivery.py:" in logs[0]["error"]


def test_evidence_is_fetched_once_for_those_who_show_it_and_nobody_else_waits() -> None:
    asked = []

    def prepare(given: Record) -> Record:
        asked.append(given.id)
        return Record(
            given.id, given.canary, given.at, given.kind, given.sentence, {**given.body, "traces": {}}, tell=True
        )

    log, one, two = MemoryNotifier("log"), Scripted(name="one", evidence=True), Scripted(name="two", evidence=True)
    Delivery((log, one, two), store_with(record(1)), prepare=prepare).tell()
    assert asked == ["api/1"]
    assert ["traces" in n.told[0].body for n in (log, one, two)] == [False, True, True]


def test_two_notifiers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two notifiers of one name"):
        Delivery((MemoryNotifier("a"), MemoryNotifier("a")), MemoryStore())


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────


class Hanging(MemoryNotifier):
    """Hangs in every delivery until it is let go."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.go = threading.Event()

    def notify(self, record: Record) -> None:
        self.go.wait(10)
        super().notify(record)


def test_a_chat_that_hangs_holds_up_neither_the_log_nor_what_has_no_record() -> None:
    store, log, hanging = store_with(record(1)), MemoryNotifier("log"), Hanging()
    delivery = Delivery((log, hanging), store)
    delivery.start(lambda: NOW, lambda: True)
    try:
        wait_until(lambda: numbers(log) == [1], "the log to be told", timeout=5, every=0.01)
        store.save("api", RolloutState(), 1, [record(2)])
        delivery.say(record(77, "web"))
        wait_until(lambda: sorted(numbers(log)) == [1, 2, 77], "the log to be told more", timeout=5, every=0.01)
        assert hanging.told == []
        hanging.go.set()
        wait_until(lambda: sorted(numbers(hanging)) == [1, 2, 77], "the other one", timeout=5, every=0.01)
        wait_until(lambda: not store.owed(), "all to be marked", timeout=5, every=0.01)
        assert [one["owed"] for one in delivery.status(NOW)] == [0, 0]
    finally:
        hanging.go.set()
        delivery.stop()


def test_who_does_not_lead_tells_nothing_and_the_next_leader_goes_on() -> None:
    store, log = store_with(record(1), record(2)), MemoryNotifier("log")
    standby = Delivery((log,), store)
    standby.start(lambda: NOW, lambda: False)
    threading.Event().wait(0.4)
    standby.stop()
    assert log.told == []
    store.told(["api/1"], "log", ["log"])
    leader = Delivery((log,), store)
    leader.start(lambda: NOW, lambda: True)
    wait_until(lambda: numbers(log) == [2], "the rest to be told", timeout=5, every=0.01)
    leader.stop()


def test_what_is_owed_only_to_a_notifier_that_is_gone_is_owed_no_more() -> None:
    store, log = store_with(record(1), record(2)), MemoryNotifier("log")
    store.told(["api/1"], "log", ["log", "chat"])
    assert [r.id for r in store.owed()] == ["api/1", "api/2"]
    delivery = Delivery((log,), store)
    delivery.start(lambda: NOW, lambda: True)
    wait_until(lambda: not store.owed(), "nothing to be owed", timeout=5, every=0.01)
    delivery.stop()
    assert numbers(log) == [2]


def test_a_store_that_fails_for_a_while_is_said_once_and_costs_nothing() -> None:
    store, log = store_with(record(1)), MemoryNotifier("log")
    store.fail("the disk is full")
    delivery = Delivery((log,), store)
    with capture_logs() as logs:
        delivery.start(lambda: NOW, lambda: True)
        threading.Event().wait(0.8)
        store.heal()
        wait_until(lambda: numbers(log) == [1], "the log to be told", timeout=5, every=0.01)
        delivery.stop()
    assert [e["event"] for e in logs if e["log_level"] == "warning"] == ["not told"]
