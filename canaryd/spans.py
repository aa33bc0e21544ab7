"""Spans in canaryd's words: what one is, whose it is, and what its operation is called. Pure.

A trace source turns whatever its server answers into these nouns with `span_of` and `settle`; everything behind it
reads nothing else. What a server sends is other people's data: a span that makes no sense is refused with a
ValueError that its source counts, texts are cut and cleaned, and a URL loses its query and its password.

Here is also why operations have names of their own. Envoy calls the span of a route with several destinations
`<VirtualService>:<port><path>*`, and that of a route with one destination `<host>:<port><path>*`: the name changes
when a rollout starts and ends, and at 0 and 100 percent. A pod's own side says the host of the Service that the pod
is behind, which is another one for each arm. `normal_operation` makes them one again, or no operation would ever be
compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType

from canaryd.model import Arm

LONGEST_NAME = 200  # characters of an operation, a service and a fact
DEFAULT_TAGS = ("istio.canonical_revision", "service.version")  # then the pod
KINDS = ("", "internal", "server", "client", "producer", "consumer")  # by their number in OTLP

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_FACTS: Mapping[str, str] = MappingProxyType({})
_HEX = re.compile(r"[0-9a-fA-F]{1,32}")


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work in one process, as a tracer reported it."""

    trace: str  # hex
    id: str  # hex
    parent: str  # hex, "" for a root or when the parent is not in the answer
    service: str  # service.name of its resource
    operation: str  # see normal_operation
    kind: str  # one of KINDS
    start: int  # ns since the epoch
    duration: float  # ms, >= 0, finite
    error: bool  # the tracer's status, error=true, or an HTTP status of 500 and more
    arm: Arm | None  # None: of neither arm, or nothing tells
    revision: str  # value of the tag that told the arm; without an arm the first value found
    pod: str  # "" unknown
    facts: Mapping[str, str] = field(default_factory=lambda: _NO_FACTS)  # few, each at most LONGEST_NAME characters

    @property
    def end(self) -> int:
        """ns since the epoch."""
        return self.start + round(self.duration * 1e6)


def nanoseconds(at: datetime) -> int:
    """Since the epoch, exactly: a float would be wrong by some hundred."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, slots=True)
class ArmTags:
    """What tells the arms apart: a span is of the arm whose values one of its tags has.

    A value that both arms have tells nothing. Without `tag` the DEFAULT_TAGS are tried in their order, and then the
    pod, which belongs to the value that its name begins with ("api-canary" of "api-canary-7d9f-x2x"; the longest wins).
    """

    tag: str = ""
    stable: tuple[str, ...] = ()
    canary: tuple[str, ...] = ()

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The tags that may tell, the first one first."""
        return (self.tag,) if self.tag else DEFAULT_TAGS

    def arm(
        self, tags: Mapping[str, str], pod: str = "", resource: Mapping[str, str] = _NO_FACTS
    ) -> tuple[Arm | None, str]:
        """Whose span this is, and by which value; without an arm, the first value found.

        `tags` are its own and go before those of its process, `resource`.
        """
        first = ""
        for tag in self.looked_at:
            value = tags.get(tag) or resource.get(tag, "")
            if arm := self._of(value):
                return arm, value
            first = first or value
        if not self.tag and pod:
            value = max((v for v in (*self.stable, *self.canary) if v and _is_pod_of(pod, v)), key=len, default="")
            if arm := self._of(value):
                return arm, value
        return None, first

    def _of(self, value: str) -> Arm | None:
        stable, canary = value in self.stable, value in self.canary
        if not value or stable == canary:
            return None
        return Arm.STABLE if stable else Arm.CANARY


def arm_tags(
    workloads: tuple[str, str],
    revisions: tuple[str, str] = ("", ""),
    *,
    tag: str = "",
    stable: Sequence[str] = (),
    canary: Sequence[str] = (),
) -> ArmTags:
    """The tags of a Canary: values that its operator gave, else the names of its workloads and their revisions.

    `workloads` and `revisions`: of stable and of the canary, "" unknown.
    """
    return ArmTags(
        tag,
        tuple(stable) or tuple(v for v in (workloads[0], revisions[0]) if v),
        tuple(canary) or tuple(v for v in (workloads[1], revisions[1]) if v),
    )


def _is_pod_of(pod: str, workload: str) -> bool:
    return pod == workload or pod.startswith(f"{workload}-")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9_*.-]{1,253}):(?P<port>[0-9]{1,5})(?P<rest>/.*|)", re.DOTALL)
