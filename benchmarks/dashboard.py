"""What the dashboard costs: a page of 500 canaries, a long rollout, and 64 pages that look on while everything changes.

The server runs in this process, over records in memory, and so does the client on the loopback interface. Times are
processor time of both, so that what else the machine does is not counted; templates are compiled in the first one.
Exits with 1 when the first page of 500 takes more than a second or 500 KB, a rollout of 2000 records more than two
seconds, or the dashboard adds more than 60 MB.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HOME), str(HOME / "tests" / "browser"), str(HOME / "tests" / "core")]

import structlog
from world import World, canary

from canaryd.model import Record

MOST_S, MOST_KB, LONGEST_S, MOST_MB = 1.0, 500, 2.0, 60.0
VIEWER = {"accept": "text/html"}


def memory_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, and what came of it."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def long_rollout(world: World, looks: int) -> None:
    """As many records of one rollout, each look a little later than the one before."""
    world.turn(3)
    world.start("7f3c")
    world.turn(4)
    (last,) = world.store.records("api", limit=1)
    state, stored = world.state(), world.store.load("api")
    many = []
    for i in range(looks):
        at = last.at + timedelta(seconds=10 * (i + 1))
        body = {**json.loads(json.dumps(last.body)), "at": at.isoformat(), "kind": "hold"}
        many.append(Record(f"api/more-{i}", "api", at, last.kind, last.sentence, body))
    world.store.save("api", state, stored.version, many)
    world.now = many[-1].at


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    world = World(canary("api"), rps=200)
    long_rollout(world, 2000)
    before = memory_mb()
    from stage import Stage, fleet
    from talk import Stream, ask

    from canaryd.config.dashboard import Auth, Dashboard

    stage = Stage(world, Dashboard(listen="127.0.0.1:0", auth=Auth(anonymous="viewer")))
    streams: list[Stream] = []
    try:
        stage.feed.by_hand = fleet(500, world.now)
        first, page = timed(lambda: ask(stage.url, "/", **VIEWER))
        again = min(timed(lambda: ask(stage.url, "/", **VIEWER))[0] for _ in range(5))
        size, grown = len(page.body) / 1000, memory_mb() - before
        print(f"{'the page of 500 canaries, first time':<48} {first * 1e3:>8.0f} ms")
        print(f"{'the same again, best of five':<48} {again * 1e3:>8.0f} ms   {size:.0f} KB")
        print(f"{'memory, libraries and this client included':<48} {grown:>8.0f} MB more")
        path = f"/canaries/api/rollouts/{world.state().rollout}"
        cold, rollout = timed(lambda: ask(stage.url, path, **VIEWER))
        warm = min(timed(lambda: ask(stage.url, path, **VIEWER))[0] for _ in range(5))
        print(
            f"{'a rollout of 2000 records, first time':<48} {cold * 1e3:>8.0f} ms   {len(rollout.body) / 1000:.0f} KB"
        )
        print(f"{'the same again, best of five':<48} {warm * 1e3:>8.0f} ms")

        streams = [Stream(stage.url) for _ in range(64)]
        for stream in streams:
            stream.news()
        stage.feed.by_hand = fleet(500, world.now + timedelta(minutes=1))
        spent, sizes = timed(lambda: [len(json.dumps(stream.news()[1])) for stream in streams])
        print(f"{'all rows changed, 64 pages have them':<48} {spent * 1e3:>8.0f} ms   {max(sizes) / 1000:.0f} KB each")
        quiet = time.process_time()
        time.sleep(5)
        quiet = (time.process_time() - quiet) / 5
        print(f"{'64 pages look on and nothing changes':<48} {quiet * 100:>8.2f} % of a core")
        print(f"{'memory after all this':<48} {memory_mb() - before:>8.0f} MB more")
    finally:
        for stream in streams:
            stream.close()
        stage.close()
    print(f"limits: {MOST_S:g} s and {MOST_KB} KB for the page, {LONGEST_S:g} s for the rollout, {MOST_MB:g} MB")
    return 0 if first <= MOST_S and size <= MOST_KB and cold <= LONGEST_S and grown <= MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
