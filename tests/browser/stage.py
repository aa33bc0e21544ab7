"""A dashboard on a world in memory: the product's own memory adapters and reconciler, a clock that is told the time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from world import START, World, canary

from canaryd.config.dashboard import Dashboard
from canaryd.dashboard.feed import Body, Lead
from canaryd.dashboard.server import Server
from canaryd.errors import StoreError
from canaryd.model import Answer, Override, Record
from canaryd.policy import Canary

TOKENS = {
    "anna": ("operator", "an-operators-token-of-32-letters"),
    "vera": ("viewer", "a-viewers-token-with-32-letters."),
}
STEPS = [{"weight": w, "bake": "30s"} for w in (5, 10, 25, 50, 100)]


def spec(**more: Any) -> dict[str, Any]:
    """A plan as people write it: five steps, errors and latency."""
    metrics = [{"name": "errors", "kind": "errors"}, {"name": "latency", "kind": "latency"}]
    return {"steps": STEPS, "metrics": metrics, **more}


def tokens_file(directory: Path) -> str:
    """The people of TOKENS, in a file that only its owner may read."""
    file = directory / "tokens"
    file.write_text("# who may look, who may act\n" + "".join(f"{n} {r} {t}\n" for n, (r, t) in TOKENS.items()))
    file.chmod(0o600)
    return str(file)


class MemoryFeed:
    """The feed of a daemon whose store is in memory. Bodies that are put by hand go before those of the store."""

    def __init__(self, store: Any, canaries: Sequence[Canary] = ()) -> None:
        self.store, self.canaries = store, {c.key: c for c in canaries}
        self.by_hand: dict[str, Body] = {}
        self.now_lead = Lead(leading=True, holder="this one")
        self.broken = ""
        self._bodies: dict[str, Body] = {}

    def lead(self) -> Lead:
        return self.now_lead

    def bodies(self) -> Mapping[str, Body]:
        if self.broken:
            raise StoreError(self.broken)
        for key in self.canaries:
            state = self.store.load(key).state
            if state is not None and state.latest and state.latest is not self._bodies.get(key):
                self._bodies[key] = state.latest
            self._bodies.setdefault(key, {"canary": key, "phase": "Idle", "sentence": "Nothing decided yet."})
        return {**self._bodies, **self.by_hand}

    def canary(self, key: str) -> Canary | None:
        return self.canaries.get(key)

    def records(self, key: str, *, limit: int) -> Sequence[Record]:
        found: Sequence[Record] = self.store.records(key, limit=limit)
        return found

    def said(self, key: str, *, limit: int) -> Sequence[tuple[Override, Answer | None]]:
        found: Sequence[tuple[Override, Answer | None]] = self.store.audit(key, limit=limit)
        return found

    def say(self, key: str, override: Override) -> None:
        self.store.override(key, override)

    def close(self) -> None:
        """Nothing to close."""


class Stage:
    """A world and the dashboard that shows it. `turn` lets time pass; words of people are answered at once."""

    def __init__(self, world: World, settings: Dashboard) -> None:
        self.world = world
        self.feed = MemoryFeed(world.store, world.canaries)
        self.settings = settings
        self._lock = threading.Lock()
        self._answering = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="answers", daemon=True)
        self._thread.start()
        self.server = Server(settings, self.feed, now=lambda: self.now)

    @property
    def now(self) -> datetime:
        return self.world.now

    @property
    def url(self) -> str:
        scheme = "https" if self.settings.tls.cert_file else "http"
        return f"{scheme}://127.0.0.1:{self.server.address[1]}{self.settings.prefix}"

    def turn(self, times: int = 1) -> None:
        with self._lock:
            self.world.turn(times)

    def until(self, *phases: str, most: int = 200) -> None:
        with self._lock:
            self.world.until(*phases, most=most)

    def _answer(self) -> None:
        """As the daemon's inbox does: whoever says something is answered within a fraction of a second."""
        while not self._answering.wait(0.05):
            with self._lock:
                waiting = [c for c in self.world.canaries if self.world.store.load(c.key).overrides]
                if waiting:
                    self.world.reconciler.tick(waiting, self.world.now, measure=False)

    def restart(self, port: int) -> None:
        """The daemon starts again on the same port."""
        self.server.close()
        self.server = Server(
            self.settings.model_copy(update={"listen": f"127.0.0.1:{port}"}), self.feed, now=lambda: self.now
        )

    def close(self) -> None:
        self._answering.set()
        self._thread.join()
        self.server.close()


