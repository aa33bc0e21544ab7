"""Open-loop load on loopback addresses, counted by the version that answered.

Requests leave at their planned times whether or not earlier ones were answered, and latency is counted from the
planned time, so a slow server cannot hide by slowing the generator. It refuses every address that is not
loopback and always ends by itself.

The statistics file is JSON, replaced atomically twice a second:
    {"elapsed_s", "cpu_s", "running", "targets": {NAME: TOTALS}, "total": TOTALS}
    TOTALS: {"sent", "answered", "lost", "skipped", "in_flight", "latency_ms": {"p50", "p99"},
             "versions": {VERSION: {"requests", "failed", "slow"}}}
`failed` are answers 500..599, `slow` those over --slow-ms whatever their status; VERSION is "-" when the answer
has no x-version (Envoy's own 503). `lost`: no answer (refused, cut, later than --timeout-ms). `skipped`: never
sent, because this process itself was stopped for more than a second. answered + lost + in_flight = sent.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import math
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LONGEST = 4 * 3600.0  # seconds
STATS_EVERY = 0.5  # seconds
CATCH_UP = 1.0  # seconds behind plan after which requests are skipped instead of sent in one burst
MAX_QUEUE = 10_000  # requests waiting for a free connection, per target
BUCKET_GROWTH = math.log(1.02)  # latency buckets grow by 2 %, so a quantile is right within 1 %
LOWEST_MS = 0.01
NO_VERSION = "-"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
VERSION = re.compile(rb"\r\nx-version:[ \t]*([\w.+-]{1,64})", re.IGNORECASE)
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where to send: an IPv4 or IPv6 loopback address."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError for anything but http://LOOPBACK:PORT/…; no name but localhost, so DNS is never asked."""
        try:
            parts = urlsplit(url)
            host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
            port, loopback = parts.port, ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback or parts.scheme != "http" or not port or parts.username is not None:
            raise ValueError(f"{url!r} is refused: only http://127.0.0.1:PORT (or another loopback address) is loaded")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host, port, path)


