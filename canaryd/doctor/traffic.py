"""The checks of what is measured, the same with a cluster and without one: would a release be judged well, and when?

Each looks at the last hour of stable's counters, asked for exactly as the daemon asks, and at the Prometheus itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from canaryd import wording
from canaryd.doctor.findings import Finding, error, fine, warning
from canaryd.errors import SourceError
from canaryd.measure import grid_floor, templates
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import Canary
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource

if TYPE_CHECKING:
    from canaryd.adapters.prometheus_health import Health
    from canaryd.simulation.power import StepPower, Traffic

PAST = timedelta(hours=1)
MOST_POINTS = 240  # of the past that is read
CLOCK_SLACK = timedelta(seconds=2)
NAMED = 3  # pods or edges that a finding names


@dataclass
class Subject:
    """One Canary, and what is known of it before anything is asked."""

    canary: Canary
    about: str  # how it is called in findings
    stable: str  # workloads in their present roles
    workload: str
    source: MetricSource | None  # None: where its counters are is not known here
    at: datetime
    health: Callable[[Canary, str, str], Health] | None = None  # of its Prometheus; None where there is none
    scrape: timedelta | None = None  # how often the settings say that Prometheus scrapes; None: not known here

    @cached_property
    def past(self) -> CountsAnswer:
        """The counters of the last hour, or as much of it as is read. Raises SourceError.

        Kept, with the error, so that a source that does not answer is asked once.
        """
        if self.trouble is not None:
            raise self.trouble
        assert self._answer is not None
        return self._answer

    @cached_property
    def trouble(self) -> SourceError | None:
        """Why the past cannot be read; None when it can."""
        self._answer: CountsAnswer | None = None
        if self.source is None:
            return SourceError("where its counters are is not known here")
        spec = self.canary.spec
        step = max(spec.interval, timedelta(seconds=1))
        end = grid_floor(self.at - self.source.lag, step) if self.source.remembers else self.at
        count = min(int(PAST / step), MOST_POINTS) if self.source.remembers else 0
        query = CountsQuery(
            canary=self.canary.key,
            namespace=self.canary.metadata.namespace,
            stable=self.stable,
            canary_workload=self.workload,
            points=tuple(end - (count - i) * step for i in range(count + 1)),
            step=step,
            source=spec.source,
            durations=any(m.kind == "latency" for m in spec.metrics),
            server=spec.prometheus.url if spec.prometheus else "",
        )
        try:
            answer = self.source.read([query])[self.canary.key]
        except SourceError as reason:
            return reason
        if answer.failed:
            return SourceError(answer.failed)
        self._answer = answer
        return None


Subjects = Iterable[Subject]


def _readable(subjects: Subjects) -> Iterator[Subject]:
    """Those with a past; that the others have none is told by the check of the metrics."""
    for subject in subjects:
        if subject.trouble is None and subject.past.readings:
            yield subject


# ── Prometheus itself ────────────────────────────────────────────────────────────────────────────────────────


def prometheus(subjects: Subjects) -> Iterator[Finding]:
    """Its clock against ours, and whether it scrapes often enough for the interval."""
    asked: dict[str, Health | SourceError] = {}
    for subject in subjects:
        if subject.health is None:
            continue
        try:
            health = subject.health(subject.canary, subject.stable, subject.workload)
        except SourceError as reason:
            if str(reason) not in asked:  # said once, however many canaries use it
                asked[str(reason)] = reason
                yield error(str(reason), "without its counters every release is held", "see to it", subject.about)
            continue
        yield from _clock(subject, health)
        yield from _spacing(subject, health)


def _clock(subject: Subject, health: Health) -> Iterator[Finding]:
    ahead = health.ahead
    if abs(ahead) <= CLOCK_SLACK:
        return
    lag = subject.source.lag if subject.source else timedelta(0)
    how = f"{wording.span(abs(ahead))} {'ahead of' if ahead > timedelta(0) else 'behind'}"
    make = error if -ahead >= lag > timedelta(0) else warning
    yield make(
        f"the clock of Prometheus is {how} this machine's",
        "canaryd asks for instants by its own clock: samples are taken for older or newer than they are"
        if ahead > timedelta(0)
        else "canaryd asks for instants that Prometheus has not reached, and is blind until it has",
        "synchronise both (chrony, systemd-timesyncd)",
        subject.about,
    )


def _spacing(subject: Subject, health: Health) -> Iterator[Finding]:
    spacing, interval = health.spacing, subject.canary.spec.interval
    if spacing is None:
        yield warning(
            "Prometheus has fewer than three samples of stable in the last minutes",
            "how often it scrapes cannot be told",
            "look at its targets page; a target that was added just now needs a few scrapes",
            subject.about,
        )
        return
    shown = wording.span(timedelta(seconds=round(spacing.total_seconds(), 1)))
    if spacing > interval:
        yield error(
            f"Prometheus scrapes every {shown}, and the interval is {wording.span(interval)}",
            "some intervals have no sample at all: they cannot be compared, and a release waits for ever",
            f"set spec.interval to at least {wording.span(_twice(spacing))}, or scrape more often",
            subject.about,
        )
    elif 2 * spacing > interval * 1.1:
        yield warning(
            f"Prometheus scrapes every {shown}, and the interval is {wording.span(interval)}",
            "with fewer than two scrapes in an interval, one late scrape makes a release wait",
            f"set spec.interval to at least {wording.span(_twice(spacing))}, or scrape more often",
            subject.about,
        )
    else:
        yield fine(f"Prometheus scrapes every {shown}, its clock agrees", subject.about)
    if subject.scrape is not None and spacing > 1.5 * subject.scrape:
        yield warning(
            f"Prometheus scrapes every {shown}, and the settings say {wording.span(subject.scrape)}",
            "instants are asked for before their samples are there, so that canaryd is blind again and again",
            f"set metrics.prometheus.scrapeInterval to {shown}",
            subject.about,
        )


def _twice(spacing: timedelta) -> timedelta:
    return timedelta(seconds=max(1, round(2 * spacing.total_seconds())))


# ── series ───────────────────────────────────────────────────────────────────────────────────────────────────


def buckets(subjects: Subjects) -> Iterator[Finding]:
    """Both arms, and all pods of an arm, need the same bucket edges: only common ones are compared."""
    for subject in _readable(subjects):
        if not any(metric.kind == "latency" for metric in subject.canary.spec.metrics):
            continue
        sets = edge_sets(subject.past.readings)
        if not sets:
            continue  # told by the check of the metrics
        common = frozenset.intersection(*sets.values())
        every = frozenset.union(*sets.values())
        if common == every:
            yield fine(f"all pods have the same {len(every)} bucket edges", subject.about)
            continue
        odd = sorted(every - common)
        named = ", ".join(wording.milliseconds(edge) for edge in odd[:NAMED]) + (" …" if len(odd) > NAMED else "")
        least = min(sets, key=lambda who: len(sets[who]))
        make = warning if len(common) >= 3 else error
        yield make(
            f"pods do not have the same bucket edges: {named} are not everywhere (fewest: {least[0]} pod {least[1]})",
            f"only the {len(common)} common ones are compared" if common else "no edge is common: latency stays blind",
            "give both versions the same histogram buckets (sidecar.istio.io/statsHistogramBuckets, or the mesh's)",
            subject.about,
        )


def edge_sets(readings: Sequence[Reading]) -> Mapping[tuple[str, str], frozenset[float]]:
    """(arm, pod) → finite bucket edges in the latest reading that has each."""
    out: dict[tuple[str, str], set[float]] = {}
    for reading in readings[-3:]:
        for key in reading.counters:
            if key.name == "bucket" and isfinite(key.le):
                out.setdefault((str(key.arm), key.pod), set()).add(key.le)
    return {who: frozenset(edges) for who, edges in out.items()}


def resets(subjects: Subjects) -> Iterator[Finding]:
    """Counters that went back, or vanished beside others of the same process, without the process having ended."""
    for subject in _readable(subjects):
        if len(subject.past.readings) < 3:
            continue
        gone = evicted(subject.past.readings)
        if not gone:
            yield fine("no counter was lost in the last hour", subject.about)
            continue
        pods = ", ".join(sorted({key.pod or key.exporter for key in gone})[:NAMED])
        yield warning(
            f"{wording.plural(len(gone), 'series', 'series')} of {pods} vanished while their process went on",
            "what they counted in between is lost, and a version looks better or worse than it is",
            "do not set sidecar.istio.io/statsEvictionInterval on analysed workloads; see that nobody resets the "
            "counters of Envoy (/reset_counters), and that no relabelling drops series",
            subject.about,
        )


def evicted(readings: Sequence[Reading]) -> frozenset[CounterKey]:
    """Series that went back or vanished while the busiest one of the same process went on rising: no new process."""
    out: set[CounterKey] = set()
    for before, after in pairwise(readings):
        busiest: dict[tuple[Arm, str], CounterKey] = {}
        for key, value in before.counters.items():
            who = key.arm, key.exporter
            if who not in busiest or value > before.counters[busiest[who]]:
                busiest[who] = key
        alive = {who for who, k in busiest.items() if after.counters.get(k, -1.0) > before.counters[k]}
        fell = {k for k, v in before.counters.items() if after.counters.get(k, v) < v}
        lost = {k for k in before.counters if k not in after.counters and k.name == "requests"}
        out |= {k for k in fell | lost if (k.arm, k.exporter) in alive}
    return frozenset(out)


def own_metrics(subjects: Subjects) -> Iterator[Finding]:
    """Whether the operator's own queries have an answer for stable now."""
    for subject in subjects:
        spec, source = subject.canary.spec, subject.source
        asked = templates(spec)
        if not asked or source is None or not source.remembers or subject.trouble is not None:
            continue
        end = grid_floor(subject.at - source.lag, spec.interval)
        query = CountsQuery(
            canary=subject.canary.key,
            namespace=subject.canary.metadata.namespace,
            stable=subject.stable,
            canary_workload=subject.workload,
            points=(end - spec.interval, end),
            step=spec.interval,
            source=spec.source,
            durations=False,
            templates=asked,
            server=spec.prometheus.url if spec.prometheus else "",
        )
        answer = source.read([query])[subject.canary.key]
        seen = {(key.name.split(":")[1], key.arm) for r in answer.readings for key in r.counters if ":" in key.name}
        for metric in dict.fromkeys(one.metric for one in asked):
            why = answer.unseen.get(metric) or ("" if (metric, Arm.STABLE) in seen else "no series of stable")
            if why:
                yield error(
                    f"metric {metric}: {why}",
                    "a metric that cannot be read holds every release",
                    f"try spec.metrics[{metric}] in Prometheus, with {{{{workload}}}} = {subject.stable}",
                    subject.about,
                )
            else:
                yield fine(f"metric {metric} has series of stable", subject.about)


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────────


