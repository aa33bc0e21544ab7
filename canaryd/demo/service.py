"""A tiny HTTP/1.1 service with a chosen share of errors and a chosen latency, to stand behind Envoy.

It listens on 127.0.0.1 only, keeps nothing, and never does real work: it is there to be compared.

    GET  anything      200, or 500 for the error share, after a lognormal delay; header x-version tells who answered.
                       Where it `calls` another service it fails when that one does, and takes as much longer
    GET  /healthz      at once: 200, or 503 when told to be unhealthy
    GET  /behaviour    the behaviour as JSON
    POST /behaviour    JSON with any of errors, only, calls, latency_ms, latency_sigma, healthy: changes it from now on

With --otlp-port it reports spans of the requests that its caller traces.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlsplit

from canaryd.demo.tracer import CLIENT, SERVER, Context, Tracer, exchange

MAX_HEAD = 16 * 1024  # bytes
MAX_BODY = 64 * 1024  # bytes
REASONS = {200: "OK", 400: "Bad Request", 411: "Length Required", 413: "Too Large", 431: "Too Large"}
REASONS |= {500: "Internal Server Error", 503: "Service Unavailable"}
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?=\r\n|$)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection:[ \t]*close|^[^\r]* HTTP/1\.0", re.IGNORECASE)
CALL_TIMEOUT_S = 5.0
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[^ \r]*) HTTP/1\.[01](?=\r\n|$)")


@dataclass(frozen=True)
class Behaviour:
    """How a service answers. Raises ValueError naming the field, the value and what would be right."""

    errors: float = 0.002  # share of requests answered 500, 0..1
    latency_ms: float = 12.0  # median delay in milliseconds, 0..60000
    latency_sigma: float = 0.3  # standard deviation of the delay's logarithm, 0..3; 0 is a constant delay
    healthy: bool = True  # what /healthz says
    only: str = ""  # path of the requests to which `errors` applies; "" all
    calls: str = ""  # URL on 127.0.0.1 that is asked before each answer; "" none

    def __post_init__(self) -> None:
        for name, most in (("errors", 1.0), ("latency_ms", 60_000.0), ("latency_sigma", 3.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {most:g}")
        if not isinstance(self.healthy, bool):
            raise ValueError(f"healthy is {self.healthy!r}; it must be true or false")
        if not isinstance(self.only, str) or not isinstance(self.calls, str):
            raise ValueError("only and calls must be texts")
        if self.calls and not re.fullmatch(r"http://127\.0\.0\.1:[0-9]{1,5}/[\w/.-]*", self.calls, re.ASCII):
            raise ValueError(f"calls is {self.calls!r}; use such as http://127.0.0.1:8080/book")

    def changed(self, wishes: Mapping[str, object]) -> Behaviour:
        """This behaviour with some fields replaced; all or nothing."""
        if unknown := sorted(set(wishes) - set(asdict(self))):
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(asdict(self))}")
        return replace(self, **wishes)  # type: ignore[arg-type]  # __post_init__ checks each type

    def delay(self, chance: random.Random) -> float:
        """Seconds until the answer: lognormal around the median."""
        return self.latency_ms / 1000 * math.exp(chance.gauss(0.0, self.latency_sigma))


class Service:
    """What all connections of one process share."""

    def __init__(
        self, version: str, behaviour: Behaviour, seed: int | None = None, tracer: Tracer | None = None
    ) -> None:
        self.version = version
        self.behaviour = behaviour
        self.tracer = tracer
        self.chance = random.Random(seed)
        self.good = self.answer(200, "ok\n")
        self.bad = self.answer(500, "error\n")

    def answer(self, status: int, body: str, kind: str = "text/plain") -> bytes:
        return (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nx-version: {self.version}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body.encode())}\r\n\r\n{body}"
        ).encode()

    def health(self) -> bytes:
        return self.answer(200, "ok\n") if self.behaviour.healthy else self.answer(503, "unhealthy\n")

    def behave(self, body: bytes) -> bytes:
        """Change the behaviour by a JSON object; answers 200 with the new one, or 400 saying what is wrong."""
        try:
            wishes = json.loads(body or b"{}")
            if not isinstance(wishes, dict):
                return self.answer(400, "a JSON object is needed\n")
            self.behaviour = self.behaviour.changed(wishes)
        except ValueError as e:  # includes JSONDecodeError and UnicodeDecodeError
            return self.answer(400, f"{e}\n")
        return self.answer(200, json.dumps(asdict(self.behaviour)) + "\n", "application/json")


@dataclass
class Asked:
    """One request that is being answered."""

    path: str
    began: int  # ns since the epoch
    fails: bool
    above: Context | None  # None: nobody traces it
    here: Context | None


class Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, in order; a later one waits in the buffer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._call: asyncio.Task[None] | None = None
        self._closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._call is not None:
            self._call.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._timer is None:
            self._next()
        elif len(self._buffer) > MAX_HEAD + MAX_BODY:
            self._transport.abort()

    def _next(self) -> None:
        """Take one whole request off the buffer, if there is one and none is being answered."""
        if self._timer is not None or self._closes:
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                self._refuse(431)
            return
        head = self._buffer[:end]
        line = REQUEST_LINE.match(head)
        if line is None:
            self._refuse(400)
            return
        if CHUNKED.search(head):
            self._refuse(411)
            return
        length = int(found[1]) if (found := LENGTH.search(head)) else 0
        if length > MAX_BODY:
            self._refuse(413)
            return
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        self._closes = CLOSES.search(head) is not None
        self._take(line[1], line[2], head, body)

    def _take(self, method: bytes, path: bytes, head: bytes, body: bytes) -> None:
        if path == b"/healthz":
            self._send(self._service.health())
        elif path == b"/behaviour":
            self._send(self._service.behave(body if method == b"POST" else b""))
        else:
            behaviour, chance = self._service.behaviour, self._service.chance
            asked = self._asked(path.partition(b"?")[0].decode("latin-1"), head, chance.random() < behaviour.errors)
            self._timer = self._loop.call_later(behaviour.delay(chance), self._worked, asked)

    def _asked(self, path: str, head: bytes, unlucky: bool) -> Asked:
        above = Context.of(head) if self._service.tracer is not None else None
        fails = unlucky and self._service.behaviour.only in ("", path)
        return Asked(path, time.time_ns(), fails, above, above.below() if above else None)

    def _worked(self, asked: Asked) -> None:
        """Its own work is done; where another service is to be asked, that comes now."""
        if self._service.behaviour.calls:
            self._call = self._loop.create_task(self._ask(asked, self._service.behaviour.calls))
        else:
            self._finish(asked)

    async def _ask(self, asked: Asked, url: str) -> None:
        parts, began = urlsplit(url), time.time_ns()
        call = asked.here.below() if asked.here else None
        head = f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            request = f"{head}{call.header if call else ''}\r\n".encode()
            answer = await exchange(parts.port or 80, request, CALL_TIMEOUT_S)
        is_good = answer.startswith(b"HTTP/1.1 2")
        if self._service.tracer is not None and call is not None and asked.here is not None:
            name = f"GET {parts.path}"
            self._service.tracer.record(call, asked.here, name, CLIENT, began, failed=not is_good)
        asked.fails = asked.fails or not is_good
        self._finish(asked)

    def _finish(self, asked: Asked) -> None:
        if self._service.tracer is not None and asked.here is not None and asked.above is not None:
            status = "500" if asked.fails else "200"
            self._service.tracer.record(
                *(asked.here, asked.above, f"GET {asked.path}", SERVER, asked.began),
                failed=asked.fails,
                http__status_code=status,
            )
        self._send(self._service.bad if asked.fails else self._service.good)

    def _send(self, answer: bytes) -> None:
        self._timer = None
        self._transport.write(answer)
        if self._closes:
            self._transport.close()
        elif self._buffer:
            self._loop.call_soon(self._next)  # not at once: many requests in one buffer would nest as deep

    def _refuse(self, status: int) -> None:
        self._closes = True
        self._send(self._service.answer(status, ""))


async def serve(service: Service, port: int) -> None:
    """Answer on 127.0.0.1:`port` until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=1024)
    reports = loop.create_task(service.tracer.run()) if service.tracer is not None else None
    await ended.wait()
    server.close()
    if reports is not None and service.tracer is not None:
        reports.cancel()
        await service.tracer.flush()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="canaryd.demo.service", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--version", required=True, help="sent as x-version")
    parser.add_argument("--errors", type=float, default=0.002, help="share answered 500, 0..1")
    parser.add_argument("--latency-ms", type=float, default=12.0, help="median delay")
    parser.add_argument("--latency-sigma", type=float, default=0.3, help="spread of its logarithm")
    parser.add_argument("--unhealthy", action="store_true", help="/healthz answers 503")
    parser.add_argument("--service", default="", help="its name in spans")
    parser.add_argument("--otlp-port", type=int, help="of a collector on 127.0.0.1 that takes OTLP over HTTP")
    parser.add_argument("--only", default="", help="path to which --errors applies")
    parser.add_argument("--calls", default="", help="URL that is asked before each answer")
    parser.add_argument("--seed", type=int, help="for the same draws each time")
    given = parser.parse_args(argv)
    if not re.fullmatch(r"[\w.+-]{1,64}", given.version, re.ASCII):
        parser.error(f"--version is {given.version!r}; use letters, digits, dot, plus, minus, at most 64")
    if not 1 <= given.port <= 65535:
        parser.error(f"--port is {given.port}; use 1 to 65535")
    try:
        behaviour = Behaviour(
            given.errors, given.latency_ms, given.latency_sigma, not given.unhealthy, given.only, given.calls
        )
    except ValueError as e:
        parser.error(str(e))
    tracer = Tracer(given.service or "service", given.version, given.otlp_port) if given.otlp_port else None
    asyncio.run(serve(Service(given.version, behaviour, given.seed, tracer), given.port))


if __name__ == "__main__":
    main()
