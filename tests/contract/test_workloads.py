"""What every Workloads adapter promises, and what pools with health URLs do in bad company."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from canaryd.adapters.memory import MemoryWorkloads
from canaryd.adapters.pools import PoolWorkloads
from canaryd.errors import WorkloadError
from canaryd.model import RolloutState, WorkloadView
from canaryd.policy import Canary, parse_canary
from canaryd.ports import Workloads

pytest.register_assert_rewrite("workload_promises")
from workload_promises import *  # noqa: E402, F403
from workload_promises import BLUE, GREEN, Scene  # noqa: E402


def canary(blue: str | None = None, green: str | None = None) -> Canary:
    pools: list[dict[str, Any]] = [{"name": BLUE}, {"name": GREEN}]
    for pool, health in zip(pools, (blue, green), strict=True):
        if health is not None:
            pool["health"] = health
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "shop"},
            "spec": {"workloads": {"pools": pools}, "route": {"envoyFile": {"path": "/nowhere"}}},
        }
    )


class Server:
    """A pool on the loopback interface that answers every GET with one status."""

    def __init__(self) -> None:
        self.status = 200
        self.paths: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                self.send_response(server.status)
                if server.status == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/healthz"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@contextmanager
def trap(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that accepts connections and then behaves badly; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        listener.settimeout(0.02)
        open_ones: list[socket.socket] = []
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                pass
            else:
                open_ones.append(connection)
            for one in open_ones:
                with suppress(OSError):
                    behave(one)
        for one in open_ones:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"
    finally:
        over.set()
        thread.join()
        listener.close()


# ── every adapter ────────────────────────────────────────────────────────────────────────────────────────────


class InMemory:
    """workload_promises.Scene."""

    def __init__(self, server: Server) -> None:
        self.memory = MemoryWorkloads()
        self.workloads: Workloads = self.memory
        self.canary = canary()
        self.states = BOTH

    def view(self, state: RolloutState) -> WorkloadView:
        return self.workloads.view(self.canary, state)

    def disturb(self) -> str:
        self.memory.set_ready("shop", False, f"{GREEN} is starting")
        return GREEN


class InPools:
    """workload_promises.Scene."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.workloads: Workloads = PoolWorkloads(timedelta(seconds=2))
        self.canary = canary(green=server.url)
        self.states = BOTH

    def view(self, state: RolloutState) -> WorkloadView:
        return self.workloads.view(self.canary, state)

    def disturb(self) -> str:
        self.server.status = 503
        return GREEN


BOTH = (RolloutState(stable=BLUE, canary=GREEN), RolloutState(stable=GREEN, canary=BLUE))
SCENES: dict[str, type[InMemory] | type[InPools]] = {"memory": InMemory, "pools": InPools}


@pytest.fixture(params=SCENES.values(), ids=SCENES.keys())
def scene(request: pytest.FixtureRequest, server: Server) -> Scene:
    made: InMemory | InPools = request.param(server)
    return made


# ── pools ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_both_pools_that_are_not_ready_are_named_with_their_answers(server: Server) -> None:
    server.status = 500
    view = PoolWorkloads().view(canary(server.url, server.url + "?green"), RolloutState(stable=BLUE, canary=GREEN))
    assert BLUE in view.detail
    assert GREEN in view.detail
    assert view.detail.count("500") == 2


@pytest.mark.parametrize("status", [201, 204, 302, 404, 429, 503])
def test_only_200_is_ready(server: Server, status: int) -> None:
    server.status = status
    view = PoolWorkloads().view(canary(green=server.url), RolloutState(stable=BLUE, canary=GREEN))
    assert not view.ready
    assert str(status) in view.detail


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.status = 302
    PoolWorkloads().view(canary(green=server.url), RolloutState(stable=BLUE, canary=GREEN))
    assert server.paths == ["/healthz"]


def test_a_refused_connection_is_not_ready_and_no_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        view = PoolWorkloads().view(canary(green=url), RolloutState(stable=BLUE, canary=GREEN))
    assert not view.ready
    assert "refused" in view.detail


def test_the_query_of_a_health_url_is_never_shown(server: Server) -> None:
    server.status = 503
    view = PoolWorkloads().view(canary(green=server.url + "?token=hunter2"), RolloutState(stable=BLUE, canary=GREEN))
    assert not view.ready
    assert "hunter" not in view.detail


def test_an_unknown_pool_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match=GREEN):
        PoolWorkloads().view(canary(), RolloutState(stable=BLUE, canary="shop-red"))


def test_a_pool_that_never_answers_costs_one_time_out_for_both() -> None:
    with trap(lambda _: None) as url:
        began = time.monotonic()
        view = PoolWorkloads(timedelta(seconds=0.3)).view(
            canary(url, url + "?green"), RolloutState(stable=BLUE, canary=GREEN)
        )
    assert not view.ready
    assert time.monotonic() - began < 5


def test_a_pool_that_dribbles_cannot_hold_up_a_tick_or_pile_up_checks() -> None:
    def dribble(connection: socket.socket) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nx-endless: " if connection.gettimeout() is None else b"a")
        connection.settimeout(1)

    workloads = PoolWorkloads(timedelta(seconds=0.2))
    before = threading.active_count()
    with trap(dribble) as url:
        for _ in range(5):
            began = time.monotonic()
            view = workloads.view(canary(green=url), RolloutState(stable=BLUE, canary=GREEN))
            assert not view.ready
            assert time.monotonic() - began < 5
        assert threading.active_count() <= before + 2  # the trap and one check
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_a_pool_that_comes_back_is_ready_at_the_next_look(server: Server) -> None:
    workloads = PoolWorkloads()
    server.status = 503
    assert not workloads.view(canary(green=server.url), RolloutState(stable=BLUE, canary=GREEN)).ready
    server.status = 200
    assert workloads.view(canary(green=server.url), RolloutState(stable=BLUE, canary=GREEN)).ready
