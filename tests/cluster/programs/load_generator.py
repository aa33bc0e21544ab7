"""Requests at a fixed rate, whatever the answers do (an open loop), and a line for each second and for each failure.

Run as a script: load_generator.py HOST PORT REQUESTS_PER_SECOND AUTHORITY[,AUTHORITY…]; ended by SIGTERM, when it
waits for what is under way. It never retries: a request that a client would have to repeat is a lost one.
Lines: {"t": second, "counts": {"WORKLOAD|TAG|STATUS": [requests, sum of ms, slowest ms]}} and, at once,
{"failure": {"at", "ms", "authority", "workload", "tag", "status", "error"}}, status 0 when nothing came back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

TIMEOUT = 10.0  # seconds until an answer counts as lost
TICK = 0.005


@dataclass(slots=True)
class Answer:
    status: int  # 0: lost
    pod: str = ""  # "WORKLOAD TAG", as the pod that answered named itself
    body: str = ""
    error: str = ""


class Connection(asyncio.Protocol):
    """One kept-alive connection: one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reusable = True
        self._buffer = b""
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._settle(Answer(0, error=f"connection closed ({exc!r})" if exc else "connection closed"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].decode().lower()
        length = header(head, "content-length")
        if not length:
            self.reusable = False
            self._settle(Answer(0, error="an answer without content-length"))
            return
        if len(self._buffer) < end + 4 + int(length):
            return
        body = self._buffer[end + 4 : end + 4 + int(length)].decode(errors="replace")
        self._buffer = b""
        if header(head, "connection") == "close":
            self.reusable = False
        self._settle(Answer(int(head[9:12]), header(head, "x-answered-by"), body))

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        assert self.transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def _settle(self, answer: Answer) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)


def header(head: str, name: str) -> str:
    """Its value in a lower-case head without the last line's end, or ""."""
    at = head.find(f"\r\n{name}: ")
    if at < 0:
        return ""
    begin = at + len(name) + 4
    end = head.find("\r\n", begin)
    return head[begin : end if end > 0 else len(head)]


class Generator:
    """Sends, counts, and writes lines to standard output."""

    def __init__(self, host: str, port: int, authorities: list[str]) -> None:
        self._where = (host, port)
        self._authorities = itertools.cycle(authorities)
        self._idle: list[Connection] = []
        self._counts: dict[int, dict[str, list[float]]] = {}

    async def one(self) -> None:
        """One request, counted at its end."""
        authority = next(self._authorities)
        begun, clock = time.time(), time.perf_counter()
        answer = await self._ask(authority)
        milliseconds = (time.perf_counter() - clock) * 1000
        workload, _, tag = answer.pod.partition(" ")  # both empty in the proxy's own answers
        self._count(f"{workload}|{tag}|{answer.status}", milliseconds)
        if answer.status != 200:
            error = answer.error or answer.body.strip()[:120]
            said = {"at": begun, "ms": round(milliseconds, 1), "authority": authority, "workload": workload, "tag": tag}
            self._write({"failure": {**said, "status": answer.status, "error": error}})

    async def _ask(self, authority: str) -> Answer:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(TIMEOUT):
                connection = await self._connection()
                answer = await connection.ask(f"GET /pay HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        except TimeoutError:
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            return Answer(0, error=f"no answer within {TIMEOUT:g} s")
        except OSError as e:
            return Answer(0, error=str(e))
        if connection.reusable:
            self._idle.append(connection)
        elif connection.transport is not None:
            connection.transport.close()
        return answer

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._where)
        return connection

    def _count(self, key: str, milliseconds: float) -> None:
        second = self._counts.setdefault(int(time.time()), defaultdict(lambda: [0, 0.0, 0.0]))
        entry = second[key]
        entry[0] += 1
        entry[1] += milliseconds
        entry[2] = max(entry[2], milliseconds)

    def flush(self, before: float) -> None:
        """Write the seconds that are over."""
        for second in sorted(s for s in self._counts if s + 1 <= before):
            counts = {
                key: [n, round(total, 1), round(worst, 1)] for key, (n, total, worst) in self._counts[second].items()
            }
            self._write({"t": second, "counts": counts})
            del self._counts[second]

    def _write(self, line: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


async def main(host: str, port: int, rate: float, authorities: list[str]) -> None:
    generator, stop = Generator(host, port, authorities), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    begun, sent, under_way = time.perf_counter(), 0, set[asyncio.Task[None]]()
    while not stop.is_set():
        due = (time.perf_counter() - begun) * rate
        while sent < due:
            under_way.add(task := asyncio.create_task(generator.one()))
            task.add_done_callback(under_way.discard)
            sent += 1
        generator.flush(time.time())
        await asyncio.sleep(TICK)
    await asyncio.gather(*under_way)
    generator.flush(float("inf"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4].split(",")))
