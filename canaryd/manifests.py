"""What is applied to a cluster so that canaryd runs there: plain objects, the same for the same wishes. Pure.

Rights come from `canaryd.permissions` and nothing is granted beside it: no Secrets, no wildcard, no verb on Roles. The
definition of the resource comes from `canaryd.crd`. `scripts/manifests.py` writes manifests/base/50-canaryd from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from canaryd import crd, yamlout
from canaryd.permissions import DAEMON, OPERATOR, VIEWER, Need, Scope

Object = dict[str, Any]

NAME = "canaryd"
SETTINGS = (
    "canaryd-settings"  # not NAME: kustomize adds a hash to it, and to every equal name in a Role, also a Lease's
)
USER = 10001  # of the image
PORT = 9095
DASHBOARD = 9096
DASHBOARD_FILES = "canaryd-dashboard"  # made by hand: keys "tokens" and "session-key"
_SECRETS = "/etc/canaryd-dashboard"
RBAC = "rbac.authorization.k8s.io"
PART_OF = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": NAME}
_PICKED = {"app.kubernetes.io/name": NAME}
_UNNAMED = ("create", "list", "watch", "deletecollection")  # verbs that RBAC cannot grant for one name


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """What differs from place to place."""

    image: str
    namespace: str = NAME
    watched: tuple[str, ...] = ()  # namespaces whose Canaries are looked after; none: those of the whole cluster
    prometheus: str = "http://prometheus.monitoring:9090"
    dashboard: str = ""  # where people will find it, https://…; "" for none

    @property
    def everywhere(self) -> bool:
        return not self.watched


def everything(install: Install) -> list[Object]:
    """All objects in the order in which they can be applied."""
    settings = settings_text(install)
    mark = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return [
        namespace(install),
        crd.definition(),
        *service_account(install),
        *people(install),
        *lease_rights(install),
        *(cluster_rights(install) if install.everywhere else watched_rights(install)),
        settings_map(install, settings),
        deployment(install, {"canaryd.io/settings": mark}),
        *around(install),
    ]


# ── identity and rights ──────────────────────────────────────────────────────────────────────────────────────


def namespace(install: Install) -> Object:
    """Its pods must be as harmless as Kubernetes knows to demand."""
    labels = {**PART_OF, "pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": install.namespace, "labels": labels}}


def service_account(install: Install) -> list[Object]:
    return [_object("v1", "ServiceAccount", install, {"automountServiceAccountToken": False})]


def lease_rights(install: Install) -> list[Object]:
    """The Lease in canaryd's own namespace, and no other."""
    rules = list(_rules(DAEMON, Scope.OWN))
    return [_role(NAME, install.namespace, rules), _binding(NAME, install.namespace, install)]


def watched_rights(install: Install) -> list[Object]:
    """One Role and its binding in each namespace that is looked after."""
    rules = list(_rules(DAEMON, Scope.WATCHED))
    return [
        made
        for place in install.watched
        for made in (_role(f"{NAME}-watched", place, rules), _binding(f"{NAME}-watched", place, install))
    ]


def cluster_rights(install: Install) -> list[Object]:
    """The same rights in every namespace, those to come included."""
    rules = list(_rules(DAEMON, Scope.WATCHED))
    return [_cluster_role(f"{NAME}-watched", rules), _cluster_binding(f"{NAME}-watched", install)]


def people(install: Install) -> list[Object]:
    """For people: to look, to say what should happen, to write Canaries; part of the built-in view, edit and admin."""
    write = [_rule(crd.GROUP, (crd.PLURAL,), ("create", "update", "patch", "delete"))]
    return [
        _cluster_role("canaryd-viewer", list(_rules(VIEWER, Scope.WATCHED)), "view", "edit", "admin"),
        _cluster_role("canaryd-operator", list(_rules(OPERATOR, Scope.WATCHED)), "edit", "admin"),
        _cluster_role("canaryd-editor", write, "edit", "admin"),
        _role("canaryd-viewer", install.namespace, list(_rules(VIEWER, Scope.OWN))),
    ]


def _rules(needs: Iterable[Need], scope: Scope) -> Iterator[Object]:
    """RBAC's rules for what is needed in one place; a Lease by its name, as far as RBAC can."""
    for need in needs:
        if need.scope is not scope:
            continue
        if scope is Scope.WATCHED:
            yield _rule(need.group, (need.resource,), need.verbs)
            continue
        named = tuple(verb for verb in need.verbs if verb not in _UNNAMED)
        unnamed = tuple(verb for verb in need.verbs if verb in _UNNAMED)
        if unnamed:
            yield _rule(need.group, (need.resource,), unnamed)
        if named:
            yield {**_rule(need.group, (need.resource,), named), "resourceNames": [NAME]}


def _rule(group: str, resources: tuple[str, ...], verbs: tuple[str, ...]) -> Object:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}


def _role(name: str, place: str, rules: list[Object]) -> Object:
    metadata = {"name": name, "namespace": place, "labels": PART_OF}
    return {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": rules}


def _cluster_role(name: str, rules: list[Object], *into: str) -> Object:
    """`into`: built-in roles that gain these rules."""
    gained = {f"{RBAC}/aggregate-to-{role}": "true" for role in into}
    metadata = {"name": name, "labels": {**PART_OF, **gained}}
    return {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules}


def _cluster_binding(name: str, install: Install) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": PART_OF},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        "subjects": [_subject(install)],
    }


