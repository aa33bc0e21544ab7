"""Stories of Deployments over the memory adapters: adoption, promotion and return, broken pods, quarrels, farewells."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import structlog
from world import World, canary

from canaryd.adapters.memory import MemoryRouter, MemoryWorkloads
from canaryd.errors import ConflictError, RouteRefusedError, WorkloadError
from canaryd.model import Action, DecisionKind, HookStatus, Phase, Pods, RolloutState, WorkloadView
from canaryd.plan import DRIFTS, SETTLE, TRUCE
from canaryd.policy import Canary, Route, parse_canary
from canaryd.reconcile import Reconciler

QUICK: dict[str, Any] = {"steps": [{"weight": w, "bake": "20s"} for w in (10, 50)]}


def deployed(name: str = "api", **spec: Any) -> Canary:
    """A Canary of the cluster: a Deployment, a VirtualService, and a uid."""
    kinds = {
        "workloads": {"deployment": {"name": name}},
        "route": {"istio": {"virtualServices": [{"name": name, "routes": ["primary"]}]}},
    }
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "generation": 1},
        "spec": {"interval": "10s", "warmUp": "0s", "budget": {"share": "0.5%"}, **kinds, **QUICK, **spec},
    }
    return parse_canary(document)


READY = WorkloadView(ready=True, stable_revision="r1", stable=Pods(wanted=3, ready=3), canary=Pods(wanted=3, ready=3))


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def adopted(*canaries: Canary, **more: Any) -> World:
    """A world whose service is in canaryd's care and runs r1."""
    world = World(*(canaries or (deployed(),)), **more)
    for c in world.canaries:
        world.router.plain(c.key, c.spec.workloads.names[1])
        world.workloads.put(c.key, READY)
        world.workloads.asks_for(c.key, "r1")
    world.tick(measure=False)
    while not all(world.state(c.key).stable_revision for c in world.canaries):
        world.traffic(10)
        world.tick(measure=False)
    return world


def releasing(world: World, revision: str = "r2", until: str = "Progressing") -> World:
    for c in world.canaries:
        world.workloads.asks_for(c.key, revision)
    world.turn()
    world.until(until)
    return world


# ── adoption ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_running_service_is_adopted_before_anything_is_released() -> None:
    world = World(deployed())
    key = "shop/api"
    world.router.plain(key, "api")
    world.workloads.asks_for(key, "r1")
    world.workloads.put(key, replace(READY, ready=False, detail="api-stable has 1 of 3 pods"))
    world.tick(measure=False)
    assert world.state().sentence == "api is being adopted: api-stable has 1 of 3 pods"
    assert world.router.view(key, world.canaries[0].spec.route, "api-stable", "api").adoptable, "not before it is ready"
    world.workloads.put(key, READY)
    world.tick(measure=False)
    assert world.weight() == 0, "everything goes to stable"
    world.now += SETTLE - timedelta(seconds=1)
    world.tick(measure=False)
    assert world.state().stable_revision == "", "requests are still under way to the old pods"
    world.now += timedelta(seconds=1)
    world.tick(measure=False)
    state = world.state()
    assert (state.stable_revision, state.phase, state.number) == ("r1", Phase.IDLE, 0)
    assert world.told() == ["adopt"]
    shaped = world.workloads.shaped[-1]
    assert shaped[:2] == (key, Phase.IDLE)


def test_an_adopted_service_that_did_not_change_is_left_alone() -> None:
    world = adopted()
    saved = world.store.load("shop/api").version
    for _ in range(5):
        world.now += timedelta(seconds=10)
        world.tick()
    assert world.store.load("shop/api").version == saved
    assert world.metrics.reads == 0


def test_a_service_whose_deployment_is_missing_is_not_adopted_and_says_so() -> None:
    world = World(deployed())
    world.router.plain("shop/api", "api")
    world.workloads.put("shop/api", WorkloadView(ready=False, gone="Deployment shop/api does not exist"))
    world.workloads.asks_for("shop/api", "r1")
    world.tick(measure=False)
    assert "Deployment shop/api does not exist" in world.state().sentence
    assert world.state().stable_revision == ""


