"""What the operator asked for: the Canary document as frozen, strictly validated types with their defaults.

One schema for files and for the cluster. Unknown keys are errors, quantities carry their unit ("30s", "5%", "0.02pp"),
and a message says what would be right. Never reads files or clocks: `canaryd.config` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
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

# ── what is said about a wrong value ─────────────────────────────────────────────────────────────────────────


Wrong = tuple[tuple[str | int, ...], str]  # path below the validated place in the document's own keys, message


class MisfitError(ValueError):
    """Values that do not fit together; carries every one, not the first."""

    def __init__(self, *wrong: Wrong) -> None:
        self.wrong = wrong
        super().__init__("; ".join(message for _, message in wrong))


def said(value: object) -> str:
    """The value as its writer would recognise it, at most about 60 characters and without control characters."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "…"
        return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "a number of more than 18 digits"
    if isinstance(value, float):
        return repr(value)
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "this"


def _shaped(pattern: str, longest: int, wanted: str) -> Callable[[str], str]:
    """A check that a text has this form; the message says which form is wanted."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if len(value) > longest:
            raise ValueError(f"{said(value)} is too long with {len(value)} characters; use at most {longest}")
        if not form.fullmatch(value):
            raise ValueError(f"{said(value)} is not {wanted}")
        return value

    return check


def _schema(pattern: str, longest: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "maxLength": longest})


# ── quantities ───────────────────────────────────────────────────────────────────────────────────────────────

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_NUMBER = r"([+-]?[0-9]+(?:\.[0-9]+)?)(?:[eE]([+-]?[0-9]+))?"
_PLAIN_NUMBER = r"[0-9]+(\.[0-9]+)?([eE]-[0-9]{1,3})?"  # what schemas promise; parsers take a little more
_PERCENT = re.compile(_NUMBER + r"\s*%")
_POINTS = re.compile(_NUMBER + r"\s*pp")
_LONGEST = timedelta(days=366)


def parse_duration(value: object) -> timedelta:
    """`"1h30m"`, `"500ms"` → timedelta in whole milliseconds. Raises ValueError that says what would be right."""
    if isinstance(value, timedelta):
        return value
    wanted = 'use a number with a unit, such as "30s", "5m" or "1h30m"'
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError(f"{said(value)} is not a duration; {wanted}")
    text = value.strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{said(value)} is not a duration; {wanted}")
    seconds = sum(float(n) * _UNITS[u] for n, u in parts)
    if seconds > _LONGEST.total_seconds():
        raise ValueError(f"{said(value)} is longer than a year; {wanted}")
    return timedelta(milliseconds=round(seconds * 1000))


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


def _hundredth(match: re.Match[str]) -> float:
    """A number in hundredths, rounded once, so that `_hundredfold` reads back as the same float; may be infinite."""
    return float(f"{match[1]}e{int(match[2] or 0) - 2}")


def _hundredfold(share: float) -> str:
    """The shortest text of 100 * share that reads back as the same share."""
    exact = Decimal(repr(float(share))).scaleb(2).normalize() + 0  # + 0: no "-0"
    plain = f"{exact:f}"
    return plain if len(plain) <= 20 else str(exact)


def parse_share(value: object) -> float:
    """`"5%"` → 0.05. A bare number is refused: nobody can tell whether 5 or 0.05 was meant."""
    if isinstance(value, Share):
        return float(value)
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= 40 else None
    if match is None:
        bare = isinstance(value, int | float) and not isinstance(value, bool)
        bare = bare or (isinstance(value, str) and re.fullmatch(_NUMBER, value) is not None)
        lacking = "has no unit" if bare else "is not a percentage"
        raise ValueError(f'{said(value)} {lacking}; write a percentage such as "5%"')
    share = _hundredth(match)
    if not abs(share) < 1e6:
        raise ValueError(f'{said(value)} is no usable percentage; write one such as "5%"')
    return share


class Share(float):
    """A share 0..1 that has been read from text with its unit."""


def _share(value: object) -> Share:
    return Share(parse_share(value))


def format_share(share: float) -> str:
    """0.05 → `"5%"`; `parse_share` reads it back as exactly the same share."""
    return f"{_hundredfold(share)}%"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$", "maxLength": 40, "example": "30s"}
    ),
]
Percent = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema({"type": "string", "pattern": rf"^{_PLAIN_NUMBER}\s*%$", "maxLength": 40, "example": "5%"}),
]


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


class Document(BaseModel):
    """A mapping in a document: immutable, strict, no unknown keys, keys in camelCase."""

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
            parts.append(f"{_hundredfold(self.absolute)}pp")
        return " + ".join(parts)


def parse_tolerance(value: object) -> Tolerance:
    """Raises ValueError that names the value and what would be right."""
    if isinstance(value, Tolerance):
        return value
    wanted = 'write "5%" (of stable\'s own value), "0.02pp" (percentage points) or both: "5% + 0.02pp"'
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{said(value)} has no unit; {wanted}")
    if not isinstance(value, str) or len(value) > 100:
        raise ValueError(f"{said(value)} is not a tolerance; {wanted}")
    amounts: dict[str, float] = {}
    for part in value.split("+"):
        percent, points = _PERCENT.fullmatch(part.strip()), _POINTS.fullmatch(part.strip())
        match, unit = percent or points, "%" if percent else "pp"
        if match is None or unit in amounts:
            raise ValueError(f"{said(value)} is not a tolerance; {wanted}")
        amounts[unit] = _hundredth(match)
        if not 0 <= amounts[unit] <= 100:
            raise ValueError(f"{said(value)} is out of range; a tolerance is from 0 to 10000 %, {wanted}")
    return Tolerance(relative=amounts.get("%", 0.0), absolute=amounts.get("pp", 0.0))


_PERCENT_THEN_POINTS = rf"{_PLAIN_NUMBER}\s*%(\s*\+\s*{_PLAIN_NUMBER}\s*pp)?"
_POINTS_THEN_PERCENT = rf"{_PLAIN_NUMBER}\s*pp(\s*\+\s*{_PLAIN_NUMBER}\s*%)?"
_TOLERANCE_SCHEMA = f"^({_PERCENT_THEN_POINTS}|{_POINTS_THEN_PERCENT})$"
ToleranceText = Annotated[
    Tolerance,
    BeforeValidator(parse_tolerance),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": _TOLERANCE_SCHEMA, "maxLength": 100, "example": "5% + 0.02pp"},
    ),
]

# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────


class Step(Document):
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
            raise ValueError(f"{said(value)} is not a percentage; use 1 to 100")
        return value


_LINEAR = ("from", "to", "by")


def _linear_steps(plan: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """`{from, to, by}` with bake and timeout for each step → a list of steps that ends at `to`."""
    known = (*_LINEAR, "bake", "timeout")
    wrong: list[Wrong] = [
        ((key,), f"unknown key; a linear plan has {', '.join(known)}") for key in plan if key not in known
    ]
    for key in _LINEAR:
        if key not in plan:
            wrong.append(
                ((key,), "is missing; a linear plan needs from, to and by, such as {from: 10, to: 100, by: 10}")
            )
        elif not isinstance(plan[key], int) or isinstance(plan[key], bool):
            wrong.append(((key,), f"{said(plan[key])} is not a whole number"))
    if wrong:
        raise MisfitError(*wrong)
    first, last, by = (plan[key] for key in _LINEAR)
    if not (1 <= first <= last <= 100 and by >= 1):
        plain = f"from {said(first)} to {said(last)} by {said(by)}"
        raise MisfitError(((), f"{plain} is no plan; need 1 <= from <= to <= 100 and by >= 1"))
    rest = {key: plan[key] for key in ("bake", "timeout") if key in plan}
    return tuple({"weight": weight, **rest} for weight in [*range(first, last, by), last])


def _expand_steps(value: object) -> object:
    """`{from, to, by}` and bare numbers become a list of steps."""
    if isinstance(value, dict):
        return _linear_steps(value)
    if isinstance(value, list):
        return tuple(item if isinstance(item, dict | Step) else {"weight": item} for item in value)
    return value


DEFAULT_WEIGHTS = (5, 10, 25, 50, 100)

# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────

_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME_WANTED = 'a name; use lower-case letters, digits and "-", with a letter or digit at both ends'
Name = Annotated[str, AfterValidator(_shaped(_NAME, 63, _NAME_WANTED)), _schema(_NAME, 63)]
Template = Annotated[str, Field(min_length=1, max_length=4096)]
TEMPLATE_PLACES = ("workload", "namespace", "window")
_PLACE = re.compile(r"\{\{([^{}]*)\}\}")
_DIFFERENCES = re.compile(r"\b(rate|irate|increase|delta|idelta)\s*\(")

_URL = r"^https?://[^\s/?#@]+([/?#][^\s]*)?$"


def _url(value: str) -> str:
    """Says only the beginning of a wrong one: the rest may be a secret, as in the address of a chat's webhook."""
    if len(value) > 2048:
        raise ValueError(f"a URL of {len(value)} characters is too long; use at most 2048")
    if "@" in re.split(r"[?#]|(?<![:/])/", value)[0]:
        raise ValueError("a URL must not carry a user or a password; leave out everything up to the @")
    if not re.fullmatch(_URL, value):
        begin = said(value if len(value) <= 12 else value[:11] + "…")
        raise ValueError(f"{begin} is not a URL; write http:// or https://, a host and no spaces")
    return value


