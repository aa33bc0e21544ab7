"""What every TrafficRouter promises, over those that need no server; adding a scene to SCENES enrols one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from router_promises import *  # noqa: F403
from router_promises import BLUE, GREEN, PlainScene, Scene

from canaryd.adapters.envoy_file import EnvoyFileRouter
from canaryd.adapters.memory import MemoryRouter
from canaryd.model import RouteView
from canaryd.policy import EnvoyFile, Route
from canaryd.ports import TrafficRouter

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


class InMemory:
    canary, swaps = "shop", True

    def __init__(self, _: Path) -> None:
        self.router = MemoryRouter({"shop": {BLUE: 100, GREEN: 0}})
        self.route = Route(envoy_file=EnvoyFile(path="/nowhere"))

    def view(self, stable: str = BLUE, canary_workload: str = GREEN) -> RouteView:
        return self.router.view("shop", self.route, stable, canary_workload)

    def edit(self, weight: int) -> None:
        self.router.edit("shop", weight, workload=GREEN, editor="anna")

    def plain(self) -> None:
        self.router.plain("shop", GREEN)

    def another(self) -> TrafficRouter:
        return self.router


class InEnvoyFile:
    canary, swaps = "shop", True

    def __init__(self, directory: Path) -> None:
        self.router = EnvoyFileRouter()
        self.path = directory / "rds.yaml"
        self.path.write_text(FILE)
        self.route = Route(envoy_file=EnvoyFile(path=str(self.path)))

    def view(self, stable: str = BLUE, canary_workload: str = GREEN) -> RouteView:
        return self.router.view("shop", self.route, stable, canary_workload)

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


SCENES: dict[str, Callable[[Path], Scene]] = {"memory": InMemory, "envoy_file": InEnvoyFile}


@pytest.fixture(params=SCENES.values(), ids=SCENES.keys())
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    made: Scene = request.param(tmp_path)
    return made


@pytest.fixture
def adopting(tmp_path: Path) -> PlainScene:
    return InMemory(tmp_path)
