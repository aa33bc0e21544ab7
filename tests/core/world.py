"""A whole rollout in memory: the product's own adapters, a clock that is told the time, traffic from a seed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from canaryd.adapters.memory import (
    MemoryHooks,
    MemoryMetrics,
    MemoryNotifier,
    MemoryRouter,
    MemoryStore,
    MemoryWorkloads,
)
from canaryd.model import Action, Override, Release, RolloutState
from canaryd.policy import Canary, parse_canary
from canaryd.ports import Ports
from canaryd.reconcile import Outcome, Reconciler

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def canary(name: str = "api", **spec: Any) -> Canary:
    """A Canary with quick defaults for tests; any key of the spec can be given."""
    base: dict[str, Any] = {
        "workloads": {"pools": [f"{name}-a", f"{name}-b"]},
        "route": {"envoyFile": {"path": f"/etc/envoy/{name}.yaml"}},
        "interval": "10s",
        "warmUp": "0s",
        "budget": {"share": "0.5%"},
    }
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": name},
            "spec": {**base, **spec},
        }
    )


class World:
    """Traffic, counters, route and state of one or more canaries."""

    def __init__(
        self, *canaries: Canary, rps: float = 200.0, seed: int = 1, remembers: bool = True, save_every: int = 1
    ) -> None:
        self.canaries = canaries or (canary(),)
        self.now = START
        self.rps = rps
        self.random = np.random.default_rng(seed)
        self.errors: dict[str, float] = {}
        self.slowdown: dict[str, float] = {}
        self.served: dict[str, int] = {}  # the truth, by workload, to compare with what was counted
        self.failed: dict[str, int] = {}
        self.served_at: dict[datetime, dict[str, int]] = {}
        self.metrics = MemoryMetrics(remembers=remembers)
        self.router = MemoryRouter()
        self.workloads = MemoryWorkloads()
        self.store = MemoryStore()
        self.hooks = MemoryHooks()
        self.notifier = MemoryNotifier()
        for c in self.canaries:
            stable, other = c.spec.workloads.names
            self.router.add(c.key, stable, other)
        self.ports = Ports(
            metrics=self.metrics,
            router=self.router,
            workloads=self.workloads,
            store=self.store,
            hooks=self.hooks,
            notifiers=(self.notifier,),
        )
        self.reconciler = Reconciler(self.ports, save_every=save_every)

    # ── the world turns ──────────────────────────────────────────────────────────────────────────────────────

    def traffic(self, seconds: float, *, freeze: bool = True) -> None:
        """Requests for so long at the weights that the routes have now; the counters then become readable."""
        for c in self.canaries:
            a, b = c.spec.workloads.names
            weight = self.router.view(c.key, c.spec.route, a, b).weight or 0
            n = self.random.poisson(self.rps * seconds)
            n_b = self.random.binomial(n, weight / 100)
            self._serve(a, n - n_b)
            self._serve(b, n_b)
        self.now += timedelta(seconds=seconds)
        self.served_at[self.now] = dict(self.served)
        if freeze:
            self.metrics.tick(self.now)

    def _serve(self, workload: str, n: int) -> None:
        bad = self.random.binomial(n, self.errors.get(workload, 0.001))
        self.served[workload] = self.served.get(workload, 0) + int(n)
        self.failed[workload] = self.failed.get(workload, 0) + int(bad)
        for pod in ("1", "2", "3"):
            share = [n // 3 + (1 if int(pod) <= n % 3 else 0), bad // 3 + (1 if int(pod) <= bad % 3 else 0)]
            good, failed = max(share[0] - share[1], 0), min(share[1], share[0])
            for code, count in (("200", good), ("500", failed)):
                if count:
                    ms = self.random.lognormal(np.log(40), 0.5, count) * self.slowdown.get(workload, 1.0)
                    self.metrics.serve(workload, f"{workload}-{pod}", code=code, ms=ms)

    def tick(self, *, measure: bool = True) -> list[Outcome]:
        out = self.reconciler.tick(self.canaries, self.now, measure=measure)
        self.reconciler.tell()
        return out

    def turn(self, times: int = 1) -> None:
        """An interval of traffic, then a tick; so many times."""
        for _ in range(times):
            self.traffic(self.canaries[0].spec.interval.total_seconds())
            self.tick()

    def until(self, *phases: str, most: int = 200) -> int:
        """Turn until every canary is in one of the phases; returns how many turns it took."""
        for i in range(most):
            if all(self.state(c.key).phase in phases for c in self.canaries):
                return i
            self.turn()
        raise AssertionError(f"{[self.state(c.key).sentence for c in self.canaries]}")

    # ── people and what they see ─────────────────────────────────────────────────────────────────────────────

    def start(self, revision: str = "r1", name: str = "") -> None:
        for c in self.canaries:
            if name in ("", c.name):
                self.store.release(c.name, Release(revision=revision, by="anna", at=self.now))

    def say(self, action: Action, name: str = "", revision: str | None = None, **more: Any) -> str:
        """An override for the present revision, carried out at once; returns the answer."""
        name = name or self.canaries[0].key
        said = Override(
            id=f"{action}-{self.now.timestamp()}-{self.random.integers(1e9)}",
            action=action,
            revision=self.state(name).revision if revision is None else revision,
            by="anna",
            reason=more.pop("reason", "hotfix"),
            at=self.now,
            **more,
        )
        self.store.override(name, said)
        self.tick(measure=False)
        return next(a.sentence for a in self.state(name).answered if a.id == said.id)

    def state(self, name: str = "") -> RolloutState:
        state = self.store.load(name or self.canaries[0].key).state
        assert state is not None
        return state

    def weight(self, name: str = "") -> int | None:
        c = next(c for c in self.canaries if c.key == (name or self.canaries[0].key))
        a, b = c.spec.workloads.names
        return self.router.view(c.key, c.spec.route, a, b).weight

    def told(self, name: str = "") -> list[str]:
        """Kinds of the notifications so far, oldest first."""
        return [str(r.kind) for r in self.notifier.told if name in ("", r.canary)]
