"""What is applied to a cluster: the files are what the program prints, rights are the table's, pods are harmless."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from canaryd.cli.app import run
from canaryd.cli.exits import Exit
from canaryd.config import load_settings
from canaryd.manifests import Install, everything, settings_text
from canaryd.permissions import DAEMON, Need, Scope, each

ROOT = Path(__file__).parents[2]
SHOP = Install(image="canaryd:test", watched=("shop", "desk"))
WIDE = Install(image="canaryd:test")
both = pytest.mark.parametrize("install", [SHOP, WIDE], ids=["two namespaces", "everywhere"])


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests_script", ROOT / "scripts" / "manifests.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] in kinds]


# ── what is printed and what is committed ────────────────────────────────────────────────────────────────────


def test_the_committed_manifests_are_what_the_program_would_write() -> None:
    files = script().files()
    for name, text in files.items():
        assert (ROOT / "manifests" / name).read_text() == text, f"{name}: run scripts/manifests.py"
    for folder in ("base/50-canaryd", "components/canaryd-cluster-wide"):
        there = {str(file.relative_to(ROOT / "manifests")) for file in (ROOT / "manifests" / folder).iterdir()}
        assert there == {name for name in files if name.startswith(folder)}


def test_the_command_prints_the_definition_and_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifests", "crd"]) == Exit.OK
    (definition,) = yaml.safe_load_all(capsys.readouterr().out)
    assert definition["metadata"]["name"] == "canaries.canaryd.io"
    assert (
        run(["manifests", "canaryd", "--watch-namespace", "shop", "--watch-namespace", "shop", "--image", "a:1"]) == 0
    )
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == everything(Install(image="a:1", watched=("shop",)))


@pytest.mark.parametrize("arguments", [[], ["--watch-namespace", "shop", "--all-namespaces"]])
def test_whose_canaries_are_meant_must_be_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifests", "canaryd", *arguments]) == Exit.USAGE
    assert "--watch-namespace NAME, or --all-namespaces" in capsys.readouterr().err


@both
def test_what_others_need_comes_before_them(install: Install) -> None:
    kinds = [each["kind"] for each in everything(install)]
    assert kinds[:3] == ["Namespace", "CustomResourceDefinition", "ServiceAccount"]
    assert kinds.index("ConfigMap") < kinds.index("Deployment")
    assert max(i for i, kind in enumerate(kinds) if "Role" in kind) < kinds.index("Deployment")


@both
def test_the_settings_are_those_of_a_daemon_in_a_cluster(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "canaryd.yaml"
    file.write_text(settings_text(install))
    settings = load_settings(file)
    assert settings.mode == "cluster"
    assert settings.cluster.namespaces == install.watched
    assert (settings.cluster.lease.namespace, settings.cluster.lease.name) == ("canaryd", "canaryd")
    assert settings.web.address == ("0.0.0.0", 9095)


def test_changed_settings_start_new_pods() -> None:
    marks = set()
    for install in (SHOP, WIDE, Install(image="canaryd:test", prometheus="http://elsewhere:9090")):
        (daemon,) = of_kind(everything(install), "Deployment")
        marks.add(daemon["spec"]["template"]["metadata"]["annotations"]["canaryd.io/settings"])
    assert len(marks) == 3


# ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────


def granted(objects: list[dict[str, Any]], kind: str, place: str | None) -> set[tuple[str, str, str]]:
    """Group, resource and verb of what is bound to the daemon in one namespace, or in all for None."""
    out = set()
    for binding in of_kind(objects, f"{kind}Binding"):
        if binding["metadata"].get("namespace") != place:
            continue
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "canaryd", "namespace": "canaryd"}]
        (role,) = [
            each
            for each in of_kind(objects, binding["roleRef"]["kind"])
            if each["metadata"]["name"] == binding["roleRef"]["name"] and each["metadata"].get("namespace") == place
        ]
        for rule in role["rules"]:
            out |= {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    return out


def needed(scope: Scope) -> set[tuple[str, str, str]]:
    return {(need.group, need.resource, verb) for need, verb in each(DAEMON) if need.scope is scope}


def test_the_daemon_is_granted_what_the_table_says_and_nothing_else() -> None:
    objects = everything(SHOP)
    for place in ("shop", "desk"):
        assert granted(objects, "Role", place) == needed(Scope.WATCHED)
    assert granted(objects, "Role", "canaryd") == needed(Scope.OWN)
    assert of_kind(objects, "ClusterRoleBinding") == [], "nothing in a namespace that is not watched"
    objects = everything(WIDE)
    assert granted(objects, "ClusterRole", None) == needed(Scope.WATCHED)
    assert granted(objects, "Role", "canaryd") == needed(Scope.OWN)
    assert len(of_kind(objects, "RoleBinding")) == 1


@both
def test_no_rule_reaches_further_than_it_says(install: Install) -> None:
    for role in of_kind(everything(install), "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
            assert "secrets" not in rule["resources"]
            assert "rbac.authorization.k8s.io" not in rule["apiGroups"]
            assert not {"impersonate", "bind", "escalate", "deletecollection"} & set(rule["verbs"])
            if "leases" in rule["resources"] and rule["verbs"] != ["create"]:
                assert rule["resourceNames"] == ["canaryd"]


def test_looking_is_part_of_view_and_saying_is_not() -> None:
    roles = {each["metadata"]["name"]: each for each in of_kind(everything(SHOP), "ClusterRole")}
    into = {
        name: {
            label.rpartition("-")[2]
            for label in role["metadata"]["labels"]
            if label.startswith("rbac.authorization.k8s.io/aggregate-to-")
        }
        for name, role in roles.items()
    }
    assert into == {
        "canaryd-viewer": {"view", "edit", "admin"},
        "canaryd-operator": {"edit", "admin"},
        "canaryd-editor": {"edit", "admin"},
    }
    verbs = {verb for rule in roles["canaryd-viewer"]["rules"] for verb in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}


# ── the pods ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pod_of_the_daemon_can_harm_nobody() -> None:
    (daemon,) = of_kind(everything(SHOP), "Deployment")
    pod = daemon["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["requests"]) == set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert not any(set(volume) - {"name"} - {"configMap", "emptyDir"} for volume in pod["volumes"])
    (namespace,) = of_kind(everything(SHOP), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_user_and_the_places_are_those_of_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (daemon,) = of_kind(everything(SHOP), "Deployment")
    pod = daemon["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    assert f"USER {user}:{group}\n" in dockerfile
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in dockerfile
    assert "TMPDIR=/var/lib/canaryd" in dockerfile
    assert "/var/lib/canaryd" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_everything_around_the_pods_picks_them() -> None:
    objects = everything(SHOP)
    (daemon,) = of_kind(objects, "Deployment")
    labels = daemon["spec"]["template"]["metadata"]["labels"]
    (service,) = of_kind(objects, "Service")
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    (network,) = of_kind(objects, "NetworkPolicy")
    for picked in (
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        network["spec"]["podSelector"]["matchLabels"],
        daemon["spec"]["selector"]["matchLabels"],
    ):
        assert picked.items() <= labels.items()
    assert budget["spec"]["minAvailable"] < daemon["spec"]["replicas"]


def test_the_table_of_rights_names_each_resource_once_per_place() -> None:
    def place(need: Need) -> tuple[str, str, Scope]:
        return need.group, need.resource, need.scope

    assert len({place(need) for need in DAEMON}) == len(DAEMON)


def test_the_dashboard_has_a_port_a_secret_and_settings_only_where_it_was_asked_for(tmp_path: Path) -> None:
    assert "9096" not in str(everything(SHOP))
    wanted = everything(Install(image="canaryd:test", watched=("shop",), dashboard="https://canaryd.example.com"))
    (deployment,) = of_kind(wanted, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert [p["containerPort"] for p in pod["containers"][0]["ports"]] == [9095, 9096]
    (secret,) = (v["secret"] for v in pod["volumes"] if "secret" in v)
    assert secret == {"secretName": "canaryd-dashboard", "defaultMode": 0o440}
    (service,) = of_kind(wanted, "Service")
    assert [p["port"] for p in service["spec"]["ports"]] == [9095, 9096]
    (settings,) = of_kind(wanted, "ConfigMap")
    file = tmp_path / "canaryd.yaml"
    file.write_text(settings["data"]["canaryd.yaml"])
    dashboard = load_settings(file).dashboard
    assert (dashboard.external_url, dashboard.actions) == ("https://canaryd.example.com", False)
    assert dashboard.auth.session_key_file  # two replicas take each other's sessions
    roles = [rule for each in of_kind(wanted, "Role", "ClusterRole") for rule in each["rules"]]
    assert not any("secrets" in rule["resources"] for rule in roles)


def test_a_dashboard_without_tls_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifests", "canaryd", "-A", "--dashboard", "http://canaryd.example.com"]) == Exit.USAGE
    assert "begins with https://" in capsys.readouterr().err
