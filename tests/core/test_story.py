"""The story of a rollout from its records: what happened, why, what now."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from world import World, canary

from canaryd.model import Action, Record
from canaryd.story import Outcome, Story

STEPS = [{"weight": 5, "bake": "60s"}, {"weight": 25, "bake": "60s"}, {"weight": 50, "bake": "60s"}]


def regressing() -> World:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(8)
    world.errors["api-b"] = 0.02
    world.until("RolledBack")
    return world


@cache
def regressed() -> tuple[Record, ...]:
    """The records of a rollout that was rolled back from 25 % for its errors; newest first."""
    return records(regressing())


def records(world: World) -> tuple[Record, ...]:
    return world.store.records(world.canaries[0].key, limit=10_000)


def test_a_rollback_is_told_with_its_weight_its_reason_and_what_to_do() -> None:
    story = Story.of(regressed())
    assert story.outcome is Outcome.ROLLED_BACK
    assert story.what == "api r2 was rolled back from 25 % at 12:02:40 UTC, 1 min 30 s after it began."
    assert story.why.startswith("api 25 % → 0 %: errors 1.8 % canary vs 0.18 % stable")
    assert "canaryd retry api" in story.now
    assert story.metrics[0].name == "errors"
    assert story.metrics[0].is_decisive
    assert story.complete


def test_a_promotion_is_told_and_nothing_is_to_be_done() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.until("Succeeded")
    story = Story.of(records(world))
    assert story.outcome is Outcome.PROMOTED
    assert "was promoted" in story.what
    assert story.now == "Nothing is to be done."
    assert [band.weight for band in story.bands][:3] == [0, 5, 25]


def test_the_order_of_the_records_does_not_change_the_story() -> None:
    found = regressed()
    assert Story.of(found) == Story.of(tuple(reversed(found)))


def test_each_look_is_a_point_and_no_look_is_two() -> None:
    story = Story.of(regressed())
    for metric in story.metrics:
        times = [p.at for p in metric.points]
        assert times == sorted(set(times))
    errors = story.metrics[0]
    assert len(errors.points) == 8 + 1  # turns with traffic on the canary, the first of them without any request
    assert errors.points[-1].n == pytest.approx(1597)


def test_what_a_later_record_only_carries_along_is_no_new_point() -> None:
    found = regressed()
    last = max(r.at for r in found)
    more = [{**found[0].body, "at": (last + timedelta(minutes=i)).isoformat()} for i in (1, 2)]
    story = Story.of([*(r.body for r in found), *more])
    assert story.metrics[0].points[-1].at == last


def test_only_the_records_of_one_rollout_are_told() -> None:
    world = regressing()
    world.errors.clear()
    world.start("r3")
    world.turn(3)
    assert Story.of(records(world)).revision == "r3"
    first = Story.of(records(world), rollout="api-1")
    assert (first.revision, first.outcome) == ("r2", Outcome.ROLLED_BACK)
    assert {m.phase for m in first.moments} == {"Waiting", "Progressing", "RollingBack", "RolledBack"}


def test_a_rollout_that_a_newer_one_replaced_says_so() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(4)
    world.start("r3")
    world.turn(3)
    story = Story.of(records(world), rollout="api-1")
    assert story.outcome is Outcome.REPLACED
    assert story.ended is not None


def test_what_people_said_is_told_once_with_who_and_why() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(3)
    world.say(Action.PAUSE, reason="lunch")
    story = Story.of(records(world))
    assert story.outcome is Outcome.PAUSED
    assert [(m.override or {})["reason"] for m in story.overrides] == ["lunch"]
    assert "canaryd resume api" in story.now


def test_blindness_is_a_gap_until_sight_returns() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(4)
    world.metrics.fail("connection refused")
    world.turn(12)
    world.metrics.heal()
    world.turn(3)
    (gap,) = Story.of(records(world)).gaps
    assert gap.word == "blind"
    assert "connection refused" in gap.why
    assert gap.end - gap.start >= timedelta(seconds=110)


def test_a_daemon_that_does_not_look_leaves_a_gap_up_to_now() -> None:
    world = World(canary(steps=STEPS))
    world.turn(6)
    world.start("r2")
    world.turn(4)
    assert Story.of(records(world), now=world.now).gaps == ()
    later = world.now + timedelta(minutes=10)
    (gap,) = Story.of(records(world), now=later).gaps
    assert (gap.word, gap.end) == ("no looks", later)


def test_without_any_record_there_is_no_rollout() -> None:
    story = Story.of([])
    assert story.outcome is Outcome.NONE
    assert story.what == "There has been no rollout."


def test_numbers_that_are_none_stay_unknown() -> None:
    body: dict[str, Any] = json.loads(json.dumps(dict(regressed()[0].body)))
    body |= {"look": {"read": True}, "weight": {"desired": 5, "observed": "NaN", "configured": None}}
    body["findings"] = [{"metric": "errors", "difference": float("nan"), "low": True, "high": 10**400}, "junk", None]
    story = Story.of([body])
    (point,) = story.metrics[0].points
    assert point.is_blind
    assert (point.low, point.high) == (None, None)
    assert story.weights[0].observed is None


def test_a_gauge_is_compared_relatively() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC).isoformat()
    finding = {"metric": "memory", "means": [200.0, 250.0], "tolerated": 0.1, "verdict": "regressed"}
    story = Story.of([{"at": at, "rollout": "api-1", "kind": "hold", "look": {"read": True}, "findings": [finding]}])
    assert story.metrics[0].is_relative
    assert story.metrics[0].points[0].difference == pytest.approx(0.25)