Url = Annotated[str, AfterValidator(_url), _schema(_URL, 2048)]


Code = Annotated[str, _schema(r"^([0-9]xx|[0-9]{1,3})$", 3)]
_FLAG = r"^[A-Za-z]{1,20}$"
Flag = Annotated[str, AfterValidator(_shaped(_FLAG, 20, 'an Envoy response flag, such as "DC"')), _schema(_FLAG, 20)]
_GRPC = r"^[0-9]{1,2}$"
GrpcStatus = Annotated[
    str, AfterValidator(_shaped(_GRPC, 20, 'the number of a gRPC status, such as "14"')), _schema(_GRPC, 2)
]


_METRIC = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"
_METRIC_WANTED = 'the name of a metric; use letters, digits, "_" and ":", not beginning with a digit'
MetricName = Annotated[str, AfterValidator(_shaped(_METRIC, 255, _METRIC_WANTED)), _schema(_METRIC, 255)]


def _listed(value: object) -> object:
    """A list below a place that is looked at before its types are checked; pydantic would take only a tuple there."""
    return tuple(value) if isinstance(value, list) else value


_Listed = BeforeValidator(_listed)


class _Metric(Document):
    name: Name = Field(description="unique within the Canary")


class ErrorsMetric(_Metric):
    """Share of failed requests."""

    kind: Literal["errors"] = Field(description="failed requests are compared")
    tolerance: ToleranceText = Field(
        default=Tolerance(relative=0.05, absolute=0.0002), description="accepted without any alarm"
    )
    margin: ToleranceText = Field(
        default=Tolerance(relative=0.25),
        description="must be ruled out before a step is taken, in addition to the budget",
    )
    failures: Annotated[tuple[Code, ...], Field(max_length=100)] = Field(
        default=("5xx",),
        # not "failures" in a cluster: there a metric of kind query has that key with another type
        alias="httpFailures",
        validation_alias=AliasChoices("httpFailures", "failures"),
        description='response codes that count as failures: classes ("5xx") or codes ("429")',
    )
    ignore_flags: Annotated[tuple[Flag, ...], Field(max_length=100)] = Field(
        default=("DC", "RL"),
        description="Envoy response flags of requests that are not counted at all: client left, rate limited",
    )
    grpc_failures: Annotated[tuple[GrpcStatus, ...], Field(max_length=100)] = Field(
        default=("2", "4", "12", "13", "14", "15"),
        description="gRPC statuses that count as failures: unknown, deadline, unimplemented, internal, unavailable, "
        "data loss",
    )

    @field_validator("failures")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [
            ((i,), f'{said(code)} is neither a class such as "5xx" nor a code such as "429"')
            for i, code in enumerate(value)
            if not re.fullmatch(r"[0-9]xx|[0-9]{1,3}", code)
        ]
        if wrong:
            raise MisfitError(*wrong)
        return value


