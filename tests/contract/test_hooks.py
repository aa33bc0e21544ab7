"""What every Hooks adapter promises, and what commands and webhooks may and may not do."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from canaryd.adapters.hooks import MAX_OUTPUT, HookRunner
from canaryd.adapters.memory import MemoryHooks
from canaryd.model import HookState, HookStatus
from canaryd.policy import Canary, Hook, parse_canary
from canaryd.ports import Hooks

CANARY: Canary = parse_canary(
    {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "shop"},
        "spec": {"workloads": {"pools": ["blue", "green"]}, "route": {"envoyFile": {"path": "/nowhere"}}},
    }
)
OWED = HookState("shop-3")


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settled(hooks: Hooks, hook: Hook, state: HookState = OWED, facts: dict[str, str] | None = None) -> HookState:
    """Ask until the hook is done or failed."""
    news: list[HookState] = []

    def ended() -> bool:
        news.append(hooks.advance(CANARY, hook, state, facts or {}))
        return news[-1].status is not HookStatus.OWED

    until(ended)
    return news[-1]


@pytest.fixture
def runner() -> Iterator[HookRunner]:
    made = HookRunner(timedelta(milliseconds=20))
    yield made
    made.close()


def command(*argv: str, timeout: float = 10, retries: int = 0) -> Hook:
    return Hook(command=argv, timeout=timedelta(seconds=timeout), retries=retries)


def script(text: str, timeout: float = 10, retries: int = 0) -> Hook:
    return command("/bin/sh", "-c", text, timeout=timeout, retries=retries)


# ── every adapter ────────────────────────────────────────────────────────────────────────────────────────────


class InMemory:
    def __init__(self, _: Path, __: HookRunner) -> None:
        self.hooks: MemoryHooks = MemoryHooks()

    def hook(self, result: HookStatus) -> Hook:
        self.hooks.script("shop", HookStatus.OWED, HookStatus.OWED, result)
        return script("true")

    def starts(self) -> int:
        return len(self.hooks.started)


class Running:
    def __init__(self, directory: Path, runner: HookRunner) -> None:
        self.hooks: HookRunner = runner
        self.log = directory / "starts"
        self.log.write_text("")

    def hook(self, result: HookStatus) -> Hook:
        return script(f"echo x >> {self.log}; sleep 0.1; exit {0 if result is HookStatus.DONE else 3}")

    def starts(self) -> int:
        return len(self.log.read_text().splitlines())


BENCHES: dict[str, type[InMemory] | type[Running]] = {"memory": InMemory, "runner": Running}


@pytest.fixture(params=BENCHES.values(), ids=BENCHES.keys())
def bench(request: pytest.FixtureRequest, tmp_path: Path, runner: HookRunner) -> InMemory | Running:
    made: InMemory | Running = request.param(tmp_path, runner)
    return made


@pytest.mark.parametrize("result", [HookStatus.DONE, HookStatus.FAILED])
def test_a_hook_is_owed_while_it_runs_and_then_says_how_it_ended(bench: InMemory | Running, result: HookStatus) -> None:
    hook = bench.hook(result)
    assert bench.hooks.advance(CANARY, hook, OWED, {}).status is HookStatus.OWED
    ended = settled(bench.hooks, hook)
    assert (ended.id, ended.status) == (OWED.id, result)


def test_a_hook_is_started_once_however_often_it_is_asked_after(bench: InMemory | Running) -> None:
    hook = bench.hook(HookStatus.DONE)
    settled(bench.hooks, hook)
    for _ in range(3):  # the save may have failed, so the state still says owed
        assert bench.hooks.advance(CANARY, hook, OWED, {}).status is HookStatus.DONE
    assert bench.starts() == 1


@pytest.mark.parametrize("status", [HookStatus.DONE, HookStatus.FAILED])
def test_a_hook_that_is_over_is_not_started(bench: InMemory | Running, status: HookStatus) -> None:
    over = HookState("shop-2", status, "long ago")
    assert bench.hooks.advance(CANARY, bench.hook(HookStatus.DONE), over, {}) == over
    assert bench.starts() == 0


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_command_sees_the_facts_and_nothing_of_the_daemons_environment(runner: HookRunner) -> None:
    os.environ["CANARYD_TEST_SECRET"] = "hunter2"
    try:
        news = settled(runner, command("env"), facts={"revision": "v3", "stable-pool": "a b", "odd": "x\0y"})
    finally:
        del os.environ["CANARYD_TEST_SECRET"]
    assert news.status is HookStatus.DONE
    seen = dict(line.split("=", 1) for line in news.detail.partition("output: ")[2].splitlines())
    assert seen.pop("PATH")
    assert seen == {
        "CANARYD_HOOK_ID": "shop-3",
        "CANARYD_CANARY": "shop",
        "CANARYD_REVISION": "v3",
        "CANARYD_STABLE_POOL": "a b",
        "CANARYD_ODD": "xy",
    }


def test_there_is_no_shell_between(runner: HookRunner) -> None:
    news = settled(runner, command("/bin/echo", "$HOME", ";", "$(id)"))
    assert "$HOME ; $(id)" in news.detail


def test_asking_returns_at_once_while_the_command_runs(runner: HookRunner) -> None:
    began = time.monotonic()
    assert runner.advance(CANARY, command("sleep", "20", timeout=20), OWED, {}).status is HookStatus.OWED
    assert time.monotonic() - began < 5


def test_a_command_that_cannot_be_started_fails_with_its_name(runner: HookRunner) -> None:
    news = settled(runner, command("/nowhere/upgrade", "--token=hunter2"))
    assert news.status is HookStatus.FAILED
    assert "/nowhere/upgrade" in news.detail
    assert "hunter2" not in news.detail


def test_a_command_that_fails_is_tried_again_and_then_given_up(runner: HookRunner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    news = settled(runner, script(f"echo x >> {log}; echo sorry; exit 7", retries=2))
    assert news.status is HookStatus.FAILED
    assert len(log.read_text().splitlines()) == 3
    assert "3 attempts" in news.detail
    assert "7" in news.detail
    assert "sorry" in news.detail


def test_a_command_that_succeeds_at_the_second_attempt_is_done(runner: HookRunner, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    news = settled(runner, script(f"test -e {mark} || {{ touch {mark}; exit 1; }}", retries=2))
    assert news.status is HookStatus.DONE
    assert "attempt 2" in news.detail


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_time_out_ends_the_command_and_its_children_even_stubborn_ones(runner: HookRunner, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = f"trap '' TERM; sleep 60 & echo $$ $! > {pids}; while :; do sleep 0.1; done"
    news = settled(runner, script(text, timeout=0.5))
    assert news.status is HookStatus.FAILED
    assert "0.5 s" in news.detail
    numbers = [int(word) for word in pids.read_text().split()]
    assert len(numbers) == 2
    until(lambda: not any(alive(pid) for pid in numbers))


def test_what_a_command_leaves_running_does_not_hold_up_its_result(runner: HookRunner, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    try:
        news = settled(runner, script(f"sleep 30 & echo $! > {pid}; echo started"))
        assert news.status is HookStatus.DONE
        assert "started" in news.detail
    finally:
        os.kill(int(pid.read_text()), 9)


def test_only_the_end_of_a_long_output_is_kept(runner: HookRunner) -> None:
    news = settled(runner, script("head -c 3000000 /dev/zero | tr '\\0' a; echo; echo the end"))
    assert news.status is HookStatus.DONE
    assert news.detail.endswith("the end")
    assert len(news.detail) < MAX_OUTPUT + 200


def test_a_command_that_closes_its_output_is_still_waited_for(runner: HookRunner, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    news = settled(runner, script(f"exec >/dev/null 2>&1; sleep 0.3; touch {mark}"))
    assert news.status is HookStatus.DONE
    assert mark.exists()


def test_closing_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    runner = HookRunner()
    pid = tmp_path / "pid"
    hook = script(f"echo $$ > {pid}; sleep 60", timeout=60, retries=3)
    runner.advance(CANARY, hook, OWED, {})
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    began = time.monotonic()
    runner.close()
    assert time.monotonic() - began < 5
    until(lambda: not alive(int(pid.read_text())))
    assert runner.advance(CANARY, hook, OWED, {}).status is HookStatus.OWED  # stays owed: the next daemon runs it
    fresh = HookState("shop-4")
    assert runner.advance(CANARY, hook, fresh, {}) == fresh


# ── webhooks ─────────────────────────────────────────────────────────────────────────────────────────────────


class Receiver:
    """A webhook that answers with the given statuses in turn; the last one stays."""

    def __init__(self, *statuses: int) -> None:
        self.bodies: list[dict[str, Any]] = []
        left = list(statuses)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.send_header("content-length", "0")
                if status == 307:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/T0/hunter2"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def webhook(url: str, timeout: float = 5, retries: int = 0) -> Hook:
    return Hook(webhook=url, timeout=timedelta(seconds=timeout), retries=retries)


def test_a_webhook_is_sent_the_id_and_the_facts_as_json(runner: HookRunner) -> None:
    with Receiver(204) as receiver:
        news = settled(runner, webhook(receiver.url), facts={"revision": "v3"})
    assert news.status is HookStatus.DONE
    assert receiver.bodies == [{"id": "shop-3", "canary": "shop", "revision": "v3"}]


def test_a_webhook_that_fails_is_tried_again_with_the_same_id(runner: HookRunner) -> None:
    with Receiver(503, 500, 200) as receiver:
        news = settled(runner, webhook(receiver.url, retries=2))
    assert news.status is HookStatus.DONE
    assert [body["id"] for body in receiver.bodies] == ["shop-3"] * 3


@pytest.mark.parametrize("status", [307, 404, 500])
def test_a_webhook_that_does_not_answer_2xx_has_failed_and_its_path_stays_secret(
    runner: HookRunner, status: int
) -> None:
    with Receiver(status) as receiver:
        news = settled(runner, webhook(receiver.url))
    assert news.status is HookStatus.FAILED
    assert str(status) in news.detail
    assert "hunter2" not in news.detail
    assert len(receiver.bodies) == 1


def test_a_webhook_that_is_not_there_fails_without_showing_its_path(runner: HookRunner) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        news = settled(runner, webhook(f"http://127.0.0.1:{closed.getsockname()[1]}/hunter2"))
    assert news.status is HookStatus.FAILED
    assert "hunter2" not in news.detail


def test_a_webhook_that_never_answers_fails_after_its_time_out(runner: HookRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        news = settled(runner, webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3))
    assert news.status is HookStatus.FAILED
    assert "0.3 s" in news.detail
