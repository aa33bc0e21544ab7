"""Writes docs/canary-document.md and docs/settings.md from the types that validate the documents, and
docs/permissions.md from the table of what canaryd must be allowed to do.

    python scripts/reference.py            writes them
    python scripts/reference.py --check    exits with 1 when a file is not what would be written

Keys, types, limits, defaults and most words come from the schema, so the reference cannot name a key that does not
exist or leave one out. WORDS holds what the schema does not say; a key that has no words anywhere is an error.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from canaryd import manifests, permissions
from canaryd.config import Settings
from canaryd.permissions import Need, Scope
from canaryd.policy import MAX_METRICS, MAX_STEPS, Canary, Tolerance

DOCS = Path(__file__).resolve().parent.parent / "docs"

HEAD = "<!-- Written by scripts/reference.py; a test compares. -->"
CANARY = f"""\
{HEAD}
# The Canary document

One YAML document for each service that is released step by step. A file may hold several, separated by `---`.
`canaryd validate FILE` checks it and names every mistake with its line; `canaryd validate --show FILE` prints it with
all defaults. Unknown keys are errors. Quantities carry their unit: durations `500ms`, `30s`, `5m`, `1h30m`, `2d`;
shares `5%`; tolerances `5%` (of stable's own rate), `0.02pp` (percentage points) or `5% + 0.02pp`.

The smallest useful document is [config/canaries/api.yaml](../config/canaries/api.yaml);
[checkout.yaml](../config/canaries/checkout.yaml) spells everything out. In a cluster the same `spec` is that of the
[Canary resource](kubernetes.md#the-canary-resource); lists then hold mappings only. `failures` of a metric of kind
errors is read as `httpFailures`.
"""
SETTINGS = f"""\
{HEAD}
# The settings of the daemon

`canaryd.yaml`, found by `--config`, else `$CANARYD_CONFIG`, else `config/canaryd.yaml`, else
`/etc/canaryd/canaryd.yaml`. Read once, when `canaryd run` starts; Canary documents are read again whenever a file
changes. Paths that are not absolute are relative to the file. [config/canaryd.yaml](../config/canaryd.yaml) holds every
key with its default.
"""
PERMISSIONS = f"""\
{HEAD}
# What canaryd may do in a cluster

The Roles that `canaryd manifests canaryd` prints hold this and nothing else; `canaryd doctor` asks the API server for
each verb, and the condition `Permitted` of a Canary names those that are missing.
"""
PARTING = """
## When a watched namespace is deleted

A Canary has a finalizer, so that its service can be brought back when it is deleted, and a namespace takes the Role
along that lets canaryd remove it. There is no right in other namespaces for that:

- Kubernetes 1.33 and later deletes the pods of a namespace first and waits for them. canaryd sees that stable's pods
  go, asks whether the namespace is being deleted (for that is `get` on `namespaces`; a Role permits it for its own
  namespace only), and lets the Canaries go at once, while it still may. Nothing is brought back where everything goes.
- Where there is no such time (Kubernetes before 1.33, or no pod of stable runs), or no canaryd, the Role may be gone
  first. Then `kubectl get namespace NAME -o yaml` names the finalizer `canaryd.io/restore`, and an admin lets go:
  `kubectl -n NAME patch canary API --type=merge -p '{"metadata": {"finalizers": null}}'`.
- The cluster-wide form, and deleting the Canaries before the namespace, know no such case.
"""

NEVER = """
## Never

- No verb on Secrets, Roles, bindings, Nodes or pods' logs and shells, and no wildcard. A Secret that a Canary names in
  `workloads.deployment.config` needs a Role of its own ([how](kubernetes.md#configmaps-and-secrets)).
- Nothing in a namespace that is not watched, and nothing in another namespace than that of the Canary for its sake.
- A VirtualService or HTTPRoute is never created or deleted, a pod never touched.
"""

# What the schema does not say, or says in passing: by "Model.key".
WORDS = {
    "Canary.apiVersion": "the version of this schema",
    "Canary.kind": "what kind of document this is",
    "Canary.metadata": "names",
    "Canary.spec": "what to roll out and how sure to be",
    "Metadata.name": "the name in commands, records and metrics",
    "Metadata.namespace": "must fit the label `destination_workload_namespace` of the counters, where they have one",
    "Metadata.labels": "kept, not interpreted; at most 64",
    "Metadata.annotations": "kept, not interpreted; at most 64",
    "Spec.alpha": "at most so likely is a canary that is no worse than tolerated ever rolled back",
    "Spec.beta": "at most so likely does an unacceptable canary pass a step",
    "Metadata.uid": "set by the cluster; leave it out",
    "Metadata.generation": "set by the cluster; leave it out",
    "Settings.cluster": "used when `mode` is cluster",
    "Cluster.lease": "how the replicas agree on who leads",
    "Settings.state": "where the state is kept",
    "Settings.metrics": "where the counters come from",
    "Settings.traces": "where traces come from",
    "Settings.web": "the daemon's own pages",
    "Settings.dashboard": "pages for people, live ([how](dashboard.md))",
    "Dashboard.auth": "who may look, and who may act",
    "Dashboard.tls": "needed beyond loopback, unless `externalURL` begins with https://",
    "Auth.proxy": "a proxy that signs people in",
    "Settings.log": "what the daemon writes to its error output",
    "Settings.retention": "which decision records are kept",
    "Settings.placebo": "stable pods judged as if they were canaries, in the background",
    "Settings.tellAgain": "how often a lasting hold is told again",
    "Traces.jaeger": "a Jaeger query service",
    "Metrics.prometheus": "used when `source` is prometheus",
    "Metrics.scrape": "used when `source` is scrape",
    "Retention.days": "younger records are all kept",
}
# Limits that validators check and the schema does not carry.
LIMITS = {
    "Spec.steps": f"1 to {MAX_STEPS}, weights rising",
    "Spec.metrics": f"1 to {MAX_METRICS}, at least one of kind errors, latency or query",
    "Spec.alpha": "0.0001% to 50%",
    "Spec.beta": "0.0001% to 50%",
    "Spec.interval": "500ms to 1h; with Prometheus at least twice `metrics.prometheus.scrapeInterval`",
    "Spec.blindDeadline": "at least `interval`",
    "Step.weight": "1 to 100",
    "Step.timeout": "at least `bake`",
    "Budget.share": "more than 0%, at most 50%",
    "LatencyMetric.tolerance": "more than 0%, at most 1000%",
    "LatencyMetric.margin": "at least `tolerance`, at most 1000%",
    "GaugeMetric.tolerance": "more than 0%, at most 1000%",
    "TracesMetric.operations": "1 to 50",
    "ArmValues.stable": "1 to 10",
    "ArmValues.canary": "1 to 10, none of stable's",
    "Hook.command": "exactly one of command and webhook",
    "Hook.webhook": "exactly one of command and webhook",
    "Prometheus.timeout": "100ms to 5m",
    "Prometheus.scrapeInterval": "100ms to 1h",
    "Prometheus.lag": "0s to 1h",
    "Scrape.timeout": "100ms to 5m",
    "Scrape.urls": "1 to 1000",
    "Cluster.restoreDeadline": "10s to 1d",
    "Settings.tellAgain": "1s to 30d",
    "Settings.canaries": "at most 100",
    "Auth.session": "1m to 30d",
    "Auth.anonymous": "`viewer` or `operator`",
}


def canary_document() -> str:
    """docs/canary-document.md."""
    return CANARY + "".join(_section(model, path) for path, model in _models(Canary, ""))


def settings() -> str:
    """docs/settings.md."""
    return SETTINGS + "".join(_section(model, path) for path, model in _models(Settings, ""))


def permissions_page() -> str:
    """docs/permissions.md."""
    here = "In each namespace that is watched (or everywhere, with `--all-namespaces`)"
    parts = [
        PERMISSIONS,
        _needs(here, permissions.DAEMON, Scope.WATCHED),
        _needs("In its own namespace", permissions.DAEMON, Scope.OWN),
        PARTING,
        _people(),
        NEVER,
    ]
    return "".join(parts)


def _needs(title: str, needs: Iterable[Need], scope: Scope) -> str:
    lines = [f"\n## {title}\n", "| resource | verbs | without it |", "|---|---|---|"]
    for need in needs:
        if need.scope is scope:
            where = " (where the cluster serves it)" if need.optional else ""
            lines.append(f"| `{need.qualified}`{where} | {', '.join(need.verbs)} | {need.why} |")
    return "\n".join(lines) + "\n"


def _people() -> str:
    """The ClusterRoles for people, as they are shipped."""
    lines = ["\n## People\n", "| ClusterRole | is part of | may |", "|---|---|---|"]
    for role in manifests.people(manifests.Install(image="")):
        if role["kind"] != "ClusterRole":
            continue
        mark = f"{manifests.RBAC}/aggregate-to-"
        into = [key.removeprefix(mark) for key in role["metadata"]["labels"] if key.startswith(mark)]
        lines.append(f"| `{role['metadata']['name']}` | {', '.join(into)} | {_may(role['rules'])} |")
    return "\n".join(lines) + "\n"


def _may(rules: Iterable[Mapping[str, Any]]) -> str:
    return "; ".join(f"{', '.join(rule['verbs'])} `{', '.join(rule['resources'])}`" for rule in rules)


def keys(root: type[BaseModel]) -> list[str]:
    """Every key of a document as a path, such as `spec.steps[].bake`."""
    return [f"{path}.{key}".lstrip(".") for path, model in _models(root, "") for key in _properties(model)]


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those below it, each with its path in the document, in the order of the document."""
    yield path, model
    for name, field in model.model_fields.items():
        key = field.alias or name
        below = list(dict.fromkeys(_models_in(field.annotation)))
        for inner in below:
            kind = _kind(inner) if len(below) > 1 else ""
            many = f"[{kind}]" if _is_list(field.annotation) else ""
            yield from _models(inner, f"{path}.{key}{many}".lstrip("."))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation is not Tolerance:  # written as text
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return any(_is_list(part) for part in typing.get_args(annotation))
    return origin in (tuple, list)


def _kind(model: type[BaseModel]) -> str:
    (kind,) = typing.get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _properties(model: type[BaseModel]) -> dict[str, Any]:
    return dict(model.model_json_schema(by_alias=True)["properties"])


def _section(model: type[BaseModel], path: str) -> str:
    """One mapping: a heading, what it is, a table of its keys."""
    title = f"`{path}`" if path else "The document"
    lines = [
        f"\n## {title}\n",
        _sentence(model.__doc__ or ""),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    defaults = model.model_construct().model_dump(mode="json", by_alias=True, warnings=False)
    required = model.model_json_schema(by_alias=True).get("required", [])
    for key, schema in _properties(model).items():
        default = "**required**" if key in required else _default(defaults.get(key), schema)
        lines.append(f"| `{key}` | {_type(schema, model)} | {default} | {_meaning(model, key, schema)} |")
    return "\n".join(lines) + "\n"


def _sentence(doc: str) -> str:
    return " ".join(doc.split())


def _default(value: Any, schema: dict[str, Any]) -> str:
    """As it would be written in YAML; mappings say no more than that they have a section of their own."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "its own defaults" if value else "empty"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = [item.get("weight", item.get("name")) for item in value]
    if isinstance(value, Enum):
        value = value.value
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if text else '`""`'


def _type(schema: dict[str, Any], model: type[BaseModel]) -> str:
    if "anyOf" in schema:
        (schema,) = (part for part in schema["anyOf"] if part.get("type") != "null")
    if "$ref" in schema:
        found = model.model_json_schema(by_alias=True)["$defs"][schema["$ref"].rpartition("/")[2]]
        return " or ".join(f"`{word}`" for word in found["enum"]) if "enum" in found else "mapping"
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return "list"
    if schema.get("type") == "object":
        return "mapping of texts"
    if schema.get("type") == "boolean":
        return "`true` or `false`"
    if schema.get("type") == "integer":
        return "whole number"
    return {"30s": "duration", "5%": "share", "5% + 0.02pp": "tolerance"}.get(str(schema.get("example")), "text")


def _meaning(model: type[BaseModel], key: str, schema: dict[str, Any]) -> str:
    place = f"{model.__name__}.{key}"
    words = WORDS.get(place) or schema.get("description")
    if not words:
        raise SystemExit(f"reference: {place} has no words; describe it in the schema or in WORDS")
    limits = LIMITS.get(place, "")
    if "minimum" in schema and "maximum" in schema:
        limits = f"{schema['minimum']} to {schema['maximum']}"
    text = f"{words} ({limits})" if limits and limits not in words else words
    return text.replace("|", "\\|").replace("->", "→")


PAGES = {"canary-document.md": canary_document, "settings.md": settings, "permissions.md": permissions_page}


def main(arguments: list[str]) -> int:
    """Exit status."""
    stale = []
    for name, make in PAGES.items():
        file, text = DOCS / name, make()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    print(f"reference: {'stale' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
