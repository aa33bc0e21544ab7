"""The CustomResourceDefinition of the Canary, made from the types that validate the documents. Pure.

Keys, types, limits, words and defaults come from `canaryd.policy`; here stands only what a structural schema says in
another way: one mapping for all kinds of metric, and rules in CEL for what types cannot say. The API server so refuses
what `parse_canary` would refuse, and `kubectl explain` reads like the reference. Never writes a default into the
schema: an object holds what its author wrote, and a default may change with the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel

from canaryd.model import Phase, Verdict
from canaryd.policy import (
    KIND,
    MAX_METRICS,
    MAX_STEPS,
    ErrorsMetric,
    GaugeMetric,
    LatencyMetric,
    Metadata,
    QueryMetric,
    Spec,
    Tolerance,
    TracesMetric,
    default_metrics,
    parse_duration,
)

GROUP = "canaryd.io"
VERSION = "v1alpha1"
PLURAL = "canaries"
SINGULAR = "canary"
SHORT_NAMES = ("cny",)
CATEGORIES = ("canaryd", "delivery")
NAME = f"{PLURAL}.{GROUP}"
METRICS: tuple[type[BaseModel], ...] = (ErrorsMetric, LatencyMetric, GaugeMetric, QueryMetric, TracesMetric)
Schema = dict[str, Any]

# Forms for canaryd beside Envoy. A hook's command would run with the daemon's rights: nobody asks for one over an API.
LEFT_OUT = frozenset({"Workloads.pools", "Route.envoyFile", "Spec.afterPromotion"})
# Limits that validators check and the schemas of the types do not carry, by "Model.key".
LIMITS: Mapping[str, Schema] = {
    "Spec.steps": {"minItems": 1, "maxItems": MAX_STEPS},
    "Spec.metrics": {"minItems": 1, "maxItems": MAX_METRICS},
    "Step.weight": {"minimum": 1, "maximum": 100},
    "Workloads": {"required": ["deployment"]},
}
# Lists whose items two writers may own apart: by which key an item is known.
LIST_KEYS = {"Spec.metrics": "name", "Istio.virtualServices": "name", "GatewayApi.httpRoutes": "name"}
# What reads otherwise in a cluster than in a file.
WORDS = {
    "Canary": "A service whose releases get traffic step by step, as long as they are shown not to be worse.",
    "Spec.steps": "weights with bake and timeout; weights rise from step to step",
    "Spec.metrics": "what is compared; at least one of kind errors, latency or query",
    "Spec.alpha": "chance that a canary no worse than tolerated is ever rolled back, 0.0001% to 50%",
    "Spec.beta": "chance that an unacceptable canary passes a step, 0.0001% to 50%",
    "Spec.interval": "one look every so often, 500ms to 1h",
    "Istio.virtualServices": "VirtualServices of the Canary's namespace",
    "GatewayApi.httpRoutes": "HTTPRoutes of the Canary's namespace",
    "Workloads.deployment": "a Deployment that people change, and one that canaryd keeps with what is proven",
    "Route.istio": "weights in VirtualServices; canaryd changes them and nothing else",
    "Route.gatewayApi": "weights in HTTPRoutes; each version behind a Service of its own",
    "Spec.route": "where the weight is set; exactly one of istio and gatewayApi",
    "ConfigReference": "Exactly one of configMap and secret: a change of its content is a new release.",
    "Budget.share": "share of all requests of the service, more than 0%, at most 50%",
    "PrometheusRef.url": "its address, without /api/v1 and without a password",
}


# ── rules in CEL ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Rule:
    """What must be true of `self`, and what is said otherwise."""

    that: str
    message: str  # what would be right
    path: str = ""  # the field at fault, below the one that has the rule

    def schema(self) -> Schema:
        at = {"fieldPath": self.path} if self.path else {}
        return {"rule": self.that, "message": self.message, **at}


def _text(value: str) -> str:
    """A literal in CEL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _or(field: str, given: str, default: str) -> str:
    """What is computed from an optional field, or what holds without it."""
    return f"(has({field}) ? {given} : {default})"


