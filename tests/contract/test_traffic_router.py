"""What every TrafficRouter promises; adding a bench to BENCHES enrols an implementation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from canaryd.adapters.envoy_file import EnvoyFileRouter
from canaryd.adapters.memory import MemoryRouter
from canaryd.errors import FenceError, RouteError
from canaryd.policy import EnvoyFile, Route
from canaryd.ports import TrafficRouter

BLUE, GREEN = "shop-blue", "shop-green"
FILE = """\
version_info: "0"
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: shop
  virtual_hosts:
  - name: shop
    domains: ["*"]
    routes:
    - match: {prefix: "/admin"}
      route: {cluster: admin}
    - name: primary
      match: {prefix: "/"}
      route:
        weighted_clusters:
          clusters:
          - {name: shop-blue, weight: 100}
          - {name: shop-green, weight: 0}
"""


class Bench(Protocol):
    """A route of the canary "shop" that splits between BLUE (100 %) and GREEN, and a hand that can edit it."""

    router: TrafficRouter
    route: Route

    def edit(self, weight: int) -> None:
        """A person changes the split to `weight` percent for GREEN."""

    def another(self) -> TrafficRouter:
        """A router of a second process on the same route."""


class InMemory:
    def __init__(self, _: Path) -> None:
        self.router = MemoryRouter({"shop": {BLUE: 100, GREEN: 0}})
        self.route = Route(envoy_file=EnvoyFile(path="/nowhere"))

    def edit(self, weight: int) -> None:
        self.router.edit("shop", weight, workload=GREEN, editor="anna")

    def another(self) -> TrafficRouter:
        return self.router


class InEnvoyFile:
    def __init__(self, directory: Path) -> None:
        self.router = EnvoyFileRouter()
        self.path = directory / "rds.yaml"
        self.path.write_text(FILE)
        self.route = Route(envoy_file=EnvoyFile(path=str(self.path)))

    def edit(self, weight: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        weights = {BLUE: 100 - weight, GREEN: weight}
        for i, line in enumerate(lines):
            for name, w in weights.items():
                if f"name: {name}," in line:
                    lines[i] = f"          - {{name: {name}, weight: {w}}}\n"
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(lines))
        os.rename(beside, self.path)

    def another(self) -> TrafficRouter:
        return EnvoyFileRouter()


BENCHES: dict[str, Callable[[Path], Bench]] = {"memory": InMemory, "envoy_file": InEnvoyFile}


@pytest.fixture(params=BENCHES.values(), ids=BENCHES.keys())
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    made: Bench = request.param(tmp_path)
    return made


def test_a_route_that_canaryd_never_wrote_has_version_zero_and_no_stamp(bench: Bench) -> None:
    view = bench.router.view("shop", bench.route, BLUE, GREEN)
    assert (view.weight, view.version, view.stamped_weight) == (0, 0, None)


@pytest.mark.parametrize("weight", [0, 1, 5, 33, 50, 99, 100])
def test_what_was_set_is_what_is_seen(bench: Bench, weight: int) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, weight, version=7)
    view = bench.router.view("shop", bench.route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight, view.stamped_canary, view.version) == (weight, weight, GREEN, 7)


def test_setting_the_same_weight_twice_is_setting_it_once(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 25, version=3)
    once = bench.router.view("shop", bench.route, BLUE, GREEN)
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 25, version=3)
    assert bench.router.view("shop", bench.route, BLUE, GREEN) == once


def test_a_writer_with_an_older_version_changes_nothing(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 0, version=9)
    before = bench.router.view("shop", bench.route, BLUE, GREEN)
    with pytest.raises(FenceError):
        bench.another().set_weight("shop", bench.route, BLUE, GREEN, 50, version=8)
    assert bench.router.view("shop", bench.route, BLUE, GREEN) == before


def test_the_same_version_may_write_again_and_a_newer_one_too(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 5, version=9)
    bench.another().set_weight("shop", bench.route, BLUE, GREEN, 5, version=9)
    bench.another().set_weight("shop", bench.route, BLUE, GREEN, 5, version=10)
    assert bench.router.view("shop", bench.route, BLUE, GREEN).version == 10


def test_a_right_weight_with_an_older_stamp_still_raises_the_fence(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 5, version=1)
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 5, version=2)
    with pytest.raises(FenceError):
        bench.router.set_weight("shop", bench.route, BLUE, GREEN, 5, version=1)


def test_a_hand_edit_shows_as_a_weight_that_is_not_the_stamped_one(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 10, version=2)
    bench.edit(60)
    view = bench.router.view("shop", bench.route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight, view.version) == (60, 10, 2)
    assert view.editor


def test_a_hand_edit_is_repaired_by_setting_the_weight_again(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 10, version=2)
    bench.edit(60)
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 10, version=2)
    view = bench.router.view("shop", bench.route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight, view.editor) == (10, 10, "")


def test_when_the_roles_swap_the_same_split_is_seen_from_the_other_side(bench: Bench) -> None:
    bench.router.set_weight("shop", bench.route, BLUE, GREEN, 100, version=4)
    view = bench.router.view("shop", bench.route, GREEN, BLUE)
    assert (view.weight, view.stamped_canary, view.stamped_weight, view.editor) == (0, GREEN, 100, "")
    bench.router.set_weight("shop", bench.route, GREEN, BLUE, 20, version=5)
    assert bench.router.view("shop", bench.route, BLUE, GREEN).weight == 80


def test_a_workload_that_the_route_does_not_name_is_an_error_and_changes_nothing(bench: Bench) -> None:
    before = bench.router.view("shop", bench.route, BLUE, GREEN)
    with pytest.raises(RouteError):
        bench.router.view("shop", bench.route, "pear", "apple")
    with pytest.raises(RouteError):
        bench.router.set_weight("shop", bench.route, "pear", "apple", 5, version=1)
    assert bench.router.view("shop", bench.route, BLUE, GREEN) == before


@pytest.mark.parametrize("weight", [-1, 101])
def test_a_weight_that_is_no_percentage_is_refused(bench: Bench, weight: int) -> None:
    with pytest.raises(RouteError):
        bench.router.set_weight("shop", bench.route, BLUE, GREEN, weight, version=1)
    assert bench.router.view("shop", bench.route, BLUE, GREEN).version == 0


def test_of_many_writers_at_once_the_highest_version_stands_in_the_end(bench: Bench) -> None:
    routers = [bench.another() for _ in range(4)]
    surprises: list[BaseException] = []

    def write(router: TrafficRouter, first: int) -> None:
        for version in range(first, 41, 4):
            try:
                router.set_weight("shop", bench.route, BLUE, GREEN, version, version=version)
            except FenceError:
                pass
            except RouteError as e:
                surprises.append(e)

    threads = [threading.Thread(target=write, args=(router, i + 1)) for i, router in enumerate(routers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = bench.router.view("shop", bench.route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight, view.version) == (40, 40, 40)
    assert not surprises
