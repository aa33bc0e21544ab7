"""`kill -9` at every write point and at random moments: no step lost, doubled or undone, evidence counted once.

Real processes on the real state file and the real route file; the counters are a file, so that the truth is known.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from killable import BAD, INTERVAL, POINTS, START, WEIGHTS, World

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.model import Phase, Record

pytestmark = pytest.mark.slow
KILLED = -9
SOAK_KILLS = 200
SOAK = ["r1", "r2", "bad3", "r4", "bad5"]  # one after the other on one state file
GOOD_PATH = [
    ("Waiting", 0),
    *(("Progressing", w) for w in WEIGHTS),
    ("Promoting", 100),
    ("Succeeded", 0),
]
BAD_PATH = [("Waiting", 0), ("Progressing", WEIGHTS[0]), ("RollingBack", 0), ("RolledBack", 0)]


@dataclass
class Nursery:
    """The process that gives birth to lives, spoken to line by line."""

    directory: Path
    process: subprocess.Popen[str]

    def order(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the nursery died"
        return int(json.loads(answer)["status"])

    def live(self, place: str, **how: Any) -> int:
        """One life; afterwards the route file is whole, however the life ended. Returns 0 or KILLED."""
        status = self.order(place=place, **how)
        assert sum(World(self.directory / place).split().values()) == 100
        assert status in (0, KILLED), f"{place} {how}"
        return status


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """In memory where that is possible: what was written stays when a process is killed, synced or not."""
    shared = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="canaryd-", dir=shared if shared.is_dir() else None))
    program = Path(__file__).with_name("killable.py")
    argv = [sys.executable, str(program), str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Nursery(directory, process)
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(20)
            shutil.rmtree(directory)


@pytest.mark.parametrize("world", ["remembers", "forgets"])
@pytest.mark.parametrize("revision", ["r1", "bad1"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_before_or_after_any_write_loses_doubles_and_undoes_nothing(
    nursery: Nursery, point: str, revision: str, world: str
) -> None:
    kills = 0
    for side in ("before", "after"):
        for k in range(1, 100):
            place = f"{world}-{revision}-{point}-{side}-{k}"
            nursery.order(place=place, world=world)
            nursery.order(place=place, revision=revision)
            killed = nursery.live(place, point=point, side=side, k=k) == KILLED
            nursery.live(place)
            check(nursery.directory / place, [revision], kills=int(killed))
            if not killed:
                break
            kills += 1
    print(f"{kills} kills")
    assert kills >= 4


@pytest.mark.parametrize("world", ["remembers", "forgets"])
def test_hundreds_of_kills_at_random_moments_are_survived(nursery: Nursery, world: str) -> None:
    """Lives last up to a third of what a rollout takes; when a rollout gets nowhere, a little longer each time."""
    chance, kills, rollouts = random.Random(20260301), 0, 0
    while kills < SOAK_KILLS / 2:
        place, mine = f"soak-{world}-{rollouts}", 0
        nursery.order(place=place, world=world)
        nursery.order(place=place, revision=SOAK[0])
        began = time.monotonic()
        nursery.live(place)
        whole = time.monotonic() - began
        for revision in SOAK[1:]:
            nursery.order(place=place, revision=revision)
            longest = whole / 3
            while nursery.live(place, after=chance.uniform(0.0, longest)) == KILLED:
                mine += 1
                longest *= 1.1
        check(nursery.directory / place, SOAK, mine)
        kills, rollouts = kills + mine, rollouts + len(SOAK)
    print(f"{kills} kills over {rollouts} rollouts")


# ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────


def check(place: Path, revisions: Sequence[str], kills: int) -> None:
    store = SqliteStore(place / "state.db", create=False)
    try:
        store.verify()
        records = list(reversed(store.records("shop", limit=100_000)))
        state = store.load("shop").state
        assert state is not None
        assert not store.owed()
        assert [r.id for r in records] == [f"shop/{i}" for i in range(1, state.decisions + 1)]
        check_paths(records, revisions)
        check_told(place, records, kills)
        world = World(place).read()
        check_evidence(records, world["served"])
        check_traffic([*world["weights"], World(place).split()], revisions)
        ended = Phase.ROLLED_BACK if revisions[-1].startswith(BAD) else Phase.SUCCEEDED
        assert (state.phase, state.number, state.revision) == (ended, len(revisions), revisions[-1])
    finally:
        store.close()


def check_paths(records: list[Record], revisions: Sequence[str]) -> None:
    """Each rollout took every step of its path once, and no other."""
    for i, revision in enumerate(revisions, start=1):
        mine = [r.body for r in records if r.body["rollout"] == f"shop-{i}"]
        taken = [(t["phase"], t["weight"]) for t in mine[-1]["history"]]
        assert taken == (BAD_PATH if revision.startswith(BAD) else GOOD_PATH), revision
        histories = [body["history"] for body in mine]
        assert all(b[: len(a)] == a for a, b in pairwise(histories)), "no history was rewritten"


def check_told(place: Path, records: list[Record], kills: int) -> None:
    """Everything once and in order, but for those that a kill came between telling and noting that it was told."""
    told = (place / "told").read_text().split()
    assert list(dict.fromkeys(told)) == [r.id for r in records if r.tell]
    assert len(told) - len(set(told)) <= kills


def check_evidence(records: list[Record], served: list[dict[str, list[int]]]) -> None:
    """Every record's counts are exactly what the canary's pool served from the start of the rollout on."""
    counted = 0
    for body in (r.body for r in records):
        through = body["evidence"]["through"]
        if through is None or body["phase"] == Phase.SUCCEEDED:  # there the roles are swapped
            continue
        pool = body["workloads"]["canary"]
        (n, failed), (n_0, failed_0) = (served[index(at)][pool] for at in (through, body["since"]))
        assert (body["harmed"]["requests"], body["harmed"]["failures"]) == (n - n_0, failed - failed_0)
        counted += n > n_0
    assert counted


def check_traffic(weights: list[dict[str, int]], revisions: Sequence[str]) -> None:
    """What users got: from interval to interval the split stayed, or took the next step of the plan."""
    seen = [tuple(weights[0].values())]
    for split in weights:
        if tuple(split.values()) != seen[-1]:
            seen.append(tuple(split.values()))
    expected, blue_is_stable = [(100, 0)], True
    for revision in revisions:
        good = not revision.startswith(BAD)
        path = [*WEIGHTS] if good else [WEIGHTS[0], 0]
        expected += [(100 - w, w) if blue_is_stable else (w, 100 - w) for w in path]
        blue_is_stable ^= good
    assert seen == expected


def index(at: str) -> int:
    return (datetime.fromisoformat(at) - START) // INTERVAL
