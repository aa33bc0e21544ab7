"""What every Notifier promises."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from canaryd.adapters.log import LogNotifier
from canaryd.adapters.memory import MemoryNotifier
from canaryd.model import DecisionKind, Record
from canaryd.ports import Notifier

NOTIFIERS: dict[str, Callable[[], Notifier]] = {"memory": MemoryNotifier, "log": LogNotifier}


def record(severity: str = "info") -> Record:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Record(
        "shop/4", "shop", at, DecisionKind.ROLLBACK, "errors are 4 % worse", {"severity": severity}, tell=True
    )


@pytest.mark.parametrize("make", NOTIFIERS.values(), ids=NOTIFIERS.keys())
def test_a_record_may_be_told_twice(make: Callable[[], Notifier]) -> None:
    notifier = make()
    with capture_logs():
        notifier.notify(record())
        notifier.notify(record())


@pytest.mark.parametrize(
    ("severity", "level"), [("info", "info"), ("warning", "warning"), ("critical", "error"), ("unheard-of", "info")]
)
def test_the_log_carries_one_event_with_the_sentence_and_its_keys(severity: str, level: str) -> None:
    with capture_logs() as events:
        LogNotifier().notify(record(severity))
    assert events == [
        {
            "event": "decision",
            "log_level": level,
            "id": "shop/4",
            "canary": "shop",
            "at": "2026-01-02T03:04:05+00:00",
            "kind": "rollback",
            "sentence": "errors are 4 % worse",
        }
    ]
