"""What every TrafficRouter promises, over those that route in a cluster, on a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("router_promises")
from bench import Bench  # noqa: E402
from route_scenes import SCENES  # noqa: E402
from router_promises import *  # noqa: E402, F403
from router_promises import Scene  # noqa: E402


@pytest.fixture(params=SCENES.values(), ids=SCENES.keys())
def scene(request: pytest.FixtureRequest, control_plane: Bench) -> Iterator[Scene]:
    with request.param(control_plane) as made:
        yield made
