"""What changes, sent to the pages that are open: one loop looks once a second for all of them.

A page that cannot keep up gets everything since its last message in the next one; nothing piles up for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from canaryd.dashboard.live import Topic

log = structlog.get_logger("canaryd.dashboard")

TICK = 1.0  # seconds between two looks, so no page gets more than one message a second
HEARTBEAT = 15.0  # seconds after which silence is broken, so that a dead line is noticed
MOST = 64  # pages at once


@dataclass(frozen=True, slots=True)
class Watched:
    """A page that is open: what it shows and how that is made anew."""

    topic: Topic
    refresh: Callable[[], None]


class Hub:
    """All open pages. Lives in one event loop."""

    def __init__(self, *, most: int = MOST, tick: float = TICK, heartbeat: float = HEARTBEAT) -> None:
        self._most, self._tick, self._heartbeat = most, tick, heartbeat
        self._open: dict[object, Watched] = {}
        self._news = asyncio.Event()
        self._closing = False

    @property
    def is_full(self) -> bool:
        return len(self._open) >= self._most

    def __len__(self) -> int:
        return len(self._open)

    async def run(self) -> None:
        """Until closed: look what is new, where somebody looks."""
        while not self._closing:
            await asyncio.sleep(self._tick)
            if watched := list(self._open.values()):
                before = [one.topic.version for one in watched]
                await asyncio.to_thread(_refresh, watched)
                if before != [one.topic.version for one in watched]:
                    self._wake()

    def close(self) -> None:
        """Every stream ends; the pages come again by themselves."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def stream(
        self, watched: Watched, mark: str, hello: dict[str, object], allowed: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """Events from `mark` on. `allowed` is asked with each heartbeat: a session may have ended."""
        place = object()
        self._open[place] = watched
        try:
            yield b"retry: 2000\n\n" + _event("hello", "", json.dumps(hello).encode())
            heard = checked = time.monotonic()
            while not self._closing:
                news = self._news
                data, new = watched.topic.since(mark)
                at = time.monotonic()
                if data:
                    mark, heard = new, at
                    yield _event("news", mark, data)
                elif at - heard >= self._heartbeat:
                    heard = at
                    yield b": here\n\n"
                if at - checked >= self._heartbeat:
                    checked = at
                    if not allowed():
                        yield _event("over", "", b"{}")
                        return
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), self._heartbeat)
        finally:
            self._open.pop(place, None)


def _event(name: str, id_: str, data: bytes) -> bytes:
    head = f"event: {name}\n" + (f"id: {id_}\n" if id_ else "")
    return head.encode() + b"data: " + data + b"\n\n"  # JSON has no line ends


def _refresh(watched: list[Watched]) -> None:
    """Each page once, however many look at it; the defect of one is its own."""
    for one in {id(w.topic): w for w in watched}.values():
        try:
            one.refresh()
        except Exception:
            log.exception("page not made")
