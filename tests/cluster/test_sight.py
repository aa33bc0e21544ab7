"""Prometheus is away, stands still, or answers nonsense in mid-rollout: held, told once, gone on with, promoted.

CANARYD_LONG=1: it is away for five minutes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from bench import Bench, BenchPrometheus
from release_scenes import NAMESPACE, Canaryd, canaryd, install, settings, sleep
from world_scenes import GOING, LONG, Stage, weights

pytestmark = pytest.mark.slow

FAULTS = ("error-500", "hangs", "web-page", "refuses")  # services, each with a Prometheus of its own that does this
PORT = 9200
LASTS = 25  # seconds of an outage


class Between:
    """A Prometheus that passes on what it is asked, until it is told to do something else."""

    def __init__(self, port: int, behind: str) -> None:
        self.url, self.behind = f"http://127.0.0.1:{port}", behind
        self.fault = ""  # one of FAULTS; "": none
        self.asked = 0  # while there was a fault
        self.over = threading.Event()  # of the fault
        between = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):
                    between.answer(self)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, name=f"between-{port}", daemon=True).start()

    def answer(self, one: BaseHTTPRequestHandler) -> None:
        body = one.rfile.read(int(one.headers.get("Content-Length") or 0))
        self.asked += bool(self.fault)
        if self.fault == "hangs":
            self.over.wait(120)
        elif self.fault == "refuses":
            one.connection.close()
        elif self.fault == "error-500":
            self.say(
                one, 500, "application/json", b'{"status": "error", "errorType": "internal", "error": "disk full"}'
            )
        elif self.fault == "web-page":
            self.say(one, 200, "text/html", b"<html>please log in</html>")
        else:
            with requests.Session() as session:
                session.trust_env = False
                kept = {k: v for k, v in one.headers.items() if k.lower() in ("content-type", "accept")}
                got = session.request(one.command, self.behind + one.path, data=body, headers=kept, timeout=30)
            self.say(one, got.status_code, got.headers["Content-Type"], got.content)

    @staticmethod
    def say(one: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
        one.send_response(status)
        one.send_header("Content-Type", kind)
        one.send_header("Content-Length", str(len(body)))
        one.end_headers()
        one.wfile.write(body)

    @contextmanager
    def broken(self, fault: str) -> Iterator[None]:
        self.over.clear()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = ""
            self.over.set()


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    install(mesh)
    with canaryd(mesh, tmp_path_factory.mktemp("sight"), settings(prometheus), replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def between(prometheus: BenchPrometheus) -> Iterator[dict[str, Between]]:
    made = {fault: Between(PORT + number, prometheus.url) for number, fault in enumerate(FAULTS)}
    yield made
    for one in made.values():
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture(scope="module")
def stage(mesh: Bench, looked_after: Canaryd, between: dict[str, Between]) -> Iterator[Stage]:
    made = Stage(mesh)
    specs: dict[str, dict[str, Any]] = {name: {**GOING, "prometheus": {"url": between[name].url}} for name in FAULTS}
    specs["sight"] = GOING
    made.put(*specs)
    made.care_for(specs)
    made.load(20, *specs)
    yield made
    for load in made.loads:
        load.stop()


def _told(stage: Stage, name: str) -> dict[str, int]:
    events = stage.bench.client().list("events", NAMESPACE)
    mine = [e["reason"] for e in events if e["involvedObject"]["name"] == name]
    return {reason: mine.count(reason) for reason in ("SightLost", "SightRegained")}


def _since(stage: Stage, name: str, before: dict[str, int]) -> dict[str, int]:
    return {reason: count - before[reason] for reason, count in _told(stage, name).items()}


def _is_held(stage: Stage, name: str, weight: int) -> str:
    """The sentence that says so."""
    status = stage[name].status()
    assert (status["phase"], status["verdict"]) == ("Progressing", "blind"), status
    assert weights(stage.bench, name)[f"{name}-canary"] == weight
    assert stage[name].condition("Ready")["status"] == "True"
    print(name, status["message"])
    return str(status["message"])


def test_whatever_is_answered_instead_of_counters_each_rollout_is_held_and_promoted_afterwards(
    stage: Stage, between: dict[str, Between]
) -> None:
    stage.release("v2", *FAULTS)
    sleep(2)  # until everything has been told of the start
    before = {name: _told(stage, name) for name in FAULTS}
    held = {name: weights(stage.bench, name)[f"{name}-canary"] for name in FAULTS}
    broken = [between[name].broken(name) for name in FAULTS]
    for one in broken:
        one.__enter__()
    sleep(LASTS)
    for name in FAULTS:
        assert between[name].url in _is_held(stage, name, held[name]), "its own server is named, and no other's"
    for one in broken:
        one.__exit__(None, None, None)
    for name in FAULTS:
        stage[name].until("Succeeded", patience=120)
    for name in FAULTS:
        assert between[name].asked > 1
        assert _since(stage, name, before[name]) == {"SightLost": 1, "SightRegained": 1}
        assert stage.failures(name) == []


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_prometheus_a_rollout_is_held_and_goes_on_afterwards(
    stage: Stage, prometheus: BenchPrometheus, how: str
) -> None:
    sight = stage["sight"]
    stage.release(f"v2-{how}", "sight")
    sleep(2)
    before = _told(stage, "sight")
    held = weights(stage.bench, "sight")["sight-canary"]
    if how == "killed":
        prometheus.child.kill()
    else:
        prometheus.child.freeze()
    sleep(300 if LONG and how == "killed" else LASTS)
    _is_held(stage, "sight", held)
    if how == "killed":
        prometheus.start()
    else:
        prometheus.child.thaw()
    sight.until("Succeeded", patience=120)
    assert _since(stage, "sight", before) == {"SightLost": 1, "SightRegained": 1}
    assert stage.failures("sight") == []
