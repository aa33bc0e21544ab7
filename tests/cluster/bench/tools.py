"""Builds the programs of the bench from pinned Go modules, into a cache outside the clone, and says where they are.

Standard library only: `scripts/cluster-tools` runs this file before any virtual environment exists. It writes to the
cache alone (and Go to its own caches), never into the clone, and does nothing when everything is there.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent / "tools"  # one folder with go.mod and go.sum for each set
VERSION_FLAGS = "k8s.io/component-base/version"
KUBERNETES = "v1.37.2"
HOW_TO_GET_GO = "Go not found: install Go 1.26 or newer (https://go.dev/doc/install; Debian's golang is too old)"
HOW_TO_BUILD = "the bench's programs are not built: run scripts/cluster-tools (25 min the first time, on 2 cores)"
REPORT_EVERY = 30.0  # seconds between two signs of life while one program is built


class ToolsError(Exception):
    """A program cannot be built or found; the message says what to do."""


@dataclass(frozen=True)
class Program:
    """One binary: what it is called, which package it is, and how long its build takes with cold caches on 2 cores."""

    name: str
    package: str
    minutes: float
    ldflags: str = "-s -w"


@dataclass(frozen=True)
class ToolSet:
    """One folder of `tools/`: programs that share a go.mod, and files copied as they are out of a module."""

    name: str
    programs: tuple[Program, ...] = ()
    files: tuple[tuple[str, str, str], ...] = field(default=())  # (module, glob inside it, folder in the cache)


def _kubernetes(name: str, minutes: float) -> Program:
    _, minor, _ = KUBERNETES.split(".")
    stamp = (
        f"-X {VERSION_FLAGS}.gitVersion={KUBERNETES} -X {VERSION_FLAGS}.gitMajor=1 -X {VERSION_FLAGS}.gitMinor={minor}"
    )
    return Program(name, f"k8s.io/kubernetes/cmd/{name}", minutes, f"-s -w {stamp}")


SETS = (
    ToolSet(
        "crds",
        files=(
            ("istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml", "istio"),
            ("sigs.k8s.io/gateway-api", "config/crd/standard/*.yaml", "gateway-api"),
            (
                "github.com/prometheus-operator/prometheus-operator",
                "example/prometheus-operator-crd/*.yaml",
                "prometheus-operator",
            ),
            ("github.com/cert-manager/cert-manager", "deploy/crds/*.yaml", "cert-manager"),
            ("github.com/fluxcd/flagger", "artifacts/flagger/crd.yaml", "flagger"),
            (
                "github.com/external-secrets/external-secrets",
                "config/crds/bases/external-secrets.io_[es]*.yaml",
                "external-secrets",
            ),
            ("github.com/bitnami-labs/sealed-secrets", "helm/sealed-secrets/crds/*.yaml", "sealed-secrets"),
        ),
    ),
    ToolSet("etcd", (Program("etcd", "go.etcd.io/etcd/server/v3", 0.5),)),
    ToolSet(
        "kubernetes",
        (
            _kubernetes("kube-apiserver", 7),
            _kubernetes("kube-controller-manager", 2.5),
            _kubernetes("kube-scheduler", 0.4),
            _kubernetes("kubectl", 0.7),
        ),
    ),
    ToolSet(
        "kwok",
        (Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", 1.6),),
        (
            ("sigs.k8s.io/kwok", "kustomize/stage/node/fast/*.yaml", "stages/node-fast"),
            ("sigs.k8s.io/kwok", "kustomize/stage/node/heartbeat-with-lease/*.yaml", "stages/node-heartbeat"),
            ("sigs.k8s.io/kwok", "kustomize/stage/pod/fast/*.yaml", "stages/pod-fast"),
        ),
    ),
    ToolSet("istiod", (Program("pilot-discovery", "istio.io/istio/pilot/cmd/pilot-discovery", 4.5),)),
    ToolSet(
        "prometheus",
        (
            Program(
                "prometheus",
                "github.com/prometheus/prometheus/cmd/prometheus",
                6,
                "-s -w -X github.com/prometheus/common/version.Version=3.16.0",
            ),
        ),
    ),
    # v2.x of the program lives under v1.x tags of its module: this is Jaeger 2.13
    ToolSet("jaeger", (Program("jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger", 4.5),)),
)


def cache() -> Path:
    """The folder that holds one folder for each built set."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "canaryd" / "tools"


def go_version() -> str:
    """Such as "go1.26.8". Raises ToolsError when there is no Go."""
    if shutil.which("go") is None:
        raise ToolsError(HOW_TO_GET_GO)
    return _go(MODULES / "etcd", "env", "GOVERSION").strip()


