"""The script behind `make test-parts` and `make test-cluster`: what it promises of every test file, of new ones too."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from test_repository import ROOT

from canaryd.demo.processes import wait_until

GOOD = "def test_good():\n    print('said by {name}')\n"
BAD = """
def test_bad(tmp_path):
    print("first line of {name}")
    assert 0, "the reason"
"""
TOGETHER = """
import pathlib, time
def test_waits_for_another(tmp_path):
    here, until = pathlib.Path({place!r}), time.monotonic() + 60
    (here / "{name}.began").write_text(repr(time.monotonic()))
    while len(list(here.glob("*.began"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    (here / "{name}.ended").write_text(repr(time.monotonic()))
    (tmp_path / "file").write_text("")
"""
SLOW = """
import pathlib, time
def test_waits(tmp_path):
    here = pathlib.Path({place!r})
    (here / "{name}.began").write_text(repr(time.monotonic()))
    time.sleep(60)
    (here / "{name}.ended").write_text(repr(time.monotonic()))
    (tmp_path / "file").write_text("")
"""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("run_tests")


def written(directory: Path, **files: str) -> list[Path]:
    """Test files; in each, its name and its place are filled in."""
    directory.mkdir(exist_ok=True)
    out = []
    for name, text in files.items():
        out.append(directory / f"test_{name}.py")
        out[-1].write_text(text.format(name=name, place=str(directory)))
    return out


def run(runs: ModuleType, files: list[Path], at_once: int = 3, *options: str) -> tuple[list[str], object]:
    """Names of those that failed, and the runner."""
    jobs = [runs.Job(file, "parts") for file in files]
    here = files[0].parent
    where = {"reports": here / "reports", "cwd": here, "temporary": here.parent}
    with runs.Runner(at_once, ["-c", os.devnull, *options], **where) as runner:
        failed = runner.run(jobs)
        runs.add_up(jobs, runner)
    return [job.file.stem for job in failed], runner


def test_what_fails_is_named_and_what_each_file_says_is_printed_whole(
    runs: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path / "here", one=BAD, two=GOOD, three=BAD)
    failed, runner = run(runs, files)
    said = capfd.readouterr().out
    assert sorted(failed) == ["test_one", "test_three"]
    for name in ("one", "three"):
        ends = said.index(f"test_{name}.py: FAILED")
        begins = said.rfind("── ", 0, said.rindex("\n", 0, ends)) + 1
        assert f"first line of {name}" in said[begins:ends]
        assert "the reason" in said[begins:ends]
    assert "test_two.py: passed" in said
    kept = runner.scratch  # type: ignore[attr-defined]
    assert {"here-test_one", "here-test_three"} <= {p.name for p in kept.iterdir()}
    assert "here-test_two" not in {p.name for p in kept.iterdir()}


def test_the_reports_are_added_up_and_an_earlier_one_does_not_count(runs: ModuleType, tmp_path: Path) -> None:
    files = written(tmp_path / "here", one=BAD, two=GOOD, three="raise SystemExit(3)")
    (tmp_path / "here" / "reports").mkdir()
    (tmp_path / "here" / "reports" / "parts-here-test_three.xml").write_text("<testsuites/>")
    failed, _ = run(runs, files)
    assert sorted(failed) == ["test_one", "test_three"]
    suites = list(ElementTree.parse(tmp_path / "here" / "reports" / "parts.xml").getroot().iter("testsuite"))
    assert sum(int(suite.attrib["tests"]) for suite in suites) >= 2
    assert sum(int(suite.attrib["failures"]) for suite in suites) == 1


def test_nothing_is_tried_twice_and_nothing_selected_is_no_failure(runs: ModuleType, tmp_path: Path) -> None:
    counts = (
        "import pathlib\ndef test_counts():\n    with open({place!r} + '/runs', 'a') as f: f.write('x')\n    assert 0\n"
    )
    failed, _ = run(runs, written(tmp_path / "here", one=counts, two=GOOD), 2, "-k", "counts")
    assert failed == ["test_one"]
    assert (tmp_path / "here" / "runs").read_text() == "x"


def test_as_many_run_side_by_side_as_may_and_all_run_in_order(runs: ModuleType, tmp_path: Path) -> None:
    files = written(tmp_path / "here", **dict.fromkeys("abcd", TOGETHER))
    failed, runner = run(runs, files, 2)
    assert failed == []
    assert not runner.scratch.exists(), "nothing is left of a good run"  # type: ignore[attr-defined]
    times = {
        name: [float((tmp_path / "here" / f"{name}.{at}").read_text()) for at in ("began", "ended")] for name in "abcd"
    }
    for name, (began, _) in times.items():
        beside = [other for other, (b, e) in times.items() if other != name and b <= began < e]
        assert len(beside) <= 1, "never more than two"
    assert min(times["a"][0], times["b"][0]) < min(times["c"][0], times["d"][0])
    assert max(times["a"][0], times["b"][0]) < min(times["a"][1], times["b"][1]), "two at the same time"
    with pytest.raises(ValueError, match="at once"):
        run(runs, files, 0)


def test_who_must_be_alone_runs_beside_nobody_but_what_gives_way(runs: ModuleType, tmp_path: Path) -> None:
    assert all((ROOT / "tests" / name).exists() for name in runs.ALONE)
    alone, other = (runs.Job(tmp_path / name, "parts") for name in (min(runs.ALONE), "e2e/test_other.py"))
    core = runs.Job(tmp_path / "core", "core", nice=10)
    runner = runs.Runner(3, temporary=tmp_path)

    def may_begin(job: object, *beside: object) -> bool:
        runner.running = [runs.Running(one, None, None, 0.0) for one in beside]
        return bool(runner.may_begin(job))

    assert may_begin(alone)
    assert may_begin(alone, core)
    assert may_begin(core, alone)
    assert may_begin(other, core, other)
    assert not may_begin(alone, other)
    assert not may_begin(other, alone)
    assert not may_begin(other, core, other, other)


def test_every_test_file_belongs_to_exactly_one_run(runs: ModuleType) -> None:
    parts, cluster = ({job.file for job in runs.found(group, everything=True)} for group in ("parts", "cluster"))
    (pure,) = runs.found("core", everything=True)
    core = set(pure.file.rglob("test_*.py"))
    assert parts | cluster | core == set((ROOT / "tests").rglob("test_*.py"))
    assert not parts & cluster
    assert not core & (parts | cluster)
    assert parts
    assert cluster
    quick = {job.file for job in runs.found("cluster", everything=False)}
    assert cluster - quick == {ROOT / "tests" / "cluster" / name for name in runs.LONG}
    assert all((ROOT / "tests" / name).exists() for name in runs.FIRST)


def test_a_new_file_is_found_and_runs_after_those_that_take_long(runs: ModuleType, tmp_path: Path) -> None:
    for name in ("core/test_pure.py", "e2e/test_brand_new.py", runs.FIRST[0], "cluster/test_brand_new.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = [job for group in runs.GROUPS for job in runs.found(group, everything=False, tests=tmp_path)]
    names = [str(job.file.relative_to(tmp_path)) for job in runs.ordered(jobs)]
    assert names == ["core", runs.FIRST[0], "cluster/test_brand_new.py", "e2e/test_brand_new.py"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_whoever_stops_it_stops_what_runs(tmp_path: Path, how: signal.Signals) -> None:
    (slow,) = written(tmp_path / "here", slow=SLOW)
    argv = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), str(slow), "-c", os.devnull]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0) as process:
        wait_until((tmp_path / "here" / "slow.began").exists, "it runs", 60)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(how)
        assert process.wait(25) != 0, "sooner than those are killed that do not listen"
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "here" / "slow.ended").exists()
