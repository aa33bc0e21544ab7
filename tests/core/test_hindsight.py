"""Looking back: windows judged as if live, stored rollouts decided again, stable pods in the canary's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from world import START, World, canary

from canaryd.config.settings import Placebo, Settings
from canaryd.daemon import Daemon
from canaryd.errors import SourceError
from canaryd.hindsight import analysis, placebo
from canaryd.hindsight.past import BLOCK, Past, Weights
from canaryd.hindsight.replay import Compared, ReplayError, replay
from canaryd.measure import grid_floor
from canaryd.model import Action, Arm, CounterKey, Reading, Record, Verdict
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


# ── placebo ──────────────────────────────────────────────────────────────────────────────────────────────────


def steady(intervals: int = 60, **pod_errors: float) -> World:
    """Stable alone with three pods; `a1=0.05`: a share of what its first pod answers fails."""
    world = World(rps=300.0)
    for _ in range(intervals):
        world.traffic(10, freeze=False)
        for name, share in pod_errors.items():
            bad = int(world.random.binomial(1000, share))
            world.metrics.serve("api-a", f"api-a-{name[1:]}", code="500", n=bad, ms=40.0)
        world.metrics.tick(world.now)
    return world


def drawn(world: World, **how: Any) -> list[placebo.Draw]:
    options = {"draws": 9, "seed": 7, **how}
    return list(placebo.draw(world.canaries[0], "api-a", world.metrics, START, world.now, **options))


def test_pods_that_are_alike_are_hardly_ever_called_worse_and_one_that_is_sick_is() -> None:
    assert [d.rolled_back for d in drawn(steady())] == [False] * 9
    found = drawn(steady(a1=0.3))
    assert {d.pods for d in found} == {("api-a-1",), ("api-a-2",), ("api-a-3",)}
    assert {d.pods for d in found if d.rolled_back} == {("api-a-1",)}
    assert all("errors" in d.sentence and d.looks < 40 for d in found if d.rolled_back)


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    world = steady()
    assert drawn(world) == drawn(world) != drawn(world, seed=8)


def test_what_is_read_of_a_stretch_is_read_once_for_all_its_draws() -> None:
    world = steady()
    before = world.metrics.reads
    assert len(drawn(world, draws=6)) == 6  # three pods: two stretches
    assert world.metrics.reads - before <= 4  # each with the days before


def test_a_pod_that_is_called_the_canary_is_no_longer_stable() -> None:
    world = steady(30)
    c = world.canaries[0]
    points = (START + 10 * TEN, START + 20 * TEN)
    query = CountsQuery("placebo-0", "default", "api-a", placebo.NOBODY, points, TEN, c.spec.source)
    (plain,) = world.metrics.read([query]).values()
    source = placebo.Relabelled(world.metrics, plain.readings, {"placebo-0": ("api-a-2",)}, TEN)
    found = source.read([query])["placebo-0"].readings
    for before, after in zip(plain.readings, found, strict=True):
        assert {k.arm for k in after.counters if k.pod == "api-a-2"} == {Arm.CANARY}
        assert {k.arm for k in after.counters if k.pod != "api-a-2"} == {Arm.STABLE}
        assert sorted(after.counters.values()) == sorted(before.counters.values())


def test_without_two_pods_or_enough_time_nothing_is_drawn_and_it_is_said_why() -> None:
    world = steady(40)
    with pytest.raises(placebo.PlaceboError, match=r"3 pods of api-a .* at least 4"):
        drawn(world, pods=3)
    with pytest.raises(placebo.PlaceboError, match=r"3 pods of api-a .* at least 5"):
        drawn(world, least_pods=5)
    with pytest.raises(placebo.PlaceboError, match=r"0 pods of nobody .* at least 2"):
        list(placebo.draw(world.canaries[0], "nobody", world.metrics, START, world.now, draws=1))
    with pytest.raises(placebo.PlaceboError, match="too short"):
        list(placebo.draw(world.canaries[0], "api-a", world.metrics, START, START + 20 * TEN, draws=1))


@pytest.mark.parametrize(("x", "n"), [(0, 1), (0, 200), (3, 200), (200, 200), (1, 2), (57, 1000)])
def test_the_limits_of_the_rate_are_those_of_the_exact_binomial(x: int, n: int) -> None:
    exact = binomtest(x, n).proportion_ci(0.95, method="exact")
    assert placebo.exact_interval(x, n) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_daemon_draws_in_the_background_and_exports_what_came_of_it(tmp_path: Path) -> None:
    quarter = timedelta(minutes=15)
    world = World(canary(interval="15m", blindDeadline="1h", history="0s"), rps=1.0)
    world.now = grid_floor(datetime.now(UTC), quarter) - 105 * quarter
    for _ in range(105):
        world.traffic(quarter.total_seconds())
    daemon = Daemon(Settings(placebo=Placebo(every=timedelta(hours=6), draws=4)), tmp_path)
    daemon.ports, daemon.canaries = world.ports, world.canaries
    daemon.store = world.store  # type: ignore[assignment]
    daemon.draw_placebos()
    said = daemon.telemetry.exposition().decode()
    assert 'canaryd_placebo_draws{canary="api"} 4.0' in said
    assert 'canaryd_placebo_rollbacks{canary="api"} 0.0' in said


def test_no_placebo_is_drawn_unless_it_is_asked_for() -> None:
    assert Settings().placebo.every is None
    with pytest.raises(ValueError, match="out of range"):
        Placebo.model_validate({"every": "5s"})