# ── promotion ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_release_goes_to_stable_and_the_traffic_comes_back_step_by_step() -> None:
    world = releasing(adopted(rps=400))
    world.workloads.upgrades("shop/api", HookStatus.OWED, HookStatus.OWED, HookStatus.DONE)
    world.until("Succeeded")
    written = [w for _, w, _ in world.router.writes]
    assert [w for i, w in enumerate(written) if i == 0 or written[i - 1] != w] == [0, 10, 50, 100, 50, 0]
    state = world.state()
    assert (state.stable, state.canary, state.stable_revision) == ("api-stable", "api", "r2"), "no roles are swapped"
    assert world.told()[-2:] == ["promote", "succeed"]
    assert world.workloads.shaped[-1][1] is Phase.SUCCEEDED


def test_a_revision_that_lands_during_the_promotion_is_released_afterwards_and_never_promoted_unseen() -> None:
    world = releasing(adopted(rps=400), until="Promoting")
    world.workloads.upgrades("shop/api", HookStatus.OWED, HookStatus.OWED, HookStatus.DONE)
    world.workloads.asks_for("shop/api", "r3")
    world.until("Waiting")
    assert world.state().stable_revision == "r2"
    assert (world.state().revision, world.state().phase, world.weight()) == ("r3", Phase.WAITING, 0)


def test_a_revision_that_lands_during_a_rollout_takes_the_traffic_away_at_once() -> None:
    world = releasing(adopted())
    assert world.weight() == 10
    world.workloads.asks_for("shop/api", "r3")
    world.tick(measure=False)
    assert (world.weight(), world.state().revision) == (0, "r3")


def test_stable_wanted_again_ends_the_rollout() -> None:
    world = releasing(adopted())
    world.workloads.asks_for("shop/api", "r1")
    world.tick(measure=False)
    assert (world.weight(), world.state().phase) == (0, Phase.IDLE)
    assert world.told()[-1] == "revert"


def test_a_failed_upgrade_of_stable_stays_on_the_canary_and_is_tried_again_when_a_person_says_so() -> None:
    world = releasing(adopted(rps=400), until="Promoting")
    world.workloads.upgrades("shop/api", HookStatus.FAILED, detail="pods of api-stable do not become ready")
    world.turn(2)
    assert "api-stable could not be upgraded (pods of api-stable do not become ready)" in world.state().sentence
    assert world.weight() == 100
    world.workloads.upgrades("shop/api", HookStatus.DONE)
    world.say(Action.RETRY, "shop/api")
    world.until("Succeeded")


def test_a_regression_seen_while_stable_is_being_upgraded_rolls_back_all_the_same() -> None:
    world = releasing(adopted(rps=400), until="Promoting")
    world.workloads.upgrades("shop/api", HookStatus.OWED)
    world.errors["api"] = 0.5
    world.until("RolledBack", most=20)
    assert world.weight() == 0


# ── pods ─────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = [
    pytest.param(
        replace(READY, canary=Pods(wanted=3, ready=0, trouble="CrashLoopBackOff")),
        "no pod of api is ready (CrashLoopBackOff)",
        id="none-ready",
    ),
    pytest.param(
        replace(READY, canary=Pods(wanted=3, ready=3, killed_for_memory=1)),
        "1 container of api ran out of memory, none of api-stable",
        id="out-of-memory",
    ),
    pytest.param(
        replace(READY, canary=Pods(wanted=3, ready=2, restarts=4)), "4 restarts of api, 0 of api-stable", id="restarts"
    ),
    pytest.param(
        replace(READY, canary=Pods(wanted=1, ready=1, restarts=4), stable=Pods(wanted=10, ready=10, restarts=3)),
        "4 restarts of api, 3 of api-stable",
        id="restarts-of-a-single-pod",
    ),
    pytest.param(
        replace(READY, ready=False, gone="Deployment shop/api does not exist"),
        "Deployment shop/api does not exist",
        id="gone",
    ),
]
NOT_BROKEN = [
    pytest.param(replace(READY, canary=Pods(wanted=3, ready=1, restarts=2)), id="a-few-restarts"),
    pytest.param(
        replace(READY, canary=Pods(wanted=1, ready=1, restarts=3), stable=Pods(wanted=3, ready=3, restarts=6)),
        id="stable-restarts-as-well",
    ),
    pytest.param(
        replace(
            READY,
            canary=Pods(wanted=1, ready=1, killed_for_memory=1),
            stable=Pods(wanted=3, ready=3, killed_for_memory=1),
        ),
        id="stable-runs-out-of-memory-as-well",
    ),
]


