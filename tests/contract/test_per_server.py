"""Canaries with a Prometheus of their own: a slow, dead or hostile one delays, blinds and learns nothing of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from test_metric_source import STEP, T1, T2, Row, Script, Server, counts, http, matrix, query

from canaryd.adapters.exchange import is_elsewhere
from canaryd.adapters.memory import MemoryMetrics
from canaryd.adapters.per_server import PerServerSource
from canaryd.adapters.prometheus import PrometheusSource
from canaryd.demo.processes import wait_until
from canaryd.errors import SourceError
from canaryd.model import Arm, Reading
from canaryd.ports import CountsQuery

SECOND = timedelta(seconds=1)
ROWS = {T1: [Row("api-a", "200", 5)], T2: [Row("api-a", "200", 7)], T2 + STEP: [Row("api-a", "200", 9)]}
NOBODY = "http://127.0.0.1:1"


def made(url: str) -> PrometheusSource:
    return PrometheusSource(url, timeout=2 * SECOND, starts=False)


def over(own: Server | None = None, *, patience: timedelta = 1.5 * SECOND, **more: int) -> PerServerSource:
    return PerServerSource(made(f"http://127.0.0.1:{own.port}" if own else NOBODY), made, patience=patience, **more)


def theirs(server: Server | str, name: str = "api", **more: object) -> CountsQuery:
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.port}"
    return replace(query(name), server=url, **more)  # type: ignore[arg-type]


def after(seconds: float, script: Script) -> Script:
    def answer(request: bytes) -> Iterator[bytes | float]:
        yield seconds
        yield from script(request)

    return answer


def at_last(source: PerServerSource, asked: CountsQuery, newest: datetime) -> tuple[Reading, ...]:
    """The next answer that reaches so far."""

    def answer() -> tuple[Reading, ...]:
        try:
            readings = source.read([asked])[asked.canary].readings
        except SourceError:
            return ()
        return readings if readings[-1].at == newest else ()

    return wait_until(answer, "an answer", 20)


def test_every_canary_is_answered_by_its_own_server() -> None:
    other = {T1: [Row("api-a", "200", 50)], T2: [Row("api-a", "200", 70)]}
    with Server(matrix(ROWS)) as daemons, Server(matrix(other)) as own:
        answers = over(daemons).read([query(), theirs(own) and replace(theirs(own), canary="own")])
    assert counts(answers["api"].readings[-1]) == {(Arm.STABLE, "pod-1", "200"): 7.0}
    assert counts(answers["own"].readings[-1]) == {(Arm.STABLE, "pod-1", "200"): 70.0}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(after(30.0, matrix(ROWS)), id="slow"),
        pytest.param(lambda _: iter([http("no", "500 Internal Server Error")]), id="broken"),
        pytest.param(lambda _: iter([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]), id="torn"),
    ],
)
def test_a_server_that_fails_blinds_its_own_canaries_and_delays_nobody(script: Script) -> None:
    with Server(matrix(ROWS)) as daemons, Server(script) as own, Server(matrix(ROWS)) as third:
        source, asked = over(daemons), [query(), theirs(own, "own"), theirs(third, "web")]
        took = []
        for _ in range(3):
            began = time.monotonic()
            answers = source.read(asked)
            took.append(time.monotonic() - began)
            assert len(answers["api"].readings) == 2
            assert answers["web"].failed == ""
            assert answers["own"].failed
            assert answers["own"].readings == ()
    assert took[0] < 4
    assert max(took[1:]) < 1.5, "who was slow the last time is not waited for"


def test_the_daemons_own_server_that_fails_blinds_only_those_without_one_of_their_own() -> None:
    with Server(matrix(ROWS)) as own:
        answers = over().read([query("web"), theirs(own)])
    assert "refused" in answers["web"].failed
    assert len(answers["api"].readings) == 2


def test_when_nobody_answers_it_is_an_error() -> None:
    with pytest.raises(SourceError, match="refused"):
        over().read([query(), query("web")])


def test_where_no_server_answers_each_canary_hears_of_its_own_alone() -> None:
    answers = over().read([query("web"), theirs("http://127.0.0.1:2", "own")])
    assert "127.0.0.1:2:" in answers["own"].failed
    assert "127.0.0.1:2:" not in answers["web"].failed
    assert "refused" in answers["web"].failed


def test_what_came_too_late_is_the_answer_at_the_next_look() -> None:
    with Server(after(0.25, matrix(ROWS))) as own:
        source = over(patience=0.1 * SECOND)
        with pytest.raises(SourceError, match="has not answered"):
            source.read([theirs(own)])
        later = theirs(own, points=(T1, T2, T2 + STEP))
        assert [r.at for r in at_last(source, later, T2)] == [T1, T2], "the answer to the question before"
        assert [r.at for r in at_last(source, later, T2 + STEP)] == [T1, T2, T2 + STEP]


def test_a_late_answer_to_another_question_is_none() -> None:
    with Server(after(0.25, matrix(ROWS))) as own:
        source = over(patience=0.1 * SECOND)
        with pytest.raises(SourceError):
            source.read([theirs(own)])
        time.sleep(0.7)
        with pytest.raises(SourceError, match="has not answered"):
            source.read([theirs(own, stable="another-a")])


def test_a_server_is_never_asked_twice_at_the_same_time() -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def answer(request: bytes) -> Iterator[bytes | float]:
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
        yield 0.2
        with lock:
            at_once -= 1
        yield from matrix(ROWS)(request)

    with Server(matrix(ROWS)) as daemons, Server(answer) as own:
        source = over(daemons, patience=0.05 * SECOND)
        for _ in range(8):
            source.read([query("web"), theirs(own)])
        time.sleep(0.6)
    assert most == 1


def test_servers_that_nobody_names_any_more_are_forgotten_and_their_number_is_bounded() -> None:
    made_for: list[str] = []

    def make(url: str) -> MemoryMetrics:
        made_for.append(url)
        return MemoryMetrics()

    source = PerServerSource(MemoryMetrics(), make, most=2)
    asked = [theirs(f"http://prometheus-{i}:9090", f"c{i}") for i in range(3)]
    failed = [answer.failed for answer in source.read(asked).values()]
    assert sum("more than 2 servers" in why for why in failed) == 1
    source.read(asked[:1])
    source.read(asked[1:])
    assert len(made_for) == 2 + 2, "a source for each time that it is named anew"


# ── an address that somebody else has named ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254",
        "::ffff:127.0.0.1", "2002:7f00:1::", "fd00:ec2::254", "100.100.100.200", "224.0.0.1", "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_link_are_not_elsewhere(address: str) -> None:
    assert not is_elsewhere(address)


@pytest.mark.parametrize("address", ["10.96.0.10", "192.168.1.5", "8.8.8.8", "fd12:3456::9", "2001:4860:4860::8888"])
def test_other_machines_are_elsewhere(address: str) -> None:
    assert is_elsewhere(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_canary_cannot_make_the_daemon_talk_to_its_own_machine(host: str, scheme: str) -> None:
    with Server(matrix(ROWS)) as server:
        source = PrometheusSource(f"{scheme}://{host}:{server.port}", timeout=2 * SECOND, public_only=True)
        with pytest.raises(SourceError, match="an address of this machine"):
            source.read([query()])
        assert server.requests == []


def test_a_server_that_a_canary_names_is_told_no_secret(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    for secrets in ({"bearer_file": str(token)}, {"headers": {"X-Scope-OrgID": "team-a"}}):
        with pytest.raises(ValueError, match="not told a secret"):
            PrometheusSource("http://prometheus.shop:9090", public_only=True, **secrets)  # type: ignore[arg-type]


def test_a_redirect_is_not_followed() -> None:
    with Server(matrix(ROWS)) as inner:
        location = f"Location: http://127.0.0.1:{inner.port}/latest/meta-data"
        moved = http("", "307 Temporary Redirect", location)
        with Server(lambda _: iter([moved])) as own, pytest.raises(SourceError, match="HTTP 307"):
            over().read([theirs(own)])
        assert inner.requests == []


def test_what_another_service_says_of_its_errors_is_not_repeated() -> None:
    with Server(lambda _: iter([http('{"error": "user admin has no password"}', "403 Forbidden")])) as own:
        with pytest.raises(SourceError, match="HTTP 403") as caught:
            over().read([theirs(own)])
        assert "admin" not in str(caught.value)
