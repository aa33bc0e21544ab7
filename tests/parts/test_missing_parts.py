"""A machine without a part says so; CI without a part fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_without_parts(*selection: str, **environment: str) -> tuple[int, str]:
    """pytest on these tests, with an empty PATH."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "PATH")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection],
        cwd=REPOSITORY,
        env=kept | {"PATH": ""} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize(
    ("environment", "code", "word"),
    [pytest.param({}, 0, "DID NOT RUN", id="at-home"), pytest.param({"CI": "true"}, 1, "FAILED", id="in-ci")],
)
def test_a_missing_part_is_one_loud_line_at_home_and_a_failure_in_ci(
    environment: dict[str, str], code: int, word: str
) -> None:
    returned, output = run_without_parts("tests/parts/test_lab.py", "-m", "prometheus", **environment)
    assert returned == code, output
    loud = [line for line in output.splitlines() if line.startswith("!!!")]
    assert loud == [f"!!! 3 tests {word}: Prometheus not found: apt-get install prometheus"]


@pytest.mark.parametrize(
    ("environment", "code", "word"),
    [pytest.param({}, 0, "DID NOT RUN", id="at-home"), pytest.param({"CI": "true"}, 1, "FAILED", id="in-ci")],
)
def test_a_machine_without_go_says_that_the_cluster_s_tests_cannot_run(
    environment: dict[str, str], code: int, word: str
) -> None:
    returned, output = run_without_parts("tests/cluster/test_life.py", **environment)
    assert returned == code, output
    (loud,) = [line for line in output.splitlines() if line.startswith("!!!")]
    assert loud.startswith(f"!!! the tests of the cluster {word}: Go not found: install Go 1.26 or newer")
