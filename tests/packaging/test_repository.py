"""The repository as a stranger finds it: nothing of the machine it was written on, and its commands exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from image_recipe import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("build", "demo", "runtime", "test")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# written in pieces, so that this file does not find itself
FOLDERS = ("work", "root", "home/[a-z]+", "Users")
HOSTS = (
    *("pypi org", "pypi python org", "pythonhosted org", "npmjs (?:org|com)", "yarnpkg com", "crates io"),
    *("proxy golang org", "sum golang org", "maven org", "maven apache org", "deb debian org"),
)
MACHINE_PATHS = re.compile(rf"(?<![\w.])/(?:{'|'.join(FOLDERS)})/")
REGISTRY_HOSTS = re.compile(rf"\b(?:{'|'.join(HOSTS).replace(' ', '[.]')})\b|(?<!emit-)(?:extra-)?index[-]url\b")


def tracked() -> list[Path]:
    """Every file that is, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """file:line: text of every match in the repository's text files."""
    found = []
    for path in tracked():
        text = path.read_bytes()
        if b"\0" in text:
            continue
        for number, line in enumerate(text.decode("utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return found


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    assert lines_with(MACHINE_PATHS) == []


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(REGISTRY_HOSTS) == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATHS, "state: /" + "work/main/state.db"),
        (MACHINE_PATHS, "'/" + "root/.cache'"),
        (MACHINE_PATHS, "see /" + "home/anna/x"),
        (REGISTRY_HOSTS, "https://files.python" + "hosted.org/packages"),
        (REGISTRY_HOSTS, "GOPROXY=https://proxy.go" + "lang.org"),
        (REGISTRY_HOSTS, "registry.npm" + "js.org/left-pad"),
        (REGISTRY_HOSTS, "--extra-index" + "-url https://wheels"),
    ],
)
def test_a_planted_line_is_found(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def test_no_file_is_larger_than_a_megabyte() -> None:
    assert [path.name for path in tracked() if path.stat().st_size > 1_000_000] == []


def test_every_marker_in_use_is_registered() -> None:
    known = {marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    known |= {"parametrize", "skip", "skipif", "xfail", "usefixtures", "filterwarnings"}
    used = set()
    for path in (ROOT / "tests").rglob("*.py"):
        used |= set(re.findall(r"pytest\.mark\.(\w+)", path.read_text(encoding="utf-8")))
    assert used <= known


def make_targets() -> set[str]:
    """The targets that `make help` lists."""
    return set(re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8")))


def make_commands(markdown: str) -> set[str]:
    """The targets of every `make …` in a document's code; "make sure" in prose is not one."""
    code = re.findall(r"(?s)```.*?```|`[^`\n]+`", markdown)
    return {name for piece in code for name in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", piece)}


def test_every_command_the_documents_tell_exists() -> None:
    documents = [path for path in tracked() if path.suffix == ".md"]
    told = {name for path in documents for name in make_commands(path.read_text(encoding="utf-8"))}
    assert told <= make_targets()
    assert make_commands("`make demo KEEP=1`, make sure\n```\n$ make no-such\n```") == {"demo", "no-such"}


def test_every_script_that_is_called_exists() -> None:
    for caller in ("Makefile", ".ci/run", "README.md"):
        text = (ROOT / caller).read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:scripts|benchmarks)/[\w.-]+\w", text):
            assert (ROOT / name).exists(), f"{caller} calls {name}"


@pytest.mark.parametrize("name", [".ci/run", "scripts/cluster-tools", "scripts/lock", "scripts/parts", "scripts/venv"])
def test_every_shell_script_can_be_run_and_stops_at_the_first_error(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(path)], timeout=10, check=False).returncode == 0


def test_a_missing_part_is_named_with_the_package_that_brings_it(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, str(ROOT / "scripts" / "parts"), "--list"]
    answer = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=10, check=False
    )
    assert answer.returncode == 1
    assert answer.stdout == "parts: missing: prometheus bubblewrap iproute2 openssl chromium\n"
    assert "Go is missing" in answer.stderr


def test_the_cluster_s_tools_cannot_be_built_without_go_and_that_is_said(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "cluster" / "bench" / "tools.py")]
    answer = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=10, check=False
    )
    assert answer.returncode == 2
    assert "install Go 1.26 or newer" in answer.stderr


