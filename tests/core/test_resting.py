"""Which Canaries are looked at in an interval, and which rest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from test_cluster_stories import READY, adopted, deployed, releasing

from canaryd.model import Observation, Phase, Release, RolloutState, RouteView
from canaryd.reconcile import Outcome
from canaryd.resting import CALM, LOOKS, Resting, is_at_rest

NOW = datetime(2026, 3, 1, tzinfo=UTC)
API = deployed("api")
SETTLED = RolloutState(
    stable="api-stable",
    canary="api",
    phase=Phase.SUCCEEDED,
    stable_revision="r1",
    routed=NOW - CALM,
)
ROUTE = RouteView(weight=0, version=1, stamped_weight=0, stamped_canary="api")
SEEN = Observation(at=NOW, release=Release("r1"), route=ROUTE, workloads=READY, judgement=None)
IDLE = Outcome("shop/api", SETTLED, seen=SEEN, changed=False)


def test_a_settled_canary_of_which_nothing_changed_is_looked_at_once_in_ten_intervals() -> None:
    resting = Resting()
    resting.looked([API], [IDLE])
    assert [bool(resting.due([API], number)) for number in range(2 * LOOKS)].count(True) == 2


def test_what_wakes_a_canary_brings_a_look_in_every_interval_until_it_rests_again() -> None:
    resting = Resting()
    resting.looked([API], [IDLE])
    resting.wake("shop/api")
    assert all(resting.due([API], number) for number in range(LOOKS))


def test_a_canary_whose_document_changed_does_not_rest() -> None:
    resting = Resting()
    resting.looked([API], [IDLE])
    changed = deployed("api")
    assert all(resting.due([changed], number) for number in range(LOOKS))


def test_a_look_that_found_something_ends_the_rest() -> None:
    resting = Resting()
    resting.looked([API], [IDLE])
    resting.looked([API], [replace(IDLE, failed="the Canaries cannot be seen")])
    assert all(resting.due([API], number) for number in range(LOOKS))


def test_not_all_canaries_are_looked_at_in_the_same_interval() -> None:
    resting = Resting()
    canaries = [deployed(f"service-{i}") for i in range(200)]
    resting.looked(canaries, [replace(IDLE, canary=c.key) for c in canaries])
    assert max(len(resting.due(canaries, number)) for number in range(LOOKS)) < 50


@pytest.mark.parametrize(
    "restless",
    [
        pytest.param(replace(IDLE, failed="refused"), id="something could not be saved"),
        pytest.param(replace(IDLE, changed=True), id="something was done"),
        pytest.param(replace(IDLE, state=replace(SETTLED, phase=Phase.PROGRESSING)), id="under way"),
        pytest.param(replace(IDLE, state=replace(SETTLED, stable_revision="")), id="not adopted"),
        pytest.param(replace(IDLE, state=replace(SETTLED, routed=None)), id="the route is not as decided"),
        pytest.param(replace(IDLE, state=replace(SETTLED, routed=NOW - CALM / 2)), id="the route was just changed"),
        pytest.param(replace(IDLE, state=replace(SETTLED, contested=NOW)), id="a quarrel"),
        pytest.param(replace(IDLE, seen=replace(SEEN, trouble=("no rights",))), id="trouble"),
        pytest.param(replace(IDLE, seen=replace(SEEN, route=None)), id="the route cannot be seen"),
        pytest.param(
            replace(IDLE, seen=replace(SEEN, route=replace(ROUTE, weight=5))),
            id="somebody set the weight",
        ),
        pytest.param(
            replace(IDLE, seen=replace(SEEN, workloads=replace(READY, detail="scaled to 0"))), id="a person should know"
        ),
    ],
)
def test_a_canary_for_which_something_is_to_be_done_does_not_rest(restless: Outcome) -> None:
    assert is_at_rest(IDLE)
    assert not is_at_rest(restless)


def test_an_adopted_service_comes_to_rest_by_itself_and_a_new_release_ends_that() -> None:
    world = adopted()
    world.turn(CALM // timedelta(seconds=10) + 1)
    (outcome,) = world.tick(measure=False)
    assert is_at_rest(outcome)
    releasing(world)
    (outcome,) = world.tick(measure=False)
    assert not is_at_rest(outcome)