_CLUSTER = re.compile(r"(?:outbound|inbound)\|(?P<port>[0-9]{0,5})\|[^|\s]*\|(?P<host>[^\s;|/]*)(?:;)?")
_GATEWAY_API = re.compile(r"-[0-9]+-istio-autogenerated-k8s-gateway$")
_ID = re.compile(r"[0-9]+|[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def normal_operation(name: str, aliases: Sequence[str] = ()) -> str:
    """One name for one operation, whatever the route looked like when the span was made.

    `aliases`: every name by which routes call the service (its VirtualServices, hosts and Services, those of both
    arms); the first is the one that is kept. Their ports are left out: a route with several destinations says the port
    that was called, one with a single destination that of the destination. Of other hosts inside the cluster the
    Service's name is kept, and the port.
    Identifiers in a path become {id}; a query is left out; longer than LONGEST_NAME is cut.

    >>> same = ("api", "api-stable", "api-canary")
    >>> normal_operation("api:80/pay*", same), normal_operation("api-canary.shop.svc.cluster.local:8080/pay*", same)
    ('api/pay*', 'api/pay*')
    >>> normal_operation("GET /orders/8812/items?page=2")
    'GET /orders/{id}/items'
    """
    return _normal(name[: 4 * LONGEST_NAME + 1], tuple(aliases))


@lru_cache(maxsize=4096)
def _normal(name: str, aliases: tuple[str, ...]) -> str:
    text = " ".join(clean(name, 4 * LONGEST_NAME).split())
    text = _CLUSTER.sub(lambda m: f"{m['host']}:{m['port'] or 0}", text)
    words = [_normal_word(word, aliases) for word in text.partition("?")[0].partition("#")[0].split(" ")]
    return cut(" ".join(words).strip()) or "(unnamed)"


def _normal_word(word: str, aliases: Collection[str]) -> str:
    if match := _HOST_PORT.fullmatch(word):
        names = [short_host(alias) for alias in aliases]
        host = short_host(match["host"])
        place = names[0] if host in names else f"{host}:{match['port']}"
        return place + _normal_path(match["rest"])
    return _normal_path(word) if "/" in word else word


def _normal_path(path: str) -> str:
    return "/".join("{id}" if _ID.fullmatch(part) else part for part in path.split("/"))


def short_host(host: str) -> str:
    """The Service's name of a host inside the cluster, the HTTPRoute's of a route that Istio made; others unchanged."""
    host = _GATEWAY_API.sub("", host.lower())
    name, _, rest = host.partition(".")
    return name if ".svc" in f".{rest}." and f".{rest}.".split(".svc.")[0].count(".") == 1 else host


# ── texts of others ──────────────────────────────────────────────────────────────────────────────────────────

_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_SECRET = re.compile(
    r"(?i)\b((?:proxy-)?authorization|[a-z_.-]*(?:token|password|passwd|secret|api[_-]?key|cookie|session))"
    r"(\"?\s*[:=]\s*\"?)(?:(?:bearer|basic)\s+)?[^\s\"'&,;]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}")


def cut(text: str, longest: int = LONGEST_NAME) -> str:
    """At most so many characters; an ellipsis stands for the rest."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def clean(text: str, longest: int = LONGEST_NAME) -> str:
    """A text of somebody else's without control characters, cut before anything is done with it."""
    if len(text) <= longest and text.isprintable():
        return text
    text = text[: longest + 1]
    return cut(text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text), longest)


def discreet(text: str) -> str:
    """A message of an application without what looks like a password or a token in it."""
    text = _USERINFO.sub("", clean(text, 4 * LONGEST_NAME))
    return cut(_BEARER.sub(r"\1 …", _SECRET.sub(r"\1\2…", text)))


def path_of(url: str) -> str:
    """The path of a URL: neither host, user nor query."""
    if not url:
        return ""
    text = clean(url, 4 * LONGEST_NAME).partition("?")[0].partition("#")[0]
    scheme, found, rest = text.partition("://")
    if found and "/" not in scheme:
        text = "/" + rest.partition("/")[2]
    return cut(text)


# ── from tags to a span ──────────────────────────────────────────────────────────────────────────────────────

_STATUS = ("http.status_code", "http.response.status_code")
_METHOD = ("http.method", "http.request.method")
_URL = ("http.url", "url.full", "url.path", "http.target")
_PLAIN_FACTS = ("response_flags", "grpc.status_code", "rpc.grpc.status_code", "upstream_cluster.name", "error.type")


WANTED_TAGS = frozenset({*_STATUS, *_METHOD, *_URL, *_PLAIN_FACTS, "error", "node_id", "k8s.pod.name"})  # and the arms'


