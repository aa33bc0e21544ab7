"""The laboratory as one context manager: services in several versions, Envoy before them, Prometheus, load.

    with Lab(directory, services) as lab:
        lab.start_load(duration=60)
        lab.behave("checkout-green", errors=0.05)

Everything it writes is inside `directory`; when it is left, in whatever way, no process remains. It never decides
anything: what the traffic does is up to the route files, the behaviours and whoever uses it. Not thread-safe.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from canaryd.demo import envoy
from canaryd.demo.jaeger import Jaeger
from canaryd.demo.load import LONGEST
from canaryd.demo.processes import Child, LabError, Nursery, await_ready, fetch, free_port, wait_until
from canaryd.demo.prometheus import Prometheus
from canaryd.demo.service import Behaviour

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LOAD_TIMEOUT_MS = 3000.0


@dataclass(frozen=True)
class PoolSpec:
    """One pool: a workload that runs one version of a service. Fields as in `service.Behaviour`."""

    name: str  # lower-case letters, digits and minus; becomes Envoy's cluster and `destination_workload`
    version: str  # sent as x-version and as `destination_version`
    errors: float = 0.002  # share of requests answered 500, 0..1
    latency_ms: float = 12.0  # median
    latency_sigma: float = 0.3  # of the logarithm

    def __post_init__(self) -> None:
        _check_name("pool", self.name)
        if not re.fullmatch(r"[\w.+-]{1,64}", self.version, re.ASCII):
            raise ValueError(f"version is {self.version!r}; use letters, digits, dot, plus and minus")
        Behaviour(self.errors, self.latency_ms, self.latency_sigma)


@dataclass(frozen=True)
class ServiceSpec:
    """One service with at least two pools; the first pool starts with all of the traffic."""

    name: str
    pools: tuple[PoolSpec, ...]

    def __post_init__(self) -> None:
        _check_name("service", self.name)
        if len(self.pools) < 2:
            raise ValueError(f"service {self.name!r} has {len(self.pools)} pools; it needs two or more")


@dataclass(frozen=True)
class VersionStats:
    """Answers of one version; `failed` are 5xx, `slow` took longer than the lab's `slow_ms`."""

    requests: int = 0
    failed: int = 0
    slow: int = 0


@dataclass(frozen=True)
class TargetStats:
    """What the load generator saw at one service (or at all): answered + lost + in_flight = sent."""

    sent: int
    answered: int
    lost: int  # no answer: refused, cut or too late
    skipped: int  # never sent, because the generator itself was held up
    in_flight: int
    p50_ms: float | None  # None before the first answer
    p99_ms: float | None
    versions: Mapping[str, VersionStats]  # by x-version; "-" is an answer of Envoy's own, such as 503


@dataclass(frozen=True)
class LoadStats:
    """Running totals since `start_load`, at most half a second old; final once `running` is False."""

    elapsed_s: float
    cpu_s: float  # processor time the generator used
    running: bool
    services: Mapping[str, TargetStats]
    total: TargetStats


