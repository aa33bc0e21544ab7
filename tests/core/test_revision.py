"""A revision changes with what runs, and with nothing else."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.revision import LENGTH, canonical, content, digest, quantity, revision

SPARSE: dict[str, Any] = {
    "metadata": {"labels": {"app": "api", "team": ""}},
    "spec": {
        "serviceAccountName": "api",
        "containers": [
            {
                "name": "app",
                "image": "registry.test:5000/shop/api:1.4",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "ports": [{"containerPort": 8080}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 8080}},
                "volumeMounts": [{"name": "conf", "mountPath": "/etc/api"}],
            },
            {"name": "helper", "image": "helper"},
        ],
        "volumes": [{"name": "conf", "configMap": {"name": "api"}}, {"name": "tmp"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}},
    },
}
DEFAULTED: dict[str, Any] = {
    "metadata": {"creationTimestamp": None, "labels": {"team": "", "app": "api"}, "annotations": {}},
    "spec": {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
        "enableServiceLinks": True,
        "serviceAccount": "api",
        "serviceAccountName": "api",
        "hostNetwork": False,
        "containers": [
            {
                "name": "app",
                "image": "registry.test:5000/shop/api:1.4",
                "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                ],
                "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {}},
                "readinessProbe": {
                    "httpGet": {"port": 8080, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1,
                    "periodSeconds": 10,
                    "successThreshold": 1,
                    "failureThreshold": 3,
                },
                "volumeMounts": [{"name": "conf", "mountPath": "/etc/api", "readOnly": False}],
                "command": None,
                "args": [],
            },
            {"name": "helper", "image": "helper", "imagePullPolicy": "Always", "resources": {}, "stdin": False},
        ],
        "volumes": [
            {"name": "conf", "configMap": {"name": "api", "defaultMode": 420}},
            {"name": "tmp", "emptyDir": {}},
        ],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """SPARSE with something else at a path of keys and indices."""
    out = copy.deepcopy(SPARSE)
    *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    here: Any = out
    for part in way:
        here = here[part] if isinstance(here, list) else here.setdefault(part, {})
    if value is None:
        del here[last]
    else:
        here[last] = value
    return out


def test_what_the_api_server_fills_in_changes_nothing() -> None:
    assert canonical(SPARSE) == canonical(DEFAULTED)
    assert revision(SPARSE) == revision(DEFAULTED)
    assert len(revision(SPARSE)) == LENGTH


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.annotations.kubectl~restarted", "later"),
        ("spec.containers.0.image", "registry.test:5000/shop/api:1.5"),
        ("spec.containers.0.imagePullPolicy", "Always"),
        ("spec.containers.1.imagePullPolicy", "IfNotPresent"),
        ("spec.containers.0.env.0.value", "2"),
        ("spec.containers.0.env", [SPARSE["spec"]["containers"][0]["env"][1], {"name": "A", "value": "1"}]),
        ("spec.containers.0.args", [""]),
        ("spec.containers.0.securityContext", {"runAsNonRoot": False}),
        ("spec.containers.0.resources.limits.cpu", "1001m"),
        ("spec.containers.0.readinessProbe.periodSeconds", 11),
        ("spec.containers.0.volumeMounts.0.readOnly", True),
        ("spec.terminationGracePeriodSeconds", 0),
        ("spec.enableServiceLinks", False),
        ("spec.automountServiceAccountToken", False),
        ("spec.hostNetwork", True),
        ("spec.serviceAccountName", None),
        ("spec.nodeSelector", {"gpu": ""}),
        ("spec.volumes.0.configMap.defaultMode", 256),
        ("spec.aFieldOfTheFuture", "on"),
        ("metadata.labels.version", "2"),
        ("metadata.labels.team", None),
        ("spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution", [{}]),
    ],
)
def test_what_changes_what_runs_is_a_release(path: str, value: Any) -> None:
    assert revision(changed(path, value)) != revision(SPARSE)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("annotations", "kubectl.kubernetes.io/restartedAt"),
        ("annotations", "sidecar.istio.io/status"),
        ("annotations", "canaryd.io/config"),
        ("labels", "canaryd.io/role"),
        ("labels", "track"),  # of the Deployment's own selector
    ],
)
def test_who_touched_a_template_and_whose_pods_they_are_is_no_release(part: str, key: str) -> None:
    touched = copy.deepcopy(SPARSE)
    touched["metadata"].setdefault(part, {})[key] = "x"
    assert revision(touched, selector=("track",)) == revision(SPARSE, selector=("track",))


def _shuffled(value: Any, chance: random.Random) -> Any:
    """Other order of keys, other spellings of nothing."""
    if isinstance(value, dict):
        items = [(k, _shuffled(v, chance)) for k, v in value.items()]
        chance.shuffle(items)
        if not {"labelSelector", "cpu"} & value.keys() and chance.random() < 0.5:
            items.append((f"empty{chance.randrange(9)}", chance.choice([None, [], {}, ""])))
        return dict(items)
    return [_shuffled(v, chance) for v in value] if isinstance(value, list) else value


@given(st.integers(0, 2**32))
def test_neither_the_order_of_keys_nor_what_is_empty_matters(seed: int) -> None:
    chance = random.Random(seed)
    for template in (SPARSE, DEFAULTED):
        spec = _shuffled(template["spec"], chance)
        for volume in spec["volumes"]:
            volume.pop("emptyDir", None)
        assert revision({**template, "spec": spec}) == revision(SPARSE)


def test_hashing_leaves_the_template_as_it_was() -> None:
    before = copy.deepcopy(DEFAULTED)
    canonical(DEFAULTED, selector=("app",))
    assert before == DEFAULTED


@pytest.mark.parametrize(
    ("one", "other"),
    [("1000m", "1"), (2, "2"), ("1Gi", "1024Mi"), ("1k", "1e3"), ("0.5", "500m"), ("1.0", "1"), ("1E", "1000P")],
)
def test_a_quantity_is_one_number_however_it_is_written(one: Any, other: Any) -> None:
    assert quantity(one) == quantity(other)


@pytest.mark.parametrize("given", ["", "abc", "1ki", "1e9999", True, None, "1 Gi"])
def test_what_is_no_quantity_stays_as_it_is(given: Any) -> None:
    assert quantity(given) is given


def test_the_config_belongs_to_the_release_and_its_values_are_not_in_the_hash_in_the_clear() -> None:
    one = {"configMap/env": content({"A": "1"}), "secret/key": content({"token": "aHVudGVy"})}
    other = {**one, "secret/key": content({"token": "aHVudGVz"})}
    assert revision(SPARSE, one) != revision(SPARSE, other) != revision(SPARSE)
    assert revision(SPARSE, {}) == revision(SPARSE) == revision(SPARSE, None)
    assert digest({}) == ""
    assert digest(one) == digest(dict(reversed(one.items()))) != digest(other)
    assert content({"A": "1"}) != content({}, {"A": "1"})


def test_the_hash_of_a_known_template_never_changes() -> None:
    """An upgrade of canaryd that changed it would be seen here."""
    assert revision(SPARSE) == "a7d8c2adbd"
