"""What the shipped NetworkPolicies let through: a pod that a policy selects takes what one of them names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shipped.render import Object
from shipped.tree import Tree, Workload, matches


def admitted(tree: Tree, target: Workload, port: int, namespace: str, labels: Mapping[str, str]) -> bool:
    """May pods with these labels in this namespace open `port` of `target`, as far as its ingress rules say?"""
    policies = _selecting(tree, target.namespace, target.labels, "Ingress")
    return not policies or any(
        _ports(rule, port, target.ports) and _peers(tree, rule.get("from"), target.namespace, namespace, labels)
        for policy in policies
        for rule in policy["spec"].get("ingress") or []
    )


def let_out(tree: Tree, source: Workload, port: int, namespace: str, labels: Mapping[str, str]) -> bool:
    """May `source` open `port` of pods with these labels in this namespace, as far as its egress rules say?"""
    policies = _selecting(tree, source.namespace, source.labels, "Egress")
    return not policies or any(
        _ports(rule, port, {}) and _peers(tree, rule.get("to"), source.namespace, namespace, labels)
        for policy in policies
        for rule in policy["spec"].get("egress") or []
    )


def _selecting(tree: Tree, namespace: str, labels: Mapping[str, str], direction: str) -> list[Object]:
    return [
        each
        for each in tree.of("NetworkPolicy")
        if each["metadata"]["namespace"] == namespace
        and direction in each["spec"]["policyTypes"]
        and matches(each["spec"]["podSelector"], labels)
    ]


def _ports(rule: Mapping[str, Any], port: int, names: Mapping[str, int]) -> bool:
    listed = rule.get("ports")
    return not listed or any(names.get(each["port"], each["port"]) == port for each in listed)


def _peers(tree: Tree, peers: Any, home: str, namespace: str, labels: Mapping[str, str]) -> bool:
    if not peers:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            continue
        if "namespaceSelector" in peer:
            if not matches(peer["namespaceSelector"], _labels(tree, namespace)):
                continue
        elif namespace != home:
            continue
        if "podSelector" not in peer or matches(peer["podSelector"], labels):
            return True
    return False


def _labels(tree: Tree, namespace: str) -> Mapping[str, str]:
    found = tree.find("Namespace", None, namespace)
    own = (found["metadata"].get("labels") or {}) if found else {}
    return {"kubernetes.io/metadata.name": namespace, **own}
