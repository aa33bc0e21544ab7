"""What every TrafficRouter promises, over those that route in a cluster, on a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench
from route_scenes import SCENES
from router_promises import *  # noqa: F403
from router_promises import PlainScene


@pytest.fixture(params=SCENES.values(), ids=SCENES.keys())
def scene(request: pytest.FixtureRequest, control_plane: Bench) -> Iterator[PlainScene]:
    with request.param(control_plane) as made:
        yield made


@pytest.fixture
def adopting(scene: PlainScene) -> PlainScene:
    return scene