@pytest.mark.parametrize(("view", "why"), BROKEN)
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_broken_canary_pods_lose_their_traffic_at_once(view: WorkloadView, why: str, paused: bool) -> None:
    world = releasing(adopted())
    if paused:
        world.say(Action.PAUSE, "shop/api")
    world.workloads.put("shop/api", view)
    world.tick(measure=False)
    assert world.weight() == 0
    assert world.state().phase is Phase.ROLLED_BACK
    rollback = next(r for r in world.notifier.told if r.kind is DecisionKind.ROLLBACK)
    assert rollback.sentence.startswith(f"api 10 % → 0 %: {why}")


@pytest.mark.parametrize("view", NOT_BROKEN)
def test_pods_that_are_no_worse_than_stables_keep_their_traffic(view: WorkloadView) -> None:
    world = releasing(adopted())
    world.workloads.put("shop/api", view)
    world.tick(measure=False)
    assert (world.weight(), world.state().phase) == (10, Phase.PROGRESSING)


def test_workloads_that_cannot_be_seen_are_no_reason_to_roll_back() -> None:
    world = releasing(adopted())
    world.workloads.fail("the API server has not answered for 12 s")
    world.turn(2)
    assert (world.weight(), world.state().phase) == (10, Phase.PROGRESSING)


def test_canary_pods_that_never_become_ready_end_the_rollout_without_traffic() -> None:
    world = adopted()
    late = "api is not ready after 10 min: ImagePullBackOff"
    world.workloads.asks_for("shop/api", "r2")
    world.workloads.put("shop/api", replace(READY, ready=False, detail="api: 0 of 3 pods are ready"))
    world.turn(3)
    assert world.state().phase is Phase.WAITING
    world.workloads.put("shop/api", replace(READY, ready=False, overdue=late))
    world.turn()
    assert world.state().phase is Phase.ROLLED_BACK
    assert [w for _, w, _ in world.router.writes if w] == []
    assert any(r.sentence == f"api stays at 0 %: {late}" for r in world.notifier.told)


# ── a hand on the weight ─────────────────────────────────────────────────────────────────────────────────────


def test_a_weight_that_somebody_keeps_lowering_is_put_back_a_few_times_and_then_left_for_a_while() -> None:
    world = releasing(adopted())
    for _ in range(DRIFTS):
        world.now += timedelta(seconds=3)
        world.router.edit("shop/api", 0, editor="argocd")
        world.tick(measure=False)
        assert world.weight() == 10
    world.now += timedelta(seconds=3)
    world.router.edit("shop/api", 0, editor="argocd")
    world.tick(measure=False)
    assert world.weight() == 0, "left alone"
    assert world.told()[-1] == "contested"
    writes = len(world.router.writes)
    world.now += timedelta(minutes=1)
    world.tick(measure=False)
    assert len(world.router.writes) == writes
    world.now += TRUCE
    world.tick(measure=False)
    assert world.weight() == 10


def test_a_weight_that_somebody_keeps_raising_is_always_put_back() -> None:
    world = releasing(adopted())
    for _ in range(3 * DRIFTS):
        world.now += timedelta(seconds=3)
        world.router.edit("shop/api", 60, editor="anna")
        world.tick(measure=False)
        assert world.weight() == 10


def test_a_rollback_is_written_even_during_a_quarrel() -> None:
    world = releasing(adopted())
    for _ in range(DRIFTS + 1):
        world.now += timedelta(seconds=3)
        world.router.edit("shop/api", 5, editor="argocd")
        world.tick(measure=False)
    assert world.weight() == 5
    world.say(Action.ABORT, "shop/api")
    assert world.weight() == 0


def test_a_plain_route_put_back_by_somebody_becomes_the_current_split_again() -> None:
    world = releasing(adopted())
    world.router.plain("shop/api", "api")
    world.tick(measure=False)
    assert world.weight() == 10


def test_a_tool_that_keeps_the_plain_route_is_told_once_and_undone_while_the_canary_has_pods() -> None:
    world = releasing(adopted())
    before = len(world.told())
    for _ in range(3 * DRIFTS):
        world.now += timedelta(seconds=3)
        world.router.plain("shop/api", "api")
        world.tick(measure=False)
        assert world.weight() == 10
    assert world.told()[before:] == ["drift"] * DRIFTS + ["contested"]


