"""The objects that canaryd makes and the marks it leaves on those of others. Pure: objects in, objects and patches out.

Nothing here is ever an owner of stable: a Canary that is deleted must not take the serving pods with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canaryd.deployments.pods import HASH
from canaryd.revision import OWN, canonical, digest, revision

JSON = dict[str, Any]
Ops = list[JSON]

MANAGED = f"{OWN}managed-by"  # label: canaryd made this object
CANARY = f"{OWN}canary"  # label: for this Canary
ROLE = f"{OWN}role"  # label on the pods of a stable Deployment that canaryd made
REVISION = f"{OWN}revision"  # annotation: what stable's template is
CONFIG = f"{OWN}config"  # annotation: hash of the ConfigMaps and Secrets that belong to it
STAMP = f"{OWN}stamp"  # annotation: who wrote last, and at which version of the state
SEEN = f"{OWN}seen"  # annotation of the canary's Deployment: which generation of it is which revision
UPGRADE = f"{OWN}upgrade"  # annotation: the upgrade that brought stable's template
REPLICAS = f"{OWN}replicas"  # annotation: how many stable had before it was made larger for an upgrade
HELD = f"{OWN}held"  # annotation of an autoscaler: what it was before a rollout
RESTORED = f"{OWN}restored"  # annotation: the plain Deployment has been brought back
TARGET = f"{OWN}target"  # annotation of an autoscaler: the Deployment it was for before canaryd
MANAGER = "canaryd"
STABLE = "stable"
NOBODY = "none"  # value of pod-template-hash that no pod has

# what else of a Deployment goes with its template
SETTINGS = ("strategy", "minReadySeconds", "progressDeadlineSeconds", "revisionHistoryLimit")


def annotation(obj: JSON, key: str) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(key, ""))


def label(obj: JSON, key: str) -> str:
    return str((obj["metadata"].get("labels") or {}).get(key, ""))


def managed(canary: str) -> dict[str, str]:
    """The labels of an object that canaryd made for a Canary of this name."""
    return {MANAGED: MANAGER, CANARY: canary}


def is_ours(obj: JSON | None, canary: str) -> bool:
    """canaryd made it, for this Canary."""
    return obj is not None and label(obj, MANAGED) == MANAGER and label(obj, CANARY) == canary


def template(deployment: JSON) -> JSON:
    found: JSON = deployment["spec"]["template"]
    return found


def selector_keys(deployment: JSON) -> set[str]:
    """The labels that its selector asks for."""
    selector = deployment["spec"].get("selector") or {}
    return set(selector.get("matchLabels") or {}) | {e["key"] for e in selector.get("matchExpressions") or ()}


def revision_of(deployment: JSON, config: Mapping[str, str]) -> str:
    return revision(template(deployment), config, selector=selector_keys(deployment))


_VERSIONS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def mesh_version(deployment: JSON | None) -> str:
    """What Istio calls the version of its pods, in the tag istio.canonical_revision of their spans; "" without it."""
    if deployment is None:
        return ""
    labels = (template(deployment).get("metadata") or {}).get("labels") or {}
    return str(next((labels[key] for key in _VERSIONS if labels.get(key)), "latest"))


def same_template(one: JSON, other: JSON) -> bool:
    """Both Deployments run the same, but for the labels that their selectors ask for."""
    keys = selector_keys(one) | selector_keys(other)
    return canonical(template(one), selector=keys) == canonical(template(other), selector=keys)


# ── memory in annotations ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Seen:
    """What one generation of the canary's Deployment is, so that a hash need not stay the same for ever."""

    generation: int = 0
    revision: str = ""
    config: str = ""  # hash of the ConfigMaps and Secrets then
    hash: str = ""  # pod-template-hash of its pods, when they were all of this revision
    rollout: str = ""  # the rollout that brought it up

    @classmethod
    def of(cls, deployment: JSON) -> Seen:
        """Nothing, when it was never written or is not understood."""
        try:
            told = json.loads(annotation(deployment, SEEN) or "{}")
            return cls(
                int(told.get("generation", 0)),
                *(str(told.get(k, "")) for k in ("revision", "config", "hash", "rollout")),
            )
        except (ValueError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        told = {
            "generation": self.generation,
            "revision": self.revision,
            "config": self.config,
            "hash": self.hash,
            "rollout": self.rollout,
        }
        return _compact({key: value for key, value in told.items() if value})


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who writes, and at which version of the state."""

    canary: str  # key
    uid: str
    version: int
    weight: int
    workload: str

    def text(self) -> str:
        told = {"canary": self.canary, "uid": self.uid, "version": self.version}
        return _compact({**told, "weight": self.weight, "workload": self.workload})

    def is_behind(self, obj: JSON) -> int:
        """The newer version of the same Canary's state that is on the object; 0 when there is none."""
        try:
            told = json.loads(annotation(obj, STAMP) or "{}")
            version = int(told.get("version", 0)) if told.get("uid") == self.uid else 0
        except (ValueError, TypeError, AttributeError):
            return 0
        return version if version > self.version else 0


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────


def patch(
    obj: JSON,
    *,
    spec: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str | None] | None = None,
    generation: bool = False,
    unchanged: Sequence[str] = (),
) -> Ops:
    """A JSON patch that is refused when the object, or an annotation that it changes, is not what was looked at.

    `spec`: new values by key; None removes. `annotations` likewise. `generation`: refused, too, when the spec is not
    the one that was looked at; `unchanged`: likewise for these keys of it.
    """
    meta = obj["metadata"]
    ops: Ops = [_test("/metadata/uid", meta.get("uid"))]
    if generation:
        ops.append(_test("/metadata/generation", meta.get("generation")))
    ops += [_test(f"/spec/{key}", obj["spec"].get(key)) for key in unchanged]
    had = meta.get("annotations")
    if annotations is not None:
        if had is None:
            ops += [_test("/metadata/resourceVersion", meta.get("resourceVersion")), _add("/metadata/annotations", {})]
        else:
            ops += [_test(f"/metadata/annotations/{_escaped(key)}", had.get(key)) for key in annotations]
        ops += _set("/metadata/annotations", had or {}, annotations)
    return ops + _set("/spec", obj["spec"], spec or {})


