"""A trace source is asked beside the tick: nobody waits for it, and every answer is given once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from canaryd.adapters.memory import MemoryTraces
from canaryd.model import Arm
from canaryd.ports import TraceAnswer, TraceQuery
from canaryd.spans import ArmTags, Span, nanoseconds
from canaryd.tracer import AT_ONCE, PAST, Tracer, question

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEN = timedelta(seconds=10)
LONG = timedelta(seconds=20)


def query(k: int = 0, canary: str = "api") -> TraceQuery:
    return TraceQuery(canary, "api", START + k * TEN, START + (k + 1) * TEN, ArmTags("", ("a",), ("b",)))


class Stuck(MemoryTraces):
    """Answers nothing until it is let go; counts who is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.inside = 0

    def find(self, query: TraceQuery) -> TraceAnswer:
        self.inside += 1
        self.gate.wait(20)
        return super().find(query)


@pytest.fixture
def source() -> MemoryTraces:
    found = MemoryTraces()
    for k in range(3):
        start = nanoseconds(START + k * TEN) + 5
        found.put(Span(f"{k + 1:x}", "1", "", "api", "GET /", "server", start, 5.0, False, Arm.STABLE, "a", ""))
    return found


@pytest.fixture
def tracer(source: MemoryTraces) -> Iterator[Tracer]:
    made = Tracer(source)
    yield made
    made.close()


def test_an_answer_is_given_once(tracer: Tracer) -> None:
    tracer.ask("api", [query(0), query(1)])
    assert tracer.wait(LONG)
    found = tracer.arrived("api")
    assert [c.start for c in found] == [START, START + TEN]
    assert [c.spans.sum() for c in found] == [1, 1]
    assert tracer.arrived("api") == ()


def test_a_question_under_way_is_not_asked_again(source: MemoryTraces, tracer: Tracer) -> None:
    for _ in range(5):
        tracer.ask("api", [query()])
    assert tracer.wait(LONG)
    assert len(source.asked) == 1


def test_what_failed_is_said_and_asked_again(source: MemoryTraces, tracer: Tracer) -> None:
    source.fail("connection refused")
    tracer.ask("api", [query()])
    assert tracer.wait(LONG)
    assert tracer.arrived("api") == ()
    assert tracer.why("api") == "connection refused"
    source.heal()
    tracer.ask("api", [query()])
    assert tracer.wait(LONG)
    assert len(tracer.arrived("api")) == 1
    assert tracer.why("api") == ""


def test_nobody_waits_for_a_source_that_hangs_and_it_is_not_asked_more_and_more() -> None:
    stuck = Stuck()
    tracer = Tracer(stuck)
    began = time.monotonic()
    for tick in range(50):
        tracer.ask("api", [query(k) for k in range(tick + 1)])
        assert tracer.arrived("api") == ()
    assert time.monotonic() - began < 2
    assert stuck.inside <= AT_ONCE
    stuck.gate.set()
    assert tracer.wait(LONG)
    tracer.close()


def test_an_answer_that_nobody_wants_any_more_is_dropped(tracer: Tracer) -> None:
    tracer.ask("api", [query(0)])
    tracer.ask("api", [query(1)])
    assert tracer.wait(LONG)
    assert [c.start for c in tracer.arrived("api")] == [START + TEN]
    tracer.ask("api", [query(2)])
    tracer.ask("api", [])
    assert tracer.arrived("api") == ()


def test_canaries_do_not_hear_each_others_answers(tracer: Tracer) -> None:
    tracer.ask("api", [query()])
    tracer.ask("web", [query(1, "web")])
    assert tracer.wait(LONG)
    assert [c.start for c in tracer.arrived("web")] == [START + TEN]
    assert [c.start for c in tracer.arrived("api")] == [START]


def test_of_the_past_the_newest_traces_are_enough() -> None:
    assert question(query(), scored=True) == query()
    past = question(query(), scored=False)
    assert past.newest
    assert past.limit == PAST
