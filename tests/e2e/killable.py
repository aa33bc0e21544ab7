"""The daemon's tick on the real state file and the real route file, in processes that are killed at chosen moments.

Run as a program it is a nursery of lives: it imports everything once, then for each line of JSON on its input it forks
a process that ticks until the rollout is settled and everything is told, or until it dies:

    {"revision": R}                   say that R should run (in a process of its own, as `canaryd start` does)
    {"point": P, "side": S, "k": K}   live, and SIGKILL oneself before or after the K-th call of that point
    {..., "slack": URL, "channel": C} and tell Slack there, too; P may then be "post" or "remember"
    {"after": SECONDS}                live, and be killed from outside after so long
    {}                                live

and answers each with {"status": exit code, or minus the signal}. The world (`world.json`) is deterministic: in every
interval each pool serves its exact share of the requests by the weights in the route file, and fails its exact share
of them. It moves on by one interval before each tick; the file is replaced atomically, so a kill never tears it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import structlog
from ruamel.yaml import YAML

from canaryd.adapters.envoy_file import EnvoyFileRouter
from canaryd.adapters.memory import MemoryHooks
from canaryd.adapters.pools import PoolWorkloads
from canaryd.adapters.slack import SlackBot
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.demo import envoy
from canaryd.model import Arm, CounterKey, Reading, Record, Release
from canaryd.policy import Canary, parse_canary
from canaryd.ports import CountsAnswer, CountsQuery, Ports
from canaryd.reconcile import Reconciler
from canaryd.secret import Secret

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
INTERVAL = timedelta(milliseconds=500)
REQUESTS = 400  # in each interval
WEIGHTS = (25, 50, 100)
POINTS = ("save", "set_weight", "notify", "told")
BAD = "bad"  # a revision with this prefix fails every third request
LONGEST_LIFE = 400  # ticks; only a broken rollout takes so many


def canary(directory: Path) -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "shop"},
            "spec": {
                "workloads": {"pools": ["blue", "green"]},
                "route": {"envoyFile": {"path": str(directory / "rds.yaml")}},
                "steps": [{"weight": w, "bake": "1s"} for w in WEIGHTS],
                "metrics": [{"name": "errors", "kind": "errors"}],
                "budget": {"share": "5%"},
                "interval": "500ms",
                "warmUp": "0s",
            },
        }
    )


def prepare(directory: Path, *, remembers: bool) -> None:
    """A world before anything happened."""
    directory.mkdir(parents=True)
    (directory / "rds.yaml").write_text(envoy.routes("shop", {"blue": 100, "green": 0}))
    World(directory).write({"remembers": remembers, "weights": [], "served": [{"blue": [0, 0], "green": [0, 0]}]})


class World:
    """The file of what happened; `served[i]` are the requests and failures of each pool up to interval i."""

    def __init__(self, directory: Path) -> None:
        self._path, self._route = directory / "world.json", directory / "rds.yaml"

    def read(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._path.read_text())
        return told

    def write(self, told: Mapping[str, Any]) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(told))
        beside.replace(self._path)

    def turn(self, failing: Sequence[str]) -> datetime:
        """One interval of traffic; returns the time after it."""
        told, split = self.read(), self.split()
        now = {pool: list(counts) for pool, counts in told["served"][-1].items()}
        for pool, percent in split.items():
            n = REQUESTS * percent // 100
            now[pool][0] += n
            now[pool][1] += n // 3 if pool in failing else 0
        told["served"].append(now)
        told["weights"].append(split)
        self.write(told)
        return self.at(len(told["weights"]))

    def split(self) -> dict[str, int]:
        found = YAML(typ="safe").load(self._route.read_text())
        action = found["resources"][0]["virtual_hosts"][0]["routes"][0]["route"]
        return {c["name"]: c["weight"] for c in action["weighted_clusters"]["clusters"]}

    @staticmethod
    def at(i: int) -> datetime:
        return START + i * INTERVAL


class WorldCounters:
    """ports.MetricSource over that file."""

    lag = timedelta(0)
    settle = timedelta(0)
    simultaneous = True

    def __init__(self, world: World) -> None:
        self._world = world
        self.remembers: bool = world.read()["remembers"]

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        served = self._world.read()["served"]
        return {q.canary: CountsAnswer(tuple(self._readings(q, served))) for q in queries}

    def _readings(self, query: CountsQuery, served: Sequence[Mapping[str, Sequence[int]]]) -> list[Reading]:
        arms = {query.stable: Arm.STABLE, query.canary_workload: Arm.CANARY}
        out = []
        for point in query.points if self.remembers else query.points[-1:]:
            i = (point - START) // INTERVAL
            if not 0 <= i < len(served):
                continue
            counters = {}
            for pool, (requests, failures) in served[i].items():
                for code, n in (("200", requests - failures), ("500", failures)):
                    counters[CounterKey(arms[pool], "envoy", pool, "requests", code, "-", "", 0.0)] = float(n)
            out.append(Reading(point, counters))
        return out


class Scribe:
    """ports.Notifier that appends each record to a file."""

    name = "scribe"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "told"

    def notify(self, record: Record) -> None:
        with self._path.open("a") as file:
            file.write(f"{record.id}\n")


class Deadly:
    """A port whose one method kills this process before or after its k-th call; everything else is passed on."""

    def __init__(self, port: Any, method: str, side: str, k: int) -> None:
        self._port, self._method, self._side, self._left = port, method, side, k

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._method:
            return real

        def counted(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._side == "before":
                die()
            out = real(*args, **more)
            if self._left == 0:
                die()
            return out

        return counted


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def ports(directory: Path, order: Mapping[str, Any]) -> Ports:
    store: Any = SqliteStore(directory / "state.db")
    router: Any = EnvoyFileRouter()
    scribe: Any = Scribe(directory)
    if point := order.get("point"):
        fatal = (point, order["side"], order["k"])
        store = Deadly(store, *fatal) if point in ("save", "told") else store
        router = Deadly(router, *fatal) if point == "set_weight" else router
        scribe = Deadly(scribe, *fatal) if point == "notify" else scribe
    notifiers: tuple[Any, ...] = (scribe,)
    if "slack" in order:
        kept = Deadly(store, "remember", order["side"], order["k"]) if point == "remember" else store
        bot: Any = SlackBot("ops", Secret(env="SLACK_TOKEN"), order["channel"], kept, api_url=order["slack"])
        if point == "post":
            bot = Deadly(bot, "notify", order["side"], order["k"])
        notifiers = (scribe, bot)
    return Ports(
        metrics=WorldCounters(World(directory)),
        router=router,
        workloads=PoolWorkloads(),
        store=store,
        hooks=MemoryHooks(),
        notifiers=notifiers,
    )


def live(directory: Path, order: Mapping[str, Any]) -> int:
    """Tick until nothing is left to do; returns the exit code."""
    outside, document, world = ports(directory, order), canary(directory), World(directory)
    store = outside.store
    reconciler = Reconciler(outside, workers=1)
    for _ in range(LONGEST_LIFE):
        stored = store.load("shop")
        state = stored.state
        wanted = stored.release.revision if stored.release else ""
        if state is not None and state.revision == wanted and state.phase.is_settled and not store.owed():
            return 0
        failing = [state.canary] if state is not None and state.revision.startswith(BAD) else []
        reconciler.tick([document], world.turn(failing))
        reconciler.tell()
    return 1


def give_birth(directory: Path, order: Mapping[str, Any]) -> int:
    """Fork one life and wait for its end; returns its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        os._exit(_life(directory, order))
    if "after" in order:
        time.sleep(order["after"])
        os.kill(pid, signal.SIGKILL)  # not yet waited for: the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _life(directory: Path, order: Mapping[str, Any]) -> int:
    defects: defaultdict[str, int] = defaultdict(int)

    def keep(logger: object, method: str, event: dict[str, Any]) -> NoReturn:
        if method in ("error", "exception", "critical", "warning"):
            defects[str(event)] += 1
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    if "revision" in order:
        store = SqliteStore(directory / "state.db")
        store.release("shop", Release(revision=order["revision"], by="anna", at=START))
        return 0
    code = live(directory, order)
    for defect in defects:
        sys.stderr.write(f"{defect}\n")
    return 2 if defects else code


def main() -> None:
    directory = Path(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        place = directory / order.get("place", "")
        if "world" in order:
            prepare(place, remembers=order["world"] == "remembers")
            status = 0
        else:
            status = give_birth(place, order)
        sys.stdout.write(json.dumps({"status": status}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