def _ms(text: str) -> str:
    """A duration in milliseconds, as a double; what is no duration counts as 0."""
    units = "{'ms': 1.0, 's': 1000.0, 'm': 60000.0, 'h': 3600000.0, 'd': 86400000.0}"
    number = f"double(part.find('[0-9.]+')) * {units}[part.find('[a-z]+')]"
    return f"{text}.findAll('[0-9]+([.][0-9]+)?(ms|[smhd])').map(part, {number}).sum()"


def _percent(text: str) -> str:
    """The number in `"5%"`, as a double; an error for a text without one."""
    return f"double({text}.find('[0-9.]+([eE]-[0-9]+)?'))"


def _matches(text: str, pattern: str) -> str:
    return f"{text}.matches({_text(pattern)})"


def _pattern(model: type[BaseModel], key: str) -> str:
    return str(_properties(model)[key]["pattern"])


def _properties(model: type[BaseModel]) -> dict[str, Schema]:
    return dict(model.model_json_schema(by_alias=True)["properties"])


def _kind(model: type[BaseModel]) -> str:
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a mapping as a document would have them: "30s", "5%"; None where a key has none."""
    return model.model_construct().model_dump(mode="json", by_alias=True, warnings=False)


_DURATION = _pattern(Spec, "interval")
_SHARE = _pattern(Spec, "alpha")
_TOLERANCE = _pattern(ErrorsMetric, "tolerance")
_DEFAULTS = defaults(Spec)


def _duration(least: str = "0s", most: str = "366d") -> Rule:
    low, high = (parse_duration(bound).total_seconds() * 1000 for bound in (least, most))
    bounds = [f"{_ms('self')} >= {low}"] if low else []
    bounds.append(f"{_ms('self')} <= {high}")
    return Rule(
        " && ".join([_matches("self", _DURATION), *bounds]),
        f'use a number with a unit, such as "30s", "5m" or "1h30m", {least} to {most}',
    )


def _share(least: float, most: int, example: str) -> Rule:
    """least 0.0: more than nothing."""
    low = f"{_percent('self')} >= {least:.6f}" if least else f"{_percent('self')} > 0.0"
    words = f"{least:g}% to {most}%" if least else f"more than 0%, at most {most}%"
    return Rule(
        f"{_matches('self', _SHARE)} && {low} && {_percent('self')} <= {most}.0",
        f'use a percentage such as "{example}", {words}',
    )


_PLACES = r"^(\{*\{\{\s*(workload|namespace|window)\s*\}\}|\{[^{]|[^{])*\{?$"
_DIFFERENCE = r"\b(rate|irate|increase|delta|idelta)\s*\("
_RAW = Rule(
    f"!{_matches('self.stable', _DIFFERENCE)} && !{_matches('self.canary', _DIFFERENCE)}",
    "give raw counters without rate(), increase() or delta(); canaryd counts between looks itself",
)
_KNOWN_PLACES = "can fill in only {{workload}}, {{namespace}} and {{window}}; nothing else may stand in {{ }}"
_TWO_DESTINATIONS = "stable and canary are the same; they must be two"


def _kind_rules() -> Iterator[Rule]:
    """Which keys a metric has is a matter of its kind."""
    every = list(dict.fromkeys(key for model in METRICS for key in _properties(model)))
    for model in METRICS:
        kind, schema = _kind(model), model.model_json_schema(by_alias=True)
        own = list(schema["properties"])
        foreign = " && ".join(f"!has(self.{key})" for key in every if key not in own)
        yield Rule(f"self.kind != '{kind}' || ({foreign})", f"a metric of kind {kind} has only {_list(own)}")
        for key in schema["required"]:
            if key not in ("name", "kind"):
                rule = f"self.kind != '{kind}' || has(self.{key})"
                yield Rule(rule, f"a metric of kind {kind} needs {key}, with stable and canary", f".{key}")


def _tolerance_rules() -> Iterator[Rule]:
    """A tolerance is a text with points for some kinds and a plain percentage for others."""
    for model, key in ((LatencyMetric, "tolerance"), (LatencyMetric, "margin"), (GaugeMetric, "tolerance")):
        kind, text = _kind(model), f"self.{key}"
        yield Rule(
            f"self.kind != '{kind}' || !has({text}) || "
            f"({_matches(text, _SHARE)} && {_percent(text)} > 0.0 && {_percent(text)} <= 1000.0)",
            f'for kind {kind} use a percentage such as "{defaults(model)[key]}", more than 0%, at most 1000%',
            f".{key}",
        )
    margin, tolerance = (
        _or(f"self.{key}", _percent(f"self.{key}"), str(float(defaults(LatencyMetric)[key].rstrip("%"))))
        for key in ("margin", "tolerance")
    )
    unread = [f"has(self.{key}) && !{_matches(f'self.{key}', _SHARE)}" for key in ("margin", "tolerance")]
    yield Rule(
        f"self.kind != 'latency' || ({unread[0]}) || ({unread[1]}) || {margin} >= {tolerance}",
        "must be at least tolerance: what must be ruled out cannot be less than what is accepted",
        ".margin",
    )


def _text_tolerance() -> Rule:
    parts = f"self.split('+').all(part, {_percent('part')} <= 10000.0)"
    return Rule(
        f"{_matches('self', _TOLERANCE)} && {parts}",
        'use "5%" (of stable\'s own value), "0.02pp" (percentage points) or both: "5% + 0.02pp"; at most 10000%',
    )


def _at_most_one(kind: str) -> Rule:
    return Rule(
        f"self.filter(metric, metric.kind == '{kind}').size() <= 1",
        f"have at most one metric of kind {kind}; one counts everything",
    )


def _span(key: str) -> str:
    """A duration of the spec in milliseconds."""
    default = parse_duration(_DEFAULTS[key]).total_seconds() * 1000
    return _or(f"self.{key}", _ms(f"self.{key}"), str(default))


def _step_rules() -> Iterator[Rule]:
    interval = _span("interval")
    bake = _or("step.bake", _ms("step.bake"), f"4.0 * {interval}")
    yield Rule(
        f"!has(self.steps) || self.steps.all(step, !has(step.timeout) || {_ms('step.timeout')} >= {bake})",
        "each timeout must be at least the step's bake (default four intervals), or the step could never pass",
        ".steps",
    )
    longer = "must be at least interval"
    yield Rule(f"{_span('blindDeadline')} >= {interval}", longer, ".blindDeadline")


def _of(arm: str, key: str) -> str:
    return _or(f"self.{arm}.{key}", f"self.{arm}.{key}", "''")


def _same(key: str) -> str:
    return f"({_of('stable', key)} == {_of('canary', key)})"


RULES: Mapping[str, tuple[Rule, ...]] = {
    "Spec": tuple(_step_rules()),
    "Spec.steps": (
        Rule(
            "self.map(step, step.weight).isSorted() && "
            "self.all(step, self.exists_one(other, other.weight == step.weight))",
            "weights must rise from step to step, such as 5, 10, 25, 50, 100",
        ),
    ),
    "Spec.metrics": (
        Rule(
            "self.exists(metric, metric.kind in ['errors', 'latency', 'query'])",
            "need at least one metric of kind errors, latency or query; or nothing would ever be proven",
        ),
        _at_most_one("errors"),
        _at_most_one("latency"),
        _at_most_one("traces"),
    ),
    "Metric": (*_kind_rules(), *_tolerance_rules()),
    "QueryMetric.failures": (_RAW,),
    "QueryMetric.total": (_RAW,),
    "ArmQueries.stable": (Rule(_matches("self", _PLACES), _KNOWN_PLACES),),
    "ArmQueries.canary": (Rule(_matches("self", _PLACES), _KNOWN_PLACES),),
    "ArmValues": (
        Rule(
            "!self.stable.exists(value, value in self.canary)",
            "has values of stable, too; a value tells one arm",
            ".canary",
        ),
    ),
    "Spec.alpha": (_share(0.0001, 50, "1%"),),
    "Spec.beta": (_share(0.0001, 50, "5%"),),
    "Budget.share": (_share(0.0, 50, "0.1%"),),
    "Spec.interval": (_duration("500ms", "1h"),),
    "PrometheusRef.url": (
        Rule("!self.matches('[?#]')", 'must have no "?" and no "#"; write the address as far as /api/v1'),
    ),
    "Route": (Rule("has(self.istio) != has(self.gatewayApi)", "give exactly one of istio and gatewayApi"),),
    "DeploymentWorkload": (
        Rule(
            "!has(self.stable) || self.stable != self.name",
            "must not be name: the stable Deployment and the canary must be two",
            ".stable",
        ),
        Rule(
            "(has(self.stable) && self.stable != '') || size(self.name) <= 56",
            "is too long for NAME-stable; use at most 56 characters, or give stable",
            ".name",
        ),
    ),
    "ConfigReference": (Rule("has(self.configMap) != has(self.secret)", "give exactly one of configMap and secret"),),
    "Istio": (
        Rule(
            f"!has(self.stable) || !has(self.canary) || !{_same('host')} || !{_same('subset')} || "
            f"({_of('stable', 'host')} == '' && {_of('stable', 'subset')} == '')",
            _TWO_DESTINATIONS,
            ".canary",
        ),
    ),
    "GatewayApi": (
        Rule(
            "!has(self.stable) || !has(self.canary) || self.stable == '' || self.stable != self.canary",
            _TWO_DESTINATIONS,
            ".canary",
        ),
    ),
}


# ── from types to a structural schema ────────────────────────────────────────────────────────────────────────


def spec_schema() -> Schema:
    """The structural schema of `spec`: no references, no unions, every text and list with a limit."""
    return {"description": WORDS["Canary"], **_mapping(Spec)}


def _mapping(model: type[BaseModel]) -> Schema:
    """A mapping with all its keys, described by the model's own words."""
    name, schema = model.__name__, model.model_json_schema(by_alias=True)
    known, given = _models_below(model), defaults(model)
    properties = {
        key: _value(f"{name}.{key}", value, known, given.get(key))
        for key, value in schema["properties"].items()
        if f"{name}.{key}" not in LEFT_OUT
    }
    required = {"required": schema["required"]} if "required" in schema else {}
    return _finished(
        name, _described(name, model.__doc__ or ""), {"type": "object", **required, "properties": properties}
    )