def test_the_cluster_s_tools_are_pinned_by_sums_for_every_module() -> None:
    sets = [path for path in (ROOT / "tests" / "cluster" / "tools").iterdir() if path.is_dir()]
    assert {path.name for path in sets} == {"crds", "etcd", "istiod", "jaeger", "kubernetes", "kwok", "prometheus"}
    for path in sets:
        assert {file.name for file in path.iterdir()} == {"go.mod", "go.sum"}


def pins(lock: str) -> dict[str, str]:
    """Package to version in one lock file."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+) \\$", text))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_file_has_a_hash(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=\S)", text)[1:]
    assert len(entries) == len(pins(lock))
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize(
    ("lock", "extra"), [("runtime", None), ("demo", "demo"), ("test", "test")], ids=["runtime", "demo", "test"]
)
def test_the_lock_fits_what_the_project_asks_for(lock: str, extra: str | None) -> None:
    project = PROJECT["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    locked = pins(lock)
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"


def test_a_package_has_one_version_in_all_locks() -> None:
    tested = pins("test")
    for lock in LOCKS:
        for name, version in pins(lock).items():
            assert tested.get(name, version) == version
    assert pins("runtime").items() <= pins("demo").items() <= pins("test").items()


def report(lines: int, branches: int, names: tuple[str, ...]) -> dict[str, object]:
    """coverage.py's report of a core of 100 lines and 100 branches."""
    totals = {"covered_lines": lines, "num_statements": 100, "covered_branches": branches, "num_branches": 100}
    return {"totals": totals, "files": {f"canaryd/{name}.py": {} for name in names}}


@pytest.mark.parametrize(
    ("lines", "branches", "missing", "problem"),
    [
        pytest.param(95, 95, 0, None, id="just-enough"),
        pytest.param(99, 94, 0, "94.0 % of branches", id="lines-do-not-hide-branches"),
        pytest.param(94, 99, 0, "94.0 % of lines", id="too-few-lines"),
        pytest.param(99, 99, 1, "was not measured", id="a-module-nobody-measured"),
    ],
)
def test_the_coverage_gate_closes(lines: int, branches: int, missing: int, problem: str | None) -> None:
    gate = script("core_coverage")
    core = ("judge", "plan", "stats")
    found = gate.shortfalls(report(lines, branches, core[missing:]), core)
    assert len(found) == (0 if problem is None else 1)
    assert all(problem is not None and problem in sentence for sentence in found)


def test_the_coverage_gate_watches_the_modules_that_must_stay_pure() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["type"] == "forbidden"]
    gate = script("core_coverage")
    watched = gate.core_modules(ROOT)
    assert {"canaryd.deployments"} == gate.ELSEWHERE, "which tests/cluster proves on the real controllers"
    assert [f"canaryd.{name}" for name in watched] == [m for m in pure["source_modules"] if m not in gate.ELSEWHERE]
    assert {"errors", "model", "policy", "counts", "stats", "wording", "judge", "plan"} <= set(watched)


def test_the_closing_line_adds_up_both_runs(tmp_path: Path) -> None:
    suite = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}" time="1.5"/></testsuites>'
    for name, numbers in {"a": (10, 0, 0, 1), "b": (5, 1, 1, 0)}.items():
        (tmp_path / name).write_text(suite.format(*numbers), encoding="utf-8")
    summary = script("test_summary")
    assert summary.add_up([tmp_path / "a", tmp_path / "b"]) == (12, 2, 1, 3.0)
    assert summary.main([str(tmp_path / "b")]) == 1


def test_the_tests_run_on_the_python_of_the_environment() -> None:
    assert sys.prefix != sys.base_prefix
