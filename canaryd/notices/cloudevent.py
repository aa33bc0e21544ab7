"""A decision as a CloudEvent 1.0 in JSON, and its signature as Standard Webhooks has it. Pure.

The signature is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, so that neither another body nor an old
one can be passed off as new. A key that begins with `whsec_` is base64; any other is taken as it is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from canaryd.model import Record
from canaryd.notices.notice import Notice

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"


def identity(record: Record) -> str:
    """The same for a record whenever it is sent, and no other's: a Canary that is made anew counts from one again."""
    return f"{record.id}@{record.at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"


def event(record: Record, notice: Notice, source: str, said: str = "") -> bytes:
    """The body of the request; `said` are other words for the sentence."""
    namespace = str(record.body.get("namespace") or record.canary.rpartition("/")[0] or "default")
    value: dict[str, Any] = {
        "specversion": "1.0",
        "id": identity(record),
        "source": f"{source.rstrip('/')}/namespaces/{namespace}/canaries/{notice.name}",
        "type": f"io.canaryd.decision.{record.kind.value}",
        "time": record.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": {
            "record": record.id,
            "text": said or notice.sentence,
            "kind": notice.kind,
            "severity": notice.severity,
            "late": notice.late,
            "links": {name: url for name, url in (("dashboard", notice.page), ("report", notice.report)) if url},
            "decision": record.body,
        },
    }
    if notice.rollout:
        value["subject"] = notice.rollout
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def headers(record: Record, body: bytes, key: bytes | None, now: datetime) -> Mapping[str, str]:
    """What goes with it; signed where there is a key."""
    id_, timestamp = _header(identity(record)), str(int(now.timestamp()))
    out = {"Content-Type": CONTENT_TYPE, ID: id_, TIMESTAMP: timestamp}
    if key is not None:
        out[SIGNATURE] = signature(key, id_, timestamp, body)
    return out


def signature(key: bytes, id_: str, timestamp: str, body: bytes) -> str:
    """See the head of this module. Raises ValueError for a key after `whsec_` that is no base64."""
    if key.startswith(b"whsec_"):
        try:
            key = base64.b64decode(key[6:], validate=True)
        except binascii.Error:
            raise ValueError("the key begins with whsec_, but what follows is no base64") from None
    signed = b".".join((id_.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()


def _header(text: str) -> str:
    """Fit for a header."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