class LatencyMetric(_Metric):
    """Request durations, judged at the histogram's bucket edges: both quantiles and the whole distribution."""

    kind: Literal["latency"] = Field(description="durations are compared")
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
            message = (
                f"margin {format_share(self.margin)} is below tolerance {format_share(self.tolerance)}; "
                "what must be ruled out cannot be less than what is accepted"
            )
            raise MisfitError((("margin",), message))
        return self


class ArmQueries(Document):
    """A PromQL template for each arm; `{{workload}}`, `{{namespace}}` and `{{window}}` are filled in."""

    stable: Template = Field(description="PromQL for stable")
    canary: Template = Field(description="PromQL for the canary")

    @field_validator("stable", "canary")
    @classmethod
    def _known_places(cls, value: str) -> str:
        unknown = [place for place in _PLACE.findall(value) if place.strip() not in TEMPLATE_PLACES]
        if unknown or "{{" in _PLACE.sub("", value):
            what = said("{{" + (unknown[0] if unknown else ""))
            raise ValueError(f"{what} cannot be filled in; use {{{{workload}}}}, {{{{namespace}}}} or {{{{window}}}}")
        return value


class GaugeMetric(_Metric):
    """A gauge per pod, such as memory or CPU per request: a higher level holds the rollout, and never rolls it back."""

    kind: Literal["gauge"] = Field(description="levels are compared, pod by pod")
    query: ArmQueries = Field(description="one template for each arm")
    tolerance: Percent = Field(default=0.10, description="how much higher is accepted")

    @field_validator("tolerance")
    @classmethod
    def _range(cls, value: float) -> float:
        if not 0 < value <= 10:
            raise ValueError(
                f'{format_share(value)} is out of range; use more than 0% and at most 1000%, such as "10%"'
            )
        return value