def folder(tools: ToolSet, version: str) -> Path:
    """Where this set's programs are, or will be: the name changes with anything that could change their bytes."""
    programs = [(program.name, program.package, program.ldflags) for program in tools.programs]
    digest = hashlib.sha256(f"{version}\n{programs}\n{tools.files}\n".encode())
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / tools.name / name).read_bytes())
    return cache() / f"{tools.name}-{digest.hexdigest()[:16]}"


def find() -> dict[str, Path]:
    """Set name → folder with its programs and files. Raises ToolsError when one is not built, saying how to."""
    version = go_version()
    found = {tools.name: folder(tools, version) for tools in SETS}
    if missing := [name for name, path in found.items() if not path.is_dir()]:
        raise ToolsError(f"{HOW_TO_BUILD}; missing: {', '.join(missing)}")
    return found


def build(tools: ToolSet, version: str) -> None:
    """Build one set unless it is there. Two at once wait for each other; a half-built set is never seen."""
    target = folder(tools, version)
    if target.is_dir():
        return
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f".{tools.name}.lock"):
        if target.is_dir():  # somebody else has built it while we waited
            return
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=cache()) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for program in tools.programs:
                _build_program(tools, program, made)
            for module, pattern, into in tools.files:
                _copy(tools, module, pattern, made / into)
            made.rename(target)


def _build_program(tools: ToolSet, program: Program, into: Path) -> None:
    say(f"building {program.name} (about {program.minutes:g} min with cold caches on 2 cores, else seconds)")
    argv = ["build", "-trimpath", "-ldflags", program.ldflags, "-o", str(into / program.name), program.package]
    with _signs_of_life(program.name):
        _go(MODULES / tools.name, *argv)


def _copy(tools: ToolSet, module: str, pattern: str, into: Path) -> None:
    say(f"copying {module}: {pattern}")
    source = Path(json.loads(_go(MODULES / tools.name, "mod", "download", "-json", module))["Dir"])
    into.mkdir(parents=True, exist_ok=True)
    files = sorted(source.glob(pattern))
    if not files:
        raise ToolsError(f"{module} has no {pattern}: did its layout change with the version in {tools.name}/go.mod?")
    for file in files:
        shutil.copyfile(file, into / file.name)  # not the module cache's read-only mode


def _go(module: Path, *argv: str) -> str:
    """Run go in `module` with nothing left to the caller's settings; raises ToolsError with its last words."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(["go", *argv], cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = "\n".join(done.stderr.splitlines()[-15:])
        raise ToolsError(f"`go {' '.join(argv)}` failed in {module}:\n{words}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build of {path.name.strip('.').removesuffix('.lock')}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _signs_of_life(name: str) -> Iterator[None]:
    """Say every half minute that `name` is still being built, and at last how long it took."""
    started, done = time.monotonic(), threading.Event()

    def report() -> None:
        while not done.wait(REPORT_EVERY):
            say(f"  still building {name}")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()
    say(f"  {name} took {time.monotonic() - started:.0f} s")


STARTED = time.monotonic()


def say(text: str) -> None:
    """One line for the person who waits, with the seconds since the start."""
    print(f"[cluster-tools {time.monotonic() - STARTED:4.0f} s] {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Exit status: 0 when all is built (with --list: is already there), 1 when not, 2 without Go."""
    parser = argparse.ArgumentParser(
        prog="scripts/cluster-tools", description="Build the programs of tests/cluster from pinned Go modules."
    )
    parser.add_argument("--list", action="store_true", help="only tell what is there and what is missing")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"only these: {', '.join(tools.name for tools in SETS)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.sets) - {tools.name for tools in SETS}:
        parser.error(f"unknown set {', '.join(sorted(unknown))}; known: {', '.join(tools.name for tools in SETS)}")
    wanted = [tools for tools in SETS if not options.sets or tools.name in options.sets]
    try:
        version = go_version()
    except ToolsError as e:
        print(f"cluster-tools: {e}", file=sys.stderr)
        return 2
    missing = [tools for tools in wanted if not folder(tools, version).is_dir()]
    if options.list:
        for tools in wanted:
            state = "missing" if tools in missing else "built  "
            print(
                f"{state} {folder(tools, version)}: {', '.join(program.name for program in tools.programs) or 'files'}"
            )
        return 1 if missing else 0
    if not missing:
        print(f"cluster-tools: nothing to build ({version}, {cache()})")
        return 0
    minutes = sum(program.minutes for tools in missing for program in tools.programs)
    say(f"{len(missing)} of {len(wanted)} sets to build, up to {minutes:.0f} min with cold caches; into {cache()}")
    try:
        for tools in missing:
            build(tools, version)
    except ToolsError as e:
        print(f"cluster-tools: {e}", file=sys.stderr)
        return 1
    say("all built")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