class Lab:
    """See the module. Methods raise LabError when a part does not do what it is told, KeyError for unknown names."""

    def __init__(
        self,
        directory: Path,
        services: Sequence[ServiceSpec],
        rps: float = 300.0,
        *,
        prometheus: bool = False,
        scrape: str = "1s",
        slow_ms: float = 100.0,
        flush_s: float | None = None,
        jaeger: Path | None = None,
        sampled: float = 100.0,
    ) -> None:
        """`rps` is for each service; `slow_ms` is where the load generator calls an answer slow.

        `jaeger`: its program; then `sampled` percent of the requests are traced by Envoy and by the services.

        `flush_s`: how often Envoy merges its histograms; without it, at each reading (see `envoy.bootstrap`).
        """
        _check_unique([service.name for service in services], "service")
        _check_unique([pool.name for service in services for pool in service.pools], "pool")
        self.directory = Path(directory).resolve()
        self.services = tuple(services)
        self.rps, self.slow_ms = rps, slow_ms
        self._with_prometheus, self._scrape, self._flush_s = prometheus, scrape, flush_s
        self._pools = {pool.name: pool for service in services for pool in service.pools}
        self._versions = {name: pool.version for name, pool in self._pools.items()}
        self._behaviours = {
            name: Behaviour(pool.errors, pool.latency_ms, pool.latency_sigma) for name, pool in self._pools.items()
        }
        self._jaeger_binary, self._sampled = jaeger, sampled
        self._children: dict[str, Child] = {}
        self._jaeger: Jaeger | None = None
        self._prometheus: Prometheus | None = None
        self._load: Child | None = None
        self._load_file = self.directory / "load.json"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # when a part does not start, those that did are stopped
            self._nursery = stack.enter_context(Nursery(self.directory / "log"))
            self._start_parts()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    # Where things are

    def front_url(self, service: str) -> str:
        """Where clients of a service send their requests: Envoy's listener."""
        return f"http://127.0.0.1:{self._front_ports[service]}"

    def rds_path(self, service: str) -> Path:
        """The route file of a service. Change it by renaming another file onto it; writing into it goes unnoticed."""
        _known(service, [spec.name for spec in self.services], "service")
        return self.directory / "rds" / service / "rds.yaml"

    def pool_url(self, pool: str) -> str:
        """The pool's own address, past Envoy. It is also Envoy's label `pod` (without http://)."""
        return f"http://127.0.0.1:{self._pool_ports[pool]}"

    def health_url(self, pool: str) -> str:
        return f"{self.pool_url(pool)}/healthz"

    def health_urls(self) -> dict[str, str]:
        """pool → URL that answers 200 while it is healthy and 503 when told to be unhealthy."""
        return {pool: self.health_url(pool) for pool in self._pools}

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self._admin_port}"

    @property
    def metrics_url(self) -> str:
        """Envoy's Prometheus text page with the istio_… metrics only (names begin with `envoy_`)."""
        return self.admin_url + envoy.METRICS_PATH

    @property
    def flush_url(self) -> str:
        """Empty and quick; read just before `metrics_url`, it makes the histograms there as new as the counters.

        Not on a machine without a free core: the merge it begins may then be late by one reading.
        """
        return self.admin_url + envoy.FLUSH_PATH

    @property
    def prometheus(self) -> Prometheus:
        """stop, kill, freeze, thaw, start. Raises LabError in a lab without Prometheus."""
        if self._prometheus is None:
            raise LabError("this laboratory has no Prometheus")
        return self._prometheus

    @property
    def prometheus_url(self) -> str:
        return self.prometheus.url

    @property
    def jaeger(self) -> Jaeger:
        """Its addresses and its process. Raises LabError in a lab without Jaeger."""
        if self._jaeger is None:
            raise LabError("this laboratory has no Jaeger")
        return self._jaeger

    @property
    def envoy(self) -> Child:
        """Envoy's process, to freeze or kill it; `restart_envoy` brings it back."""
        return self._children["envoy"]

    def pids(self) -> dict[str, int]:
        """name → process number of every child that runs now."""
        return {child.name: child.pid for child in self._nursery.running()}

    # What can be done to it

    def behave(self, pool: str, **behaviour: float | bool | str) -> None:
        """Change errors, only, calls, latency_ms, latency_sigma or healthy of a running pool; kept over restarts."""
        wanted = self._behaviours[pool].changed(behaviour)
        try:
            status, answer = fetch(f"{self.pool_url(pool)}/behaviour", json.dumps(behaviour).encode())
        except OSError as e:
            raise LabError(f"{pool} does not answer: {e}") from e
        if status != 200:
            raise LabError(f"{pool} refused {behaviour}: {answer.decode(errors='replace')}")
        self._behaviours[pool] = wanted

    def kill(self, pool: str) -> None:
        """kill -9 a pool: Envoy answers its share with 503."""
        self._children[pool].kill()

    def restart(self, pool: str, version: str | None = None, **behaviour: float | bool | str) -> None:
        """Stop a pool if it runs and start it on the same port, as it behaved last or as told; waits until healthy.

        A new `version` shows in x-version; Envoy's label `destination_version` stays what it was at the start.
        """
        wanted = self._behaviours[pool].changed(behaviour)
        self._children[pool].stop()
        self._behaviours[pool] = wanted
        self._versions[pool] = version or self._versions[pool]
        self._start_pool(pool)
        if wanted.healthy:
            await_ready(self._children[pool], self.health_url(pool))

    def set_weights(self, service: str, weights: Mapping[str, int], version: str = "by-hand") -> None:
        """Write the route file as a person would with an editor that renames: pool → percent."""
        replace_file(self.rds_path(service), envoy.routes(service, weights, version))

    def restart_envoy(self) -> None:
        """Stop Envoy if it runs and start it again on the same ports; its counters begin at zero."""
        self.envoy.stop()
        self._start_envoy()
        await_ready(self.envoy, f"{self.admin_url}/ready")

    def start_load(
        self,
        duration: float = 600.0,
        *,
        rps: float | None = None,
        connections: int = 64,
        services: Sequence[str] | None = None,
        spacing: str = "poisson",
    ) -> None:
        """Send `rps` requests per second to each service (all, or those named) for at most `duration` seconds."""
        if self._load is not None and self._load.running:
            raise LabError("load is already running: stop_load() first")
        self._load_file.unlink(missing_ok=True)
        options: dict[str, object] = {
            "rps": rps or self.rps,
            "connections": connections,
            "duration": min(duration, LONGEST),
            "stats": self._load_file,
            "slow-ms": self.slow_ms,
            "timeout-ms": LOAD_TIMEOUT_MS,
            "spacing": spacing,
        }
        names = [spec.name for spec in self.services] if services is None else services
        targets = [f"--target={name}={self.front_url(name)}" for name in names]
        argv = [sys.executable, "-m", "canaryd.demo.load", *(f"--{k}={v}" for k, v in options.items()), *targets]
        self._load = self._nursery.start("load", argv)

    def stop_load(self) -> LoadStats:
        """Stop sending, wait for the last answers, and return the final totals. Harmless when it has ended."""
        if self._load is None:
            raise LabError("load was never started")
        load = self._load
        wait_until(lambda: self._load_file.exists() or not load.running, "the load generator to begin")
        code = load.stop(grace=LOAD_TIMEOUT_MS / 1000 + 3)
        stats = self.load_stats()
        if stats is None or stats.running:  # its last words were never written, so the totals are not final
            raise LabError(f"the load generator ended with {code}:\n{load.last_words()}")
        return stats

    def load_stats(self) -> LoadStats | None:
        """The totals of the load that runs or ran last; None until it has written its first."""
        try:
            return _load_stats(json.loads(self._load_file.read_bytes()))
        except FileNotFoundError:
            if self._load is not None and not self._load.running:
                raise LabError(f"the load generator died:\n{self._load.last_words()}") from None
            return None

    # How it starts

    def _start_parts(self) -> None:
        self._pool_ports = {pool: free_port() for pool in self._pools}
        self._front_ports = {service.name: free_port() for service in self.services}
        self._admin_port = free_port()
        if self._jaeger_binary is not None:
            self._jaeger = Jaeger(self._nursery, self.directory / "jaeger", binary=self._jaeger_binary)
            self._jaeger.launch()
        for pool in self._pools:
            self._start_pool(pool)
        for service in self.services:
            path = self.rds_path(service.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            weights = {pool.name: 100 if pool is service.pools[0] else 0 for pool in service.pools}
            replace_file(path, envoy.routes(service.name, weights))
        self._start_envoy()
        if self._with_prometheus:
            self._prometheus = Prometheus(self._nursery, self.directory / "prometheus", self.metrics_url, self._scrape)
            self._prometheus.launch()
        for pool in self._pools:
            await_ready(self._children[pool], self.health_url(pool))
        await_ready(self.envoy, f"{self.admin_url}/ready")
        if self._jaeger is not None:
            self._jaeger.start()  # already launched: this waits
        if self._prometheus is not None:
            self._prometheus.start()  # likewise

    def _start_pool(self, pool: str) -> None:
        behaviour = self._behaviours[pool]
        options: dict[str, object] = {
            "port": self._pool_ports[pool],
            "version": self._versions[pool],
            "errors": behaviour.errors,
            "latency-ms": behaviour.latency_ms,
            "latency-sigma": behaviour.latency_sigma,
            "only": behaviour.only,
            "calls": behaviour.calls,
        }
        if self._jaeger is not None:
            service = next(s.name for s in self.services if pool in {p.name for p in s.pools})
            options |= {"service": service, "otlp-port": self._jaeger.otlp_http}
        argv = [sys.executable, "-m", "canaryd.demo.service", *(f"--{k}={v}" for k, v in options.items())]
        self._children[pool] = self._nursery.start(pool, argv + ([] if behaviour.healthy else ["--unhealthy"]))

    def _start_envoy(self) -> None:
        binary = envoy.find()
        if binary is None:
            raise LabError(envoy.HOW_TO_GET_IT)
        fronts = [
            envoy.Front(
                service.name,
                self._front_ports[service.name],
                self.rds_path(service.name),
                [envoy.Backend(pool.name, pool.version, self._pool_ports[pool.name]) for pool in service.pools],
            )
            for service in self.services
        ]
        file = self.directory / "envoy.yaml"
        tracing = envoy.Tracing(self._jaeger.otlp_grpc, self._sampled) if self._jaeger is not None else None
        file.write_text(envoy.bootstrap(fronts, self._admin_port, self._flush_s, tracing))
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        self._children["envoy"] = self._nursery.start("envoy", [str(binary), "-c", str(file), *options])


def replace_file(path: Path, text: str) -> None:
    """Put `text` at `path` by rename, as Envoy's watched directory needs it; readers see the old or the new, whole."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    Path(file.name).replace(path)


def _load_stats(told: dict[str, Any]) -> LoadStats:
    return LoadStats(
        elapsed_s=told["elapsed_s"],
        cpu_s=told["cpu_s"],
        running=told["running"],
        services={name: _target_stats(target) for name, target in told["targets"].items()},
        total=_target_stats(told["total"]),
    )


def _target_stats(told: dict[str, Any]) -> TargetStats:
    return TargetStats(
        sent=told["sent"],
        answered=told["answered"],
        lost=told["lost"],
        skipped=told["skipped"],
        in_flight=told["in_flight"],
        p50_ms=told["latency_ms"]["p50"],
        p99_ms=told["latency_ms"]["p99"],
        versions={name: VersionStats(**cell) for name, cell in told["versions"].items()},
    )


def _check_name(kind: str, name: str) -> None:
    if not NAME.fullmatch(name) or name in ("envoy", "prometheus", "load"):
        raise ValueError(f"{kind} name {name!r}: use lower-case letters, digits and minus; not the name of a part")


def _check_unique(names: Sequence[str], kind: str) -> None:
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{kind} names must differ: {', '.join(doubled)}")


def _known(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        raise KeyError(f"no {kind} {name!r}; there are {', '.join(known)}")