class QueryMetric(_Metric):
    """Failures and total per arm from the operator's own PromQL, as raw counters, by pod where that is possible.

    They are judged as errors are. A series that is missing makes the metric blind, never fine: where failures have no
    series before the first one, write `sum by (pod) (failed) or 0 * sum by (pod) (all)`.
    """

    kind: Literal["query"] = Field(description="your own counts are compared")
    failures: ArmQueries = Field(description="one template for each arm")
    total: ArmQueries = Field(description="one template for each arm")
    tolerance: ToleranceText = Field(
        default=Tolerance(relative=0.05, absolute=0.0002), description="accepted without any alarm"
    )
    margin: ToleranceText = Field(
        default=Tolerance(relative=0.25),
        description="must be ruled out before a step is taken, in addition to the budget",
    )

    @field_validator("failures", "total")
    @classmethod
    def _raw(cls, value: ArmQueries) -> ArmQueries:
        for arm in ("stable", "canary"):
            if found := _DIFFERENCES.search(getattr(value, arm)):
                message = f"{found[1]}() is a difference; give the raw counters, canaryd counts between looks itself"
                raise MisfitError(((arm,), message))
        return value


class SpansFrom(StrEnum):
    AUTO = "auto"
    SPANMETRICS = "spanmetrics"
    TRACES = "traces"


class SpanMetrics(Document):
    """Names of the counters that a collector makes of spans (OpenTelemetry's spanmetrics connector)."""

    calls: MetricName = Field(default="traces_span_metrics_calls_total", description="counter of spans by status")
    durations: MetricName = Field(
        default="traces_span_metrics_duration_milliseconds_bucket",
        description="buckets of their durations; in seconds where the name says _seconds_",
    )


TagValue = Annotated[str, Field(min_length=1, max_length=253)]


class ArmValues(Document):
    """What the tag says in the spans of each arm."""

    stable: Annotated[tuple[TagValue, ...], Field(min_length=1, max_length=10), _Listed] = Field(
        description="values in stable's spans"
    )
    canary: Annotated[tuple[TagValue, ...], Field(min_length=1, max_length=10), _Listed] = Field(
        description="values in the canary's spans"
    )

    @model_validator(mode="after")
    def _different(self) -> Self:
        if both := sorted(set(self.stable) & set(self.canary)):
            raise MisfitError((("canary",), f"{said(both[0])} is a value of stable, too; a value tells one arm"))
        return self


class TracesMetric(_Metric):
    """Spans of each operation of the service: failed ones, and those slower than nine in ten of stable's were before.

    They can roll a canary back; no step waits for them unless they are `required`, because spans are often too few.
    """

    kind: Literal["traces"] = Field(description="spans are compared, operation by operation")
    service: Annotated[str, Field(max_length=253)] = Field(
        default="",
        description="the service in the spans, service.name; default NAME.NAMESPACE of the Deployment, of pools the "
        "name of the Canary",
    )
    tag: Annotated[str, Field(max_length=253)] = Field(
        default="",
        description="the tag that tells the arms apart; default istio.canonical_revision, else service.version, else "
        "the pod",
    )
    arms: ArmValues | None = Field(
        default=None,
        description="its values for the arms; default the workloads' names, their revisions, and the versions that "
        "the labels of their pods say",
    )
    source: SpansFrom = Field(
        default=SpansFrom.AUTO,
        description="spanmetrics: counters in Prometheus; traces: the trace source; auto: spanmetrics where there are "
        "any when a rollout begins, else the trace source",
    )
    spanmetrics: SpanMetrics = Field(default=SpanMetrics(), description="names of the counters of spans")
    operations: int = Field(
        default=30, ge=1, le=50, description="operations that are judged apart; all others are judged as one"
    )
    tolerance: ToleranceText = Field(
        default=Tolerance(relative=0.05, absolute=0.001), description="accepted without any alarm"
    )
    required: bool = Field(
        default=False,
        description="true: without spans of both arms, sampled alike, the rollout is blind; false: it goes on",
    )


Metric = Annotated[ErrorsMetric | LatencyMetric | GaugeMetric | QueryMetric | TracesMetric, Field(discriminator="kind")]


def default_metrics() -> tuple[ErrorsMetric | LatencyMetric | GaugeMetric | QueryMetric | TracesMetric, ...]:
    return (ErrorsMetric(name="errors", kind="errors"), LatencyMetric(name="latency", kind="latency"))


# ── workloads, routes, promotion ─────────────────────────────────────────────────────────────────────────────