def fleet(n: int, at: datetime = START) -> dict[str, Body]:
    """Bodies of `n` canaries as a shop has them: most at rest, some under way, a few in trouble."""
    out: dict[str, Body] = {}
    for i in range(n):
        make = (_resting, _resting, _done, _resting, _rolling, _done, _resting, _rolled_back, _resting, _blind)[i % 10]
        if i % 10 in (7, 9) and i % 40 not in (7, 9):
            make = _done
        key = f"{('shop', 'pay', 'search')[i % 3]}/{('api', 'cart', 'feed', 'login', 'stock', 'mail')[i % 6]}-{i:03d}"
        namespace, _, name = key.partition("/")
        out[key] = {"canary": name, "namespace": namespace, **make(name, i, at)}
    return out


def _resting(name: str, i: int, at: datetime) -> dict[str, Any]:
    return {"phase": "Idle", "revision": "", "sentence": f"{name}: nothing to roll out", "weight": {}, "since": None}


def _done(name: str, i: int, at: datetime) -> dict[str, Any]:
    return {
        "phase": "Succeeded", "verdict": "healthy", "rollout": f"{name}-3", "revision": f"v{i % 9 + 2}", "step": 4,
        "stepWeights": [5, 10, 25, 50, 100], "weight": {"desired": 0, "configured": 0, "observed": 0.0},
        "since": (at - timedelta(minutes=37 * i + 12)).isoformat(), "decisive": "errors",
        "findings": [{"metric": "errors", "difference": -0.0002, "low": -0.0009, "high": 0.0005}],
        "sentence": f"{name} v{i % 9 + 2} is stable",
    }  # fmt: skip


def _rolling(name: str, i: int, at: datetime) -> dict[str, Any]:
    step = i // 10 % 4
    weight = (5, 10, 25, 50)[step]
    return {
        "phase": "Progressing", "verdict": ("healthy", "inconclusive")[i // 10 % 2], "rollout": f"{name}-4",
        "revision": f"v{i % 9 + 3}", "step": step, "stepWeights": [5, 10, 25, 50, 100],
        "weight": {"desired": weight, "configured": weight, "observed": weight / 100 * 0.97},
        "since": (at - timedelta(minutes=i % 50 + 3)).isoformat(), "nextLook": (at + timedelta(seconds=21)).isoformat(),
        "evidence": {"towardStep": (i % 97) / 100, "towardRollback": 0.04}, "decisive": "errors",
        "findings": [{"metric": "errors", "difference": -0.0002, "low": -0.0009, "high": 0.0005, "needed": 1150}],
        "sentence": f"{name} stays at {weight} %: 1 150 canary requests more needed (about 6 min) to rule out 0.4 %"
        " more errors",
    }  # fmt: skip


def _rolled_back(name: str, i: int, at: datetime) -> dict[str, Any]:
    return {
        "phase": "RolledBack", "verdict": "regressed", "rollout": f"{name}-2", "revision": f"v{i % 9 + 1}", "step": 2,
        "stepWeights": [5, 10, 25, 50, 100], "weight": {"desired": 0, "configured": 0, "observed": 0.0},
        "since": (at - timedelta(minutes=i % 90 + 9)).isoformat(), "decisive": "errors",
        "findings": [{"metric": "errors", "difference": 0.018, "low": 0.011, "high": 0.026}],
        "sentence": f"{name} 25 % → 0 %: errors 1.9 % canary vs 0.10 % stable; difference +1.8 pt (+1.1..+2.6),"
        " tolerated +0.03 pt",
    }  # fmt: skip


def _blind(name: str, i: int, at: datetime) -> dict[str, Any]:
    return {
        **_rolling(name, i, at), "verdict": "blind",
        "evidence": {"towardStep": 0.2, "towardRollback": 0.04, "blind": 130},
        "sentence": f"{name} held at {(5, 10, 25, 50)[i // 10 % 4]} %: Prometheus has not answered for 2 min 10 s"
        " (connection refused)",
    }  # fmt: skip


Make = Callable[..., Stage]
__all__ = ["START", "STEPS", "TOKENS", "Make", "MemoryFeed", "Stage", "World", "canary", "fleet", "spec", "tokens_file"]