@dataclass
class Totals:
    """What happened to the requests of one target so far."""

    sent: int = 0
    lost: int = 0
    skipped: int = 0
    versions: dict[str, list[int]] = field(default_factory=dict)  # version → [requests, failed, slow]
    buckets: dict[int, int] = field(default_factory=dict)  # latency bucket → answers

    def count(self, version: str, status: int, ms: float, slow_ms: float) -> None:
        cell = self.versions.setdefault(version, [0, 0, 0])
        cell[0] += 1
        cell[1] += 500 <= status <= 599
        cell[2] += ms > slow_ms
        bucket = int(math.log(max(ms, LOWEST_MS) / LOWEST_MS) / BUCKET_GROWTH)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def add(self, other: Totals) -> None:
        self.sent += other.sent
        self.lost += other.lost
        self.skipped += other.skipped
        for version, cell in other.versions.items():
            mine = self.versions.setdefault(version, [0, 0, 0])
            self.versions[version] = [a + b for a, b in zip(mine, cell, strict=True)]
        for bucket, n in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + n

    def quantile(self, q: float) -> float | None:
        """Latency in ms, the middle of the bucket that holds the q-th answer; None before the first."""
        wanted = q * sum(self.buckets.values())
        for bucket in sorted(self.buckets):
            wanted -= self.buckets[bucket]
            if wanted <= 0:
                return round(LOWEST_MS * math.exp((bucket + 0.5) * BUCKET_GROWTH), 2)
        return None

    def as_json(self) -> dict[str, Any]:
        answered = sum(cell[0] for cell in self.versions.values())
        keys = ("requests", "failed", "slow")
        return {
            "sent": self.sent,
            "answered": answered,
            "lost": self.lost,
            "skipped": self.skipped,
            "in_flight": self.sent - answered - self.lost,
            "latency_ms": {"p50": self.quantile(0.5), "p99": self.quantile(0.99)},
            "versions": {v: dict(zip(keys, c, strict=True)) for v, c in sorted(self.versions.items())},
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection; carries one request at a time."""

    def __init__(self, target: Target, due: float) -> None:
        self._target = target
        self._buffer = b""
        self.due: float | None = due  # planned time of the request under way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self.due is not None
        self.transport = transport
        self._target.opened(self)
        self.send(self.due)

    def send(self, due: float) -> None:
        self.due = due
        self.transport.write(self._target.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        status, length = STATUS.match(head), LENGTH.search(head)
        if status is None or length is None or self.due is None:
            self.transport.abort()  # not an answer we can count: the request is lost
            return
        if len(self._buffer) < end + 4 + int(length[1]):
            return
        self._buffer = b""  # nothing is pipelined, so nothing else is in it
        version = VERSION.search(head)
        due, self.due = self.due, None
        self._target.answered(due, int(status[1]), version[1].decode() if version else NO_VERSION)
        if CLOSES.search(head):
            self.transport.close()
        else:
            self._target.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._target.closed(self)


class Target:
    """One address, its planned requests and its connections."""

    def __init__(
        self, name: str, address: Address, rps: float, connections: int, slow_ms: float, timeout: float
    ) -> None:
        self.name = name
        self.address = address
        self.rps = rps
        self.totals = Totals()
        self.request = f"GET {address.path} HTTP/1.1\r\nhost: {name}\r\n\r\n".encode()
        self.next_due = 0.0
        self._most, self._slow_ms, self._timeout = connections, slow_ms, timeout
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._dials: set[asyncio.Task[None]] = set()
        self._waiting: deque[float] = deque()

    def fire(self, due: float) -> None:
        """Send a request planned for `due`, on a free or a new connection; else it waits for one."""
        self.totals.sent += 1
        if self._idle:
            self._idle.pop().send(due)
        elif len(self._open) + len(self._dials) < self._most:
            dial = asyncio.get_running_loop().create_task(self._dial(due))
            self._dials.add(dial)
            dial.add_done_callback(self._dials.discard)
        elif len(self._waiting) < MAX_QUEUE:
            self._waiting.append(due)
        else:
            self.totals.lost += 1

    async def _dial(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):  # its TimeoutError is an OSError
                await loop.create_connection(lambda: Connection(self, due), self.address.host, self.address.port)
        except OSError:
            self.totals.lost += 1

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def answered(self, due: float, status: int, version: str) -> None:
        self.totals.count(version, status, (time.monotonic() - due) * 1000, self._slow_ms)

    def free(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection.due is not None:
            self.totals.lost += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:  # its place is free: somebody waits for one
            self.totals.sent -= 1
            self.fire(self._waiting.popleft())

    def give_up_late(self, now: float) -> None:
        """Cut requests that are older than the timeout; `closed` counts them as lost."""
        while self._waiting and self._waiting[0] < now - self._timeout:
            self._waiting.popleft()
            self.totals.lost += 1
        for connection in list(self._open):
            if connection.due is not None and connection.due < now - self._timeout:
                connection.transport.abort()

    def close(self) -> None:
        for dial in self._dials:
            dial.cancel()
        for connection in list(self._open):
            connection.transport.abort()


class Generator:
    """All targets in one loop, with one statistics file."""

    def __init__(
        self, targets: list[Target], duration: float, stats: Path | None, gap: Callable[[float], float]
    ) -> None:
        self.targets = targets
        self._duration, self._stats, self._gap = duration, stats, gap
        self._stopped = asyncio.Event()

    async def run(self, drain: float) -> None:
        """Send for the duration or until SIGTERM or SIGINT, then wait up to `drain` s for the last answers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        self._began = time.monotonic()
        writer = loop.create_task(self._keep_house())
        await self._drive()
        deadline = time.monotonic() + drain
        while self._in_flight() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        writer.cancel()
        for target in self.targets:
            target.close()
        await asyncio.sleep(0)  # the cut connections are counted as lost
        self._write(running=False)

    async def _drive(self) -> None:
        now = self._began
        for target in self.targets:  # not all at the same instant
            target.next_due = now + random.random() / target.rps
        while now < self._began + self._duration and not self._stopped.is_set():
            for target in self.targets:
                self._fire_due(target, now)
            wake = min(target.next_due for target in self.targets) - time.monotonic()
            await asyncio.sleep(max(0.0, min(wake, 0.1)))
            now = time.monotonic()

    def _fire_due(self, target: Target, now: float) -> None:
        while target.next_due <= now:
            if target.next_due < now - CATCH_UP:
                missed = int((now - target.next_due) * target.rps)
                target.totals.skipped += missed
                target.next_due = now
            target.fire(target.next_due)
            target.next_due += self._gap(target.rps)

    async def _keep_house(self) -> None:
        while True:
            now = time.monotonic()
            for target in self.targets:
                target.give_up_late(now)
            self._write(running=True)
            await asyncio.sleep(STATS_EVERY)

    def _in_flight(self) -> bool:
        return any(target.totals.as_json()["in_flight"] > 0 for target in self.targets)

    def _write(self, *, running: bool) -> None:
        text = json.dumps(self.summary(running=running))
        if self._stats is None:
            return
        with tempfile.NamedTemporaryFile("w", dir=self._stats.parent, prefix=".load-", delete=False) as file:
            file.write(text)
        Path(file.name).replace(self._stats)

    def summary(self, *, running: bool) -> dict[str, Any]:
        total = Totals()
        for target in self.targets:
            total.add(target.totals)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "elapsed_s": round(time.monotonic() - self._began, 3),
            "cpu_s": round(used.ru_utime + used.ru_stime, 3),
            "running": running,
            "targets": {target.name: target.totals.as_json() for target in self.targets},
            "total": total.as_json(),
        }