_WORKLOAD = r"^[A-Za-z0-9]([-._A-Za-z0-9|]*[A-Za-z0-9])?$"
_WORKLOAD_WANTED = 'a workload name; use letters, digits, "-", "_", "." and "|", with a letter or digit at both ends'
PoolName = Annotated[str, AfterValidator(_shaped(_WORKLOAD, 253, _WORKLOAD_WANTED)), _schema(_WORKLOAD, 253)]


_OBJECT = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
_OBJECT_WANTED = (
    'the name of an object; use lower-case letters, digits, "-" and ".", with a letter or digit at both ends'
)
ObjectName = Annotated[str, AfterValidator(_shaped(_OBJECT, 253, _OBJECT_WANTED)), _schema(_OBJECT, 253)]
DeploymentName = Annotated[str, AfterValidator(_shaped(_OBJECT, 63, _OBJECT_WANTED)), _schema(_OBJECT, 63)]
_SERVICE = r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$"
_SERVICE_WANTED = 'the name of a Service; use lower-case letters, digits and "-", with a letter first'
ServiceName = Annotated[str, AfterValidator(_shaped(_SERVICE, 63, _SERVICE_WANTED)), _schema(_SERVICE, 63)]
_HOST = r"^([A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?)?$"
_HOST_WANTED = 'a host; use a Service such as "api-stable" or "api-stable.shop.svc.cluster.local"'
_SUBSET = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"


class Pool(Document):
    """A set of servers that run one version."""

    name: PoolName = Field(description="the workload's name in the metrics")
    health: Url | None = Field(
        default=None, description="a URL that answers 200 when the pool is ready; none: taken as ready"
    )


def _expand_pools(value: object) -> object:
    """Plain names become pools."""
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        count = f"{len(value)} pool" + ("" if len(value) == 1 else "s")
        raise ValueError(f"{count}; name exactly two, such as [api-v1, api-v2]")
    return tuple(item if isinstance(item, dict | Pool) else {"name": item} for item in value)


class ConfigReference(Document):
    """A ConfigMap or a Secret whose content belongs to the revision: a change of it is a new release."""

    config_map: ObjectName | None = Field(default=None, description="name of a ConfigMap")
    secret: ObjectName | None = Field(
        default=None, description="name of a Secret; in a cluster canaryd must be granted to read it"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if bool(self.config_map) == bool(self.secret):
            have = "both are given" if self.config_map else "neither is given"
            raise ValueError(f"needs exactly one of configMap and secret; {have}")
        return self


class OnDelete(StrEnum):
    RESTORE = "restore"
    ORPHAN = "orphan"


class DeploymentWorkload(Document):
    """A Deployment whose pod template people change; canaryd keeps a second one with what is proven."""

    name: DeploymentName = Field(description="the Deployment that people change: the canary")
    stable: DeploymentName = Field(
        default="", description="the Deployment that canaryd upgrades after a promotion; default NAME-stable"
    )
    replicas: int | None = Field(
        default=None, ge=1, le=10_000, description="canary pods of a rollout; default as many as stable has"
    )
    ready_timeout: Duration = Field(
        default=timedelta(minutes=10), description="longest wait for ready canary pods before the rollout ends"
    )
    keep_failed: bool = Field(default=False, description="leave the pods of a rolled back canary for inspection")
    config: Annotated[tuple[ConfigReference, ...], Field(max_length=20), _Listed] = Field(
        default=(), description="ConfigMaps and Secrets whose content is part of the revision"
    )
    on_delete: OnDelete = Field(
        default=OnDelete.RESTORE,
        description="when the Canary is deleted: restore the plain Deployment, or orphan: leave everything as it is",
    )

    @model_validator(mode="before")
    @classmethod
    def _stable_by_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("name"), str) and not value.get("stable"):
            return {**value, "stable": f"{value['name']}-stable"}
        return value

    @model_validator(mode="after")
    def _two_different(self) -> Self:
        if self.stable == self.name:
            raise MisfitError((("stable",), f"{said(self.stable)} is the canary, too; they must be two Deployments"))
        return self


class Workloads(Document):
    """The two workloads. Exactly one kind.

    Of pools the first is stable until the first promotion; then the state knows who is. Deployments keep their roles.
    """

    pools: Annotated[tuple[Pool, Pool], BeforeValidator(_expand_pools)] | None = Field(
        default=None, description="exactly two, as names or mappings; the first is stable until the first promotion"
    )
    deployment: DeploymentWorkload | None = Field(
        default=None, description="one that people change and one that canaryd keeps; in a cluster"
    )

    @field_validator("pools", mode="after")
    @classmethod
    def _two_different(cls, value: tuple[Pool, Pool] | None) -> tuple[Pool, Pool] | None:
        if value is not None and value[0].name == value[1].name:
            raise MisfitError(
                ((1,), f"both pools are called {said(value[0].name)}; stable and canary must be two workloads")
            )
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.pools is None) == (self.deployment is None):
            have = "neither is given" if self.pools is None else "both are given"
            raise ValueError(f"needs exactly one of pools and deployment; {have}")
        return self

    @property
    def names(self) -> tuple[str, str]:
        """The workload that is stable at first, and the other one."""
        if self.pools is not None:
            return self.pools[0].name, self.pools[1].name
        assert self.deployment is not None
        return self.deployment.stable, self.deployment.name


