"""What every TrafficRouter promises. Modules that import everything from here say what a `scene` is.

Tests of this package's suite and of the bench's run the same promises, each over its own implementations.
"""

from __future__ import annotations

import threading
from typing import Protocol

import pytest

from canaryd.errors import FenceError, RouteError
from canaryd.model import RouteView
from canaryd.policy import Route
from canaryd.ports import TrafficRouter

BLUE, GREEN = "shop-blue", "shop-green"


class Scene(Protocol):
    """A route of a canary that splits between BLUE (100 %) and GREEN, and a hand that can edit it."""

    canary: str  # key
    router: TrafficRouter
    route: Route
    swaps: bool  # the workloads may change roles

    def view(self, stable: str = BLUE, canary_workload: str = GREEN) -> RouteView:
        """What the router shows, once it can have seen everything that was written."""

    def edit(self, weight: int) -> None:
        """A person changes the split to `weight` percent for GREEN."""

    def another(self) -> TrafficRouter:
        """A router of a second process on the same route."""


class PlainScene(Scene, Protocol):
    """The same of a router that can turn a route to the service itself into a split."""

    def plain(self) -> None:
        """A person makes the route send everything to the service itself."""


def test_a_route_that_canaryd_never_wrote_has_version_zero_and_no_stamp(scene: Scene) -> None:
    view = scene.view()
    assert (view.weight, view.version, view.stamped_weight) == (0, 0, None)


@pytest.mark.parametrize("weight", [0, 1, 5, 33, 50, 99, 100])
def test_what_was_set_is_what_is_seen(scene: Scene, weight: int) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, weight, version=7)
    view = scene.view()
    assert (view.weight, view.stamped_weight, view.stamped_canary, view.version) == (weight, weight, GREEN, 7)


def test_setting_the_same_weight_twice_is_setting_it_once(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 25, version=3)
    once = scene.view()
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 25, version=3)
    assert scene.view() == once


def test_a_writer_with_an_older_version_changes_nothing(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 0, version=9)
    before = scene.view()
    with pytest.raises(FenceError):
        scene.another().set_weight(scene.canary, scene.route, BLUE, GREEN, 50, version=8)
    assert scene.view() == before


def test_the_same_version_may_write_again_and_a_newer_one_too(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=9)
    scene.another().set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=9)
    scene.another().set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=10)
    assert scene.view().version == 10


def test_a_right_weight_with_an_older_stamp_still_raises_the_fence(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=1)
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=2)
    with pytest.raises(FenceError):
        scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 5, version=1)


def test_a_hand_edit_shows_as_a_weight_that_is_not_the_stamped_one(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 10, version=2)
    scene.edit(60)
    view = scene.view()
    assert (view.weight, view.stamped_weight, view.version) == (60, 10, 2)
    assert view.editor


def test_a_hand_edit_is_repaired_by_setting_the_weight_again(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 10, version=2)
    scene.edit(60)
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 10, version=2)
    view = scene.view()
    assert (view.weight, view.stamped_weight, view.editor) == (10, 10, "")


def test_when_the_roles_swap_the_same_split_is_seen_from_the_other_side(scene: Scene) -> None:
    if not scene.swaps:
        pytest.skip("its roles never swap")
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 100, version=4)
    view = scene.view(GREEN, BLUE)
    assert (view.weight, view.stamped_canary, view.stamped_weight, view.editor) == (0, GREEN, 100, "")
    scene.router.set_weight(scene.canary, scene.route, GREEN, BLUE, 20, version=5)
    assert scene.view().weight == 80


def test_a_workload_that_the_route_does_not_name_is_an_error_and_changes_nothing(scene: Scene) -> None:
    before = scene.view()
    with pytest.raises(RouteError):
        scene.router.view(scene.canary, scene.route, "pear", "apple")
    with pytest.raises(RouteError):
        scene.router.set_weight(scene.canary, scene.route, "pear", "apple", 5, version=1)
    assert scene.view() == before


@pytest.mark.parametrize("weight", [-1, 101])
def test_a_weight_that_is_no_percentage_is_refused(scene: Scene, weight: int) -> None:
    with pytest.raises(RouteError):
        scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, weight, version=1)
    assert scene.view().version == 0


def test_of_many_writers_at_once_the_highest_version_stands_in_the_end(scene: Scene) -> None:
    routers = [scene.another() for _ in range(4)]
    surprises: list[BaseException] = []

    def write(router: TrafficRouter, first: int) -> None:
        for version in range(first, 41, 4):
            try:
                router.set_weight(scene.canary, scene.route, BLUE, GREEN, version, version=version)
            except FenceError:
                pass
            except RouteError as e:
                surprises.append(e)

    threads = [threading.Thread(target=write, args=(router, i + 1)) for i, router in enumerate(routers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = scene.view()
    assert (view.weight, view.stamped_weight, view.version) == (40, 40, 40)
    assert not surprises


def test_a_route_to_the_service_itself_is_adopted_with_everything_for_stable(adopting: PlainScene) -> None:
    adopting.plain()
    view = adopting.view()
    assert (view.weight, view.adoptable, view.version) == (None, True, 0)
    adopting.router.adopt(adopting.canary, adopting.route, BLUE, GREEN, version=3)
    view = adopting.view()
    assert (view.weight, view.adoptable, view.version, view.stamped_weight) == (0, False, 3, 0)
    adopting.router.set_weight(adopting.canary, adopting.route, BLUE, GREEN, 20, version=4)
    assert adopting.view().weight == 20


def test_what_splits_already_is_not_adopted(scene: Scene) -> None:
    before = scene.view()
    with pytest.raises(RouteError):
        scene.router.adopt(scene.canary, scene.route, BLUE, GREEN, version=3)
    assert scene.view() == before


def test_a_stale_writer_adopts_and_restores_nothing(adopting: PlainScene) -> None:
    adopting.plain()
    adopting.router.adopt(adopting.canary, adopting.route, BLUE, GREEN, version=8)
    adopting.router.set_weight(adopting.canary, adopting.route, BLUE, GREEN, 20, version=9)
    before = adopting.view()
    with pytest.raises(RouteError):
        adopting.another().adopt(adopting.canary, adopting.route, BLUE, GREEN, version=8)
    with pytest.raises(FenceError):
        adopting.another().restore(adopting.canary, adopting.route, BLUE, GREEN, version=8)
    assert adopting.view() == before


def test_an_adopted_route_is_restored_to_the_service_itself_and_can_be_adopted_anew(adopting: PlainScene) -> None:
    adopting.plain()
    adopting.router.adopt(adopting.canary, adopting.route, BLUE, GREEN, version=3)
    adopting.router.set_weight(adopting.canary, adopting.route, BLUE, GREEN, 20, version=4)
    assert adopting.router.restore(adopting.canary, adopting.route, BLUE, GREEN, version=5)
    view = adopting.view()
    assert (view.weight, view.adoptable, view.version) == (None, True, 0)
    assert not adopting.router.restore(
        adopting.canary, adopting.route, BLUE, GREEN, version=5
    )  # nothing is left to restore
    adopting.router.adopt(adopting.canary, adopting.route, BLUE, GREEN, version=1)
    assert adopting.view().version == 1


def test_a_route_that_was_not_adopted_keeps_its_split_when_it_is_restored(scene: Scene) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, 30, version=4)
    assert not scene.router.restore(scene.canary, scene.route, BLUE, GREEN, version=5)
    assert scene.view().weight == 30
