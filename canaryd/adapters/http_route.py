"""How an HTTPRoute of the Gateway API writes splits down. Pure.

Weights as the Gateway API has them: a reference without one has 1; they are relative to their sum, and a rule whose
weights are all 0 answers every request with HTTP 500.
"""

from __future__ import annotations

from dataclasses import dataclass

from canaryd.adapters.route_splits import Arms, Place, Target
from canaryd.adapters.route_stamps import JSON, dicts
from canaryd.errors import RouteError
from canaryd.policy import GatewayApi

SECTION, FIELD = "rules", "backendRefs"


def gateway_api_arms(given: GatewayApi, namespace: str, stable: str, canary: str) -> Arms:
    """The Services of the two workloads, and the service itself. Without a name: `stable` and `canary`-canary."""
    two = (Target(given.stable or stable), Target(given.canary or f"{canary}-canary"))
    if two[0] == two[1]:
        raise RouteError(f"stable and canary are both {two[0]}; nothing can be split")
    return Arms(namespace, *two, service=Target(canary))


@dataclass(frozen=True, slots=True)
class HttpRouteForm:
    """route_splits.Form. A Target's host is the name of a Service in the namespace of the route."""

    @property
    def section(self) -> str:
        return SECTION

    def places(self, obj: JSON) -> tuple[Place, ...]:
        rules = dicts((obj.get("spec") or {}).get(SECTION))
        return tuple(
            Place(i, str(rule.get("name") or ""), f"/spec/{SECTION}/{i}", FIELD, tuple(dicts(rule.get(FIELD))))
            for i, rule in enumerate(rules)
        )

    def target(self, entry: JSON, namespace: str) -> Target | None:
        """None for what is no Service, or one of another namespace."""
        is_service = (entry.get("group") or "", entry.get("kind") or "Service") == ("", "Service")
        name = str(entry.get("name") or "")
        return Target(name) if name and is_service and (entry.get("namespace") or namespace) == namespace else None

    def called(self, entry: JSON) -> str:
        kind = "" if (entry.get("kind") or "Service") == "Service" else f"{entry['kind']} "
        namespace = f"{entry['namespace']}/" if entry.get("namespace") else ""
        return f"{kind}{namespace}{entry.get('name', 'nothing')}"

    def weight(self, entry: JSON) -> int:
        weight = entry.get("weight", 1)
        if type(weight) is not int or weight < 0:
            raise RouteError(f"the weight {weight!r} of {self.called(entry)} is no whole number of 0 or more")
        return weight

    def pointing(self, entry: JSON, target: Target, like: JSON | None = None) -> JSON:
        return {**entry, "name": target.host}

    def objection(self, obj: JSON, arms: Arms) -> str:
        return ""

    def hint(self, obj: JSON, arms: Arms) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a route as it stands is served by nobody, or not to all of its Services."""

    generation: int
    text: str


def refusal(obj: JSON) -> Refusal | None:
    """What controllers say in the status about this very generation; what they said of older ones does not count.

    Not accepted: only when no parent accepts it, for what comes in by another is not split by it anyway.
    References not resolved: by any parent, for requests for them are answered with HTTP 500.
    """
    generation = (obj.get("metadata") or {}).get("generation")
    refused: list[str] = []
    unresolved: list[str] = []
    accepted = False
    for parent in dicts((obj.get("status") or {}).get("parents")):
        for condition in dicts(parent.get("conditions")):
            if condition.get("observedGeneration") != generation:
                continue
            kind, holds = condition.get("type"), condition.get("status") == "True"
            accepted = accepted or (kind == "Accepted" and holds)
            if condition.get("status") == "False" and kind in ("Accepted", "ResolvedRefs"):
                text = f"{_parent(parent)}: {condition.get('reason')}: {condition.get('message')}"
                (refused if kind == "Accepted" else unresolved).append(text)
    if refused and not accepted:
        return Refusal(int(generation or 0), f"is not accepted by {'; '.join(refused)}")
    if unresolved:
        return Refusal(int(generation or 0), f"has references that are not resolved by {'; '.join(unresolved)}")
    return None


def _parent(parent: JSON) -> str:
    ref = parent.get("parentRef") or {}
    return f"{ref.get('kind', 'Gateway')} {ref.get('name')}"