def _value(place: str, schema: Schema, known: Mapping[str, type[Any]], default: Any = None) -> Schema:
    """What stands at a key or in a list; `place` is "Model.key" or "Model.key[]"."""
    options = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
    form = {**schema, **options[0]} if options else schema
    if "$ref" in form:
        model = known[form["$ref"].rpartition("/")[2]]
        built = _enum(model) if issubclass(model, Enum) else _mapping(model)
    elif "oneOf" in form:
        built = _metric()
    elif form.get("type") == "array":
        built = {"type": "array", "items": _value(f"{place}[]", form["items"], known)}
        key = LIST_KEYS.get(place)
        built |= (
            {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
            if key
            else {"x-kubernetes-list-type": "atomic"}
        )
    else:
        built = {}
    carried = {key: form[key] for key in _CARRIED if key in form}
    words = _described(place, schema.get("description") or built.get("description", ""), default)
    return _finished(place, words, {**carried, **built}, form.get("example"))


_CARRIED = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern")
_QUANTITIES = {"30s": _duration(), "5% + 0.02pp": _text_tolerance()}


def _finished(place: str, words: str, schema: Schema, quantity: str | None = None) -> Schema:
    """With words, limits and rules; a rule that checks the form of a quantity says more than its pattern."""
    rules = RULES.get(place, ())
    if quantity is not None:
        rules = rules or ((_QUANTITIES[quantity],) if quantity in _QUANTITIES else ())
        schema = {key: value for key, value in schema.items() if key != "pattern"}
    checks = {"x-kubernetes-validations": [rule.schema() for rule in rules]} if rules else {}
    said = {"description": words} if words else {}
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {**said, **rest, **LIMITS.get(place, {}), **checks}


def _enum(model: type[Enum]) -> Schema:
    return {"type": "string", "enum": [item.value for item in model]}


def _metric() -> Schema:
    """One mapping with the keys of every kind; rules say which kind has which."""
    properties: dict[str, Schema] = {}
    for key in dict.fromkeys(key for model in METRICS for key in _properties(model)):
        having = [model for model in METRICS if key in _properties(model)]
        built = [_mapping(model)["properties"][key] for model in having]
        widest = max(built, key=lambda schema: int(schema.get("maxLength", 0)))
        properties[key] = {**widest, "description": _by_kind(key, having)}
    properties["kind"] |= {"type": "string", "enum": [_kind(model) for model in METRICS]}
    words = "One thing that is compared. Which keys it has is a matter of its kind."
    return _finished("Metric", words, {"type": "object", "required": ["name", "kind"], "properties": properties})


def _by_kind(key: str, models: list[type[BaseModel]]) -> str:
    """What a key means, the same words said once with the kinds that they are for."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        words, default = _properties(model)[key]["description"], _shown("", defaults(model).get(key))
        kinds.setdefault(f"{words} (default {default})" if default and key != "kind" else words, []).append(
            _kind(model)
        )
    if len(kinds) == 1 and len(models) == len(METRICS):
        return _sentence(next(iter(kinds)))
    return "; ".join(f"{', '.join(of)}: {words}" for words, of in kinds.items()) + "."


def _models_below(model: type[BaseModel]) -> dict[str, type[Any]]:
    """The models and enumerations named in the types of a mapping's keys, by name."""
    found: dict[str, type[Any]] = {}
    waiting = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation: Any = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, (BaseModel, Enum)) and annotation is not Tolerance:
            found[annotation.__name__] = annotation
        waiting.extend(get_args(annotation))
    return found


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────


