"""The show, as a newcomer starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_process import alive_in, started

from canaryd.demo.processes import wait_until

pytestmark = [pytest.mark.envoy, pytest.mark.slow]
LONGEST = 200.0  # seconds: its own deadline, and what it takes to start and stop


@contextmanager
def demo(directory: Path, path: str = os.environ["PATH"]) -> Iterator[subprocess.Popen[str]]:
    """The demo, in a directory and with a HOME of its own; its output goes to a file there."""
    directory.mkdir()
    own = {"PATH": path, "HOME": str(directory)}
    with started(["canaryd", "demo"], directory, directory / "output", own) as process:
        yield process


def output(directory: Path) -> str:
    return (directory / "output").read_text()


def check_end(directory: Path, process: subprocess.Popen[str], source: str) -> None:
    assert process.wait(LONGEST) == 0, output(directory)[-4000:]
    said = output(directory)
    assert source in said
    assert "3 of 3 releases ended as they should" in said
    for line in (r"✓ checkout .*: promoted", r"✓ payment .*: rolled back", r"✓ search .*: rolled back"):
        assert re.search(line, said), line
    assert said.count("lost: 0") == 3
    assert "Traceback" not in said
    assert alive_in(directory) == []
    assert sorted(p.name for p in directory.iterdir()) == [".demo", "output"]


@pytest.mark.prometheus
def test_three_releases_end_as_they_should_with_prometheus(tmp_path: Path) -> None:
    with demo(tmp_path / "here") as process:
        check_end(tmp_path / "here", process, "counters: a real Prometheus")


def test_three_releases_end_as_they_should_without_prometheus(tmp_path: Path) -> None:
    """With an empty PATH: not even `sh` is needed."""
    (tmp_path / "empty").mkdir()
    with demo(tmp_path / "here", path=str(tmp_path / "empty")) as process:
        check_end(tmp_path / "here", process, "for Prometheus: apt-get install prometheus")


@pytest.mark.parametrize("after", [1.0, 7.0])
def test_ctrl_c_leaves_no_process_and_no_file_elsewhere(tmp_path: Path, after: float) -> None:
    here = tmp_path / "here"
    with demo(here) as process:
        wait_until(lambda: output(here), "it speaks", 60)
        time.sleep(after)  # the moment a person chooses
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 130, output(here)
    assert "stopped; every process has ended" in output(here)
    assert "Traceback" not in output(here)
    assert alive_in(here) == []
    assert {p.name for p in here.iterdir()} <= {".demo", "output"}


def test_a_directory_of_somebody_else_is_never_emptied(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / ".demo").mkdir()
    (here / ".demo" / "thesis.tex").touch()
    done = subprocess.run(
        [sys.executable, "-m", "canaryd", "demo"], cwd=here, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "not empty and not from an earlier demo" in done.stdout
    assert (here / ".demo" / "thesis.tex").exists()
