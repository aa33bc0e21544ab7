"""What to ask a trace source about one Canary: its service, its arms' tags, and what its routes call it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from canaryd.policy import Canary
from canaryd.ports import TraceQuery
from canaryd.spans import ArmTags, arm_tags


@dataclass(frozen=True, slots=True)
class Asking:
    """The part of a query that stays the same for one rollout."""

    canary: str
    service: str
    arms: ArmTags
    aliases: tuple[str, ...]

    @classmethod
    def about(cls, canary: Canary, body: Mapping[str, Any]) -> Asking:
        """From the Canary and the body of one of its records (or `latest` of its state)."""
        workloads = body.get("workloads") or {}
        names = (str(workloads.get("stable") or ""), str(workloads.get("canary") or ""))
        if not any(names):
            names = canary.spec.workloads.names
        revisions = (str(body.get("stableRevision") or ""), str(body.get("revision") or ""))
        return cls(canary.key, service_of(canary), arm_tags(names, revisions), aliases_of(canary))

    def query(self, start: datetime, end: datetime, **more: Any) -> TraceQuery:
        return TraceQuery(self.canary, self.service, start, end, self.arms, aliases=self.aliases, **more)


def service_of(canary: Canary) -> str:
    """The service's name in its spans, as a mesh names it: NAME.NAMESPACE of a Deployment; of pools the Canary's."""
    deployment = canary.spec.workloads.deployment
    if deployment is None:
        return canary.name
    return f"{deployment.name}.{canary.metadata.namespace}"


def aliases_of(canary: Canary) -> tuple[str, ...]:
    """Every name by which its routes call the service, the service's own first."""
    return tuple(dict.fromkeys(name for name in _names(canary) if name))


def _names(canary: Canary) -> Iterator[str]:
    name, route = canary.name, canary.spec.route
    yield name
    yield from canary.spec.workloads.names
    if route.istio is not None:
        yield from (ref.name for ref in route.istio.virtual_services)
        yield from (route.istio.stable.host, route.istio.canary.host)
    if route.gateway_api is not None:
        yield from (ref.name for ref in route.gateway_api.http_routes)
        yield from (route.gateway_api.stable, route.gateway_api.canary)
    if route.envoy_file is not None:
        yield from route.envoy_file.clusters.values()
    yield from (f"{name}-stable", f"{name}-canary")
