"""The programmable world behaves as the real one does; the shared suites check the rest of its contracts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from canaryd.adapters.memory import (
    EDGES_MS,
    MemoryHooks,
    MemoryMetrics,
    MemoryNotifier,
    MemoryRouter,
    MemoryStore,
    MemoryWorkloads,
)
from canaryd.errors import FenceError, NotifyError, RouteError, SourceError, StoreError, WorkloadError
from canaryd.model import Arm, CounterKey, DecisionKind, HookState, HookStatus, Reading, Record, RolloutState
from canaryd.policy import Canary, EnvoyFile, ErrorSource, Hook, Route, parse_canary
from canaryd.ports import CountsQuery

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ROUTE = Route(envoy_file=EnvoyFile(path="api.yaml"))
HOOK = Hook(command=("true",))


def canary(name: str = "api") -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": name},
            "spec": {
                "workloads": {"pools": [f"{name}-a", f"{name}-b"]},
                "route": {"envoyFile": {"path": f"{name}.yaml"}},
            },
        }
    )


def readings(world: MemoryMetrics, *seconds: int, durations: bool = True) -> tuple[Reading, ...]:
    points = tuple(T0 + s * SECOND for s in seconds)
    query = CountsQuery("api", "default", "api-a", "api-b", points, SECOND, ErrorSource(), durations)
    return world.read([query])["api"].readings


def requests(reading: Reading, arm: Arm, code: str = "200") -> float | None:
    return next(
        (v for k, v in reading.counters.items() if k.arm is arm and k.name == "requests" and k.code == code), None
    )


def buckets(reading: Reading, arm: Arm) -> dict[float, float]:
    return {k.le: v for k, v in reading.counters.items() if k.arm is arm and k.name == "bucket"}


# ── counters ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_served_is_counted_at_the_next_tick_and_for_ever() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1", n=3)
    world.serve("api-b", "b-1", code="503", n=2, ms=None, flags="UF")
    world.serve("other", "o-1", n=9)
    world.tick(T0)
    world.serve("api-a", "a-1", n=4)
    world.tick(T0 + SECOND)
    first, second = readings(world, 0, 1)
    assert (first.at, second.at) == (T0, T0 + SECOND)
    assert (requests(first, Arm.STABLE), requests(second, Arm.STABLE)) == (3, 7)
    key = CounterKey(Arm.CANARY, "envoy", "b-1", "requests", "503", "UF", "", 0.0)
    assert first.counters[key] == 2
    assert {k.pod for k in first.counters} == {"a-1", "b-1"}


def test_a_bucket_counts_the_durations_up_to_and_with_its_edge() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1", ms=[1.0, 10.0, 10.1, 1e9])
    world.tick(T0)
    (reading,) = readings(world, 0)
    got = buckets(reading, Arm.STABLE)
    assert tuple(sorted(got)) == EDGES_MS
    assert (got[0.5], got[1.0], got[5.0], got[10.0], got[25.0], got[3.6e6], got[float("inf")]) == (0, 1, 1, 2, 3, 3, 4)
    assert requests(reading, Arm.STABLE) == 4


def test_requests_without_a_duration_are_in_no_bucket_and_buckets_come_only_when_wanted() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1", n=5, ms=None)
    world.serve("api-b", "b-1", n=5, ms=3.0)
    world.tick(T0)
    (reading,) = readings(world, 0)
    assert buckets(reading, Arm.STABLE) == {}
    assert buckets(reading, Arm.CANARY)[5.0] == 5
    (reading,) = readings(world, 0, durations=False)
    assert {k.name for k in reading.counters} == {"requests"}


def test_a_series_that_was_never_served_is_absent_and_zero_requests_give_birth_to_it() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1", n=1)
    world.tick(T0)
    world.serve("api-b", "b-1", n=0)
    world.tick(T0 + SECOND)
    first, second = readings(world, 0, 1)
    assert (requests(first, Arm.CANARY), requests(second, Arm.CANARY)) == (None, 0)


def test_a_restart_sets_every_counter_of_the_exporter_to_zero_and_of_no_other() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1", n=5, exporter="envoy-1")
    world.serve("api-b", "b-1", n=5, exporter="envoy-2")
    world.restart("envoy-1")
    world.serve("api-a", "a-1", n=1, ms=3.0, exporter="envoy-1")
    world.tick(T0)
    (reading,) = readings(world, 0)
    assert (requests(reading, Arm.STABLE), requests(reading, Arm.CANARY)) == (1, 5)
    assert buckets(reading, Arm.STABLE)[float("inf")] == 1


def test_a_pod_that_vanished_has_no_series_and_starts_at_zero_when_it_comes_back() -> None:
    world = MemoryMetrics()
    world.serve("api-b", "b-1", n=5)
    world.serve("api-b", "b-2", n=7)
    world.tick(T0)
    world.vanish("b-1")
    world.tick(T0 + SECOND)
    world.serve("api-b", "b-1", n=2)
    world.tick(T0 + 2 * SECOND)
    pods = [{k.pod: v for k, v in r.counters.items() if k.name == "requests"} for r in readings(world, 0, 1, 2)]
    assert pods == [{"b-1": 5, "b-2": 7}, {"b-2": 7}, {"b-1": 2, "b-2": 7}]
    assert {k.pod for k in readings(world, 1)[0].counters if k.name == "bucket"} == {"b-2"}


# ── seeing ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_source_that_remembers_gives_the_same_answer_for_the_same_instant() -> None:
    world = MemoryMetrics(remembers=True)
    for s in (0, 1, 2):
        world.serve("api-a", "a-1")
        world.tick(T0 + s * SECOND)
    assert readings(world, 0, 1) == readings(world, 0, 1)
    assert [r.at for r in readings(world, 1, 5, 7)] == [T0 + SECOND]


def test_a_source_that_does_not_remember_answers_now_stamped_with_the_last_point() -> None:
    world = MemoryMetrics(remembers=False)
    assert readings(world, 0) == ()
    for s in (0, 1):
        world.serve("api-a", "a-1")
        world.tick(T0 + s * SECOND)
    (reading,) = readings(world, 0, 3)
    assert reading.at == T0 + 3 * SECOND
    assert requests(reading, Arm.STABLE) == 2


def test_an_outage_is_an_error_and_loses_no_instant_but_silence_does() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "a-1")
    world.serve("api-b", "b-1")
    world.fail("no route to host")
    world.tick(T0)
    with pytest.raises(SourceError, match="no route to host"):
        readings(world, 0)
    world.heal()
    assert len(readings(world, 0)) == 1
    world.silent()
    world.tick(T0 + SECOND)
    assert readings(world, 1) == ()
    world.silent("api-b")
    world.tick(T0 + 2 * SECOND)
    assert {k.arm for k in readings(world, 2)[0].counters} == {Arm.STABLE}
    world.heal()
    world.serve("api-b", "b-1")
    world.tick(T0 + 3 * SECOND)
    assert [r.at for r in readings(world, 0, 1, 2, 3)] == [T0, T0 + 2 * SECOND, T0 + 3 * SECOND]
    assert requests(readings(world, 3)[0], Arm.CANARY) == 2


def test_the_world_does_not_go_back_in_time_and_forgets_the_oldest_instants() -> None:
    world = MemoryMetrics(retention=2)
    world.serve("api-a", "a-1")
    for s in (0, 1, 2):
        world.tick(T0 + s * SECOND)
    with pytest.raises(ValueError, match="not after"):
        world.tick(T0 + 2 * SECOND)
    assert [r.at for r in readings(world, 0, 1, 2)] == [T0 + SECOND, T0 + 2 * SECOND]


# ── routes, workloads, hooks, people, state ──────────────────────────────────────────────────────────────────


def test_a_hand_edit_shows_as_a_weight_that_is_not_the_stamped_one() -> None:
    router = MemoryRouter({"api": {"api-a": 100, "api-b": 0}})
    router.set_weight("api", ROUTE, "api-a", "api-b", 25, version=3)
    router.edit("api", 60, editor="anna")
    view = router.view("api", ROUTE, "api-a", "api-b")
    assert (view.weight, view.stamped_weight, view.version, view.editor) == (60, 25, 3, "anna")
    assert view.stamped_canary == "api-b"
    router.set_weight("api", ROUTE, "api-a", "api-b", 25, version=3)
    assert router.view("api", ROUTE, "api-a", "api-b").editor == ""
    assert router.view("api", ROUTE, "api-b", "api-a").weight == 75
    assert router.writes == [("api", 25, 3), ("api", 25, 3)]


def test_a_stale_writer_a_strange_route_and_an_outage_change_nothing() -> None:
    router = MemoryRouter()
    router.add("api", "api-a", "api-b", weight=10)
    router.set_weight("api", ROUTE, "api-a", "api-b", 50, version=7)
    with pytest.raises(FenceError):
        router.set_weight("api", ROUTE, "api-a", "api-b", 75, version=6)
    for name, workload, weight in (("api", "api-c", 75), ("web", "api-b", 75), ("api", "api-b", 101)):
        with pytest.raises(RouteError):
            router.set_weight(name, ROUTE, "api-a", workload, weight, version=9)
    router.fail("read-only file system")
    with pytest.raises(RouteError, match="read-only"):
        router.set_weight("api", ROUTE, "api-a", "api-b", 75, version=9)
    router.heal()
    assert router.view("api", ROUTE, "api-a", "api-b").weight == 50
    router.remove("api")
    with pytest.raises(RouteError, match="no route"):
        router.view("api", ROUTE, "api-a", "api-b")


def test_workloads_are_ready_until_somebody_says_otherwise() -> None:
    workloads = MemoryWorkloads()
    assert workloads.view(canary(), RolloutState(stable="api-a", canary="api-b")).ready
    workloads.set_ready("api", False, "b-1 is starting")
    workloads.set_started("api", {"b-1": T0})
    view = workloads.view(canary(), RolloutState(stable="api-a", canary="api-b"))
    assert (view.ready, view.detail, view.started) == (False, "b-1 is starting", {"b-1": T0})
    assert workloads.view(canary("web"), RolloutState(stable="web-a", canary="web-b")).ready
    workloads.fail("gone")
    with pytest.raises(WorkloadError):
        workloads.view(canary(), RolloutState(stable="api-a", canary="api-b"))


def test_a_hook_follows_its_script_is_started_once_and_done_without_one() -> None:
    hooks = MemoryHooks()
    hooks.script("api", HookStatus.OWED, HookStatus.OWED, HookStatus.FAILED, detail="exit 3")
    state = HookState("api-1")
    seen = []
    for _ in range(4):
        state = hooks.advance(canary(), HOOK, state, {"REVISION": "r2"})
        seen.append(state.status)
    assert seen == [HookStatus.OWED, HookStatus.OWED, HookStatus.FAILED, HookStatus.FAILED]
    assert state == HookState("api-1", HookStatus.FAILED, "exit 3")
    assert hooks.started == [("api-1", {"REVISION": "r2"})]
    assert hooks.advance(canary("web"), HOOK, HookState("web-1"), {}).status is HookStatus.DONE


def test_what_was_not_delivered_is_not_among_the_told() -> None:
    notifier, record = MemoryNotifier(), Record("api/1", "api", T0, DecisionKind.START, "started", {}, tell=True)
    notifier.fail("503")
    with pytest.raises(NotifyError, match="503"):
        notifier.notify(record)
    notifier.heal()
    notifier.notify(record)
    assert notifier.told == [record]


def test_a_store_that_fails_changes_nothing() -> None:
    store = MemoryStore()
    store.fail("the disk is full")
    for call in (lambda: store.save("api", RolloutState(), 0, []), lambda: store.load("api"), store.mark):
        with pytest.raises(StoreError, match="full"):
            call()
    store.heal()
    assert store.load("api").version == 0