class EnvoyFile(Document):
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


class RouteRef(Document):
    """One VirtualService or HTTPRoute of the Canary's namespace."""

    name: ObjectName = Field(description="its name; each once")
    routes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=50), _Listed
    ] = Field(default=(), description="names of the routes in it; empty: every route that has both destinations")


def _expand_refs(value: object) -> object:
    """Plain names become references."""
    if isinstance(value, list):
        return tuple(item if isinstance(item, dict | RouteRef) else {"name": item} for item in value)
    return value


def _distinct_refs(refs: tuple[RouteRef, ...]) -> tuple[RouteRef, ...]:
    wrong: list[Wrong] = [
        ((i, "name"), f"{said(ref.name)} is named before; give all its routes in one place")
        for i, ref in enumerate(refs)
        if any(ref.name == before.name for before in refs[:i])
    ]
    if wrong:
        raise MisfitError(*wrong)
    return refs


RouteRefs = Annotated[
    tuple[RouteRef, ...],
    Field(min_length=1, max_length=20),
    BeforeValidator(_expand_refs),
    AfterValidator(_distinct_refs),
]


class Destination(Document):
    """What a route names one of the workloads by."""

    host: Annotated[str, AfterValidator(_shaped(_HOST, 253, _HOST_WANTED)), _schema(_HOST, 253)] = Field(
        default="", description="a Service; default NAME-stable and NAME-canary"
    )
    subset: Annotated[str, AfterValidator(_shaped(_SUBSET, 63, _NAME_WANTED)), _schema(_SUBSET, 63)] = Field(
        default="", description="a subset of a DestinationRule, where both workloads are behind one host"
    )


def _of_two(stable: Destination, canary: Destination) -> None:
    if stable == canary and stable != Destination():
        raise MisfitError((("canary",), "is the same destination as stable; they must be two"))


class Istio(Document):
    """Weights in VirtualServices; canaryd changes them and nothing else."""

    virtual_services: RouteRefs = Field(description="names, or names with the routes in them")
    stable: Destination = Field(default=Destination(), description="what the routes name stable by")
    canary: Destination = Field(default=Destination(), description="what the routes name the canary by")

    @model_validator(mode="after")
    def _different(self) -> Self:
        _of_two(self.stable, self.canary)
        return self


class GatewayApi(Document):
    """Weights in HTTPRoutes; each version behind a Service of its own."""

    http_routes: RouteRefs = Field(description="names, or names with the rules in them")
    stable: ServiceName = Field(default="", description="the Service of stable; default NAME-stable")
    canary: ServiceName = Field(default="", description="the Service of the canary; default NAME-canary")

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.stable and self.stable == self.canary:
            raise MisfitError((("canary",), "is the same Service as stable; they must be two"))
        return self


