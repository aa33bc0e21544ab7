"""What the operator asked for: the Canary document as frozen, strictly validated types with their defaults.

One schema for files and for the cluster. Unknown keys are errors, quantities carry their unit ("30s", "5%", "0.02pp"),
and a message says what would be right. Never reads files or clocks: `canaryd.config` does.
"""

from __future__ import annotations

import json
import math
import re
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

API_VERSION = "canaryd.io/v1alpha1"
KIND = "Canary"
MAX_STEPS = 50
MAX_METRICS = 20

# ── quantities ───────────────────────────────────────────────────────────────────────────────────────────────

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_PERCENT = re.compile(r"^([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*%$")
_POINTS = re.compile(r"^([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*pp$")
_LONGEST = timedelta(days=366)


def parse_duration(value: object) -> timedelta:
    """`"1h30m"`, `"2s"`, `"500ms"` → timedelta. Raises ValueError that says what would be right."""
    if isinstance(value, timedelta):
        return value
    wanted = 'use a number with a unit, such as "30s", "5m" or "1h30m"'
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError(f"{value!r} is not a duration; {wanted}")
    text = value.strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{value!r} is not a duration; {wanted}")
    span = timedelta(seconds=sum(float(n) * _UNITS[u] for n, u in parts))
    if span > _LONGEST:
        raise ValueError(f"{value!r} is longer than a year; {wanted}")
    return span


