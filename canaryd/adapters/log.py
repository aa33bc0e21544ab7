"""Tells people through the daemon's own log: one event for each record, with keys. It is never refused."""

from __future__ import annotations

import structlog

from canaryd.model import Record

_LEVELS = {"warning": "warning", "critical": "error"}  # severity of the record -> level of the log


class LogNotifier:
    """ports.Notifier. The event is "decision"; the sentence is the same as everywhere else."""

    name = "log"

    def probe(self) -> str:
        return "is never refused"

    def notify(self, record: Record) -> None:
        level = _LEVELS.get(str(record.body.get("severity", "")), "info")
        getattr(structlog.get_logger(), level)(
            "decision",
            id=record.id,
            canary=record.canary,
            at=record.at.isoformat(),
            kind=record.kind.value,
            sentence=record.sentence,
        )