def test_a_plain_route_is_left_for_a_while_where_it_reaches_nothing_but_stable() -> None:
    world = adopted()
    world.workloads.put("shop/api", replace(READY, canary=Pods()))
    for _ in range(DRIFTS + 1):
        world.traffic(10)
        world.router.plain("shop/api", "api")
        world.tick(measure=False)
    assert world.told()[-1] == "contested"
    writes = len(world.router.writes)
    world.traffic(60)
    world.tick(measure=False)
    assert len(world.router.writes) == writes
    world.workloads.put("shop/api", READY)
    releasing(world)
    assert world.weight() == 10, "a release does not wait for the end of a truce"


def test_a_weight_raised_during_the_truce_of_a_quarrel_is_put_back() -> None:
    world = releasing(adopted())
    for _ in range(DRIFTS + 1):
        world.now += timedelta(seconds=3)
        world.router.edit("shop/api", 0, editor="argocd")
        world.tick(measure=False)
    assert world.weight() == 0, "left alone"
    world.now += timedelta(seconds=3)
    world.router.edit("shop/api", 60, editor="anna")
    world.tick(measure=False)
    assert world.weight() == 10


def test_trouble_with_the_workloads_is_over_when_they_can_be_written_again() -> None:
    world = adopted()
    world.workloads.fail("Deployment shop/api was changed by somebody meanwhile")
    (outcome,) = world.tick(measure=False)
    assert outcome.seen is not None
    assert outcome.seen.trouble
    world.workloads.heal()
    world.tick(measure=False)
    (outcome,) = world.tick(measure=False)
    assert outcome.seen is not None
    assert outcome.seen.trouble == ()


def test_a_rolled_back_canary_says_why() -> None:
    world = releasing(adopted())
    world.workloads.put("shop/api", replace(READY, gone="Deployment shop/api does not exist"))
    world.turn(2)
    assert world.state().phase is Phase.ROLLED_BACK
    assert "Deployment shop/api does not exist" in world.state().sentence


@pytest.mark.parametrize("pods", [3, 0])
def test_a_plain_route_put_back_again_and_again_is_left_only_while_the_canary_has_no_pods(pods: int) -> None:
    world = adopted()
    world.workloads.put("shop/api", replace(READY, canary=Pods(wanted=pods, ready=pods)))
    for _ in range(DRIFTS + 1):
        world.now += timedelta(seconds=3)
        world.router.plain("shop/api", "api")
        world.tick(measure=False)
    view = world.router.view("shop/api", world.canaries[0].spec.route, "api-stable", "api")
    assert view.adoptable is (pods == 0)


# ── looks that share a save ──────────────────────────────────────────────────────────────────────────────────


def test_looks_that_decide_nothing_share_a_save_and_are_counted_all_the_same() -> None:
    often, rarely = (releasing(adopted(rps=50, save_every=n)) for n in (1, 4))
    for world in (often, rarely):
        world.turn(8)
    versions = [world.store.load("shop/api").version for world in (often, rarely)]
    rarely.reconciler.flush()
    a, b = (world.state().evidence for world in (often, rarely))
    assert a is not None
    assert b is not None
    assert versions[0] - versions[1] >= 5
    assert (a.through, a.intervals) == (b.through, b.intervals)
    assert a.arrays["total"].tolist() == b.arrays["total"].tolist()
    assert often.store.records("shop/api", limit=99) == rarely.store.records("shop/api", limit=99)


def _saved_by_turn(world: World, turns: int) -> list[set[str]]:
    """Which canaries were saved in each of the next turns."""
    before, out = {c.key: world.store.load(c.key).version for c in world.canaries}, []
    for _ in range(turns):
        world.turn()
        after = {c.key: world.store.load(c.key).version for c in world.canaries}
        out.append({key for key in after if after[key] != before[key]})
        assert all(after[key] - before[key] <= 1 for key in after), "at most one save in an interval"
        before = after
    return out