def _sentence(words: str) -> str:
    """With a capital, unless it begins with a key or a name such as gRPC, and a full stop; on one line."""
    plain = " ".join(words.split())
    first = plain.split(" ", 1)[0]
    begun = plain[:1].upper() + plain[1:] if first == first.lower() else plain
    return begun.rstrip(".") + "." if begun else ""


def _described(place: str, words: str, default: Any = None) -> str:
    text = _sentence(WORDS.get(place, words))
    shown = _shown(place, default)
    return text if not shown or "default" in text.lower() else f"{text} Default: {shown}."


def _shown(place: str, default: Any) -> str:
    """A default in a sentence; nothing for what is empty or has keys of its own."""
    if place == "Spec.metrics":
        default = [metric.model_dump(mode="json")["name"] for metric in default_metrics()]
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        items = [str(item["weight"]) if isinstance(item, dict) else str(item) for item in default]
        return ", ".join(items)
    return "" if default is None or isinstance(default, dict) else str(default)


# ── the definition ───────────────────────────────────────────────────────────────────────────────────────────


def definition() -> Schema:
    """The whole CustomResourceDefinition, in the order in which it is read."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.schema() for column in COLUMNS],
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": _canary()},
    }
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": SINGULAR,
        "shortNames": list(SHORT_NAMES),
        "categories": list(CATEGORIES),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get canaries`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False  # only with -o wide

    def schema(self) -> Schema:
        wide = {"priority": 1} if self.wide else {}
        return {"name": self.name, "type": self.type, **wide, "jsonPath": self.path}


COLUMNS = (
    Column("Phase", ".status.phase"),
    Column("Step", ".status.step"),
    Column("Weight", ".status.weight.desired", "integer"),
    Column("Verdict", ".status.verdict"),
    Column("Revision", ".status.revision"),
    Column("Age", ".metadata.creationTimestamp", "date"),
    Column("Observed", ".status.weight.observed", "number", wide=True),
    Column("Decisive", ".status.decisive", wide=True),
    Column("Message", ".status.message", wide=True),
)


def _canary() -> Schema:
    named = _value("Metadata.name", _properties(Metadata)["name"], {})
    return {
        "description": WORDS["Canary"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"{GROUP}/{VERSION}.", "type": "string"},
            "kind": {"description": f"{KIND}.", "type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": {k: v for k, v in named.items() if k != "description"}},
            },
            "spec": spec_schema(),
            "status": status_schema(),
        },
    }


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────

_OPAQUE = "Written by canaryd, not for reading."
_LARGEST = 1_048_576  # characters; canaryd keeps the whole status below 16 KB


def _said(words: str, longest: int) -> Schema:
    return {"description": words, "type": "string", "maxLength": longest}


def _time(words: str) -> Schema:
    return {"description": words, "type": "string", "format": "date-time"}


def _whole(words: str, **bounds: int) -> Schema:
    return {"description": words, "type": "integer", "format": "int64", "minimum": 0, **bounds}


def _object(words: str, properties: Schema) -> Schema:
    return {"description": words, "type": "object", "properties": properties}


def status_schema() -> Schema:
    """What canaryd writes: where the rollout is, in words and numbers, and its own state."""
    properties = {
        "observedGeneration": _whole("The generation of the Canary that was decided on."),
        "phase": {
            "description": "Where the rollout is.",
            "type": "string",
            "enum": [phase.value for phase in Phase],
        },
        "step": _said("The step and how many there are, such as 2/5; empty outside steps.", 16),
        "weight": _weight_schema(),
        "verdict": {
            "description": "What the evidence says; empty where nothing is judged.",
            "type": "string",
            "enum": [*(verdict.value for verdict in Verdict), ""],
        },
        "rollout": _said("The rollout's name in the records.", 300),
        "revision": _said("The revision that is rolled out, or was last.", 256),
        "stableRevision": _said("The revision that is proven.", 256),
        "message": _said("The latest decision and why.", 1024),
        "decisive": _said("The metric that was decisive.", 253),
        "progress": _said("How far the evidence is, to a step and to a rollback.", 64),
        "next": _said("What is waited for.", 256),
        "started": {**_time("When the rollout began."), "nullable": True},
        "nextLook": {**_time("When canaryd looks again."), "nullable": True},
        "conditions": _conditions_schema(),
        "lastOverride": _override_schema(),
        "answered": {
            "description": _OPAQUE,
            "type": "array",
            "maxItems": 128,
            "items": {"type": "string", "maxLength": 64},
            "x-kubernetes-list-type": "atomic",
        },
        "owed": _whole("Decisions that people have not been told yet."),
        "version": _whole(_OPAQUE),
        "state": _said(_OPAQUE, _LARGEST),
        "records": _said(_OPAQUE, _LARGEST),
    }
    return _object("Where the rollout is. Written by canaryd.", properties)


def _weight_schema() -> Schema:
    configured = _whole("What the route says; absent where that is not known.", maximum=100)
    observed = {**_whole("What arrived at the canary; absent where that is not known.", maximum=100), "type": "number"}
    return _object(
        "Percent of requests for the canary.",
        {
            "desired": _whole("What canaryd wants.", maximum=100),
            "configured": {**configured, "nullable": True},
            "observed": {**observed, "format": "double", "nullable": True},
        },
    )


def _conditions_schema() -> Schema:
    item = _object(
        "One thing that can be waited for with kubectl wait.",
        {
            "type": _said("Ready, Progressing, Promoted, Healthy or another.", 64),
            "status": {"description": "Whether it is so.", "type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": _whole("The generation of the Canary that this was said of."),
            "lastTransitionTime": _time("When status last changed."),
            "reason": {**_said("Why, in one word.", 64), "pattern": "^[A-Za-z][A-Za-z0-9]*$"},
            "message": _said("Why, in a sentence.", 1024),
        },
    )
    item["required"] = ["type", "status", "lastTransitionTime", "reason", "message"]
    return {
        "description": "Ready: the Canary is looked after. Progressing: a rollout is under way. Promoted: the latest "
        "revision is stable. Healthy: nothing speaks against what is rolled out.",
        "type": "array",
        "maxItems": 16,
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }


def _override_schema() -> Schema:
    return _object(
        "What became of the last word: of canaryd promote, abort and others, or of the annotation canaryd.io/override.",
        {
            "id": _said("Which word it was.", 200),
            "action": _said("What was asked for.", 64),
            "revision": _said("The revision that it was said of.", 256),
            "by": _said("Who asked.", 256),
            "reason": _said("Why it was asked for.", 512),
            "accepted": {"description": "Whether it was done.", "type": "boolean"},
            "message": _said("What was done, or why not.", 1024),
            "at": _time("When it was answered."),
        },
    )
