"""Spans out of JSON: OTLP's, as Jaeger's v3 API and Tempo answer, and that of Jaeger's older API.

The text is walked, not loaded: one span is decoded at a time, so that an answer of 20 MB never becomes 200 MB of
dictionaries. What is no span is left out and counted; what is no JSON at all is a ValueError, which says where and
never what. Nothing is fetched here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from canaryd.spans import WANTED_TAGS, ArmTags, Span, kind_of, span_of

LONGEST_VALUE = 2000  # characters of an attribute that are looked at
MOST_TAGS = 200  # of one span
SMALL = 100_000  # characters that may be decoded at once
_MALFORMED = (KeyError, TypeError, AttributeError, OverflowError, ValueError)  # what wrong data raises as it is read
_BLANK = re.compile(r"[ \t\r\n]*")
_RAW = json.JSONDecoder().raw_decode


@dataclass(slots=True)
class Harvest:
    """What was read so far."""

    spans: list[Span] = field(default_factory=list)
    traces: set[str] = field(default_factory=set)  # of refused spans, too
    refused: Counter[str] = field(default_factory=Counter)  # why -> how many
    said: str = ""  # errors that the server itself speaks of

    def refuse(self, error: Exception) -> None:
        """Count a span that is left out, by why."""
        self.refused[_known(error) if isinstance(error, ValueError) else "missing or misplaced fields"] += 1

    def note(self) -> str:
        """What was left out, in words; "" when nothing was."""
        total = self.refused.total()
        if not total:
            return ""
        why = ", ".join(f"{count} with {reason}" for reason, count in self.refused.most_common(3))
        return f"{total} malformed span{'s' if total > 1 else ''} left out: {why}"


@dataclass(frozen=True)
class Reader:
    """Turns answers into spans of one canary."""

    arms: ArmTags
    aliases: tuple[str, ...] = ()

    @cached_property
    def _wanted(self) -> frozenset[str]:
        """Attributes that are read at all."""
        return WANTED_TAGS.union(self.arms.looked_at)

    def otlp(self, text: str, into: Harvest) -> None:
        """`{"result": {"resourceSpans": [...]}}`, or several of them in a row. Raises ValueError."""
        walk = _Walk(text)
        while walk.more():
            self._otlp_level(walk, into, ("result", "batches", "resourceSpans"))

    def _otlp_level(self, walk: _Walk, into: Harvest, wanted: tuple[str, ...]) -> None:
        for key in walk.members():
            if key == "result":
                self._otlp_level(walk, into, wanted)
            elif key in ("resourceSpans", "batches"):
                for _ in walk.items():
                    if walk.before('"resource"') < SMALL:
                        self._small_process(walk.value(), into)
                    else:
                        self._process(walk, into)
            elif key == "error":
                into.said = into.said or _message(walk.value())
            else:
                walk.value()

    def _small_process(self, found: Any, into: Harvest) -> None:
        """Spans of one process, decoded all at once."""
        if not isinstance(found, dict):
            return
        resource = self._resource(found.get("resource"))
        for scope in _listed(found.get("scopeSpans") or found.get("instrumentationLibrarySpans")):
            for raw in _listed(scope.get("spans") if isinstance(scope, dict) else None):
                self._take(raw, resource, into)

    def _resource(self, found: Any) -> Mapping[str, str]:
        try:
            return _attributes(found["attributes"], None)
        except (KeyError, TypeError, AttributeError):
            return {}

    def _process(self, walk: _Walk, into: Harvest) -> None:
        """The same one span after the other: the resource comes first, or they wait for it."""
        resource: Mapping[str, str] | None = None
        waiting: list[Any] = []
        for key in walk.members():
            if key == "resource":
                resource = self._resource(walk.value())
            elif key in ("scopeSpans", "instrumentationLibrarySpans"):
                for raw in _scoped(walk):
                    if resource is None:
                        waiting.append(raw)
                    else:
                        self._take(raw, resource, into)
            else:
                walk.value()
        for raw in waiting:
            self._take(raw, resource or {}, into)

    def _take(self, raw: Any, resource: Mapping[str, str], into: Harvest) -> None:
        try:
            into.traces.add(raw["traceId"])
            status = raw.get("status") or {}
            start = int(raw["startTimeUnixNano"])
            span = span_of(
                trace=raw["traceId"],
                id_=raw["spanId"],
                parent=raw.get("parentSpanId") or "",
                service=resource.get("service.name", ""),
                name=str(raw.get("name") or "")[:LONGEST_VALUE],
                kind=kind_of(raw.get("kind", 0)),
                start=start,
                duration=(int(raw["endTimeUnixNano"]) - start) / 1e6,
                error=status.get("code") in (2, "STATUS_CODE_ERROR"),
                tags=_attributes(raw.get("attributes"), self._wanted),
                resource=resource,
                arms=self.arms,
                aliases=self.aliases,
                message=str(status.get("message") or "")[:LONGEST_VALUE],
            )
        except _MALFORMED as e:
            into.refuse(e)
        else:
            into.spans.append(span)

    def legacy(self, text: str, into: Harvest) -> None:
        """`{"data": [{"spans": [...], "processes": {...}}], "errors": null}`. Raises ValueError."""
        walk = _Walk(text)
        for key in walk.members():
            if key == "data":
                for _ in walk.items():
                    self._legacy_trace(walk.value(), into)
            elif key == "errors":
                into.said = into.said or _message(walk.value())
            else:
                walk.value()

    def _legacy_trace(self, trace: Any, into: Harvest) -> None:
        try:
            processes = {
                key: {"service.name": str(value.get("serviceName") or ""), **_tags(value.get("tags"))}
                for key, value in trace["processes"].items()
            }
            spans = list(trace["spans"])
        except (KeyError, TypeError, AttributeError):
            into.refused["missing or misplaced fields"] += 1
            return
        for raw in spans:
            self._take_legacy(raw, processes, into)

    def _take_legacy(self, raw: Any, processes: Mapping[str, Mapping[str, str]], into: Harvest) -> None:
        try:
            trace, tags = raw["traceID"], _tags(raw.get("tags"))
            into.traces.add(trace)
            resource = processes.get(raw["processID"], {})
            span = span_of(
                trace=trace,
                id_=raw["spanID"],
                parent=_parent(raw.get("references") or (), trace),
                service=resource.get("service.name", ""),
                name=str(raw.get("operationName") or "")[:LONGEST_VALUE],
                kind=kind_of(tags.get("span.kind", "")),
                start=int(raw["startTime"]) * 1000,
                duration=int(raw["duration"]) / 1000,
                error=tags.get("otel.status_code") == "ERROR",
                tags=tags,
                resource=resource,
                arms=self.arms,
                aliases=self.aliases,
                message=tags.get("otel.status_description", ""),
            )
        except _MALFORMED as e:
            into.refuse(e)
        else:
            into.spans.append(span)


def _known(error: ValueError) -> str:
    """The reason in our own words: another library's message repeats the value."""
    text = str(error)
    return text if text in _REASONS else "a number that is none"


