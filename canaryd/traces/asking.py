"""What to ask a trace source about one Canary: its service, its arms' tags, and what its routes call it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from canaryd import operations
from canaryd.measure import services_of
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
        return cls(canary.key, service_of(canary), _arms(canary, body), aliases_of(canary))

    def query(self, start: datetime, end: datetime, **more: Any) -> TraceQuery:
        return TraceQuery(self.canary, self.service, start, end, self.arms, aliases=self.aliases, **more)


def service_of(canary: Canary) -> str:
    """The service's name in its spans: its metric's, else NAME.NAMESPACE of a Deployment, of pools the Canary's."""
    metric, deployment = canary.spec.traces(), canary.spec.workloads.deployment
    if metric is not None:
        return operations.service_of(canary, metric)
    return f"{deployment.name}.{canary.metadata.namespace}" if deployment is not None else canary.name


def aliases_of(canary: Canary) -> tuple[str, ...]:
    """Every name by which its routes call the service, as for its metric."""
    return operations.aliases_of(canary, services_of(canary))


def _arms(canary: Canary, body: Mapping[str, Any]) -> ArmTags:
    """What tells the arms apart, as for its metric."""
    metric = canary.spec.traces()
    if metric is not None and metric.arms is not None:
        return ArmTags(metric.tag, metric.arms.stable, metric.arms.canary)
    workloads = body.get("workloads") or {}
    names = (str(workloads.get("stable") or ""), str(workloads.get("canary") or ""))
    if not any(names):
        names = canary.spec.workloads.names
    revisions = (str(body.get("stableRevision") or ""), str(body.get("revision") or ""))
    found = arm_tags(names, revisions, tag=metric.tag if metric is not None else "")
    stable, other = ((v,) if v else () for v in ((body.get("look") or {}).get("versions") or ("", "")))
    return replace(found, stable=(*found.stable, *stable), canary=(*found.canary, *other))
