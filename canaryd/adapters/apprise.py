"""Tells people by whatever Apprise knows: e-mail, Teams, Discord and a hundred others. An optional extra.

The addresses hold passwords: they are read from a file or a variable, never shown, and Apprise's own log is silent.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from canaryd.errors import NotifyError
from canaryd.model import Record
from canaryd.notices.cloudevent import identity
from canaryd.notices.kinds import Wish, is_wanted
from canaryd.notices.notice import Notice, notice
from canaryd.notices.words import Words
from canaryd.secret import Secret

MOST_URLS = 50
_TYPES = {"warning": "warning", "critical": "failure"}  # severity → Apprise's word
REMEMBERED = 1000


class AppriseNotifier:
    """ports.Notifier; one message to each address, and to each once, also where another of them fails."""

    wants_evidence = True

    def __init__(
        self,
        name: str,
        urls: Secret,
        *,
        wishes: Sequence[Wish] = (),
        words: Words | None = None,
        late_after: timedelta = timedelta(minutes=1),
        external_url: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises NotifyError when Apprise is not installed."""
        self.name = name
        self._apprise = _library()
        self._urls, self._wishes, self._words = urls, wishes, words or Words()
        self._late_after, self._external_url, self._clock = late_after, external_url, clock
        self._had: OrderedDict[tuple[str, str], None] = OrderedDict()  # (record, hash of the address)

    def probe(self) -> str:
        """See ports.Notifier: Apprise knows each of the addresses; nothing is sent."""
        lines = self._lines()
        for number, url in lines:
            self._target(number, url)
        return f"Apprise knows all {len(lines)} addresses of {self._urls.place}"

    def notify(self, record: Record) -> bool:
        """See ports.Notifier."""
        if not is_wanted(record, self._wishes):
            return False
        told = notice(record, self._clock(), self._late_after, self._external_url)
        title, text = f"canaryd: {told.canary} {told.kind}", self._words.said(record, told) or plain_text(told)
        failed = []
        for number, url in self._lines():
            had = (identity(record), sha256(url.encode()).hexdigest())
            if had in self._had:
                continue
            if not self._send(number, url, title, text, _TYPES.get(told.severity, "info")):
                failed.append(number)
                continue
            self._had[had] = None
            if len(self._had) > REMEMBERED:
                self._had.popitem(last=False)
        if failed:
            where = ", ".join(map(str, failed))
            raise NotifyError(f"Apprise could not deliver to the address of line {where} of {self._urls.place}")
        return True

    def _lines(self) -> list[tuple[int, str]]:
        lines = enumerate(self._urls.read().splitlines(), start=1)
        found = [(n, line.strip()) for n, line in lines if line.strip() and not line.strip().startswith("#")]
        if not 1 <= len(found) <= MOST_URLS:
            raise NotifyError(f"{self._urls.place} holds {len(found)} addresses; 1 to {MOST_URLS} are right")
        return found

    def _target(self, number: int, url: str) -> Any:
        target = self._apprise.Apprise()
        if not target.add(url):
            raise NotifyError(f"line {number} of {self._urls.place} is no address that Apprise knows")
        return target

    def _send(self, number: int, url: str, title: str, text: str, kind: str) -> bool:
        return bool(self._target(number, url).notify(body=text, title=title, notify_type=kind))


def _library() -> Any:
    try:
        import apprise
    except ImportError:
        raise NotifyError("Apprise is not installed; pip install 'canaryd[apprise]', or use slack or webhook") from None
    for name in ("apprise", "apprise.URLBase"):
        quiet = logging.getLogger(name)
        quiet.handlers[:], quiet.propagate = [logging.NullHandler()], False
        quiet.setLevel(logging.CRITICAL + 10)
    return apprise


def plain_text(told: Notice) -> str:
    """The facts of a decision, one on each line."""
    lines = [told.sentence]
    lines += [f"({told.late}: decided at {told.at:%Y-%m-%d %H:%M} UTC)"] if told.late else []
    lines += [told.by] if told.by and told.kind == "override" else []
    if told.is_full:
        lines += [
            f"{r.metric}: canary {r.canary}, stable {r.stable}, difference {r.difference}, tolerated {r.tolerated},"
            f" {r.verdict} (n {' / '.join(n or '–' for n in r.n)})"
            for r in told.rows
        ]
        lines += [f"Harmed: {told.harmed}"] if told.harmed else []
        lines += [f"Not the cause: {', '.join(told.cleared)}"] if told.cleared else []
        lines += [*told.clues, *(f"Request: {t.label} {t.url}".rstrip() for t in told.traces)]
        lines += [f"Next: {told.next}"] if told.next else []
    lines += [told.page] if told.page else []
    return "\n".join(lines)
