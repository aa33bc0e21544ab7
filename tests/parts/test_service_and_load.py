"""The small service and the load generator by themselves, without Envoy."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canaryd.demo.load import Address
from canaryd.demo.processes import Child, Nursery, await_ready, fetch, free_port
from canaryd.demo.prometheus import configuration
from canaryd.demo.service import Behaviour


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(tmp_path) as nursery:
        yield nursery


@pytest.fixture
def service(nursery: Nursery) -> tuple[Child, str]:
    """A service of constant 5 ms without errors, and its URL."""
    port = free_port()
    options = f"--port={port} --version=v7 --errors=0 --latency-ms=5 --latency-sigma=0".split()
    child = nursery.start("service", [sys.executable, "-m", "canaryd.demo.service", *options])
    await_ready(child, f"http://127.0.0.1:{port}/healthz")
    return child, f"http://127.0.0.1:{port}"


def load(*arguments: str) -> dict[str, Any]:
    """Run the generator to its end; its totals."""
    command = [sys.executable, "-m", "canaryd.demo.load", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    total = json.loads(ran.stdout)["total"]
    assert total["sent"] == total["answered"] + total["lost"] + total["in_flight"]
    return total


def test_behaviour_can_be_changed_and_read_while_it_runs(service: tuple[Child, str]) -> None:
    _, url = service
    assert fetch(url)[0] == 200
    assert fetch(f"{url}/behaviour", b'{"errors": 1, "healthy": false}')[0] == 200
    assert fetch(url)[0] == 500
    assert fetch(f"{url}/healthz")[0] == 503
    status, body = fetch(f"{url}/behaviour")
    assert (status, json.loads(body)["errors"]) == (200, 1)


@pytest.mark.parametrize(
    "body",
    [
        *('{"errors": 1.5}', '{"errors": NaN}', '{"errors": true}', '{"latency_ms": -1}', '{"latency_sigma": 1e9}'),
        *('{"healthy": "yes"}', '{"latency": 5}', '{"errors": 1, "latency_ms": "5"}', "[1]", "{", "\ud800"),
    ],
)
def test_a_wrong_behaviour_is_refused_whole(service: tuple[Child, str], body: str) -> None:
    _, url = service
    before = fetch(f"{url}/behaviour")
    assert fetch(f"{url}/behaviour", body.encode(errors="surrogatepass"))[0] == 400
    assert fetch(f"{url}/behaviour") == before


def test_requests_sent_at_once_on_one_connection_are_answered_in_order(service: tuple[Child, str]) -> None:
    _, url = service
    request = (
        b"GET /x HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\nPOST /behaviour HTTP/1.1\r\nContent-Length: 13\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5) as connection:
        connection.sendall(request + b'{"errors": 1}' + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        answers = connection.makefile("rb").read()
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"200", b"500"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", b"400", id="nonsense"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411", id="chunked"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n", b"413", id="large-body"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4000, b"431", id="endless-head"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_connection_closed(
    service: tuple[Child, str], sent: bytes, status: bytes
) -> None:
    _, url = service
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5) as connection:
        connection.sendall(sent)
        assert connection.makefile("rb").readline().split()[1] == status


def test_a_median_is_the_median_and_a_sigma_of_zero_is_constant() -> None:
    import random

    chance = random.Random(1)
    delays = sorted(Behaviour(latency_ms=40, latency_sigma=0.5).delay(chance) for _ in range(4001))
    assert 0.038 < delays[2000] < 0.042
    assert {Behaviour(latency_ms=40, latency_sigma=0).delay(chance) for _ in range(9)} == {0.04}


@pytest.mark.parametrize(
    "url",
    [
        *("http://10.0.0.1:80", "http://example.com:80", "http://0.0.0.0:80", "https://127.0.0.1:80", ""),
        *("http://127.0.0.1", "http://127.0.0.1.example.com:80", "http://127.0.0.1:80@10.0.0.1:80"),
        *("http://[fe80::1]:80", "http://127.0.0.1:99999", "http://[::1", "127.0.0.1:80"),
    ],
)
def test_load_on_anything_but_loopback_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="refused"):
        Address.parse(url)
    ran = subprocess.run(
        [sys.executable, "-m", "canaryd.demo.load", "--duration=1", f"--target=x={url}"],
        capture_output=True,
        timeout=30,
    )
    assert ran.returncode == 2


def test_loopback_addresses_are_accepted() -> None:
    assert Address.parse("http://127.0.0.1:80/a?b=c") == Address("127.0.0.1", 80, "/a?b=c")
    assert Address.parse("http://localhost:80") == Address("127.0.0.1", 80, "/")
    assert Address.parse("http://[::1]:80").host == "::1"


@pytest.mark.parametrize(
    "arguments", [[], ["--duration=0"], ["--duration=86400"], ["--duration=inf"], ["--duration=nan"]]
)
def test_load_without_an_end_is_refused(arguments: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "canaryd.demo.load", "--url=http://127.0.0.1:9", *arguments],
        capture_output=True,
        timeout=30,
    )
    assert ran.returncode == 2


def test_requests_that_nobody_answers_are_lost(service: tuple[Child, str]) -> None:
    child, url = service
    fetch(f"{url}/behaviour", b'{"latency_ms": 60000}')
    total = load(f"--url={url}", "--rps=50", "--duration=1", "--timeout-ms=200")
    assert total["lost"] == total["sent"] > 10
    child.kill()
    total = load(f"--url={url}", "--rps=50", "--duration=1")
    assert total["lost"] == total["sent"] > 10


def test_a_slow_server_cannot_slow_the_generator_and_waiting_counts_as_latency(service: tuple[Child, str]) -> None:
    _, url = service
    fetch(f"{url}/behaviour", b'{"latency_ms": 100}')
    total = load(f"--url={url}", "--rps=40", "--duration=0.75", "--connections=1", "--spacing=even")
    assert total["sent"] + total["skipped"] >= 27  # one connection alone would carry 8
    assert total["latency_ms"]["p99"] > 1000
    assert total["versions"]["v7"]["slow"] >= total["answered"] - 1


@pytest.mark.parametrize("scrape", ["", "0s", "1", "1s, x: y", "1h"])
def test_a_scrape_interval_that_prometheus_would_not_understand_is_refused(scrape: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        configuration("http://127.0.0.1:1/stats", scrape)