def power(subjects: Subjects) -> Iterator[Finding]:
    """What each step can find at the traffic of the last hour, and how long it takes; for one Canary only."""
    chosen = list(subjects)
    if len(chosen) > 1:  # some seconds each
        yield fine("canaryd doctor NAME says of one what each step can find, and how long it takes")
        return
    for subject in _readable(chosen):
        if subject.source is not None and not subject.source.remembers:
            yield fine("its source remembers no past: canaryd power FILE --rps N says what is found", subject.about)
            continue
        yield from _power(subject)


def _power(subject: Subject) -> Iterator[Finding]:
    from canaryd.simulation.observed import learn
    from canaryd.simulation.power import power as answer

    canary = subject.canary
    try:
        traffic = learn(canary.spec, subject.past.readings)
    except SourceError as reason:
        yield warning(
            str(reason),
            "what a release can find is not known, and it may wait for its time-out",
            "wait until there has been traffic, or assume it: canaryd power FILE --rps N",
            subject.about,
        )
        return
    shown = f"{traffic.rps:.3g} requests/s"
    for step in answer(canary.spec, traffic).steps:
        if step.decides:
            stays = wording.span(step.good * canary.spec.interval)
            found = found_while(step, traffic)
            yield fine(
                f"{step.weight} %: a good release stays {stays} at {shown}; found by then: {found}", subject.about
            )
            continue
        limit = wording.span(step.limit * canary.spec.interval)
        yield warning(
            f"{step.weight} %: {shown} are too few to decide in {limit}",
            "a good release would be held there until its time-out",
            "a larger weight, margin, budget or maxHold, or longer intervals: canaryd power FILE --prometheus URL",
            subject.about,
        )


def found_while(step: StepPower, traffic: Traffic) -> str:
    """ "failures from 1.2 %, 30 % slower": what is found, 8 of 10 times, before a good release has gone on."""
    errors, latency = (step.smallest(kind, step.good) for kind in ("errors", "latency"))
    parts = [f"failures from {wording.percent(min(float(traffic.rates[0]) * errors, 1.0))}"] if errors else []
    parts += [f"{100 * (latency - 1):.0f} % slower"] if latency else []
    return ", ".join(parts) or "only what is worse than all that was tried"
