"""What every state store promises; naming one in the registry enrols it here, or in tests/cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("state_store_suite")

from state_store_suite import *  # noqa: E402, F403
from state_store_suite import Ability  # noqa: E402

from canaryd.adapters import STATE_STORES  # noqa: E402
from canaryd.adapters import load as load_adapter  # noqa: E402

MAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "memory": lambda kind, path: kind(),
    "sqlite": lambda kind, path: kind(path / "state.db"),
}
ELSEWHERE = {"kubernetes": "tests/cluster/test_kubernetes_store.py"}  # needs a real API server


@pytest.fixture(params=sorted(set(STATE_STORES) - set(ELSEWHERE)))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with closing(MAKERS[request.param](load_adapter(STATE_STORES, request.param), tmp_path)) as made:
        yield made


@pytest.fixture
def ability() -> Ability:
    return Ability()


def test_a_store_that_is_tried_elsewhere_is_tried_there() -> None:
    root = Path(__file__).parents[2]
    for name, file in ELSEWHERE.items():
        assert name in STATE_STORES
        assert "from state_store_suite import *" in (root / file).read_text()
