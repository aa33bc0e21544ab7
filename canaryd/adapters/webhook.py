"""Tells a program of the operator's: each decision as a CloudEvent, signed, by one POST.

Goes to no address of this machine or its link unless that is allowed, follows no redirect, and never puts the address
beyond its host, nor the key, into a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, urlsplit

from canaryd.adapters.exchange import Connection, Deadline, basic_authorization, checked_url
from canaryd.errors import NotifyError, SourceError
from canaryd.model import Record
from canaryd.notices import cloudevent
from canaryd.notices.kinds import Wish, is_wanted
from canaryd.notices.notice import notice
from canaryd.notices.words import Words
from canaryd.secret import Secret

MOST_BYTES = 64 * 1024  # of an answer, which nobody reads


class WebhookNotifier:
    """ports.Notifier. `url` is an address, or where it is kept when it is a secret; `key` signs."""

    wants_evidence = True

    def __init__(
        self,
        name: str,
        url: str | Secret,
        *,
        key: Secret | None = None,
        ca_file: str | None = None,
        timeout: timedelta = timedelta(seconds=10),
        allow_local: bool = False,
        source: str = "/canaryd",
        wishes: Sequence[Wish] = (),
        words: Words | None = None,
        late_after: timedelta = timedelta(minutes=1),
        external_url: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self._url, self._key, self._ca_file, self._timeout = url, key, ca_file, timeout
        self._allow_local, self._source = allow_local, source
        self._wishes, self._words = wishes, words or Words()
        self._late_after, self._external_url, self._clock = late_after, external_url, clock

    def probe(self) -> str:
        """See ports.Notifier: the address and the key can be read; nothing is sent."""
        if self._key is not None:
            self._key.read()
        return f"{self._address().hostname} gets events{', signed' if self._key is not None else ''}"

    def notify(self, record: Record) -> bool:
        """See ports.Notifier. Any answer of 2xx is a receipt."""
        if not is_wanted(record, self._wishes):
            return False
        now = self._clock()
        told = notice(record, now, self._late_after, self._external_url)
        body = cloudevent.event(record, told, self._source, self._words.said(record, told))
        key = self._key.read().encode() if self._key is not None else None
        try:
            headers = dict(cloudevent.headers(record, body, key, now))
        except ValueError as e:
            raise NotifyError(f"{self._key.place if self._key else ''}: {e}") from None
        self._send(body, headers)
        return True

    def _address(self) -> SplitResult:
        url = self._url.line() if isinstance(self._url, Secret) else self._url
        try:
            return checked_url(url)
        except ValueError:
            place = self._url.place if isinstance(self._url, Secret) else "the URL"
            raise NotifyError(f"{place} is no usable URL; use one such as https://hooks.example.com/canaryd") from None

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        parts = self._address()
        host, deadline = parts.hostname or "", Deadline.after(self._timeout)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        bare = urlsplit(f"{parts.scheme}://{parts.netloc}")  # what Connection puts into messages: no path, no query
        try:
            with Connection(bare, deadline, MOST_BYTES, self._ca_file, public_only=not self._allow_local) as connection:
                answer = connection.ask("POST", target, {**headers, **basic_authorization(parts)}, body)
        except SourceError as e:
            allowed = "" if self._allow_local else " (notify.channels[].webhook.allowLocal allows this machine)"
            raise NotifyError(f"{e}{allowed if 'of this machine or its link' in str(e) else ''}") from None
        if 200 <= answer.status < 300:
            return
        pause = answer.retry_after
        hint = "; redirects are not followed, name the last address" if 300 <= answer.status < 400 else ""
        raise NotifyError(f"{host} answers HTTP {answer.status}{hint}", retry_after=pause)