_REASONS = frozenset(
    {"an id that is not hexadecimal", "a negative or impossible duration", "an impossible time", "no service"}
)


def _message(value: Any) -> str:
    """What a server says went wrong, in whichever shape."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value[:3])))
    if isinstance(value, dict):
        return _message(value.get("message") or value.get("msg"))
    return str(value)[:LONGEST_VALUE] if value else ""


def _scoped(walk: _Walk) -> Iterator[Any]:
    for _ in walk.items():
        for key in walk.members():
            if key == "spans":
                for _ in walk.items():
                    yield walk.value()
            else:
                walk.value()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _attributes(given: Any, wanted: frozenset[str] | None) -> dict[str, str]:
    """OTLP's list of keys and values, those that are wanted; lists and mappings among the values are left out.

    Raises KeyError, TypeError or AttributeError when it is no such list.
    """
    out: dict[str, str] = {}
    for pair in (given or ())[:MOST_TAGS]:
        key = pair["key"]
        if wanted is not None and key not in wanted:
            continue
        value = pair["value"]
        text = value.get("stringValue")
        if text is None:
            text = next((_text(value[k]) for k in ("intValue", "boolValue", "doubleValue") if k in value), None)
        if isinstance(text, str):
            out[key] = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE]
    return out


def _tags(given: Any) -> dict[str, str]:
    return {t["key"]: _text(t.get("value")) for t in (given or ())[:MOST_TAGS]}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value[:LONGEST_VALUE] if isinstance(value, str) else str(value)[:LONGEST_VALUE]


def _parent(references: Any, trace: str) -> str:
    """Of several the one that waits for this span; only inside the trace."""
    found = {r.get("refType"): r["spanID"] for r in references if r.get("traceID") == trace}
    parent = found.get("CHILD_OF") or found.get("FOLLOWS_FROM") or ""
    return str(parent)


class _Walk:
    """A JSON text read from left to right. Where something else stands than was expected it is read over."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def before(self, sign: str) -> int:
        """Characters from here to the second time that `sign` comes: what stands here is about as long."""
        first = self._text.find(sign, self._at, self._at + SMALL)
        second = self._text.find(sign, first + 1, self._at + SMALL) if first >= 0 else -1
        at = second if second >= 0 else len(self._text)
        return at - self._at

    def more(self) -> bool:
        """Anything but blanks is left."""
        return bool(self._peek())

    def value(self) -> Any:
        """What stands here, decoded. Raises ValueError."""
        self._peek()
        try:
            found, self._at = _RAW(self._text, self._at)
        except json.JSONDecodeError as e:
            raise ValueError(f"no JSON at character {e.pos}") from None
        except (RecursionError, ValueError):  # nested without end, a number of 5000 digits
            raise ValueError(f"unreasonable JSON at character {self._at}") from None
        return found

    def members(self) -> Iterator[str]:
        """Keys of the object here; after each the caller reads its value."""
        if self._peek() != "{":
            self.value()
            return
        for _ in self._inside("}"):
            key = self.value()
            self._expect(":")
            yield key if isinstance(key, str) else ""

    def items(self) -> Iterator[None]:
        """Once for each item of the list here; the caller reads it."""
        if self._peek() != "[":
            self.value()
            return
        yield from self._inside("]")

    def _inside(self, end: str) -> Iterator[None]:
        self._at += 1
        if self._peek() == end:
            self._at += 1
            return
        while True:
            yield
            found = self._peek()
            self._expect(end if found == end else ",")
            if found == end:
                return

    def _expect(self, sign: str) -> None:
        if self._peek() != sign:
            raise ValueError(f"no JSON at character {self._at}")
        self._at += 1

    def _peek(self) -> str:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        self._at = blank.end()
        return self._text[self._at : self._at + 1]