def _binding(name: str, place: str, install: Install) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": place, "labels": PART_OF},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [_subject(install)],
    }


def _subject(install: Install) -> Object:
    return {"kind": "ServiceAccount", "name": NAME, "namespace": install.namespace}


# ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────────


def settings_text(install: Install) -> str:
    """canaryd.yaml for a cluster."""
    settings = {
        "mode": "cluster",
        "cluster": {
            "namespaces": list(install.watched),
            "lease": {"namespace": install.namespace, "name": NAME},
        },
        "metrics": {"source": "prometheus", "prometheus": {"url": install.prometheus}},
        "web": {"listen": f"0.0.0.0:{PORT}"},
        **({"dashboard": _dashboard(install)} if install.dashboard else {}),
        "log": {"format": "json"},
    }
    return yamlout.documents([settings])


def settings_map(install: Install, settings: str) -> Object:
    made = _object("v1", "ConfigMap", install, {"data": {"canaryd.yaml": settings}})
    return {**made, "metadata": {**made["metadata"], "name": SETTINGS}}


def _dashboard(install: Install) -> Object:
    auth = {"tokensFile": f"{_SECRETS}/tokens", "sessionKeyFile": f"{_SECRETS}/session-key"}
    return {"listen": f"0.0.0.0:{DASHBOARD}", "externalURL": install.dashboard, "auth": auth}


def deployment(install: Install, annotations: Mapping[str, str] | None = None) -> Object:
    """Two replicas; the one that holds the Lease decides. `annotations` of the pods: changed ones start new pods."""
    marks = {"annotations": dict(annotations)} if annotations else {}
    # beside a proxy its requests would fail until the proxy is up, and when it is gone before canaryd
    labels = {**PART_OF, "sidecar.istio.io/inject": "false"}
    pod = {"metadata": {"labels": labels, **marks}, "spec": _pod(install)}
    return _object(
        "apps/v1",
        "Deployment",
        install,
        {
            "spec": {
                "replicas": 2,
                "revisionHistoryLimit": 3,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": _PICKED},
                "template": pod,
            }
        },
    )


def _pod(install: Install) -> Object:
    return {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,  # a tick under way ends, the Lease is released
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _PICKED},
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [_container(install)],
        "volumes": [
            {"name": "settings", "configMap": {"name": SETTINGS}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
            *([_secret_volume()] if install.dashboard else []),
        ],
    }


def _secret_volume() -> Object:
    """The kubelet mounts it: canaryd itself may still read no Secret. Tokens that everybody may read are refused."""
    return {"name": "dashboard", "secret": {"secretName": DASHBOARD_FILES, "defaultMode": 0o440}}


def _container(install: Install) -> Object:
    return {
        "name": NAME,
        "image": install.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run", "--config", "/etc/canaryd/canaryd.yaml"],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        ],
        "ports": [
            {"name": "http", "containerPort": PORT},
            *([{"name": "dashboard", "containerPort": DASHBOARD}] if install.dashboard else []),
        ],
        "startupProbe": _probe("/healthz", periodSeconds=2, failureThreshold=30),
        "livenessProbe": _probe("/healthz", periodSeconds=10, failureThreshold=6),
        "readinessProbe": _probe("/readyz", periodSeconds=5, failureThreshold=2),
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "settings", "mountPath": "/etc/canaryd", "readOnly": True},
            {"name": "scratch", "mountPath": "/var/lib/canaryd"},
            *([{"name": "dashboard", "mountPath": _SECRETS, "readOnly": True}] if install.dashboard else []),
        ],
    }


def _probe(path: str, **times: int) -> Object:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 3, **times}


def around(install: Install) -> list[Object]:
    """Service, PodDisruptionBudget, NetworkPolicy."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    if install.dashboard:
        ports.append({"name": "dashboard", "port": DASHBOARD, "targetPort": "dashboard"})
    budget = {"minAvailable": 1, "selector": {"matchLabels": _PICKED}}
    return [
        _object("v1", "Service", install, {"spec": {"selector": _PICKED, "ports": ports}}),
        _object("policy/v1", "PodDisruptionBudget", install, {"spec": budget}),
        _object("networking.k8s.io/v1", "NetworkPolicy", install, {"spec": _network(install)}),
    ]


def _network(install: Install) -> Object:
    """In: metrics, from the namespace of Prometheus; the dashboard from wherever its proxy is. Out: names, the API
    server, Prometheus.
    """
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    names = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    return {
        "podSelector": {"matchLabels": _PICKED},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [monitoring], "ports": [{"protocol": "TCP", "port": PORT}]},
            *([{"ports": [{"protocol": "TCP", "port": DASHBOARD}]}] if install.dashboard else []),
        ],
        "egress": [
            {"to": [system], "ports": names},
            {"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]},  # no selector finds it
            {"to": [monitoring], "ports": [{"protocol": "TCP", "port": 9090}]},
        ],
    }


def _object(version: str, kind: str, install: Install, rest: Mapping[str, Any]) -> Object:
    """One of canaryd's own objects, called like canaryd itself."""
    metadata = {"name": NAME, "namespace": install.namespace, "labels": PART_OF}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}
