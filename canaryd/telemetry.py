"""What the daemon says about itself: structured logs, and /metrics in Prometheus' words. Decides nothing."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from canaryd import __version__
from canaryd.model import Phase, Verdict
from canaryd.reconcile import Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TICKS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def configure_logging(format: str, level: str) -> None:
    """structlog to standard error, and the libraries' own logs through the same renderer.

    format: json, console, or auto (console on a terminal); level: debug, info, warning or error.
    """
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The default would print the local variables of every frame: slow, and a secret could be among them.
    lines = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = lines if console else structlog.processors.JSONRenderer()
    traceback: list[Any] = [] if console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, *traceback, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *traceback, renderer],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # That a job which comes five times a second was late once is told by canaryd_tick_seconds and /healthz.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


class Telemetry:
    """The daemon's own metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.decisions = Counter("canaryd_decisions", "Decisions by kind", ["canary", "kind"], registry=own)
        self.failures = Counter(
            "canaryd_failures", "Ticks in which nothing could be saved or routed", ["canary"], registry=own
        )
        self.unseen = Counter(
            "canaryd_source_errors", "Looks for which the metrics could not be read", ["canary"], registry=own
        )
        self.owed = Gauge("canaryd_notifications_owed", "Records not yet told", registry=own)
        self.notifications = Counter(
            "canaryd_notifications",
            "Deliveries by notifier: sent, skipped (not for these people), failed, given_up, refused",
            ["notifier", "outcome"],
            registry=own,
        )
        self.pending_owed = Gauge(
            "canaryd_notifications_pending", "Records that a notifier has not told", ["notifier"], registry=own
        )
        self.oldest = Gauge(
            "canaryd_notifications_oldest_seconds", "Age of the oldest of them", ["notifier"], registry=own
        )
        self.tick = Histogram("canaryd_tick_seconds", "Duration of one tick", buckets=_TICKS, registry=own)
        self.last_tick = Gauge("canaryd_last_tick_timestamp_seconds", "When the last tick ended", registry=own)
        self.leading = Gauge("canaryd_leader", "1 while this process holds the state", registry=own)
        self.placebo_draws = Gauge(
            "canaryd_placebo_draws", "Stable pods judged as canaries the last time", ["canary"], registry=own
        )
        self.placebo_rollbacks = Gauge(
            "canaryd_placebo_rollbacks", "False alarms among canaryd_placebo_draws", ["canary"], registry=own
        )
        Gauge("canaryd_build_info", "1, with the version", ["version"], registry=own).labels(__version__).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._known: set[str] = set()
        self._bodies: dict[str, Mapping[str, Any]] = {}  # what is known of each canary
        self._kept: frozenset[str] | None = None  # those that may have series; None: all
        self._lock = threading.Lock()
        own.register(_Canaries(self.bodies))

    def ticked(self, outcomes: Sequence[Outcome], seconds: float, at: datetime) -> None:
        """Take over what one tick did."""
        self.tick.observe(seconds)
        self.last_tick.set(at.timestamp())
        for outcome in outcomes:
            if outcome.failed:
                self.failures.labels(outcome.canary).inc()
            for kind in outcome.kinds:
                self.decisions.labels(outcome.canary, str(kind)).inc()
            judged = outcome.seen.judgement if outcome.seen else None
            if judged is not None and judged.verdict is Verdict.BLIND:
                self.unseen.labels(outcome.canary).inc()
            if outcome.state is not None and outcome.state.latest:
                self._show(outcome.canary, outcome.state.latest)

    def notified(self, notifier: str, outcome: str) -> None:
        """One delivery."""
        self.notifications.labels(notifier, outcome).inc()

    def pending(self, notifier: str, owed: float, oldest: float) -> None:
        """What one notifier owes; seconds."""
        self.pending_owed.labels(notifier).set(owed)
        self.oldest.labels(notifier).set(oldest)

    def keep(self, names: set[str]) -> None:
        """Only these have series from now on: a tick that is still under way brings none of the others back."""
        with self._lock:
            self._kept = frozenset(names)
            for name in self._known - names:
                for gauge in (self.placebo_draws, self.placebo_rollbacks):
                    gauge.remove_by_labels({"canary": name})
            self._known &= names
            self._bodies = {name: body for name, body in self._bodies.items() if name in names}

    def placebo(self, name: str, draws: int, rollbacks: int) -> None:
        """What came of the last draws for one canary."""
        with self._lock:
            if self._kept is None or name in self._kept:
                self._known.add(name)
                self.placebo_draws.labels(name).set(draws)
                self.placebo_rollbacks.labels(name).set(rollbacks)

    def _show(self, name: str, body: Mapping[str, Any]) -> None:
        with self._lock:
            if self._kept is None or name in self._kept:
                self._bodies[name] = body

    def bodies(self) -> Mapping[str, Mapping[str, Any]]:
        """The latest body of each canary that was looked at since this process leads."""
        with self._lock:
            return dict(self._bodies)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Canaries(Collector):
    """The gauges of all canaries, made when somebody asks: kept as series, they would be most of its memory."""

    def __init__(self, bodies: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._bodies = bodies

    def collect(self) -> Iterable[Metric]:
        phase = GaugeMetricFamily("canaryd_phase", "1 for the phase a canary is in", labels=["canary", "phase"])
        weight = GaugeMetricFamily(
            "canaryd_weight",
            "Percent of requests for the canary: desired, configured, observed",
            labels=["canary", "kind"],
        )
        verdict = GaugeMetricFamily("canaryd_verdict", "1 for the present verdict", labels=["canary", "verdict"])
        evidence = GaugeMetricFamily(
            "canaryd_evidence_ratio",
            "Share of the threshold reached, towards step or rollback",
            labels=["canary", "toward"],
        )
        blind = GaugeMetricFamily("canaryd_blind_seconds", "Time without sight in this spell", labels=["canary"])
        for name, body in self._bodies().items():
            for one in Phase:
                phase.add_metric([name, one.value], float(body.get("phase") == one.value))
            for verdict_ in Verdict:
                verdict.add_metric([name, verdict_.value], float(body.get("verdict") == verdict_.value))
            for kind, value in _weights(body.get("weight") or {}):
                weight.add_metric([name, kind], float("nan") if value is None else value)
            held = body.get("evidence") or {}
            evidence.add_metric([name, "step"], held.get("towardStep") or 0.0)
            evidence.add_metric([name, "rollback"], held.get("towardRollback") or 0.0)
            blind.add_metric([name], held.get("blind") or 0.0)
        return phase, weight, verdict, evidence, blind


def _weights(weight: Mapping[str, Any]) -> Iterable[tuple[str, float | None]]:
    observed = weight.get("observed")
    yield "desired", weight.get("desired")
    yield "configured", weight.get("configured")
    yield "observed", None if observed is None else 100 * observed
