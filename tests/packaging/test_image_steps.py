"""The Dockerfile's instructions, run for real where there is no container engine.

The build stage's RUN lines run in a sandbox with only what its COPY lines bring; the final stage's command runs as
its USER with its ENV on a read-only root. Never run: the final stage's own RUN, which changes the base image.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from image_recipe import ROOT, Copy, copy_of, recipe
from packaging.utils import canonicalize_name
from sandbox import Sandbox

pytestmark = pytest.mark.slow

BUILD, FINAL = recipe()
STATE = FINAL.last("VOLUME").text

# The least a daemon needs to turn: no canaries yet, its state in the volume, its page on the loopback.
CONFIG = """\
state: {{path: {state}/state.db}}
canaries: []
metrics: {{source: scrape}}
web: {{listen: "127.0.0.1:{port}"}}
"""


def cache() -> Path:
    """Where installed dependencies are kept between runs; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canaryd"


def bring(copy: Copy, target: Path) -> None:
    """What one COPY of the repository's files does, below the build's folder."""
    whereto = target / copy.target
    for name in copy.sources:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, whereto, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        elif copy.target.endswith("/"):
            whereto.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, whereto)
        else:
            shutil.copy2(source, whereto)


def build_step(bwrap: str, command: str, source: Path, opt: Path) -> None:
    """One RUN of the build stage; it sees the copied files and /opt, and may write there and to /tmp."""
    passed = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HTTPS_PROXY", "SSL_"))}
    environment = passed | BUILD.environment | {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin", "HOME": "/tmp"}
    scratch = source.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    writable = {BUILD.last("WORKDIR").text: source, "/opt": opt, "/tmp": scratch}
    box = Sandbox(bwrap, 0, writable, {}, environment, BUILD.last("WORKDIR").text)
    answer = box.run(["/bin/sh", "-c", command], timeout=300)
    assert answer.returncode == 0, f"RUN {command}\n{answer.stdout}"


def dependencies(bwrap: str, folder: Path, command: str, source: Path) -> Path:
    """/opt after the RUN that installs the lock: from the cache if neither the lock, the RUN nor Python changed."""
    ingredients = [command, sys.version, sys.base_prefix]
    ingredients += [path.read_text(encoding="utf-8") for path in sorted(source.rglob("*.txt"))]
    kept = cache() / f"image-{hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]}"
    if not kept.is_dir():
        fresh = folder / "fresh"
        fresh.mkdir()
        build_step(bwrap, command, source, fresh)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob("image-*"):
            shutil.rmtree(old)
        shutil.copytree(fresh, folder / "moved", symlinks=True)
        shutil.move(folder / "moved", kept)
    opt = folder / "opt"
    shutil.copytree(kept, opt, symlinks=True)
    return opt


@pytest.fixture(scope="module")
def image(bwrap: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt as the build stage leaves it, by that stage's own COPY and RUN lines in their order."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    source.mkdir()
    opt: Path | None = None
    for instruction in BUILD.instructions:
        if instruction.name == "COPY":
            bring(copy_of(instruction), source)
        elif instruction.name == "RUN" and opt is None:
            opt = dependencies(bwrap, folder, instruction.text, source)
        elif instruction.name == "RUN" and opt is not None:
            build_step(bwrap, instruction.text, source, opt)
    assert opt is not None
    return opt


@pytest.fixture
def box(bwrap: str, image: Path, tmp_path: Path) -> Sandbox:
    """The final image: what it copies, its user, its environment, an empty volume, a folder for the configuration."""
    user = int(FINAL.last("USER").text.split(":")[0])
    state, config = tmp_path / "state", tmp_path / "config"
    state.mkdir(mode=0o750)
    config.mkdir()
    if os.getuid() == 0:
        os.chown(state, user, user)
    readable = {
        copied.target: image / Path(copied.sources[0]).relative_to("/opt") for copied in map(copy_of, FINAL.all("COPY"))
    }
    readable["/etc/canaryd"] = config
    return Sandbox(bwrap, user, {STATE: state}, readable, FINAL.environment, FINAL.last("WORKDIR").text)


def shell(box: Sandbox, line: str) -> str:
    """What a line of shell prints inside the image; errors included."""
    return box.run(["/bin/sh", "-c", line], timeout=30).stdout


def eventually(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true before the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


def answer(port: int, path: str) -> int:
    """The HTTP status of a page on the loopback; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_the_sandbox_is_as_closed_as_the_container_it_stands_for(box: Sandbox) -> None:
    """Otherwise the tests below would prove nothing."""
    user, group = FINAL.last("USER").text.split(":")
    assert shell(box, "id -u; id -g").split() == [user, group]
    for place in ("/", "/etc", "/usr", "/opt/canaryd", "/etc/canaryd"):
        assert "Read-only file system" in shell(box, f"touch {place}/x"), place
    assert shell(box, f"touch {STATE}/x && echo written") == "written\n"
    assert int(shell(box, "sed -n 's/^CapEff:\\s*//p' /proc/self/status"), base=16) == 0
    assert shell(box, f"ls {ROOT / 'pyproject.toml'}").startswith("ls: cannot access")


def test_the_image_brings_the_locked_packages_and_no_installer(box: Sandbox) -> None:
    program = (
        "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    )
    listing = box.run(["python3", "-c", program], timeout=30).stdout
    installed = {str(canonicalize_name(name)): version for name, version in ast.literal_eval(listing)}
    lock = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    locked = dict(line.split(" ")[0].split("==") for line in lock.splitlines() if "==" in line)
    assert installed.keys() - locked.keys() == {"canaryd"}
    assert {name: installed[name] for name in locked} == locked


def test_every_module_loads_with_the_locked_packages_alone(box: Sandbox) -> None:
    """A package that only the tests install must not be needed to run."""
    program = (
        "import importlib, pkgutil, canaryd\n"
        "def stop(name): raise\n"
        "names = [m.name for m in pkgutil.walk_packages(canaryd.__path__, 'canaryd.', onerror=stop)]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names), 'modules')"
    )
    loaded = box.run(["python3", "-W", "error", "-c", program], timeout=60)
    assert loaded.returncode == 0, loaded.stdout
    assert loaded.stdout.endswith(" modules\n")


def test_the_program_starts_as_somebody_without_a_name_and_without_a_home(box: Sandbox) -> None:
    entry = FINAL.last("ENTRYPOINT").argv
    answered = box.run([*entry, "--help"], timeout=60)
    assert answered.returncode == 0, answered.stdout
    assert "run" in answered.stdout
    assert list(box.writable[STATE].iterdir()) == []


@pytest.fixture
def port(box: Sandbox) -> int:
    """A free port, written into the configuration."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    text = CONFIG.format(state=STATE, port=number)
    (box.readable["/etc/canaryd"] / "canaryd.yaml").write_text(text, encoding="utf-8")
    return number


def test_the_daemon_runs_on_a_read_only_root_and_stops_when_told(box: Sandbox, port: int, tmp_path: Path) -> None:
    command = FINAL.last("ENTRYPOINT").argv + FINAL.last("CMD").argv
    health = [word.replace(":9095/", f":{port}/") for word in FINAL.health_command]
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as output, box.started(command, output) as daemon:
        settled = eventually(lambda: answer(port, "/healthz") == 200 or daemon.process.poll() is not None, seconds=30)
        assert settled, log.read_text(encoding="utf-8")
        assert daemon.process.poll() is None, log.read_text(encoding="utf-8")
        assert box.run(health, timeout=30).returncode == 0
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=30) == 0, log.read_text(encoding="utf-8")
    # nobody answers: unhealthy; a container engine keeps the exit code 2 for itself
    assert box.run(health, timeout=30).returncode not in (0, 2)
    assert "Traceback" not in log.read_text(encoding="utf-8")
    left = [path for path in box.writable[STATE].iterdir() if path.suffix == ".db"]
    assert [path.stat().st_uid for path in left] == [os.getuid() or box.uid]


def test_a_state_folder_that_is_read_only_is_said_in_one_line(box: Sandbox, port: int) -> None:
    closed = replace(box, writable={}, readable=box.readable | {STATE: box.writable[STATE]})
    answered = closed.run(FINAL.last("ENTRYPOINT").argv + FINAL.last("CMD").argv, timeout=60)
    assert answered.returncode != 0
    assert "Traceback" not in answered.stdout
    assert STATE in answered.stdout
    assert not re.search("bwrap:|internal error", answered.stdout)