def _set(path: str, had: Mapping[str, Any], wanted: Mapping[str, Any]) -> Ops:
    ops: Ops = []
    for key, value in wanted.items():
        where = f"{path}/{_escaped(key)}"
        if value is not None:
            ops.append(_add(where, value))
        elif key in had:
            ops.append({"op": "remove", "path": where})
    return ops


def _test(path: str, value: object) -> JSON:
    return {"op": "test", "path": path, "value": value}


def _add(path: str, value: object) -> JSON:
    return {"op": "add", "path": path, "value": value}


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────


def settings(deployment: JSON) -> JSON:
    """What goes with the template: how pods are replaced."""
    return {key: copy.deepcopy(deployment["spec"][key]) for key in SETTINGS if key in deployment["spec"]}


def bare(made: JSON) -> JSON:
    """A template without canaryd's own marks."""
    out = copy.deepcopy(made)
    meta = out.setdefault("metadata", {})
    meta.pop("creationTimestamp", None)
    for part in ("labels", "annotations"):
        if meta.get(part):
            meta[part] = {k: v for k, v in meta[part].items() if not k.startswith(OWN)}
    return out


def fitted(made: JSON, deployment: JSON, *, annotations: Mapping[str, str] | None = None) -> JSON:
    """A template as this Deployment can have it: with the labels that its selector, which cannot change, asks for."""
    out = bare(made)
    meta = out["metadata"]
    own = template(deployment).get("metadata", {}).get("labels") or {}
    wanted = {key: own[key] for key in sorted(selector_keys(deployment)) if key in own}
    meta["labels"] = {**(meta.get("labels") or {}), **wanted}
    if annotations:
        meta["annotations"] = {**(meta.get("annotations") or {}), **annotations}
    return out


def stable_deployment(
    canary: JSON, name: str, owner: str, made: JSON, how: JSON, replicas: int, marks: Mapping[str, str]
) -> JSON:
    """A Deployment beside the canary's, whose pods are the canary's and one label more.

    The canary's selector takes these pods, too; that is harmless, because controllers go by owners, and it is meant:
    whatever selects the pods of the service (Services, policies, budgets, monitors) goes on selecting all of them.
    """
    selector = copy.deepcopy(canary["spec"]["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), ROLE: STABLE}
    pod = bare(made)
    pod["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), ROLE: STABLE}
    if marks.get(CONFIG):
        pod["metadata"]["annotations"] = {**(pod["metadata"].get("annotations") or {}), CONFIG: marks[CONFIG]}
    meta = canary["metadata"]
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if not _of_tools(k)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": {**labels, **managed(owner)},
            "annotations": {key: value for key, value in marks.items() if value},
        },
        "spec": {"replicas": replicas, "selector": selector, "template": pod, **how},
    }


def _of_tools(key: str) -> bool:
    """A label by which a tool knows what it has applied: on a copy it would be taken for one to be pruned."""
    return key.startswith(("kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/", "argocd.argoproj.io/", OWN)) or (
        key in ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by")
    )


def service(origin: JSON, name: str, owner: str, selector: Mapping[str, str]) -> JSON:
    """A Service with the ports of the service itself, for some of its pods."""
    spec = origin["spec"]
    ports = [{k: v for k, v in port.items() if k != "nodePort"} for port in spec.get("ports") or ()]
    kept = {k: spec[k] for k in ("ipFamilyPolicy", "internalTrafficPolicy", "publishNotReadyAddresses") if k in spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": origin["metadata"]["namespace"], "labels": managed(owner)},
        "spec": {**copy.deepcopy(kept), "ports": copy.deepcopy(ports), "selector": dict(selector)},
    }


def canary_selector(origin: JSON, hashed: str) -> dict[str, str]:
    """Selects the pods of one template among those of the service."""
    return {**(origin["spec"].get("selector") or {}), HASH: hashed or NOBODY}


def stable_selector(origin: JSON, stable: JSON | None) -> dict[str, str]:
    """Selects stable's pods among those of the service."""
    chosen = dict(origin["spec"].get("selector") or {})
    if stable is None or ROLE in selector_keys(stable):
        return {**chosen, ROLE: STABLE}
    return {**chosen, **(stable["spec"]["selector"].get("matchLabels") or {})}


# ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────────


def pin_name(canary: str, revision: str) -> str:
    return f"{canary}-{revision}"


def pin(canary: str, namespace: str, uid: str, revision: str, deployment: JSON, config: Mapping[str, str]) -> JSON:
    """The template of a revision as it was when it was first seen, so that what was analysed can be promoted later."""
    owner = {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "name": canary, "uid": uid}
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": pin_name(canary, revision),
            "namespace": namespace,
            "labels": managed(canary),
            "annotations": {REVISION: revision},
            "ownerReferences": [owner] if uid else [],
        },
        "revision": 1,
        "data": {
            "template": bare(template(deployment)),
            "settings": settings(deployment),
            "config": digest(config),
        },
    }
