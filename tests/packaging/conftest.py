"""What the packaging tests share: a part that is missing is said loudly, and is a failure on the build server."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bwrap() -> str:
    """The path of bubblewrap."""
    found = shutil.which("bwrap")
    if found:
        return found
    message = "bubblewrap is missing: the container image's steps are NOT tested; run `make parts`"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def hadolint() -> str:
    """The path of the Dockerfile linter; its package is in the test lock, so it is always there."""
    return str(Path(sys.executable).with_name("hadolint"))
