"""Canary resources as the API server has them → Canaries, and what is wrong with the others. Never asks the server.

The same rules as for files. A resource that is wrong keeps its last valid form, where it had one while this process
ran: a rollout under way goes on by it. Which other objects two Canaries quarrel over is not looked at here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from canaryd.config.problems import validated
from canaryd.config.settings import Settings
from canaryd.config.yamltext import read_documents
from canaryd.errors import Problem
from canaryd.policy import API_VERSION, KIND, Canary, format_duration

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A resource that canaryd does not obey, and why."""

    key: str  # NAMESPACE/NAME
    problems: tuple[str, ...]  # each names the field and what would be right


@dataclass(frozen=True, slots=True)
class LoadedObjects:
    """What there is to look after."""

    canaries: tuple[Canary, ...]  # sorted by key; valid, or in their last valid form
    refused: tuple[Refusal, ...] = ()


def key_of(found: JSON) -> str:
    return f"{found['metadata']['namespace']}/{found['metadata']['name']}"


MOST_LABELS = 64


def canary_of(found: JSON) -> Canary | tuple[str, ...]:
    """The Canary, or everything that is wrong with it."""
    metadata = found["metadata"]
    document = {
        "apiVersion": found.get("apiVersion", API_VERSION),
        "kind": found.get("kind", KIND),
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "generation": metadata.get("generation", 1),
            "labels": _labels(found),
        },
        "spec": found.get("spec", {}),
    }
    (text,) = read_documents(json.dumps(document))
    canary, problems = validated(Canary, text, "")
    return canary if canary is not None else tuple(map(_said, problems))


def read_objects(found: Iterable[JSON], settings: Settings, known: Mapping[str, Canary]) -> LoadedObjects:
    """All resources that are not being deleted. `known`: the Canaries in their last valid form, by key."""
    there = {key_of(one): one for one in found if "deletionTimestamp" not in one["metadata"]}
    canaries: dict[str, Canary] = {}
    refused: dict[str, tuple[str, ...]] = {}
    for key, one in sorted(there.items()):
        held = known.get(key)
        unchanged = held is not None and _version(held) == (
            one["metadata"]["uid"],
            one["metadata"].get("generation", 1),
            _labels(one),
        )
        read = held if unchanged and held is not None else canary_of(one)
        if isinstance(read, Canary):
            canaries[key] = read
            if problem := _too_often(read, settings):
                refused[key] = (problem,)
        else:
            refused[key] = read
            if held is not None and held.metadata.uid == one["metadata"]["uid"]:
                canaries[key] = held
    for key, problem in _twice(canaries.values(), there, known):
        refused[key] = (*refused.get(key, ()), problem)
    kept = (c for key, c in canaries.items() if key not in refused or key in known)
    return LoadedObjects(tuple(kept), tuple(Refusal(key, problems) for key, problems in sorted(refused.items())))


def lost(before: JSON, after: JSON) -> str:
    """The fields of a spec that are gone although nobody has changed the document: "spec.steps[0].bake, spec.interval".

    "" when none is. A server drops them as it reads the object, when a definition of the resource that does not know
    them has been applied; with the next write they are gone for good.
    """
    return ", ".join(_lost(before.get("spec"), after.get("spec"), "spec"))


def _lost(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key, value in before.items():
            if key not in after:
                yield f"{path}.{key}"
            else:
                yield from _lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        for number, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _lost(one, other, f"{path}[{number}]")


def _version(canary: Canary) -> tuple[str | None, int | None, dict[str, str]]:
    """What makes it another document; a label alone does not change the generation."""
    return canary.metadata.uid, canary.metadata.generation, canary.metadata.labels


def _labels(found: JSON) -> dict[str, str]:
    """As many as a document may have."""
    labels = found["metadata"].get("labels")
    return dict(sorted(labels.items())[:MOST_LABELS]) if isinstance(labels, dict) else {}


def _said(problem: Problem) -> str:
    return f"{problem.key}: {problem.message}" if problem.key else problem.message


def _too_often(canary: Canary, settings: Settings) -> str:
    shortest, interval = settings.metrics.shortest_interval, canary.spec.interval
    if interval >= shortest:
        return ""
    return (
        f"spec.interval: {format_duration(interval)} is less than two scrape intervals of Prometheus "
        f"(metrics.prometheus.scrapeInterval); use at least {format_duration(shortest)}"
    )


def _twice(
    canaries: Iterable[Canary], there: Mapping[str, JSON], known: Mapping[str, Canary]
) -> Iterable[tuple[str, str]]:
    """Of several Canaries for one Deployment the one goes on that has it already, else the oldest has it."""
    claims: dict[tuple[str, str], list[Canary]] = defaultdict(list)
    for canary in canaries:
        for name in canary.spec.workloads.names:
            claims[canary.metadata.namespace, name].append(canary)
    for (_, name), rivals in claims.items():
        holders = {c.key for c in rivals if c.key in known and name in known[c.key].spec.workloads.names}
        ages = {c.key: there[c.key]["metadata"].get("creationTimestamp", "") for c in rivals}
        rivals.sort(key=lambda c: (c.key not in holders, ages[c.key], c.key))
        for late in rivals[1:]:
            yield (
                late.key,
                f"spec.workloads.deployment: the Deployment {name} belongs to canary {rivals[0].name}; "
                "one Canary must have it alone",
            )
