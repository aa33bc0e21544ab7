"""What makes a pod template a release: a short hash that only a change of meaning changes. Pure.

Two templates are the same release when they are the same once everything is left out that says nothing: what the API
server fills in by itself, empty values, the order of keys, other spellings of a quantity, the labels that tell one
Deployment's pods from another's, and what tools write into templates without changing what runs. `kubectl rollout
restart` therefore is no release: it restarts the same thing. The order of lists is kept, because it has a meaning in
most of them. It never looks at a cluster.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

JSON = dict[str, Any]

LENGTH = 10  # hexadecimal characters of a revision
OWN = "canaryd.io/"  # prefix of the labels and annotations that are canaryd's
TOOLS = (  # annotations that say who touched a template, not what runs
    "kubectl.kubernetes.io/restartedAt",
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
    "sidecar.istio.io/status",
    "prometheus.istio.io/merge-metrics-status",
    "field.cattle.io/publicEndpoints",
)


def revision(template: JSON, config: Mapping[str, str] | None = None, *, selector: Collection[str] = ()) -> str:
    """Ten hexadecimal characters.

    `template` is `spec.template` of a Deployment, `selector` the keys of the labels its selector asks for. `config`:
    what is referred to and belongs to the release, such as {"configMap/api-env": sha256 of its content}.
    """
    meant: JSON = {"template": canonical(template, selector=selector)}
    if config:
        meant["config"] = digest(config)
    return _hash(meant)[:LENGTH]


def digest(config: Mapping[str, str]) -> str:
    """One hash of all that is referred to; "" when nothing is."""
    return _hash(dict(config))[:LENGTH] if config else ""


def content(data: Mapping[str, Any], binary: Mapping[str, Any] | None = None) -> str:
    """The hash of what a ConfigMap or a Secret holds, in hexadecimal. The values themselves are not kept."""
    return _hash([dict(data), dict(binary or {})])


def canonical(template: JSON, *, selector: Collection[str] = ()) -> JSON:
    """The template without anything that says nothing. Always equal for two templates that mean the same."""
    meta = template.get("metadata") or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k not in selector and not k.startswith(OWN)}
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in TOOLS and not k.startswith(OWN)}
    spec = _plain(template.get("spec") or {}, _POD)
    told = {"labels": labels, "annotations": annotations, "spec": spec}
    return {key: value for key, value in told.items() if value}


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ── what the API server fills in ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of one kind of mapping: its defaults, and what is below its keys."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    below: Mapping[str, _Shape] = field(default_factory=dict)
    verbatim: frozenset[str] = frozenset()  # mappings whose keys are the operator's own: an empty text is a value
    quantities: frozenset[str] = frozenset()  # values, or values of the mapping below, that are quantities


_HTTP = _Shape({"scheme": "HTTP", "path": "/"})
_PROBE = _Shape(
    {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3, "initialDelaySeconds": 0},
    {"httpGet": _HTTP},
)
_HOOK = _Shape({}, {"httpGet": _HTTP})
_FIELD = _Shape({"apiVersion": "v1"})
_RESOURCE = _Shape({"divisor": "0"}, quantities=frozenset({"divisor"}))
_OPTIONAL = _Shape({"optional": False})
_ENV = _Shape(
    {},
    {
        "valueFrom": _Shape(
            {},
            {
                "fieldRef": _FIELD,
                "resourceFieldRef": _RESOURCE,
                "configMapKeyRef": _OPTIONAL,
                "secretKeyRef": _OPTIONAL,
            },
        )
    },
)
_CONTAINER = _Shape(
    {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "stdin": False,
        "stdinOnce": False,
        "tty": False,
    },
    {
        "ports": _Shape({"protocol": "TCP", "hostPort": 0}),
        "env": _ENV,
        "envFrom": _Shape({}, {"configMapRef": _OPTIONAL, "secretRef": _OPTIONAL}),
        "livenessProbe": _PROBE,
        "readinessProbe": _PROBE,
        "startupProbe": _PROBE,
        "lifecycle": _Shape({}, {"postStart": _HOOK, "preStop": _HOOK}),
        "resources": _Shape(quantities=frozenset({"limits", "requests"})),
        "volumeMounts": _Shape({"readOnly": False, "recursiveReadOnly": "Disabled", "mountPropagation": "None"}),
        "securityContext": _Shape({"procMount": "Default"}),
    },
)
_ITEM = _Shape({}, {"fieldRef": _FIELD, "resourceFieldRef": _RESOURCE})
_DOWNWARD = _Shape({"defaultMode": 420}, {"items": _ITEM})
_FILES = _Shape({"defaultMode": 420, "optional": False})
_SOURCE = _Shape(
    {},
    {
        "secret": _OPTIONAL,
        "configMap": _OPTIONAL,
        "downwardAPI": _Shape({}, {"items": _ITEM}),
        "serviceAccountToken": _Shape({"expirationSeconds": 3600}),
    },
)
_CLAIM = _Shape({"volumeMode": "Filesystem"}, {"resources": _Shape(quantities=frozenset({"limits", "requests"}))})
_VOLUME = _Shape(
    {"emptyDir": {}},
    {
        "secret": _FILES,
        "configMap": _FILES,
        "projected": _Shape({"defaultMode": 420}, {"sources": _SOURCE}),
        "downwardAPI": _DOWNWARD,
        "emptyDir": _Shape(quantities=frozenset({"sizeLimit"})),
        "hostPath": _Shape({"type": ""}),
        "persistentVolumeClaim": _Shape({"readOnly": False}),
        "csi": _Shape({"readOnly": False}),
        "ephemeral": _Shape({}, {"volumeClaimTemplate": _Shape({}, {"spec": _CLAIM})}),
    },
)
_POD = _Shape(
    {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "enableServiceLinks": True,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
    },
    {
        "containers": _CONTAINER,
        "initContainers": _CONTAINER,
        "volumes": _VOLUME,
        "securityContext": _Shape(),
        "topologySpreadConstraints": _Shape({"nodeAffinityPolicy": "Honor", "nodeTaintsPolicy": "Ignore"}),
    },
    verbatim=frozenset({"nodeSelector"}),
    quantities=frozenset({"overhead"}),
)
_UNKNOWN = _Shape()
# a selector that is empty takes everything, and one that is missing takes nothing
_SELECTORS = ("labelSelector", "namespaceSelector", "matchLabels")


def _plain(value: JSON, shape: _Shape) -> JSON:
    """One mapping without what says nothing."""
    value = _aliases(value) if shape is _POD else _image(value) if shape is _CONTAINER else value
    out: JSON = {}
    for key, given in value.items():
        if key in shape.verbatim or key == "matchLabels":
            kept = given
        elif key in shape.quantities:
            kept = _quantities(given)
        else:
            kept = _value(given, shape.below.get(key, _UNKNOWN))
        default = shape.defaults.get(key, None)
        if kept in (None, "", [], {}) and not (key in _SELECTORS and given is not None):
            continue
        if default is not None and type(kept) is type(default) and kept == default:
            continue
        out[key] = kept
    return out


def _value(given: object, shape: _Shape) -> object:
    if isinstance(given, dict):
        return _plain(given, shape)
    if isinstance(given, list):  # an element that is empty keeps its place
        return [_value(one, shape) for one in given]
    return given


def _aliases(spec: JSON) -> JSON:
    """The pod with one spelling for what has two, and without ports that follow from hostNetwork."""
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    out = {k: v for k, v in spec.items() if k not in ("serviceAccount", "serviceAccountName")}
    if account:
        out["serviceAccountName"] = account
    if spec.get("hostNetwork"):
        for kind in ("containers", "initContainers"):
            out[kind] = [{**c, "ports": [_unhosted(p) for p in c.get("ports") or ()]} for c in spec.get(kind) or ()]
    return out


def _unhosted(port: JSON) -> JSON:
    return {k: v for k, v in port.items() if k != "hostPort" or v != port.get("containerPort")}


def _image(container: JSON) -> JSON:
    """The container without the pull policy that its image has anyway."""
    image = container.get("image")
    name = str(image or "").rpartition("/")[2]
    latest = "@" not in name and (":" not in name or name.endswith(":latest"))
    if container.get("imagePullPolicy") != ("Always" if latest else "IfNotPresent"):
        return container
    return {k: v for k, v in container.items() if k != "imagePullPolicy"}


# ── quantities ───────────────────────────────────────────────────────────────────────────────────────────────

_SUFFIXES = {
    **{suffix: Decimal(10) ** power for suffix, power in zip("num", (-9, -6, -3), strict=True)},
    "": Decimal(1),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,3}))?")


def _quantities(given: object) -> object:
    if isinstance(given, dict):
        return {key: quantity(value) for key, value in given.items() if value not in (None, "", [], {})}
    return quantity(given)


def quantity(given: object) -> object:
    """The same text for each spelling of a quantity: "1000m", "1" and 1 are "1". What is none stays as it is."""
    match = _QUANTITY.fullmatch(str(given)) if isinstance(given, str | int | float) else None
    if match is None or isinstance(given, bool):
        return given
    number = Decimal(match[1]) * _SUFFIXES[match[2] or ""]
    if match[3]:
        number = number.scaleb(int(match[3]))
    return f"{number.normalize() + 0:f}"