class Route(Document):
    """Where the weight is set. Exactly one kind."""

    envoy_file: EnvoyFile | None = Field(default=None, description="a route in a file that Envoy watches")
    istio: Istio | None = Field(default=None, description="weights in VirtualServices; in a cluster")
    gateway_api: GatewayApi | None = Field(default=None, description="weights in HTTPRoutes; in a cluster")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [_camel(name) for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            have = " and ".join(given) + " are given" if given else "none is given"
            raise ValueError(f"needs exactly one of envoyFile, istio and gatewayApi; {have}")
        return self


class OnInconclusive(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"
    PROMOTE = "promote"


class OnBlind(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"


class Budget(Document):
    """How much more harm than stable's is accepted in all: the larger of a share and a number per hour."""

    share: Percent = Field(default=0.001, description="of all requests of the service")
    per_hour: int = Field(default=100, ge=0, le=10_000_000, description="failed requests per hour")

    @field_validator("share")
    @classmethod
    def _range(cls, value: float) -> float:
        if not 0 < value <= 0.5:
            raise ValueError(f'{format_share(value)} is out of range; use more than 0% and at most 50%, such as "0.1%"')
        return value


class Hook(Document):
    """Upgrades the stable pool after a promotion: a command without a shell, or a webhook."""

    command: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        default=(), description="argv; run without a shell, with CANARYD_* in its environment"
    )
    webhook: Url | None = Field(default=None, description="a URL that is sent a POST with JSON; 2xx means done")
    timeout: Duration = Field(default=timedelta(minutes=5), description="longest run of one attempt")
    retries: int = Field(default=3, ge=0, le=100, description="further attempts after a failed one")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if bool(self.command) == bool(self.webhook):
            have = "both are given" if self.command else "neither is given"
            raise ValueError(f"needs exactly one of command and webhook; {have}")
        if self.command and not self.command[0]:
            raise MisfitError((("command", 0), "is empty; the first word of a command is the program"))
        return self


class ErrorSource(Document):
    """Names of the raw counters, for meshes that rename them."""

    requests: MetricName = Field(default="istio_requests_total", description="counter of requests by response code")
    durations: MetricName = Field(
        default="istio_request_duration_milliseconds_bucket", description="buckets of durations in milliseconds"
    )
    recorded_requests: MetricName = Field(
        default="canaryd:requests_total:pod", description="the same recorded per pod; preferred where it has series"
    )
    recorded_durations: MetricName = Field(
        default="canaryd:request_duration_ms_bucket:pod", description="likewise, without codes 0 and 429"
    )
    recorded_unreached: MetricName = Field(
        default="canaryd:unreached_total:pod",
        description="requests that never reached a pod, as their clients report them, recorded per client",
    )


class PrometheusRef(Document):
    """A Prometheus of the service's own. It is asked apart from all others, so that a slow one delays nobody else."""

    url: Url = Field(description="without /api/v1")

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        if "?" in value or "#" in value:
            raise ValueError('must have no "?" and no "#"; write the address as far as /api/v1')
        return value


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────


class Spec(Document):
    """What to roll out and how sure to be."""

    workloads: Workloads = Field(description="who is compared")
    route: Route = Field(description="where the weight is set")
    steps: Annotated[tuple[Step, ...], BeforeValidator(_expand_steps)] = Field(
        default=tuple(Step(weight=w) for w in DEFAULT_WEIGHTS),
        description="weights with bake and timeout, plain weights, or {from, to, by}",
    )
    metrics: tuple[Metric, ...] = Field(default_factory=default_metrics, description="what is compared")
    alpha: Percent = Field(default=0.01, description="chance that a canary no worse than tolerated is ever rolled back")
    beta: Percent = Field(default=0.05, description="chance that an unacceptable canary passes a step")
    budget: Budget = Field(default=Budget(), description="how much harm is accepted in all")
    interval: Duration = Field(default=timedelta(seconds=30), description="one look every so often")
    warm_up: Duration = Field(default=timedelta(seconds=120), description="pods younger than this do not count")
    history: Duration = Field(
        default=timedelta(days=7),
        description="how much of the past teaches how pods differ when there are few now; 0s: none",
    )
    max_hold: Duration = Field(default=timedelta(hours=4), description="longest time at one step without a decision")
    on_inconclusive: OnInconclusive = Field(
        default=OnInconclusive.HOLD,
        description="at a step's timeout: hold and tell people, roll back, or step on without proof",
    )
    on_blind: OnBlind = Field(
        default=OnBlind.HOLD,
        description="after blindDeadline without sight: hold and tell people, or roll back",
    )
    blind_deadline: Duration = Field(
        default=timedelta(minutes=5), description="onBlind applies after this long without sight"
    )
    after_promotion: Hook | None = Field(
        default=None,
        description="upgrades the stable pool after a promotion; without it the two pools swap roles",
    )
    source: ErrorSource = Field(default=ErrorSource(), description="names of the raw counters")
    prometheus: PrometheusRef | None = Field(
        default=None, description="the Prometheus that has this service's counters; default that of the daemon"
    )

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
        wrong = [
            ((i, "weight"), f"{b.weight} after {a.weight}; weights must rise from step to step")
            for i, (a, b) in enumerate(pairwise(value), start=1)
            if b.weight <= a.weight
        ]
        if wrong:
            raise MisfitError(*wrong)
        return value

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not 1 <= len(value) <= MAX_METRICS:
            raise ValueError(f"{len(value)} metrics; use 1 to {MAX_METRICS}")
        wrong: list[Wrong] = []
        for i, metric in enumerate(value):
            before = value[:i]
            if any(m.name == metric.name for m in before):
                wrong.append(((i, "name"), f"the name {said(metric.name)} is used before; names must be unique"))
            if metric.kind in ("errors", "latency", "traces") and any(m.kind == metric.kind for m in before):
                wrong.append(((i, "kind"), f"a second metric of kind {said(metric.kind)}; one counts everything"))
        if wrong:
            raise MisfitError(*wrong)
        if not any(m.kind in ("errors", "latency", "query") for m in value):
            raise ValueError("no metric of kind errors, latency or query; nothing would ever be proven")
        return value

    @field_validator("interval")
    @classmethod
    def _not_too_often(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=500) <= value <= timedelta(hours=1):
            raise ValueError(f'{format_duration(value)} is out of range; use 500ms to 1h, such as "30s"')
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if wrong := [
            *self._deadlines_not_met(),
            *self._kinds_that_do_not_match(),
            *self._clusters_not_of_pools(),
        ]:
            raise MisfitError(*wrong)
        return self

    def _deadlines_not_met(self) -> list[Wrong]:
        wrong: list[Wrong] = []
        for i, step in enumerate(self.steps):
            if step.timeout is not None and step.timeout < self.bake(i):
                message = f"{format_duration(step.timeout)} is shorter than the bake {format_duration(self.bake(i))}"
                wrong.append((("steps", i, "timeout"), f"{message}; the step could never pass"))
        if self.blind_deadline < self.interval:
            message = f"{format_duration(self.blind_deadline)} is shorter than the interval"
            wrong.append((("blindDeadline",), f"{message} {format_duration(self.interval)}"))
        return wrong

    def _kinds_that_do_not_match(self) -> list[Wrong]:
        wrong: list[Wrong] = []
        in_file = self.route.envoy_file is not None
        if self.workloads.deployment is not None:
            if in_file:
                wrong.append((("route", "envoyFile"), "splits between pools; a deployment needs istio or gatewayApi"))
            if self.after_promotion is not None:
                wrong.append((("afterPromotion",), "is for pools; canaryd itself upgrades the stable Deployment"))
        elif not in_file:
            kind = "istio" if self.route.istio is not None else "gatewayApi"
            wrong.append((("route", kind), "splits between Deployments; pools need envoyFile"))
        return wrong

    def _clusters_not_of_pools(self) -> list[Wrong]:
        if self.workloads.pools is None or self.route.envoy_file is None:
            return []
        at = ("route", "envoyFile", "clusters")
        pools = [pool.name for pool in self.workloads.pools]
        clusters = self.route.envoy_file.clusters
        wrong: list[Wrong] = [
            ((*at, name), f"there is no such pool; the pools are {' and '.join(pools)}")
            for name in clusters
            if name not in pools
        ]
        first, second = (clusters.get(name, name) for name in pools)
        if first == second:
            wrong.append((at, f"both pools use the cluster {said(first)}; they need two"))
        return wrong

    @property
    def upgrades_stable(self) -> bool:
        """After a promotion stable is upgraded and takes the traffic back; otherwise the workloads swap roles."""
        return self.after_promotion is not None or self.workloads.deployment is not None

    def queries(self) -> tuple[QueryMetric, ...]:
        """Metrics of kind query, by name: their order in the document means nothing."""
        return tuple(sorted((m for m in self.metrics if isinstance(m, QueryMetric)), key=lambda m: m.name))

    def gauges(self) -> tuple[GaugeMetric, ...]:
        """Metrics of kind gauge, by name."""
        return tuple(sorted((m for m in self.metrics if isinstance(m, GaugeMetric)), key=lambda m: m.name))

    def traces(self) -> TracesMetric | None:
        """The metric of kind traces."""
        return next((m for m in self.metrics if isinstance(m, TracesMetric)), None)

    def bake(self, step: int) -> timedelta:
        """Least evidence time at a step."""
        return self.steps[step].bake if self.steps[step].bake is not None else 4 * self.interval  # type: ignore[return-value]

    def timeout(self, step: int) -> timedelta:
        """Longest time at a step without a decision."""
        return self.steps[step].timeout or self.max_hold

    def next_weight(self, step: int) -> int:
        """Weight that passing this step leads to; promotion is 100."""
        return self.steps[step + 1].weight if step + 1 < len(self.steps) else 100


class Metadata(Document):
    """Names as in Kubernetes."""

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64)
    uid: Annotated[str, Field(max_length=64)] | None = None
    generation: Annotated[int, Field(ge=0)] | None = None


class Canary(Document):
    """The document an operator writes."""

    api_version: Literal["canaryd.io/v1alpha1"]
    kind: Literal["Canary"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def key(self) -> str:
        """What it is called where names of several namespaces meet: "shop/api" in a cluster, "api" from a file."""
        return f"{self.metadata.namespace}/{self.name}" if self.metadata.uid else self.name


def parse_canary(document: object) -> Canary:
    """A document of plain JSON values → Canary. Raises pydantic's ValidationError with every problem."""
    return Canary.model_validate_json(json.dumps(document), by_alias=True, by_name=False)


def dump_canary(canary: Canary) -> dict[str, Any]:
    """The document with every default written out; `parse_canary` reads it back as the same Canary."""
    return canary.model_dump(mode="json", by_alias=True, exclude_none=True)