def test_releases_that_began_together_are_not_all_saved_in_the_same_tick() -> None:
    steady = [deployed(f"api-{i}", steps=[{"weight": 10, "bake": "2h"}]) for i in range(12)]
    world = releasing(adopted(*steady, rps=20, save_every=3))
    world.turn(3)  # until the evidence of all has begun
    saved = _saved_by_turn(world, 6)
    for i in range(4):
        everybody = [key for turn in saved[i : i + 3] for key in turn]
        assert sorted(everybody) == sorted(c.key for c in steady), "each has exactly one turn in three"
    assert max(len(turn) for turn in saved) <= 8, "a third of them, give or take"
    world.reconciler = Reconciler(world.ports, save_every=3)  # another one leads
    assert max(len(turn) for turn in _saved_by_turn(world, 3)) <= 8


def test_looks_lost_with_the_process_are_counted_again_and_once() -> None:
    kept, killed = (releasing(adopted(rps=50, save_every=50)) for _ in range(2))
    for world in (kept, killed):
        world.turn(4)
    killed.reconciler.forget()  # the process is gone; another one begins from what was saved
    for world in (kept, killed):
        world.turn(2)
    a, b = (world.reconciler._load(world.canaries[0]).state for world in (kept, killed))
    assert a is not None
    assert b is not None
    assert a.evidence is not None
    assert b.evidence is not None
    assert a.evidence.arrays["total"].tolist() == b.evidence.arrays["total"].tolist()
    assert a.evidence.through == b.evidence.through


def test_a_step_is_saved_at_once_with_the_looks_before_it() -> None:
    world = releasing(adopted(rps=400, save_every=100))
    world.until("Promoting")
    records = list(reversed(world.store.records("shop/api", limit=999)))
    assert [r.id for r in records] == [f"shop/api/{i + 1}" for i in range(len(records))]
    for record, weight in zip([r for r in records if r.kind is DecisionKind.ADVANCE], (10, 50), strict=True):
        assert record.body["weight"]["desired"] == weight


def test_another_verdict_is_saved_at_once() -> None:
    slow = deployed(steps=[{"weight": 10, "bake": "4m"}, {"weight": 50}])
    world = releasing(adopted(slow, rps=400, save_every=100))
    waited, verdicts = 0, set()
    for _ in range(20):
        world.turn()
        assert world.weight() == 10
        saved, now = world.store.load("shop/api").state, world.reconciler._load(world.canaries[0]).state
        assert saved is not None
        assert now is not None
        assert saved.verdict == now.verdict
        waited += saved != now
        verdicts.add(now.verdict)
    assert waited > 5, "looks did share saves"
    assert len(verdicts) > 1


def test_looks_are_void_when_somebody_else_has_saved() -> None:
    world = releasing(adopted(rps=50, save_every=50))
    world.turn(4)
    stored = world.store.load("shop/api")
    assert stored.state is not None
    assert stored.state != world.reconciler._load(world.canaries[0]).state, "looks wait for a save"
    world.store.save("shop/api", replace(stored.state, weight=50, step=1), stored.version, [])
    world.turn()
    assert world.weight() == 50, "the other's step is followed"
    with pytest.raises(ConflictError):
        world.store.save("shop/api", stored.state, stored.version, [])


def test_how_far_an_upgrade_has_come_costs_no_save_of_its_own_but_its_end_does() -> None:
    world = releasing(adopted(rps=400, save_every=100))
    world.workloads.upgrades("shop/api", HookStatus.OWED, detail="0 of 3 pods")
    world.until("Promoting")
    world.tick(measure=False)
    before = world.store.load("shop/api").version
    for ready in (1, 2, 3):
        world.workloads.upgrades("shop/api", HookStatus.OWED, detail=f"{ready} of 3 pods")
        world.tick(measure=False)
    assert world.store.load("shop/api").version == before
    assert "3 of 3 pods" in world.reconciler._load(world.canaries[0]).state.sentence  # type: ignore[union-attr]
    world.workloads.upgrades("shop/api", HookStatus.DONE)
    world.tick(measure=False)
    assert world.store.load("shop/api").version > before


