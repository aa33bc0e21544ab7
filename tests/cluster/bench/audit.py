"""What the API server was asked, by whom, read from its audit log.

Reads are recorded as metadata for everybody but the administrator and the bench's own parts; writes to canaries,
routes, Deployments and Leases are recorded whole, whoever made them, so that a checker can replay a history.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.identities import COMPONENTS

WRITES = ("create", "update", "patch", "delete", "deletecollection")


def policy() -> dict[str, Any]:
    """The audit policy."""
    whole = [
        {"group": "canaryd.io"},
        {"group": "networking.istio.io", "resources": ["virtualservices", "destinationrules"]},
        {"group": "gateway.networking.k8s.io", "resources": ["httproutes"]},
        {"group": "apps", "resources": ["deployments", "deployments/scale"]},
        {"group": "coordination.k8s.io", "resources": ["leases"]},
    ]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": True,
        "rules": [
            {"level": "None", "users": [f"bench:{name}" for name in COMPONENTS]},
            {"level": "None", "users": ["system:apiserver"]},
            {"level": "RequestResponse", "verbs": list(WRITES), "resources": whole},
            {"level": "None", "users": ["admin"]},
            {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/metrics"]},
            {"level": "Metadata"},
        ],
    }


@dataclass(frozen=True)
class Request:
    """One request to the API server. `whole` is the audit event as the server wrote it."""

    at: datetime  # when the server received it
    done: datetime  # when this stage was over
    user: str
    verb: str  # get, list, watch, create, update, patch, delete, …
    resource: str  # "deployments", or "canaries/status" for a subresource; "" for a path that is none
    namespace: str
    name: str
    uri: str
    status: int  # HTTP
    stage: str  # ResponseComplete; ResponseStarted (a watch that began), Panic
    whole: dict[str, Any]

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES

    @property
    def body(self) -> Any:
        """What was sent (writes that are recorded whole), else None."""
        return self.whole.get("requestObject")

    @property
    def answer(self) -> Any:
        """What came back (writes that are recorded whole), else None."""
        return self.whole.get("responseObject")


class Audit:
    """The log of one bench, over restarts of its API server."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def requests(
        self, user: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Request]:
        """In the order of the log; a request still being answered is not in it. A watch counts when it has begun."""
        if not self._log.exists():
            return
        with self._log.open() as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # being written
                event = _event(line)
                if event is None:
                    continue
                request = _parse(event)
                if user is not None and request.user != user:
                    continue
                if (since is not None and request.at < since) or (until is not None and request.at > until):
                    continue
                if request.verb == "watch" and request.stage == "ResponseComplete":
                    continue  # its beginning has been counted
                yield request

    def counts(
        self, user: str, since: datetime | None = None, until: datetime | None = None
    ) -> Counter[tuple[str, str]]:
        """(verb, resource) → requests."""
        return Counter((request.verb, request.resource) for request in self.requests(user, since, until))


_BEGINS = '{"kind":"Event","apiVersion":"audit.k8s.io'


def _event(line: str) -> dict[str, Any] | None:
    """A server that was killed leaves half a line, behind which the next one goes on."""
    for text in (line, line[max(line.rfind(_BEGINS), 0) :]):
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        return found
    return None


def _parse(event: dict[str, Any]) -> Request:
    target = event.get("objectRef", {})
    resource = target.get("resource", "")
    if subresource := target.get("subresource"):
        resource = f"{resource}/{subresource}"
    return Request(
        at=_time(event["requestReceivedTimestamp"]),
        done=_time(event["stageTimestamp"]),
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        uri=event["requestURI"],
        status=event.get("responseStatus", {}).get("code", 0),
        stage=event["stage"],
        whole=event,
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
