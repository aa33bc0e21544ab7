"""Stories of whole rollouts over the product's own memory adapters: traffic, counters, routes, people, and trouble."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import structlog
from world import START, World, canary

from canaryd import plan
from canaryd.adapters.memory import MemoryHooks, MemoryNotifier, MemoryRouter, MemoryStore
from canaryd.errors import FenceError, NotifyError, StoreError
from canaryd.measure import MOST_POINTS, grid_floor
from canaryd.model import (
    Action,
    DecisionKind,
    Evidence,
    HookState,
    HookStatus,
    Override,
    Phase,
    Record,
    Release,
    RolloutState,
    RouteView,
    Stored,
)
from canaryd.policy import Canary, Hook, Route
from canaryd.ports import CountsAnswer, CountsQuery
from canaryd.reconcile import Reconciler
from canaryd.stats.evidence import clock

BOTH = pytest.mark.parametrize("remembers", [True, False], ids=["remembers", "forgets"])
QUICK: dict[str, Any] = {"steps": [{"weight": w, "bake": "20s"} for w in (10, 50)]}
HOOKED: dict[str, Any] = {**QUICK, "afterPromotion": {"command": ["upgrade"]}}


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged, instead of printing it."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def begun(*canaries: Canary, phase: str = "Progressing", **more: Any) -> World:
    """A world in which every rollout has just got its first traffic."""
    world = World(*(canaries or (canary(**QUICK),)), **more)
    world.start()
    world.traffic(10)
    world.tick()
    world.until(phase)
    return world


def weights(world: World, name: str = "api") -> list[int]:
    """Weights that the route took, one after the other, without repetitions."""
    out: list[int] = []
    for who, weight, _ in world.router.writes:
        if who == name and (not out or out[-1] != weight):
            out.append(weight)
    return out


def counted(world: World) -> tuple[float, ...]:
    """Scored totals: failures and requests of the canary, of stable."""
    evidence = world.state().evidence
    assert evidence is not None
    return tuple(evidence.arrays["total"][0])


def truth(world: World, since: World | dict[str, int] | None = None) -> tuple[float, ...]:
    return tuple(
        float(table.get(workload, 0)) for workload in ("api-b", "api-a") for table in (world.failed, world.served)
    )


def check_record(world: World, name: str = "api") -> None:
    """Ids are unique and without gaps, all that was to be told was told once, in order, and nothing is NaN."""
    kept = list(reversed(world.store.records(name, limit=10_000)))
    assert [r.id for r in kept] == [f"{name}/{i + 1}" for i in range(len(kept))]
    assert [r.id for r in world.notifier.told if r.canary == name] == [r.id for r in kept if r.tell]
    assert world.store.owed() == ()
    assert world.state(name).decisions == len(kept)
    for record in kept:
        assert not any(isinstance(v, float) and not math.isfinite(v) for v in _leaves(record.body)), record.id


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    if isinstance(value, list | tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


# ── the main job ─────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_a_good_release_reaches_100_and_the_pools_swap_roles(remembers: bool) -> None:
    world = begun(canary(), remembers=remembers)
    world.until("Succeeded")
    assert weights(world) == [0, 5, 10, 25, 50, 100, 0]
    state = world.state()
    assert (state.stable, state.canary, state.stable_revision) == ("api-b", "api-a", "r1")
    assert world.told() == ["start", *["advance"] * 5, "promote", "succeed"]
    check_record(world)
    world.start("r2")
    world.errors["api-a"] = 0.2
    world.turn()
    world.until("RolledBack")
    assert world.state().stable == "api-b"
    assert world.weight() == 100  # as seen from the first pool, which is the canary now: none of it gets traffic
    assert world.router.view("api", world.canaries[0].spec.route, "api-b", "api-a").weight == 0
    check_record(world)


@BOTH
def test_errors_are_rolled_back_at_the_first_or_second_scored_interval(remembers: bool) -> None:
    world = begun(remembers=remembers)
    world.errors["api-b"] = 1.0
    world.turn(2)
    assert world.state().phase is Phase.ROLLED_BACK
    assert (world.weight(), weights(world)[-1]) == (0, 0)
    assert world.told()[-1] == "rollback"
    assert world.notifier.told[-1].body["severity"] == "critical"
    assert f"{world.failed['api-b']} canary requests failed" in world.notifier.told[-1].sentence.replace(" ", " ")
    check_record(world)


def test_a_slow_release_is_rolled_back_and_the_sentence_names_latency() -> None:
    world = begun()
    world.slowdown["api-b"] = 2.0
    world.until("RolledBack", most=10)
    assert "latency" in world.notifier.told[-1].sentence
    assert world.weight() == 0


def test_without_canary_traffic_nothing_is_promoted() -> None:
    world = begun()
    route = world.canaries[0].spec.route
    for _ in range(40):  # the route says 10 %, but every request goes to stable
        world._serve("api-a", 2000)
        world.now += timedelta(seconds=10)
        world.metrics.tick(world.now)
        world.tick()
    assert (world.state().phase, world.state().step) == (Phase.PROGRESSING, 0)
    assert world.router.view("api", route, "api-a", "api-b").weight == 10
    assert world.told().count("blind") == 1
    assert world.told()[-1] == "blind-deadline"
    assert "no request reached api-b" in world.notifier.told[-1].sentence


def test_without_stable_traffic_the_canary_gets_none() -> None:
    world = World(canary(**QUICK, maxHold="1m"), rps=0)
    world.metrics.serve("api-a", "api-a-1", n=0)
    world.start()
    world.turn(10)
    assert (world.state().phase, world.weight()) == (Phase.WAITING, 0)
    assert "learning the rates of api-a" in world.state().sentence
    assert world.told() == ["start", "wait"]


def test_nothing_runs_before_the_workloads_are_ready() -> None:
    world = World(canary(**QUICK))
    world.workloads.set_ready("api", False, "api-b: no pod is ready")
    world.start()
    world.turn(5)
    assert (world.state().phase, world.weight()) == (Phase.WAITING, 0)
    assert "no pod is ready" in world.state().sentence
    world.workloads.fail("connection refused")
    world.turn()
    assert "connection refused" in world.state().sentence
    world.workloads.heal()
    world.workloads.set_ready("api", True)
    world.turn()
    assert (world.state().phase, world.weight()) == (Phase.PROGRESSING, 10)


def test_a_start_that_is_not_measured_waits_until_stable_is_known() -> None:
    world = World(canary(**QUICK))
    world.turn(3)
    world.start()
    world.tick(measure=False)
    assert world.state().phase is Phase.WAITING
    assert "learning the rates" in world.state().sentence
    reads = world.metrics.reads
    world.turn()
    assert (world.state().phase, world.metrics.reads) == (Phase.PROGRESSING, reads + 2)  # and the past, once


def test_the_past_of_stable_is_read_when_a_rollout_begins() -> None:
    world = World(canary(**QUICK))
    world.traffic(10)
    first = world.served["api-a"]  # the counters begin with this
    for _ in range(30):
        world.traffic(10)
    world.start()
    world.tick(measure=False)
    before = world.served["api-a"] - first
    world.turn()
    evidence = world.state().evidence
    assert evidence is not None
    assert before / 2 < evidence.arrays["long"][1, 0] < before  # twenty intervals of thirty


def test_a_canary_that_nobody_started_keeps_its_route() -> None:
    world = World(canary(**QUICK))
    world.router.edit("api", 70, editor="anna")
    world.turn(3)
    assert (world.weight(), world.router.writes, world.metrics.reads) == (70, [], 0)
    assert world.store.records("api") == ()
    version = world.store.load("api").version
    world.turn(3)
    assert world.store.load("api").version == version  # nothing is saved when nothing changed


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_everything_is_counted_exactly_once(remembers: bool) -> None:
    world = begun(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}), remembers=remembers)
    stable_before = (world.failed["api-a"], world.served["api-a"])
    world.turn(25)
    x_c, n_c, x_s, n_s = counted(world)
    assert (x_c, n_c) == (world.failed["api-b"], world.served["api-b"])
    assert (x_s, n_s) == (world.failed["api-a"] - stable_before[0], world.served["api-a"] - stable_before[1])
    assert world.state().baked == timedelta(seconds=250)


@pytest.mark.parametrize("settle", [0, 15])
def test_an_interval_in_which_the_weight_changed_or_settles_is_not_evidence(settle: int) -> None:
    world = World(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}))
    world.metrics.settle = timedelta(seconds=settle)
    world.start()
    world.traffic(3, freeze=False)
    for _ in range(3):  # every tick comes three seconds after the counters of the grid
        world.traffic(7)
        world.traffic(3, freeze=False)
        world.tick()
        if world.weight():
            break
    wanted = 1 if settle == 0 else 2  # intervals until the first whole one at the new weight
    for _ in range(wanted):
        world.traffic(7)
        assert counted(world)[1] == 0.0
        clean = world.served["api-b"]
        world.traffic(3, freeze=False)
        world.tick()
    assert counted(world)[1] == 0.0
    world.traffic(7)
    scored = world.served["api-b"] - clean
    world.traffic(3, freeze=False)
    world.tick()
    assert (counted(world)[1], world.state().baked) == (scored, timedelta(seconds=10))


@BOTH
def test_a_source_that_is_away_for_three_ticks_is_blind_and_nothing_is_lost_or_counted_twice(remembers: bool) -> None:
    world = begun(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}), remembers=remembers)
    before = (world.failed["api-a"], world.served["api-a"])
    world.turn(3)
    world.metrics.fail("connection refused")
    for _ in range(3):
        world.turn()
        assert (world.state().latest["verdict"], world.weight()) == ("blind", 10)
    assert "connection refused" in world.state().sentence
    assert world.told().count("blind") == 1
    world.metrics.heal()
    world.turn(3)
    assert world.told()[2:] == ["blind", "resumed"]
    x_c, n_c, x_s, n_s = counted(world)
    assert (x_c, n_c) == (world.failed["api-b"], world.served["api-b"])
    assert (x_s, n_s) == (world.failed["api-a"] - before[0], world.served["api-a"] - before[1])
    assert world.state().evidence.through == world.now  # type: ignore[union-attr]
    check_record(world)


@BOTH
def test_a_source_without_series_is_blind_and_not_calm(remembers: bool) -> None:
    world = begun(remembers=remembers)
    world.metrics.silent()
    world.turn(10)
    assert (world.weight(), world.told()[-1]) == (10, "blind")
    assert "no counters of api-a or api-b since" in world.state().sentence
    world.metrics.heal()
    world.until("Succeeded")
    assert "resumed" in world.told()


def test_a_source_that_forgets_a_canary_is_blind_for_it() -> None:
    class Forgetful:
        """Answers nobody."""

        remembers, lag, settle, simultaneous = True, timedelta(0), timedelta(0), True

        def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
            return {}

    world = begun()
    world.reconciler = Reconciler(replace(world.ports, metrics=Forgetful()))
    world.turn(2)
    assert "the source gave no answer" in world.state().sentence
    assert world.weight() == 10


def test_a_note_of_the_source_reaches_people() -> None:
    world = without_buckets()
    assert "native histograms only" in world.state().sentence
    assert (world.state().phase, world.weight()) == (Phase.PROGRESSING, 10)


def test_buckets_that_turn_up_late_are_learnt_before_they_are_judged_and_the_rollout_goes_on() -> None:
    world = without_buckets()
    world.reconciler = Reconciler(world.ports)
    world.turn()
    assert counted(world)[1] == 0.0
    world.turn()
    assert counted(world)[1] > 0
    world.until("Succeeded")


def without_buckets() -> World:
    """A rollout that got its first traffic although no durations are recorded."""
    world = World(canary(**QUICK))
    world.metrics.note = "native histograms only"
    inner = world.metrics

    class NoBuckets:
        """Durations are not recorded here."""

        remembers, lag, settle, simultaneous = True, timedelta(0), timedelta(0), True

        def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
            return inner.read([replace(q, durations=False) for q in queries])

    world.reconciler = Reconciler(replace(world.ports, metrics=NoBuckets()))
    world.start()
    world.turn(5)
    return world


@BOTH
def test_the_same_instant_twice_is_counted_once_and_is_not_blindness(remembers: bool) -> None:
    world = begun(remembers=remembers)
    world.turn(2)
    before, kinds = counted(world), world.told()
    for _ in range(3):
        world.tick()
    assert counted(world) == before
    assert world.state().blind == timedelta(0)
    assert world.told() == kinds


@pytest.mark.parametrize("hours", [1, -1])
@BOTH
def test_a_clock_that_jumps_never_makes_evidence_or_reaches_a_deadline(remembers: bool, hours: int) -> None:
    spec = {**QUICK, "onBlind": "rollback", "onInconclusive": "rollback", "maxHold": "10m"}
    world = begun(canary(**spec), remembers=remembers)
    world.turn()
    before = world.state()
    world.now += timedelta(hours=hours)
    out = world.reconciler.tick(world.canaries, world.now)
    after = world.state()
    assert (after.phase, after.step, after.weight) == (before.phase, before.step, before.weight)
    assert after.baked - before.baked <= timedelta(seconds=10)
    assert counted(world)[1] <= world.served["api-b"]
    if hours < 0:
        assert "the clock went back" in out[0].sentence
        assert "blind" in str(after.verdict)
    world.now -= timedelta(hours=hours)
    world.traffic(10)
    world.tick()
    assert world.state().phase is Phase.PROGRESSING


def test_after_a_long_absence_the_missing_time_is_fetched_once_in_bounds() -> None:
    world = begun(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}))
    asked: list[int] = []
    inner = world.metrics

    class Counting:
        """Notes how many instants are asked for."""

        remembers, lag, settle, simultaneous = True, timedelta(0), timedelta(0), True

        def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
            asked.extend(len(q.points) for q in queries)
            return inner.read(queries)

    before = world.served["api-a"]
    world.rps = 2
    for _ in range(MOST_POINTS + 100):
        world.traffic(10)
    world.reconciler = Reconciler(replace(world.ports, metrics=Counting()))
    world.tick()
    assert asked == [MOST_POINTS + 1]
    assert counted(world)[1] == world.served["api-b"]
    assert counted(world)[3] == world.served["api-a"] - before


def test_the_grid_is_the_same_for_everybody() -> None:
    step = timedelta(seconds=30)
    assert grid_floor(START + timedelta(seconds=29.9), step) == START
    assert grid_floor(START + step, step) == START + step
    odd = datetime(2026, 3, 1, 12, 0, 0, 700_000, tzinfo=UTC)
    assert grid_floor(odd, timedelta(milliseconds=500)) == odd.replace(microsecond=500_000)


def test_ticks_between_two_instants_of_the_grid_read_nothing() -> None:
    world = begun()
    reads = world.metrics.reads
    world.now += timedelta(seconds=3)
    world.tick()
    assert world.metrics.reads == reads
    assert world.state().phase is Phase.PROGRESSING


def test_hundreds_of_canaries_need_one_read_for_each_tick() -> None:
    many = [canary(f"c{i}", **QUICK) for i in range(200)]
    world = World(*many, rps=0)
    for c in many:
        for pool in c.spec.workloads.pools:
            world.metrics.serve(pool.name, f"{pool.name}-1", n=100)
    world.start()
    world.now += timedelta(seconds=10)
    world.metrics.tick(world.now)
    world.tick(measure=False)
    reads = world.metrics.reads
    outcomes = world.reconciler.tick(many, world.now)
    assert world.metrics.reads == reads + 2  # the counters, and once the past of those that begin
    world.traffic(10)
    world.tick()
    assert world.metrics.reads == reads + 3
    assert [o.canary for o in outcomes] == [c.name for c in many]
    assert not any(o.failed for o in outcomes)


def test_young_pods_are_not_judged_but_a_disaster_in_them_is_seen() -> None:
    slow_start = {**QUICK, "warmUp": "1m"}
    world = begun(canary(**slow_start))
    world.errors["api-b"] = 0.01
    world.turn(4)
    assert counted(world)[1] == 0.0
    assert clock(world.state().evidence.arrays, "harmed") == world.served["api-b"]  # type: ignore[union-attr]
    world.errors["api-b"] = 0.001
    world.until("Succeeded")
    bad = begun(canary(**slow_start))
    bad.errors["api-b"] = 1.0
    bad.until("RolledBack", most=4)


def test_a_plan_that_changes_while_it_runs_starts_its_evidence_again_and_says_so() -> None:
    world = begun(canary(**{"steps": [10, 20, 50]}))
    world.turn(2)
    world.canaries = (canary(**QUICK),)
    world.turn()
    assert "the plan changed: evidence starts again" in str(world.state().latest["trouble"])
    world.until("Succeeded")
    assert weights(world) == [0, 10, 50, 100, 0]


@pytest.mark.parametrize("seeing", [True, False], ids=["seeing", "blind"])
def test_a_plan_that_becomes_shorter_than_the_step_it_is_at_goes_on(seeing: bool) -> None:
    world = begun(
        canary(**{"steps": [{"weight": w, "bake": "20s"} for w in (5, 10, 25, 50)]}), canary("other", **QUICK)
    )
    while world.state().step < 2:
        world.turn()
    world.canaries = (canary(**{"steps": [{"weight": 5, "bake": "20s"}]}), world.canaries[1])
    if not seeing:
        world.metrics.fail("connection refused")
        world.turn(2)
        assert (world.state().step, world.weight()) == (0, 25)
        assert "connection refused" in world.state().sentence
        world.metrics.heal()
    world.until("Succeeded")
    assert weights(world) == [0, 5, 10, 25, 100, 0]


def test_damaged_evidence_of_one_canary_makes_it_blind_and_leaves_the_others_alone() -> None:
    world = begun(canary("bad", **QUICK), canary("good", **QUICK))
    stored = world.store.load("bad")
    assert stored.state is not None
    assert stored.state.evidence is not None
    arrays = {**stored.state.evidence.arrays, "worse": np.zeros(3)}
    evidence: Evidence = replace(stored.state.evidence, arrays=arrays)
    world.store.save("bad", replace(stored.state, evidence=evidence), stored.version, ())
    world.turn(12)
    assert world.state("good").phase is Phase.SUCCEEDED
    assert (world.state("bad").phase, world.weight("bad")) == (Phase.PROGRESSING, 10)
    assert "defect" in world.state("bad").sentence
    assert "blind" in world.told("bad")


def test_counters_that_stand_still_are_counted_and_are_blindness_all_the_same() -> None:
    world = begun(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}))
    world.turn(2)
    world.traffic(10)  # the last counters that the source will ever have
    clean = world.served["api-b"]
    for _ in range(3):
        world.traffic(10, freeze=False)
    world.tick()
    assert counted(world)[1] == clean
    assert world.state().latest["verdict"] == "blind"
    assert "the newest counters are of" in world.state().sentence


# ── hands, stores and routers that fail ──────────────────────────────────────────────────────────────────────


@BOTH
def test_a_hand_edit_is_seen_within_one_tick_undone_and_its_stretch_is_not_evidence(remembers: bool) -> None:
    world = begun(canary(**{"steps": [{"weight": 10, "bake": "1h"}, 50]}), remembers=remembers)
    world.turn(2)
    before = counted(world)
    world.router.edit("api", 60, editor="anna, 14:02:11")
    world.turn()
    assert counted(world) == before
    assert (world.weight(), world.told()[-1]) == (10, "drift")
    assert "60 % (anna, 14:02:11); put back to 10 %" in world.notifier.told[-1].sentence
    clean = world.served["api-b"]
    world.turn(3)
    assert world.told().count("drift") == 1
    assert counted(world)[1] - before[1] == world.served["api-b"] - clean
    check_record(world)


def test_a_hand_on_a_settled_route_is_undone() -> None:
    world = begun(phase="Succeeded")
    world.router.edit("api", 40)
    world.turn()
    assert world.router.view("api", world.canaries[0].spec.route, "api-b", "api-a").weight == 0
    assert world.told()[-1] == "drift"


@pytest.mark.parametrize("remembers", [True, False])
def test_a_store_that_fails_moves_nothing_and_heals(remembers: bool) -> None:
    world = begun(remembers=remembers)
    written = list(world.router.writes)
    world.store.fail("disk full")
    for _ in range(5):
        world.traffic(10)
        (out,) = world.reconciler.tick(world.canaries, world.now)
        assert out.failed == "disk full"
    assert world.router.writes == written
    world.store.heal()
    world.until("Succeeded")
    assert weights(world) == [0, 10, 50, 100, 0]
    check_record(world)


def test_a_store_that_can_be_read_but_not_written_moves_nothing() -> None:
    class ReadOnly(MemoryStore):
        """A full disk."""

        def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
            raise self._error("disk full")

    world = begun()
    store = ReadOnly()
    store.__dict__.update(world.store.__dict__)
    world.reconciler = Reconciler(replace(world.ports, store=store))
    world.errors["api-b"] = 1.0
    written = list(world.router.writes)
    world.traffic(10)
    (out,) = world.reconciler.tick(world.canaries, world.now)
    assert (out.failed, world.router.writes) == ("disk full", written)


def test_a_router_that_fails_is_healed_later_and_its_time_is_not_evidence() -> None:
    world = begun()
    world.turn()
    before = counted(world)
    world.router.fail("the file cannot be written")
    with pytest.raises(Exception, match="cannot be written"):
        world.weight()
    for _ in range(3):
        world._serve("api-a", 1800)
        world._serve("api-b", 200)
        world.now += timedelta(seconds=10)
        world.metrics.tick(world.now)
        world.tick()
    assert counted(world) == before
    assert world.state().latest["weight"]["configured"] is None
    assert "the file cannot be written" in world.state().sentence
    world.router.heal()
    world.until("Succeeded")
    assert weights(world) == [0, 10, 50, 100, 0]


def test_a_rollback_that_could_not_be_routed_is_routed_as_soon_as_it_can_be() -> None:
    class NoWrites(MemoryRouter):
        """Can be read only."""

        def set_weight(self, *args: Any, **more: Any) -> None:
            raise self._error("read-only file system")

    world = begun()
    router = NoWrites()
    router.__dict__.update(world.router.__dict__)
    world.reconciler = Reconciler(replace(world.ports, router=router))
    world.errors["api-b"] = 1.0
    world.turn(3)
    assert (world.state().phase, world.weight()) == (Phase.ROLLING_BACK, 10)
    assert world.told().count("rollback") == 1
    world.reconciler = Reconciler(world.ports)
    world.tick()
    assert (world.state().phase, world.weight()) == (Phase.ROLLED_BACK, 0)


class Stale(MemoryStore):
    """What a daemon sees that slept with old state in its hands; its saves go to the real store."""

    def __init__(self, real: MemoryStore) -> None:
        super().__init__()
        self.real = real
        self.old = real.load("api")

    def load(self, canary: str) -> Stored:
        return self.old

    def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
        return self.real.save(canary, state, version, records)


def test_a_stale_daemon_moves_nothing() -> None:
    world = begun()
    world.turn(2)
    stale = Reconciler(replace(world.ports, store=Stale(world.store)))
    world.turn(2)
    state, written = world.state(), list(world.router.writes)
    world.errors["api-b"] = 1.0
    world.traffic(10)
    (out,) = stale.tick(world.canaries, world.now)
    assert "saved at version" in out.failed
    assert (world.state(), world.router.writes) == (state, written)


def test_a_daemon_whose_store_was_put_back_in_time_is_stopped_by_the_stamp_in_the_route() -> None:
    world = begun()
    world.turn(2)
    old = MemoryStore()
    stored = world.store.load("api")
    old.release("api", Release("r1"))
    assert stored.state is not None
    old.save("api", stored.state, 1, ())
    world.until("Succeeded")
    late = Reconciler(replace(world.ports, store=old))
    written = list(world.router.writes)
    (out,) = late.tick(world.canaries, world.now, measure=False)
    assert "carries state version" in out.failed
    assert world.router.writes == written


def test_a_word_between_load_and_save_is_not_lost() -> None:
    world = begun()

    class Interrupted(MemoryRouter):
        """While the route is looked at, somebody starts a newer revision."""

        done = False

        def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
            if not self.done:
                self.done = True
                world.store.release("api", Release("r2", by="ben", at=world.now))
            return world.router.view(canary, route, stable, canary_workload)

    interrupted = Reconciler(replace(world.ports, router=Interrupted()))
    before = world.state()
    world.errors["api-b"] = 1.0
    world.traffic(10)
    (out,) = interrupted.tick(world.canaries, world.now)
    assert "saved at version" in out.failed
    assert world.state() == before
    world.errors.clear()
    world.turn()
    assert world.state().revision == "r2"
    assert world.told()[-1] == "restart"
    world.until("Succeeded")
    assert world.state().stable_revision == "r2"


def test_a_defect_around_one_canary_does_not_stop_the_others() -> None:
    class Broken(MemoryRouter):
        """Has a defect that shows for one canary, in one of its methods."""

        real: MemoryRouter
        where = "view"

        def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
            if canary == "bad" and self.where == "view":
                raise ZeroDivisionError("view")
            return self.real.view(canary, route, stable, canary_workload)

        def set_weight(self, canary: str, *args: Any, **more: Any) -> None:
            if canary == "bad":
                raise ZeroDivisionError("set")
            self.real.set_weight(canary, *args, **more)

    for where in ("view", "set"):
        world = World(canary("bad", **QUICK), canary("good", **QUICK))
        world.start()
        world.turn()
        broken = Broken()
        broken.real, broken.where = world.router, where
        world.reconciler = Reconciler(replace(world.ports, router=broken))
        for _ in range(12):
            world.traffic(10)
            outcomes = world.tick()
        assert world.state("good").phase is Phase.SUCCEEDED
        assert world.weight("bad") == 0 if where == "view" else world.weight("bad") in (0, 10)
        assert "ZeroDivisionError" in f"{outcomes[0].failed} {outcomes[0].seen}"


def test_canaries_under_way_do_not_wait_for_each_others_saves_where_writes_are_slow() -> None:
    class Slow(MemoryStore):
        """A save is answered only while another one is under way."""

        real: MemoryStore
        both = Barrier(2)

        def load(self, canary: str) -> Stored:
            return self.real.load(canary)

        def save(self, canary: str, *args: Any) -> int:
            self.both.wait(timeout=20)
            return self.real.save(canary, *args)

    world = World(canary("one", **QUICK), canary("two", **QUICK))
    world.start()
    slow = Slow()
    slow.real = world.store
    world.reconciler = Reconciler(replace(world.ports, store=slow), writers=2)
    outcomes = world.tick(measure=False)
    assert [(o.canary, o.failed, o.changed) for o in outcomes] == [("one", "", True), ("two", "", True)]
    assert {world.store.load(key).state is not None for key in ("one", "two")} == {True}


def test_a_canary_whose_state_cannot_be_read_does_not_stop_the_others() -> None:
    class Damaged(MemoryStore):
        """One state is damaged."""

        def load(self, canary: str) -> Stored:
            if canary == "bad":
                raise self._error("state of bad is damaged")
            return super().load(canary)

    world = World(canary("bad", **QUICK), canary("good", **QUICK))
    store = Damaged()
    world.reconciler = Reconciler(replace(world.ports, store=store))
    store.release("good", Release("r1"))
    outcomes = world.reconciler.tick(world.canaries, world.now)
    assert {o.canary: o.failed for o in outcomes} == {"bad": "state of bad is damaged", "good": ""}


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_people_are_answered_at_once_and_without_reading_counters() -> None:
    world = begun()
    reads = world.metrics.reads
    assert "paused by anna" in world.say(Action.PAUSE)
    assert world.weight() == 10
    world.turn(5)
    assert world.state().phase is Phase.PAUSED
    reads = world.metrics.reads
    assert "resumed by anna" in world.say(Action.RESUME)
    assert "10 % → 50 %" in world.say(Action.PROMOTE)
    assert world.weight() == 50
    assert "aborted by anna" in world.say(Action.ABORT)
    assert (world.state().phase, world.weight()) == (Phase.ROLLED_BACK, 0)
    assert "tried again" in world.say(Action.RETRY)
    assert world.state().phase is Phase.WAITING
    assert world.metrics.reads == reads
    assert "refused" in world.say(Action.PROMOTE, revision="r0")
    assert all(a is not None for _, a in world.store.audit("api"))
    world.until("Succeeded")
    check_record(world)


def test_promote_in_full_ends_the_rollout_at_once() -> None:
    world = begun()
    world.say(Action.PROMOTE, full=True)
    assert (world.state().phase, weights(world)) == (Phase.SUCCEEDED, [0, 10, 100, 0])
    check_record(world)


def test_skip_moves_an_unproven_canary_but_not_a_bad_one() -> None:
    spec = {**QUICK, "budget": {"share": "0.1%", "perHour": 0}}
    world = begun(canary(**spec), rps=5)
    world.turn(10)
    assert world.state().step == 0
    world.say(Action.SKIP)
    world.until("Succeeded", most=40)
    bad = begun(canary(**spec))
    bad.say(Action.SKIP)
    bad.errors["api-b"] = 0.5
    bad.until("RolledBack", most=3)


def test_many_words_at_once_are_answered_in_order_within_two_ticks() -> None:
    world = begun()
    for _ in range(4):
        for action in (Action.PAUSE, Action.RESUME):
            world.store.override("api", _word(world, action))
    world.tick(measure=False)
    world.tick(measure=False)
    answers = world.state().answered
    assert [str(a.action) for a in answers] == ["pause", "resume"] * 4
    assert all(a.accepted for a in answers)


def _word(world: World, action: Action) -> Any:
    return Override(f"w{world.random.integers(1 << 40)}", action, "", "anna", "", world.now)


@BOTH
def test_a_new_revision_while_one_runs_starts_again_with_fresh_evidence(remembers: bool) -> None:
    world = begun(remembers=remembers)
    world.until("Progressing")
    while world.state().step < 1:
        world.turn()
    world.start("r2")
    world.tick(measure=False)
    state = world.state()
    assert (state.revision, state.phase, state.weight, world.weight()) == ("r2", Phase.WAITING, 0, 0)
    assert state.evidence is None
    assert state.latest["findings"] == []
    served = world.served["api-b"]
    world.until("Progressing")
    world.turn(2)
    assert counted(world)[1] == world.served["api-b"] - served
    world.until("Succeeded")
    assert world.state().stable_revision == "r2"
    check_record(world)


def test_back_to_stable_ends_the_rollout_without_an_alarm_and_the_ended_revision_can_be_tried_again() -> None:
    world = begun(phase="Succeeded")
    world.start("r2")
    world.turn(3)
    world.start("r1")
    world.turn()
    assert (world.state().phase, world.told()[-1]) == (Phase.IDLE, "revert")
    assert all(r.body["severity"] == "info" for r in world.notifier.told)
    assert world.router.view("api", world.canaries[0].spec.route, "api-b", "api-a").weight == 0
    world.start("r2")
    world.turn()
    assert world.state().phase is Phase.IDLE
    world.say(Action.RETRY)
    world.until("Succeeded")
    assert world.state().stable_revision == "r2"


# ── the afterPromotion hook ──────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_after_the_hook_traffic_goes_back_step_by_step_and_the_roles_stay(remembers: bool) -> None:
    world = begun(canary(**HOOKED), remembers=remembers)
    world.hooks.script("api", HookStatus.OWED, HookStatus.OWED, HookStatus.DONE)
    world.until("Succeeded")
    assert weights(world) == [0, 10, 50, 100, 50, 10, 0]
    state = world.state()
    assert (state.stable, state.canary, state.stable_revision) == ("api-a", "api-b", "r1")
    ((started, facts),) = world.hooks.started
    assert started == "api-1-1"
    assert facts == {"ROLLOUT": "api-1", "REVISION": "r1", "STABLE_POOL": "api-a", "CANARY_POOL": "api-b"}
    assert "blind" not in world.told()
    check_record(world)


def test_a_hook_that_fails_holds_at_100_is_told_once_and_can_be_tried_again() -> None:
    world = begun(canary(**HOOKED))
    world.hooks.script("api", HookStatus.FAILED, detail="exit code 1")
    world.until("Promoting")
    world.turn(6)
    assert (world.state().phase, world.weight()) == (Phase.PROMOTING, 100)
    assert world.told().count("hook") == 1
    world.hooks.script("api", HookStatus.DONE)
    world.say(Action.RETRY)
    world.until("Succeeded")
    assert [i for i, _ in world.hooks.started] == ["api-1-1", "api-1-2"]


def test_a_stable_that_fails_after_its_upgrade_loses_its_traffic_once_and_for_all() -> None:
    errors_only = {"metrics": [{"name": "errors", "kind": "errors"}]}
    for spec in (HOOKED, {**HOOKED, **errors_only}):
        world = begun(canary(**spec))
        world.until("Promoting")
        world.errors["api-a"] = 0.3
        world.turn(12)
        assert (world.state().phase, weights(world)) == (Phase.PROMOTING, [0, 10, 50, 100, 50, 100])
        assert world.told().count("hold") == 1
        world.errors.clear()
        world.say(Action.RETRY)
        world.until("Succeeded")
        assert weights(world)[-4:] == [100, 50, 10, 0]


def test_an_abort_finds_the_hook_not_started_and_it_stays_so() -> None:
    world = begun(canary(**HOOKED))
    while world.state().phase is not Phase.PROMOTING:
        world.turn()
    hook = world.state().hook
    assert hook is not None
    assert (hook.status, world.hooks.started) == (HookStatus.OWED, [])
    world.say(Action.ABORT)
    world.turn(5)
    assert (world.state().phase, world.weight(), world.hooks.started) == (Phase.ROLLED_BACK, 0, [])


def test_a_hook_with_a_defect_is_its_own_canarys_trouble() -> None:
    class Broken(MemoryHooks):
        """Has a defect."""

        def advance(self, canary: Canary, hook: Hook, state: HookState, facts: Mapping[str, str]) -> HookState:
            raise KeyError("hook")

    world = begun(canary(**HOOKED))
    world.until("Promoting")
    world.reconciler = Reconciler(replace(world.ports, hooks=Broken()))
    world.turn(2)
    assert (world.state().phase, world.weight()) == (Phase.PROMOTING, 100)
    world.reconciler = Reconciler(world.ports)
    world.until("Succeeded")


def test_two_looks_at_the_same_time_do_not_mix_their_records_and_the_rollout_goes_on() -> None:
    class Slow(MemoryRouter):
        """Another look at the counters begins and ends while this one waits for the route."""

        world: World | None = None
        failed = ""

        def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
            world, self.world = self.world, None
            if world is not None:
                self.failed += "".join(out.failed for out in world.reconciler.tick(world.canaries, world.now))
            return super().view(canary, route, stable, canary_workload)

    world = World(canary(**QUICK), save_every=5)
    slow = Slow()
    slow.add("api", *world.canaries[0].spec.workloads.names)
    world.router, world.ports = slow, replace(world.ports, router=slow)
    world.reconciler = Reconciler(world.ports, save_every=5)
    world.start()
    world.turn()
    for _ in range(40):
        if world.state().phase is Phase.SUCCEEDED:
            break
        world.traffic(world.canaries[0].spec.interval.total_seconds())
        slow.world = world
        slow.failed += "".join(out.failed for out in world.tick())
    assert world.state().phase is Phase.SUCCEEDED, world.state().sentence
    assert "there is a record" not in slow.failed
    assert world.store.records("api", limit=1)[0].id == f"api/{world.state().decisions}"


def test_a_save_that_was_refused_is_tried_at_every_look_until_it_is_taken() -> None:
    class Strict(MemoryStore):
        """Refuses every save, but can be read."""

        refuses = False
        tried = 0

        def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
            self.tried += 1
            if self.refuses:
                raise StoreError("status.state: too long")
            return super().save(canary, state, version, records)

    world = World(canary(steps=[{"weight": 10, "bake": "10m"}]), save_every=5)
    world.store = Strict()
    world.ports = replace(world.ports, store=world.store)
    world.reconciler = Reconciler(world.ports, save_every=5)
    world.start()
    world.turn()
    world.until("Progressing")
    world.turn(10)
    world.store.refuses, saved = True, world.state()
    while not (out := world.tick()[0]).failed:
        world.traffic(10)
    for _ in range(6):
        world.traffic(10)
        (out,) = world.tick()
        assert "status.state: too long" in out.failed
    assert world.state() == saved
    world.store.refuses = False
    world.turn(2)
    tried = world.store.tried
    world.turn(4)
    assert world.store.tried - tried <= 1, "looks share a save again"


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_could_not_be_told_is_told_later_once_and_in_order() -> None:
    world = begun()
    world.notifier.fail("chat is down")
    heard = len(world.notifier.told)
    world.until("Succeeded")
    assert len(world.notifier.told) == heard
    assert world.reconciler.tell() == 0
    world.notifier.heal()
    world.turn()
    assert world.told() == ["start", "advance", "advance", "promote", "succeed"]
    check_record(world)
    assert world.reconciler.tell() == 0


def test_a_notifier_neither_waits_for_one_that_is_down_nor_is_told_again_because_of_it() -> None:
    world = World(canary(**QUICK))
    log, chat = MemoryNotifier("log"), MemoryNotifier("chat")
    world.reconciler = Reconciler(replace(world.ports, notifiers=(log, chat)))
    chat.fail("chat is down")
    world.start()
    world.turn(3)
    assert [r.id for r in log.told] == ["api/1", "api/2"]
    assert chat.told == []
    chat.heal()
    world.turn()
    assert log.told == chat.told
    assert len({r.id for r in log.told}) == len(log.told) > 1


def test_one_canary_that_cannot_be_told_does_not_hold_up_the_others() -> None:
    class Picky(MemoryNotifier):
        """Has no channel for one of them."""

        def notify(self, record: Record) -> None:
            if record.canary == "bad":
                raise NotifyError("no such channel")
            super().notify(record)

    world = World(canary("bad", **QUICK), canary("good", **QUICK))
    picky = Picky()
    world.reconciler = Reconciler(replace(world.ports, notifiers=(picky,)))
    world.start()
    world.turn(2)
    assert [r.canary for r in picky.told] == ["good", "good"]
    assert [r.id for r in world.store.owed()] == ["bad/1", "bad/2"]


def test_the_outcome_of_a_tick_says_what_was_done() -> None:
    world = begun()
    world.errors["api-b"] = 1.0
    world.traffic(10)
    (out,) = world.tick()
    assert out.kinds == (DecisionKind.ROLLBACK, DecisionKind.ROLLED_BACK, DecisionKind.IDLE)
    assert out.state == world.state()
    assert out.sentence == world.state().sentence
    world.reconciler.close()


def test_the_fence_is_a_reason_to_stop_and_not_to_try_again() -> None:
    world = begun()
    route = world.canaries[0].spec.route
    with pytest.raises(FenceError):
        world.router.set_weight("api", route, "api-a", "api-b", 50, version=1)
    assert plan.initial(world.canaries[0]).weight == 0
