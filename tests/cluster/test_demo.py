"""`make demo-cluster`, as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_process import alive_in, started

from canaryd.demo.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
LONG = pytest.mark.skipif(os.environ.get("CANARYD_LONG") != "1", reason="takes three minutes: CANARYD_LONG=1 runs it")


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo with a directory for temporary files of its own; what it says goes to `directory`/said."""
    (directory / "tmp").mkdir()
    path = f"{ROOT / 'tests' / 'cluster'}:{ROOT}"
    own = {"PYTHONPATH": path, "TMPDIR": str(directory / "tmp"), "NO_COLOR": "1"}
    with started(["demo", *options], ROOT, directory / "said", own) as process:
        yield process


def said(directory: Path) -> str:
    return (directory / "said").read_text()


@LONG
@pytest.mark.slow
def test_three_releases_are_shown_to_end_as_they_should_and_nothing_is_lost(tmp_path: Path) -> None:
    with demo(tmp_path, "--interval", "4") as process:
        assert process.wait(600) == 0, said(tmp_path)[-4000:]
    text = said(tmp_path)
    assert re.search(r"✓ checkout .*: promoted after .*\n +stable runs demo/app:v2; canary at 0 pods", text)
    assert re.search(r"✓ payment .*: rolled back after .*\n +stable runs demo/app:v1; canary at 0 pods", text)
    assert re.search(r"✓ search .*: rolled back after .*\n +stable runs demo/app:v1; canary at 0 pods", text)
    assert "3 of 3 releases ended as they should" in text
    assert re.search(r"requests lost: 0 of \d", text)
    for phase in ("Waiting", "Progressing", "Promoting", "Succeeded", "RolledBack"):
        assert re.search(rf"^\w+ +{phase} ", text, re.MULTILINE), f"kubectl shows {phase}"
    for reason in ("Adopted", "RolloutStarted", "RollbackStarted", "PromotionStarted", "Promoted"):
        assert re.search(rf"^ +{reason}: ", text, re.MULTILINE), f"an Event {reason}"
    assert "Traceback" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert alive_in(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_ctrl_c_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until(lambda: "istiod, and Envoy" in said(tmp_path), "the mesh is up", 120)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, said(tmp_path)
    assert "stopped; every process has ended" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert alive_in(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