def even(rps: float) -> float:
    return 1 / rps


def poisson(rps: float) -> float:
    return random.expovariate(rps)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="canaryd.demo.load", description=__doc__)
    made.add_argument("--url", help="one target; the same as --target load=URL")
    made.add_argument("--target", action="append", default=[], metavar="NAME=URL", help="may be repeated")
    made.add_argument("--rps", type=float, default=300.0, help="requests per second for EACH target")
    made.add_argument("--connections", type=int, default=64, help="most connections per target")
    made.add_argument("--duration", type=float, required=True, help=f"seconds, at most {LONGEST:.0f}")
    made.add_argument("--stats", type=Path, help="file for the running totals; without it they go to stdout at the end")
    made.add_argument("--slow-ms", type=float, default=100.0, help="an answer that takes longer is slow")
    made.add_argument("--timeout-ms", type=float, default=5000.0, help="a request without answer is lost then")
    made.add_argument("--spacing", choices=("poisson", "even"), default="poisson")
    return made


def parse_targets(given: argparse.Namespace) -> list[Target]:
    """Raises ValueError for an address that is not loopback, a doubled or odd name, or a number out of range."""
    limits = (("rps", 0.1, 5000), ("connections", 1, 1024), ("duration", 0.1, LONGEST), ("slow_ms", 0, 60_000))
    for name, least, most in (*limits, ("timeout_ms", 10, 60_000)):
        if not least <= getattr(given, name) <= most:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(given, name)}; use {least:g} to {most:g}")
    named = [text.partition("=") for text in given.target] + ([("load", "=", given.url)] if given.url else [])
    if not named:
        raise ValueError("give --url or at least one --target NAME=URL")
    targets: dict[str, Target] = {}
    for name, _, url in named:
        if name in targets or not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            raise ValueError(f"--target name {name!r} is doubled or not made of letters, digits, dot and minus")
        address = Address.parse(url)
        targets[name] = Target(name, address, given.rps, given.connections, given.slow_ms, given.timeout_ms / 1000)
    return list(targets.values())


def main(argv: list[str] | None = None) -> None:
    made = parser()
    given = made.parse_args(argv)
    try:
        targets = parse_targets(given)
    except ValueError as e:
        made.error(str(e))
    asyncio.run(work(targets, given))


async def work(targets: list[Target], given: argparse.Namespace) -> None:
    generator = Generator(targets, given.duration, given.stats, even if given.spacing == "even" else poisson)
    await generator.run(drain=given.timeout_ms / 1000)
    if given.stats is None:
        sys.stdout.write(json.dumps(generator.summary(running=False), indent=2) + "\n")


if __name__ == "__main__":
    main()