def span_of(
    *,
    trace: str,
    id_: str,
    parent: str,
    service: str,
    name: str,
    kind: str,
    start: int,
    duration: float,
    error: bool,
    tags: Mapping[str, str],
    resource: Mapping[str, str],
    arms: ArmTags,
    aliases: Sequence[str] = (),
    message: str = "",
) -> Span:
    """A span from what a server said; `tags` are the span's own, `resource` those of its process.

    Raises ValueError, in a few words, when it makes no sense.
    """
    if not (_HEX.fullmatch(trace) and _HEX.fullmatch(id_) and (not parent or _HEX.fullmatch(parent))):
        raise ValueError("an id that is not hexadecimal")
    if not (math.isfinite(duration) and duration >= 0):
        raise ValueError("a negative or impossible duration")
    if not 0 < start < 2**63:
        raise ValueError("an impossible time")
    if not service:
        raise ValueError("no service")
    pod = pod_of(tags, resource)
    arm, revision = arms.arm(tags, pod, resource)
    status = _first(tags, _STATUS)
    return Span(
        trace=trace.lower(),
        id=id_.lower(),
        parent="" if not parent.strip("0") else parent.lower(),
        service=clean(service),
        operation=normal_operation(name, aliases),
        kind=kind,
        start=start,
        duration=duration,
        error=error or tags.get("error", "").lower() == "true" or _is_failure(status),
        arm=arm,
        revision=clean(revision),
        pod=clean(pod),
        facts=_facts(tags, status, message),
    )


def pod_of(tags: Mapping[str, str], resource: Mapping[str, str]) -> str:
    """From Envoy's node_id (`sidecar~<ip>~<pod>.<namespace>~<domain>`), else k8s.pod.name; "" unknown."""
    node = (tags.get("node_id") or resource.get("node_id", "")).split("~")
    if len(node) == 4:
        return node[2].rpartition(".")[0] or node[2]
    return resource.get("k8s.pod.name") or tags.get("k8s.pod.name", "")


def kind_of(value: object) -> str:
    """One of KINDS from OTLP's number or name, or from the tag span.kind."""
    if isinstance(value, int):
        return KINDS[value] if 0 <= value < len(KINDS) else ""
    text = str(value).lower().removeprefix("span_kind_")
    return text if text in KINDS else ""


def _facts(tags: Mapping[str, str], status: str, message: str) -> dict[str, str]:
    facts = {}
    for key, value in (
        ("http.status_code", status),
        ("http.method", _first(tags, _METHOD)),
        ("http.url", path_of(_first(tags, _URL))),
        *((key, tags[key]) for key in _PLAIN_FACTS if key in tags and tags[key] != "-"),
    ):
        if value:
            facts[key] = clean(value)
    if message:
        facts["message"] = discreet(message)
    return facts


def _first(tags: Mapping[str, str], keys: Iterable[str]) -> str:
    return next((tags[key] for key in keys if tags.get(key)), "")


def _is_failure(status: str) -> bool:
    return len(status) == 3 and status.isdigit() and status >= "500"


# ── from spans to traces ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Settled:
    """Spans that can be followed from each to its root."""

    spans: tuple[Span, ...]
    repeated: int  # left out: the same span once more
    looped: int  # left out: each is its own ancestor


def settle(spans: Iterable[Span]) -> Settled:
    """Leave out spans that were there before and loops of parents; a parent that is not there becomes ""."""
    kept: dict[tuple[str, str, str], Span] = {}
    repeated = 0
    for span in spans:
        key = (span.trace, span.id, span.kind)  # a client's and its server's span may share an id
        repeated += key in kept
        kept.setdefault(key, span)
    every = list(kept.values())
    above = parents(every)
    loops = _loops(above)
    out = []
    for i, span in enumerate(every):
        if i not in loops:
            orphan = span.parent and (above[i] < 0 or above[i] in loops)
            out.append(replace(span, parent="") if orphan else span)
    return Settled(tuple(out), repeated, len(loops))


def parents(spans: Sequence[Span]) -> list[int]:
    """For each span the index of the one above it, -1 for none.

    Where a client and its server share an id (Zipkin's way), the client is above the server, and what names that id as
    its parent is below the server.
    """
    places: dict[tuple[str, str], int] = {}
    clients: dict[tuple[str, str], int] = {}
    for i, span in enumerate(spans):
        key = (span.trace, span.id)
        if span.kind == "client":
            clients.setdefault(key, i)
        if key not in places or (span.kind == "server" and spans[places[key]].kind != "server"):
            places[key] = i
    above = []
    for span in spans:
        client = clients.get((span.trace, span.id), -1) if span.kind == "server" else -1
        above.append(client if client >= 0 or not span.parent else places.get((span.trace, span.parent), -1))
    return above


def _loops(above: Sequence[int]) -> set[int]:
    """Every index that is reached again when it is followed upwards. In time proportional to their number."""
    seen = [0] * len(above)  # the walk in which it was met
    loops: set[int] = set()
    for first in range(len(above)):
        here, walk = first, first + 1
        while here >= 0 and not seen[here]:
            seen[here] = walk
            here = above[here]
        if here >= 0 and seen[here] == walk:
            start = here
            while here not in loops:
                loops.add(here)
                here = above[here]
            assert here == start
    return loops
