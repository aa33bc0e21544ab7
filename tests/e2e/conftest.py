"""Scenes for the tests of this directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scene import Scene

from canaryd.demo.lab import Lab
from canaryd.demo.processes import Nursery
from canaryd.demo.site import from_page

Stage = Callable[..., Scene]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Makes a scene on a laboratory; whatever runs in it has ended when the test has."""
    with ExitStack() as stack:
        nursery = stack.enter_context(Nursery(tmp_path / "log"))

        def make(lab: Lab, section: str = "") -> Scene:
            scene = Scene(lab, tmp_path / "site", nursery, section or from_page(lab.metrics_url))
            stack.callback(scene.close)
            return scene

        yield make