def test_a_decision_that_was_not_saved_changes_no_workload_and_no_route() -> None:
    world = releasing(adopted())
    key = "shop/api"

    class Meddled(MemoryWorkloads):
        """While they are looked at, another daemon saves."""

        def view(self, canary: Canary, state: RolloutState) -> WorkloadView:
            stored = world.store.load(key)
            assert stored.state is not None
            world.store.save(key, stored.state, stored.version, [])
            return super().view(canary, state)

    workloads = Meddled()
    workloads.asks_for(key, "r2")
    workloads.put(key, replace(READY, canary=Pods(wanted=3, ready=0)))
    world.reconciler.ports = replace(world.ports, workloads=workloads)
    written = len(world.router.writes)
    (outcome,) = world.reconciler.tick(world.canaries, world.now, measure=False)
    assert "saved at version" in outcome.failed
    assert workloads.shaped == []
    assert len(world.router.writes) == written


# ── farewell ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_canary_gives_the_route_back_and_waits_before_it_lets_go() -> None:
    world = adopted()
    only = world.canaries[0]
    assert world.reconciler.remove(only, world.now) == "the last requests leave api-stable"
    assert world.router.view("shop/api", only.spec.route, "api-stable", "api").adoptable, "as it was"
    world.now += SETTLE
    assert world.reconciler.remove(only, world.now) == ""


def test_a_canary_deleted_under_way_gets_no_more_requests_before_its_pods_are_replaced() -> None:
    world = releasing(adopted())
    only = world.canaries[0]
    assert world.weight() == 10
    assert world.reconciler.remove(only, world.now) == "the last requests leave api"
    assert world.weight() == 0
    world.now += SETTLE / 2
    assert world.reconciler.remove(only, world.now) == "the last requests leave api"
    assert not world.router.view("shop/api", only.spec.route, "api-stable", "api").adoptable
    world.now += SETTLE / 2
    assert world.reconciler.remove(only, world.now) == "the last requests leave api-stable"
    assert world.router.view("shop/api", only.spec.route, "api-stable", "api").adoptable


def test_a_canary_that_is_all_that_serves_keeps_its_requests_when_it_is_deleted() -> None:
    world = releasing(adopted())
    world.workloads.put("shop/api", replace(READY, stable=Pods(wanted=3, ready=0)))
    writes = len(world.router.writes)
    world.reconciler.remove(world.canaries[0], world.now)
    assert len(world.router.writes) == writes, "straight to the plain service"


def test_a_deleted_canary_keeps_its_route_until_the_plain_service_can_take_everything() -> None:
    world = adopted()
    world.workloads.fail("api has 0 of 3 pods")
    with pytest.raises(WorkloadError):
        world.reconciler.remove(world.canaries[0], world.now)
    assert world.weight() == 0


def test_a_route_that_its_owner_wrote_as_a_split_keeps_both_workloads_when_the_canary_is_deleted() -> None:
    world = adopted()
    world.router.add("shop/api", "api-stable", "api")
    assert world.reconciler.remove(world.canaries[0], world.now) == ""
    assert world.weight() == 0


class Foreign(MemoryRouter):
    """Its document names a host in another namespace."""

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        raise RouteRefusedError("spec.route.istio.stable.host: a Canary routes only in its own namespace")


def test_a_deleted_canary_that_names_a_route_which_is_never_touched_does_not_wait_for_it() -> None:
    world = World(deployed())
    only, world.ports = world.canaries[0], replace(world.ports, router=Foreign())
    world.reconciler = Reconciler(world.ports)
    world.reconciler.remove(only, world.now)
    world.now += SETTLE
    assert world.reconciler.remove(only, world.now) == ""


def test_one_that_was_adopted_before_its_document_was_spoilt_waits_for_its_route() -> None:
    world = adopted()
    world.reconciler = Reconciler(replace(world.ports, router=Foreign()))
    with pytest.raises(RouteRefusedError):
        world.reconciler.remove(world.canaries[0], world.now)


def test_names_of_several_namespaces_do_not_meet() -> None:
    one, two = deployed(), deployed()
    other = two.model_copy(update={"metadata": two.metadata.model_copy(update={"namespace": "lab", "uid": "other"})})
    world = adopted(one, other)
    world.workloads.asks_for("lab/api", "r2")
    world.turn(2)
    assert world.state("shop/api").phase is Phase.IDLE
    assert world.state("lab/api").phase is not Phase.IDLE
    assert {r.canary for r in world.notifier.told} == {"shop/api", "lab/api"}


def test_documents_of_files_are_still_called_by_their_name() -> None:
    assert canary().key == "api"
