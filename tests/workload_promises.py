"""What all Workloads promise. Modules that import everything from here say what a `scene` is.

Tests of this package's suite and of the bench's run the same promises, each over its own implementations.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from canaryd.model import HookState, HookStatus, RolloutState, WorkloadView
from canaryd.policy import Canary
from canaryd.ports import Workloads

BLUE, GREEN = "shop-blue", "shop-green"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Scene(Protocol):
    """A canary whose two workloads BLUE and GREEN serve, and a hand that can disturb one of them."""

    workloads: Workloads
    canary: Canary
    states: tuple[RolloutState, ...]  # in each of which both must serve; the last one is not over yet

    def view(self, state: RolloutState) -> WorkloadView:
        """What is seen once everything that was done can have been seen."""

    def disturb(self) -> str:
        """One of the two does not serve any more; its name."""


def test_workloads_that_answer_are_ready_with_nothing_to_say(scene: Scene) -> None:
    for state in scene.states:
        view = scene.view(state)
        assert view.ready
        assert view.detail == ""


def test_one_that_is_not_ready_is_named(scene: Scene) -> None:
    name = scene.disturb()
    for state in scene.states:
        view = scene.view(state)
        assert not view.ready
        assert name in view.detail


def test_looking_changes_nothing(scene: Scene) -> None:
    state = scene.states[0]
    first = scene.view(state)
    assert [scene.view(state) for _ in range(3)] == [first] * 3
    assert scene.workloads.release(scene.canary) == scene.workloads.release(scene.canary)


def test_what_has_its_shape_is_left_alone(scene: Scene) -> None:
    state = scene.states[0]
    scene.workloads.shape(scene.canary, state, version=3, now=NOW)
    scene.view(state)
    assert scene.workloads.shape(scene.canary, state, version=4, now=NOW) == ()


def test_an_upgrade_is_known_by_its_id(scene: Scene) -> None:
    hook = HookState("shop-1-1")
    found = scene.workloads.upgrade(scene.canary, scene.states[-1], hook, version=5)
    assert found.id == hook.id
    assert found.status in HookStatus