def format_duration(span: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as the same span (to the millisecond)."""
    ms = round(span.total_seconds() * 1000)
    if ms == 0:
        return "0s"
    out = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, ms = divmod(ms, size)
        if count:
            out.append(f"{count}{unit}")
    return "".join(out)


def parse_share(value: object) -> float:
    """`"5%"` → 0.05. A bare number is refused: nobody can tell whether 5 or 0.05 was meant."""
    if isinstance(value, Share):
        return float(value)
    match = _PERCENT.match(value.strip()) if isinstance(value, str) and len(value) <= 40 else None
    if match is None:
        raise ValueError(f'{value!r} has no unit; write a percentage such as "5%"')
    share = float(match.group(1)) / 100
    if not math.isfinite(share):
        raise ValueError(f'{value!r} is not a finite percentage; write one such as "5%"')
    return share


class Share(float):
    """A share 0..1 that has been read from text with its unit."""


def _share(value: object) -> Share:
    return Share(parse_share(value))


def format_share(share: float) -> str:
    """0.05 → `"5%"`, exact enough to read back."""
    return f"{share * 100:.10g}%"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d))+$", "example": "30s"}),
]
Percent = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9.]+(e-?[0-9]+)?\s*%$", "example": "5%"}),
]


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


class Tolerance(BaseModel):
    """How much worse is still acceptable: canary <= (1 + relative) * stable + absolute.

    Written `"5%"` (relative), `"0.02pp"` (percentage points) or `"5% + 0.02pp"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    relative: float = 0.0  # 0.05: five percent of stable's own rate
    absolute: float = 0.0  # a share: 0.0002 is 0.02 percentage points

    def __str__(self) -> str:
        parts = []
        if self.relative or not self.absolute:
            parts.append(format_share(self.relative))
        if self.absolute:
            parts.append(f"{self.absolute * 100:.10g}pp")
        return " + ".join(parts)


def parse_tolerance(value: object) -> Tolerance:
    """Raises ValueError that names the value and what would be right."""
    if isinstance(value, Tolerance):
        return value
    wanted = 'write "5%" (of stable\'s own value), "0.02pp" (percentage points) or both: "5% + 0.02pp"'
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit; {wanted}")
    relative = absolute = 0.0
    seen: set[str] = set()
    for part in value[:100].split("+"):
        percent, points = _PERCENT.match(part.strip()), _POINTS.match(part.strip())
        unit = "%" if percent else "pp"
        match = percent or points
        if match is None or unit in seen:
            raise ValueError(f"{value!r} is not a tolerance; {wanted}")
        seen.add(unit)
        amount = float(match.group(1)) / 100
        if not 0 <= amount <= 100:
            raise ValueError(f"{value!r} is out of range; a tolerance is from 0 to 10000 %, {wanted}")
        relative, absolute = (amount, absolute) if percent else (relative, amount)
    return Tolerance(relative=relative, absolute=absolute)


ToleranceText = Annotated[
    Tolerance,
    BeforeValidator(parse_tolerance),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "example": "5% + 0.02pp"}),
]

# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────


class Step(_Document):
    """One entry of the plan."""

    weight: int = Field(description="percent of requests sent to the canary, 1 to 100")
    bake: Duration | None = Field(
        default=None,
        description="least evidence time at this step; time without sight does not count; default four intervals",
    )
    timeout: Duration | None = Field(
        default=None, description="longest time at this step before onInconclusive applies; default maxHold"
    )

    @field_validator("weight")
    @classmethod
    def _weight_is_a_percentage(cls, value: int) -> int:
        if not 1 <= value <= 100:
            raise ValueError(f"{value} is not a usable percentage; use 1 to 100")
        return value


def _expand_steps(value: object) -> object:
    """`{from, to, by}` and bare numbers become a list of steps."""
    if isinstance(value, dict):
        unknown = sorted(set(map(str, value)) - {"from", "to", "by", "bake", "timeout"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; a linear plan has from, to, by, bake and timeout")
        numbers = [value.get(k) for k in ("from", "to", "by")]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise ValueError(
                "a linear plan needs whole numbers for from, to and by, such as {from: 10, to: 100, by: 10}"
            )
        first, last, by = (int(n) for n in numbers if isinstance(n, int))
        if not (1 <= first <= last <= 100 and by >= 1):
            raise ValueError(f"from {first} to {last} by {by} is no plan; need 1 <= from <= to <= 100 and by >= 1")
        weights = [*range(first, last, by), last]
        rest = {k: v for k, v in value.items() if k in ("bake", "timeout")}
        return tuple({"weight": w, **rest} for w in weights)
    if isinstance(value, list):
        return tuple({"weight": s} if isinstance(s, int) and not isinstance(s, bool) else s for s in value)
    return value


DEFAULT_WEIGHTS = (5, 10, 25, 50, 100)

# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────

_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=_NAME, max_length=63)]
Template = Annotated[str, Field(min_length=1, max_length=4096)]


class _Metric(_Document):
    name: Name = Field(description="unique within the Canary")


class ErrorsMetric(_Metric):
    """Share of failed requests."""

    kind: Literal["errors"]
    tolerance: ToleranceText = Field(
        default=Tolerance(relative=0.05, absolute=0.0002), description="accepted without any alarm"
    )
    margin: ToleranceText = Field(
        default=Tolerance(relative=0.25),
        description="must be ruled out before a step is taken, in addition to the budget",
    )
    failures: tuple[str, ...] = Field(
        default=("5xx",),
        description='response codes that count as failures: classes ("5xx") or codes ("429")',
    )
    ignore_flags: tuple[str, ...] = Field(
        default=("DC", "RL"),
        description="Envoy response flags of requests that are not counted at all: client left, rate limited",
    )
    grpc_failures: tuple[str, ...] = Field(
        default=("2", "4", "12", "13", "14", "15"),
        description="gRPC statuses that count as failures: unknown, deadline, unimplemented, internal, unavailable, data loss",
    )

    @field_validator("failures")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch(r"[0-9]xx|[0-9]{1,3}", code):
                raise ValueError(f'{code!r} is neither a class such as "5xx" nor a code such as "429"')
        return value


class LatencyMetric(_Metric):
    """Request durations, judged at the histogram's bucket edges: both quantiles and the whole distribution."""

    kind: Literal["latency"]
    tolerance: Percent = Field(default=0.05, description="how much slower is accepted without any alarm")
    margin: Percent = Field(default=0.30, description="how much slower must be ruled out before a step is taken")

    @field_validator("tolerance", "margin")
    @classmethod
    def _range(cls, value: float) -> float:
        if not 0 < value <= 10:
            raise ValueError(f'{format_share(value)} is out of range; use more than 0% and at most 1000%, such as "5%"')
        return value

    @model_validator(mode="after")
    def _margin_covers_tolerance(self) -> Self:
        if self.margin < self.tolerance:
            raise ValueError(
                f"margin {format_share(self.margin)} is below tolerance {format_share(self.tolerance)}; "
                "what must be ruled out cannot be less than what is accepted"
            )
        return self


class ArmQueries(_Document):
    """A PromQL template for each arm; `{{workload}}`, `{{namespace}}` and `{{window}}` are filled in."""

    stable: Template
    canary: Template


class GaugeMetric(_Metric):
    """A gauge per pod, such as memory or CPU per request."""

    kind: Literal["gauge"]
    query: ArmQueries
    tolerance: Percent = Field(default=0.10, description="how much higher is accepted")


class QueryMetric(_Metric):
    """Counts from the operator's own PromQL: failures and total per arm, as raw counters."""

    kind: Literal["query"]
    failures: ArmQueries
    total: ArmQueries
    tolerance: ToleranceText = Tolerance(relative=0.05, absolute=0.0002)
    margin: ToleranceText = Tolerance(relative=0.25)


Metric = Annotated[ErrorsMetric | LatencyMetric | GaugeMetric | QueryMetric, Field(discriminator="kind")]


def default_metrics() -> tuple[ErrorsMetric | LatencyMetric | GaugeMetric | QueryMetric, ...]:
    return (ErrorsMetric(name="errors", kind="errors"), LatencyMetric(name="latency", kind="latency"))


# ── workloads, routes, promotion ─────────────────────────────────────────────────────────────────────────────


class Pool(_Document):
    """A set of servers that run one version."""

    name: Annotated[
        str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9|]*[A-Za-z0-9])?$")
    ] = Field(description="the workload's name in the metrics")
    health: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)] | None = Field(
        default=None, description="a URL that answers 200 when the pool is ready; none: taken as ready"
    )


def _expand_pools(value: object) -> object:
    return tuple({"name": p} if isinstance(p, str) else p for p in value) if isinstance(value, list) else value


class Workloads(_Document):
    """The two workloads. The first pool is stable until the first promotion; then the state knows who is."""

    pools: Annotated[tuple[Pool, Pool], BeforeValidator(_expand_pools)]

    @field_validator("pools", mode="after")
    @classmethod
    def _two_different(cls, value: tuple[Pool, Pool]) -> tuple[Pool, Pool]:
        if value[0].name == value[1].name:
            raise ValueError(f"both pools are called {value[0].name!r}; stable and canary must be two workloads")
        return value


class EnvoyFile(_Document):
    """A route in an Envoy RDS file; canaryd changes its weights and nothing else."""

    path: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="the file that Envoy watches; one file for each service"
    )
    route: str = Field(
        default="", description="name of the route; empty: every route that splits between both clusters"
    )
    clusters: dict[str, str] = Field(
        default_factory=dict, description="pool name -> Envoy cluster name, where they differ"
    )


class Route(_Document):
    """Where the weight is set. Exactly one kind."""

    envoy_file: EnvoyFile


class OnInconclusive(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"
    PROMOTE = "promote"


class OnBlind(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"


class Budget(_Document):
    """How much more harm than stable's is accepted in all: the larger of a share and a number per hour."""

    share: Percent = Field(default=0.001, description="of all requests of the service")
    per_hour: int = Field(default=100, ge=0, le=10_000_000, description="failed requests per hour")

    @field_validator("share")
    @classmethod
    def _range(cls, value: float) -> float:
        if not 0 < value <= 0.5:
            raise ValueError(f'{format_share(value)} is out of range; use more than 0% and at most 50%, such as "0.1%"')
        return value


class Hook(_Document):
    """Upgrades the stable pool after a promotion: a command without a shell, or a webhook."""

    command: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        default=(), description="argv; run without a shell, with CANARYD_* in its environment"
    )
    webhook: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)] | None = Field(
        default=None, description="a URL that is sent a POST with JSON; 2xx means done"
    )
    timeout: Duration = timedelta(minutes=5)
    retries: int = Field(default=3, ge=0, le=100)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if bool(self.command) == bool(self.webhook):
            raise ValueError("afterPromotion needs exactly one of command and webhook")
        return self


class ErrorSource(_Document):
    """Names of the raw counters, for meshes that rename them."""

    requests: str = Field(default="istio_requests_total", pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")
    durations: str = Field(default="istio_request_duration_milliseconds_bucket", pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────


class Spec(_Document):
    """What to roll out and how sure to be."""

    workloads: Workloads
    route: Route
    steps: Annotated[tuple[Step, ...], BeforeValidator(_expand_steps)] = Field(
        default=tuple(Step(weight=w) for w in DEFAULT_WEIGHTS),
        description="weights with bake and timeout, plain weights, or {from, to, by}",
    )
    metrics: tuple[Metric, ...] = Field(default_factory=default_metrics)
    alpha: Percent = Field(default=0.01, description="chance that a canary no worse than tolerated is ever rolled back")
    beta: Percent = Field(default=0.05, description="chance that an unacceptable canary passes a step")
    budget: Budget = Budget()
    interval: Duration = Field(default=timedelta(seconds=30), description="one look every so often")
    warm_up: Duration = Field(default=timedelta(seconds=120), description="pods younger than this do not count")
    max_hold: Duration = Field(default=timedelta(hours=4), description="longest time at one step without a decision")
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    on_blind: OnBlind = OnBlind.HOLD
    blind_deadline: Duration = Field(
        default=timedelta(minutes=5), description="onBlind applies after this long without sight"
    )
    after_promotion: Hook | None = None
    source: ErrorSource = ErrorSource()

    @field_validator("alpha", "beta")
    @classmethod
    def _probability(cls, value: float) -> float:
        if not 1e-6 <= value <= 0.5:
            raise ValueError(f'{format_share(value)} is no usable error probability; use 0.0001% to 50%, such as "1%"')
        return value

    @field_validator("steps")
    @classmethod
    def _ascending(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        if not 1 <= len(value) <= MAX_STEPS:
            raise ValueError(f"{len(value)} steps; use 1 to {MAX_STEPS}")
        for i, (a, b) in enumerate(pairwise(value)):
            if b.weight <= a.weight:
                raise ValueError(f"step {i + 1} has weight {b.weight} after {a.weight}; weights must rise")
        return value

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not 1 <= len(value) <= MAX_METRICS:
            raise ValueError(f"{len(value)} metrics; use 1 to {MAX_METRICS}")
        names = [m.name for m in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} is used {names.count(name)} times; names must be unique")
        for kind in ("errors", "latency"):
            if sum(m.kind == kind for m in value) > 1:
                raise ValueError(f"more than one metric of kind {kind!r}; one counts everything")
        if not any(m.kind in ("errors", "latency") for m in value):
            raise ValueError("no metric of kind errors or latency; nothing would ever be proven")
        return value

    @field_validator("interval")
    @classmethod
    def _not_too_often(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=500) <= value <= timedelta(hours=1):
            raise ValueError(f'{format_duration(value)} is out of range; use 500ms to 1h, such as "30s"')
        return value

    @model_validator(mode="after")
    def _deadlines_can_be_met(self) -> Self:
        for i, step in enumerate(self.steps):
            if step.timeout is not None and step.timeout < self.bake(i):
                raise ValueError(
                    f"step {i} has timeout {format_duration(step.timeout)}, shorter than its bake "
                    f"{format_duration(self.bake(i))}; it could never pass"
                )
        if self.blind_deadline < self.interval:
            raise ValueError(
                f"blindDeadline {format_duration(self.blind_deadline)} is shorter than the interval "
                f"{format_duration(self.interval)}"
            )
        return self

    def bake(self, step: int) -> timedelta:
        """Least evidence time at a step."""
        return self.steps[step].bake if self.steps[step].bake is not None else 4 * self.interval  # type: ignore[return-value]

    def timeout(self, step: int) -> timedelta:
        """Longest time at a step without a decision."""
        return self.steps[step].timeout or self.max_hold

    def next_weight(self, step: int) -> int:
        """Weight that passing this step leads to; promotion is 100."""
        return self.steps[step + 1].weight if step + 1 < len(self.steps) else 100


class Metadata(_Document):
    """Names as in Kubernetes."""

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64)


class Canary(_Document):
    """The document an operator writes."""

    api_version: Literal["canaryd.io/v1alpha1"]
    kind: Literal["Canary"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        return self.metadata.name


def parse_canary(document: object) -> Canary:
    """A document of plain JSON values → Canary. Raises pydantic's ValidationError with every problem."""
    return Canary.model_validate_json(json.dumps(document))


def dump_canary(canary: Canary) -> dict[str, Any]:
    """The document with every default written out; `parse_canary` reads it back as the same Canary."""
    return canary.model_dump(mode="json", by_alias=True, exclude_none=True)
