"""Looking back: windows judged as if live, stored rollouts decided again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from world import START, World, canary

from canaryd.errors import SourceError
from canaryd.hindsight import analysis
from canaryd.hindsight.past import BLOCK, Past, Weights
from canaryd.hindsight.replay import Compared, ReplayError, replay
from canaryd.model import Action, CounterKey, Reading, Record, Verdict
from canaryd.ports import CountsAnswer, CountsQuery

TEN = timedelta(seconds=10)


def rolled_out(*, simultaneous: bool = True, **errors: float) -> World:
    """A world in which one rollout has come to its end."""
    world = World(rps=400.0)
    world.metrics.simultaneous = simultaneous
    for _ in range(9):
        world.traffic(10)
    world.errors.update({name.replace("_", "-"): share for name, share in errors.items()})
    world.start()
    world.turn()
    world.until("Succeeded", "RolledBack", most=120)
    return world


def kept(world: World) -> Sequence[Record]:
    return world.store.records("api", limit=10_000)


def again(world: World, found: Sequence[Record] | None = None) -> list[Compared]:
    return list(replay(world.canaries[0], world.metrics, kept(world) if found is None else found, "api-1"))


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("simultaneous", [True, False], ids=["read-together", "with-the-guard"])
@pytest.mark.parametrize("errors", [{}, {"api_b": 0.03}], ids=["promoted", "rolled-back"])
def test_a_rollout_decided_again_comes_out_as_it_was_recorded(errors: Mapping[str, float], simultaneous: bool) -> None:
    world = rolled_out(simultaneous=simultaneous, **errors)
    found = again(world)
    assert [one.differences for one in found] == [()] * len(found)
    assert len(found) >= 2
    assert {"advance", "rollback" if errors else "promote"} <= {one.kind for one in found}


def test_a_rollout_with_pauses_blindness_drift_and_a_restart_comes_out_as_it_was_recorded() -> None:
    world = World(rps=400.0)
    world.traffic(10)
    world.start()
    world.turn(8)
    world.say(Action.PAUSE)
    world.turn(3)
    world.say(Action.RESUME)
    world.metrics.fail("connection refused")
    world.turn(4)
    world.metrics.heal()
    world.turn(2)
    world.router.edit("api", 60)
    world.turn(2)
    for _ in range(2):
        world.traffic(10)
        world.router.fail("no permission")
        world.tick()
        world.router.heal()
    world.metrics.restart()
    world.turn(2)
    for _ in range(3):  # nobody ticks, the world goes on
        world.traffic(10)
    world.say(Action.PROMOTE)
    world.until("Succeeded", "RolledBack", most=150)
    found = again(world)
    assert [(one.record, one.differences) for one in found if one.differences] == []


def test_counters_that_are_no_longer_the_same_are_told_with_the_first_difference() -> None:
    world = rolled_out()

    class Forged:
        """The same source, in which one request more failed."""

        remembers, lag, settle, simultaneous = True, timedelta(0), timedelta(0), True

        def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
            return {
                name: replace(answer, readings=forged(answer.readings))
                for name, answer in world.metrics.read(queries).items()
            }

    def more(key: CounterKey, at: datetime) -> float:
        return float(key.pod == "api-b-1" and at > START + 18 * TEN)

    def forged(readings: Sequence[Reading]) -> tuple[Reading, ...]:
        return tuple(replace(r, counters={k: v + more(k, r.at) for k, v in r.counters.items()}) for r in readings)

    found = list(replay(world.canaries[0], Forged(), kept(world), "api-1"))
    differing = [one for one in found if one.differences]
    assert differing
    assert "canary requests" in " ".join(differing[0].differences)
    assert found[0].differences == ()


def changed(record: Record, *path: str, value: Any) -> Record:
    body: dict[str, Any] = dict(record.body)
    inner = body
    for key in path[:-1]:
        inner[key] = dict(inner[key])
        inner = inner[key]
    inner[path[-1]] = value
    return replace(record, body=body)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        pytest.param(("verdict",), "regressed", "verdict", id="verdict"),
        pytest.param(("evidence", "logE"), 1.5, "log e-value", id="log-e"),
        pytest.param(("evidence", "intervals"), 99, "intervals", id="intervals"),
        pytest.param(("weight", "desired"), 50, "weight", id="weight"),
        pytest.param(("phase",), "Paused", "phase", id="phase"),
        pytest.param(("look", "document"), "0" * 12, "document", id="document"),
    ],
)
def test_a_record_that_was_changed_afterwards_is_found(path: tuple[str, ...], value: Any, word: str) -> None:
    world = rolled_out()
    found = list(kept(world))
    at = next(i for i, r in enumerate(found) if r.kind == "hold" and r.body["evidence"]["intervals"] > 3)
    found[at] = changed(found[at], *path, value=value)
    differing = [one for one in again(world, found) if one.differences]
    assert [one.record for one in differing] == [found[at].id]
    assert word in differing[0].differences[0]


def test_records_that_do_not_reach_back_to_the_beginning_cannot_be_replayed() -> None:
    world = rolled_out()
    found = kept(world)
    with pytest.raises(ReplayError, match="no records of api-7"):
        list(replay(world.canaries[0], world.metrics, found, "api-7"))
    with pytest.raises(ReplayError, match="beginning of api-1"):
        again(world, found[: len(found) // 2])
    old = [changed(r, "look", value=None) for r in found]
    with pytest.raises(ReplayError, match="older canaryd"):
        again(world, old)
    broken = [changed(r, "look", value={"first": True}) for r in found]
    with pytest.raises(ReplayError, match="cannot be read"):
        again(world, broken)


# ── a window of the past ─────────────────────────────────────────────────────────────────────────────────────


def schedule_of(world: World) -> Weights:
    """What the route had, from the records."""
    rows = [(t.at, t.weight) for t in world.state().history]
    return Weights.of(rows)


def test_a_window_with_the_weights_of_a_rollout_comes_to_its_decisions() -> None:
    world = rolled_out(api_b=0.03)
    weights = Weights.of([(at, w) for at, w in schedule_of(world).changes if w])
    looks = list(analysis.analyze(world.canaries[0], world.metrics, weights, START, world.now))
    summary = analysis.summary(looks)
    assert (summary.verdict, summary.decision) == (Verdict.REGRESSED, "rollback")
    told = next(r for r in kept(world) if r.kind == "rollback")
    assert summary.first_rollback is not None
    assert abs(looks[summary.first_rollback].time - told.at) <= TEN


def test_a_weight_counts_from_the_interval_that_begins_with_it() -> None:
    weights = Weights.of([(START, 5), (START + TEN, 5), (START + 2 * TEN, 10)])
    assert weights.before(START) == (0, None)
    assert weights.before(START + TEN) == (5, START)
    assert weights.before(START + 2 * TEN) == (5, START)
    assert weights.before(START + 3 * TEN) == (10, START + 2 * TEN)
    assert analysis.first_interval(weights, START - 5 * TEN, START + 5 * TEN, TEN) == START + TEN
    assert analysis.first_interval(weights, START - 5 * TEN, START, TEN) is None


def test_nothing_of_the_time_after_a_look_is_used_for_it() -> None:
    """Cutting the window short changes none of the looks that are left."""
    world = rolled_out()
    weights = Weights.of([(START + 9 * TEN, 25)])
    whole = list(analysis.analyze(world.canaries[0], world.metrics, weights, START, world.now))
    for k in (1, 4, 9):
        assert list(analysis.analyze(world.canaries[0], world.metrics, weights, START, whole[k - 1].time)) == whole[:k]


def test_a_long_window_costs_few_reads() -> None:
    world = rolled_out()
    before = world.metrics.reads
    looks = list(analysis.analyze(world.canaries[0], world.metrics, schedule_of(world), START, world.now))
    assert world.metrics.reads - before <= 2 + -(-len(looks) // BLOCK) + 1


def test_a_source_that_fails_ends_the_analysis_instead_of_blinding_it() -> None:
    world = rolled_out()
    world.metrics.fail("connection refused")
    with pytest.raises(SourceError, match="refused"):
        list(analysis.analyze(world.canaries[0], world.metrics, schedule_of(world), START, world.now))


def test_the_past_shows_nothing_outside_its_window() -> None:
    world = rolled_out()
    past = Past(world.metrics, START + 3 * TEN, START + 6 * TEN, TEN)
    points = tuple(START + i * TEN for i in range(1, 9))
    c = world.canaries[0]
    asked = CountsQuery("api", "default", "api-a", "api-b", points, TEN, c.spec.source)
    assert [r.at for r in past.read([asked])["api"].readings] == [START + i * TEN for i in range(3, 7)]
    assert past.read([asked]) == past.read([asked])


def test_without_any_weight_there_is_nothing_to_look_at() -> None:
    world = rolled_out()
    assert list(analysis.analyze(world.canaries[0], world.metrics, Weights(()), START, world.now)) == []
    assert analysis.summary([]).verdict is Verdict.BLIND


def test_the_step_of_a_weight_between_two_steps_is_the_lower_one() -> None:
    c = canary(steps=[5, 25, 100])
    assert [analysis.step_of(c, w) for w in (1, 5, 24, 25, 99, 100)] == [0, 0, 0, 1, 1, 2]
