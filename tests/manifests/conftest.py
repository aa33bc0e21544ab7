"""Rendering needs kubectl; without it these tests are skipped, with a word, and fail with CI=true."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canaryd" / "tools"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture."""
    if HERE not in item.path.parents or shutil.which("kubectl") or list(BUILT.glob("kubernetes-*/kubectl")):
        return
    advice = "kubectl not found: scripts/cluster-tools kubernetes, or install it"
    if os.environ.get("CI") == "true":
        pytest.fail(advice, pytrace=False)
    pytest.skip(advice)
