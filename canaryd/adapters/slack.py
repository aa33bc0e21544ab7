"""Tells people in Slack: one thread for each rollout, whose head always shows where the rollout is, and each decision
as a reply; or, by an incoming webhook, each decision as a message of its own.

Which thread speaks of which rollout is a note in the store. A thread or a reply that a daemon posted and died before it
could say so is found again by its metadata, where the app may read the channel. It never listens: slack_buttons does.
"""

from __future__ import annotations

import http.client
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import URLError

import structlog
from slack_sdk import WebClient
from slack_sdk.webhook import WebhookClient

from canaryd.errors import NotifyError, StoreError
from canaryd.model import Record
from canaryd.notices import blocks
from canaryd.notices.cloudevent import identity
from canaryd.notices.kinds import Wish, is_wanted
from canaryd.notices.notice import Notice, notice, plain
from canaryd.notices.words import Words
from canaryd.ports import NOTE, StateStore
from canaryd.secret import Secret
from canaryd.slackapi import GONE, QUIET, TOO_MUCH, SlackError, call, client, retry_after, unreachable

JSON = dict[str, Any]

HEAD, REPLY = "canaryd_rollout", "canaryd_decision"  # types of metadata
PAGES, PAGE = 3, 200  # messages that are looked through for one of ours
REMEMBERED = 1000  # threads

log = structlog.get_logger("canaryd.slack")


def _nobody(_severity: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What both ways to Slack share."""

    wishes: Sequence[Wish] = ()
    words: Words = field(default_factory=Words)
    mentions: Callable[[str], Sequence[str]] = _nobody  # by severity
    late_after: timedelta = timedelta(minutes=1)
    external_url: str = ""  # of the dashboard
    timeout: timedelta = timedelta(seconds=10)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def notice(self, record: Record) -> Notice:
        return notice(record, self.clock(), self.late_after, self.external_url)

    def decision(self, record: Record, told: Notice, *, alone: bool) -> tuple[str, list[JSON]]:
        said = self.words.said(record, told, blocks.escape)
        return blocks.decision(told, said=said, mentions=self.mentions(told.severity), alone=alone)


@dataclass(slots=True)
class _Thread:
    """Where a rollout is spoken of, as far as this process knows."""

    channel: str
    ts: str
    replies: set[str] = field(default_factory=set)  # identities of records that are there
    shown: object = None  # what the head says


class SlackBot:
    """ports.Notifier with a bot token."""

    wants_evidence = True

    def __init__(
        self,
        name: str,
        token: Secret,
        channel: str,
        store: StateStore,
        *,
        api_url: str = "https://slack.com/api/",
        style: Style | None = None,
        broadcast: bool = True,
        buttons: bool = False,
    ) -> None:
        self.name = name
        self._token, self._channel, self._store = token, channel, store
        self._api_url, self._style = api_url, style or Style()
        self._broadcast, self._buttons = broadcast, buttons
        self._threads: OrderedDict[str, _Thread] = OrderedDict()
        self._alone: OrderedDict[str, None] = OrderedDict()  # records that were posted without a thread
        self._id = channel if not channel.startswith("#") else ""  # Slack's id of the channel, once it is known
        self._may_read = True

    def notify(self, record: Record) -> bool:
        """See ports.Notifier. Raises SlackError."""
        if not is_wanted(record, self._style.wishes):
            return False
        web = client(self._token.line(), self._api_url, self._style.timeout)
        told = self._style.notice(record)
        if not told.rollout:
            self._post_alone(web, record, told)
            return True
        thread = self._thread(web, record, told)
        if identity(record) not in thread.replies:
            self._reply(web, thread, record, told)
        self._show(web, thread, self._latest(record, told))
        return True

    def probe(self) -> str:
        """See ports.Notifier: the token is valid, and the channel is there, where the app may ask."""
        web = client(self._token.line(), self._api_url, self._style.timeout)
        who = self._call(web, "auth.test")
        known = f"Slack knows the bot {plain(who.get('user'), 80)} of {plain(who.get('team'), 80)}"
        if not self._id:
            return f"{known}; {self._channel} is looked for with the first message, its id (C…) could be looked at now"
        try:
            found = self._call(web, "conversations.info", channel=self._id).get("channel")
        except SlackError as e:
            if e.code != "missing_scope":
                raise
            return f"{known}; the channel cannot be looked at without the scope channels:read"
        channel: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        if channel.get("is_archived"):
            raise SlackError(f"the channel {self._channel} is archived; unarchive it or name another")
        if channel.get("is_member") is False:
            raise SlackError(f"the bot is not in the channel {self._channel}; /invite it there")
        return f"{known}, and it is in #{plain(channel.get('name'), 80)}"

    # ── threads ──────────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, told: Notice) -> str:
        return f"{self.name}/{told.rollout}"[:NOTE]

    def _thread(self, web: WebClient, record: Record, told: Notice) -> _Thread:
        """The one that is known, that an earlier daemon has noted or only posted, or a new one."""
        key = f"{record.canary} {told.rollout}"
        if (known := self._threads.get(key)) is not None:
            self._threads.move_to_end(key)
            return known
        thread = self._noted(record, told)
        if thread is None:
            thread = self._found(web, told) or self._begun(web, record, told)
            self._store.remember(record.canary, self._key(told), f"{thread.channel} {thread.ts}")
        self._id = thread.channel
        if thread.shown is None:  # not of this process: some replies may be there
            thread.replies |= set(self._replies(web, thread))
        self._threads[key] = thread
        if len(self._threads) > REMEMBERED:
            self._threads.popitem(last=False)
        return thread

    def _noted(self, record: Record, told: Notice) -> _Thread | None:
        channel, _, ts = self._store.memo(record.canary).get(self._key(told), "").partition(" ")
        return _Thread(channel, ts) if channel and ts else None

    def _found(self, web: WebClient, told: Notice) -> _Thread | None:
        """The head that a daemon posted and did not live to note."""
        if not self._id:
            return None
        since = (told.since or told.at) - timedelta(minutes=1)
        asked = {"channel": self._id, "oldest": f"{since.timestamp():.6f}"}
        for message in self._read(web, "conversations.history", **asked):
            payload = _payload(message, HEAD)
            if (payload.get("rollout"), payload.get("canary")) == (told.rollout, told.canary):
                return _Thread(self._id, str(message.get("ts")))
        return None

    def _begun(self, web: WebClient, record: Record, told: Notice) -> _Thread:
        latest = self._latest(record, told)
        text, made = blocks.head(latest, buttons=self._buttons)
        about = {"rollout": told.rollout, "canary": told.canary}
        answer = self._post(web, text, made, self._id or self._channel, HEAD, about)
        return _Thread(str(answer.get("channel")), str(answer.get("ts")), shown=(text, made))

    def _replies(self, web: WebClient, thread: _Thread) -> Iterator[str]:
        for message in self._read(web, "conversations.replies", channel=thread.channel, ts=thread.ts):
            if said := _payload(message, REPLY).get("record"):
                yield str(said)

    def _read(self, web: WebClient, method: str, **asked: str) -> Iterator[Mapping[str, Any]]:
        """Messages, newest or oldest first as the method has it; none where the app may not read them."""
        cursor = ""
        for _ in range(PAGES if self._may_read else 0):
            try:
                answer = self._call(web, method, **asked, limit=PAGE, include_all_metadata=True, cursor=cursor or None)
            except SlackError as e:
                if e.code not in ("missing_scope", "not_in_channel", *GONE):
                    raise
                self._may_read = e.code in GONE
                if not self._may_read:
                    words = "after a crash a message may come twice"
                    log.info("the channel cannot be read", notifier=self.name, reason=str(e), so=words)
                return
            yield from (m for m in answer.get("messages") or () if isinstance(m, Mapping))
            cursor = str((answer.get("response_metadata") or {}).get("next_cursor") or "")
            if not cursor:
                return

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────────────

    def _reply(self, web: WebClient, thread: _Thread, record: Record, told: Notice) -> None:
        text, made = self._style.decision(record, told, alone=False)
        loud = True if self._broadcast and told.severity == "critical" else None
        about = {"record": identity(record)}
        try:
            self._post(web, text, made, thread.channel, REPLY, about, thread_ts=thread.ts, reply_broadcast=loud)
        except SlackError as e:
            if e.code not in GONE:
                raise
            self._forget(record, told)  # somebody deleted it: the next try begins a new one
            raise
        thread.replies.add(identity(record))

    def _forget(self, record: Record, told: Notice) -> None:
        self._threads.pop(f"{record.canary} {told.rollout}", None)
        self._store.remember(record.canary, self._key(told), "")

    def _show(self, web: WebClient, thread: _Thread, latest: Notice) -> None:
        text, made = blocks.head(latest, buttons=self._buttons)
        if thread.shown == (text, made):
            return
        try:
            self._call(web, "chat.update", channel=thread.channel, ts=thread.ts, text=text, blocks=made)
        except SlackError as e:
            if e.code not in GONE:
                raise
            log.info("the head of a thread is gone", notifier=self.name, rollout=latest.rollout, reason=str(e))
        thread.shown = (text, made)

    def _latest(self, record: Record, told: Notice) -> Notice:
        """Where the rollout is by now: the head does not go through the past while late messages are sent."""
        try:
            state = self._store.load(record.canary).state
        except StoreError:
            return told
        body = state.latest if state is not None else {}
        if state is None or body.get("rollout") != record.body.get("rollout") or not body.get("at"):
            return told
        try:
            at = datetime.fromisoformat(str(body["at"]))
            if at <= record.at:
                return told
        except (ValueError, TypeError):
            return told
        newer = Record(record.id, record.canary, at, record.kind, str(body.get("sentence", "")), body)
        return self._style.notice(newer)

    def _post_alone(self, web: WebClient, record: Record, told: Notice) -> None:
        if (mine := identity(record)) in self._alone:
            return
        text, made = self._style.decision(record, told, alone=True)
        self._post(web, text, made, self._id or self._channel, REPLY, {"record": mine})
        self._alone[mine] = None
        if len(self._alone) > REMEMBERED:
            self._alone.popitem(last=False)

    def _post(
        self, web: WebClient, text: str, made: list[JSON], channel: str, kind: str, about: JSON, **more: Any
    ) -> Mapping[str, Any]:
        metadata = {"event_type": kind, "event_payload": about}
        fixed = {"channel": channel, "text": text, "metadata": metadata, "unfurl_links": False, "unfurl_media": False}
        try:
            return self._call(web, "chat.postMessage", **fixed, blocks=made, **more)
        except SlackError as e:
            if e.code not in TOO_MUCH:
                raise
            log.error("Slack refuses the layout; sent as plain text", notifier=self.name, error=str(e))  # noqa: TRY400
            return self._call(web, "chat.postMessage", **fixed, **more)

    def _call(self, web: WebClient, method: str, **arguments: Any) -> Mapping[str, Any]:
        return call(web, method, place=self._token.place, where=self._channel, **arguments)


def _payload(message: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found = message.get("metadata")
    if not isinstance(found, Mapping) or found.get("event_type") != kind:
        return {}
    payload = found.get("event_payload")
    return payload if isinstance(payload, Mapping) else {}


# ── incoming webhooks ────────────────────────────────────────────────────────────────────────────────────────

_REFUSALS = {
    "no_service": "the webhook was removed or switched off; make a new one and put its URL into {place}",
    "no_service_id": "the URL is not complete; put the URL of the webhook into {place}",
    "invalid_token": "Slack does not know the webhook; put its URL into {place}",
    "no_active_hooks": "the webhook was switched off; make a new one and put its URL into {place}",
    "no_team": "the workspace is gone",
    "team_disabled": "the workspace is disabled",
    "channel_not_found": "the channel of the webhook is gone; make another and put its URL into {place}",
    "channel_is_archived": "the channel of the webhook is archived; unarchive it",
    "action_prohibited": "the workspace does not let the webhook post; ask its administrator",
    "posting_to_general_channel_denied": "the webhook may not post to #general",
}


class SlackWebhook:
    """ports.Notifier with the URL of an incoming webhook, which is the secret."""

    wants_evidence = True

    def __init__(self, name: str, url: Secret, *, style: Style | None = None) -> None:
        self.name = name
        self._url, self._style = url, style or Style()

    def probe(self) -> str:
        """See ports.Notifier: Slack itself can only be asked by a message."""
        self._address()
        return f"{self._url.place} holds a URL; whether Slack takes it shows the first message"

    def _address(self) -> str:
        url = self._url.line()
        if not url.startswith(("https://", "http://")):
            raise NotifyError(f"{self._url.place} holds no URL; put the URL of an incoming webhook there")
        return url

    def notify(self, record: Record) -> bool:
        """See ports.Notifier. Raises SlackError."""
        if not is_wanted(record, self._style.wishes):
            return False
        url = self._address()
        text, made = self._style.decision(record, self._style.notice(record), alone=True)
        seconds = max(1, round(self._style.timeout.total_seconds()))
        web = WebhookClient(url, timeout=seconds, logger=QUIET, retry_handlers=[])
        try:
            answer = web.send(text=text, blocks=made, unfurl_links=False, unfurl_media=False)
        except (URLError, OSError, http.client.HTTPException, ValueError) as e:
            raise SlackError(f"Slack's webhook: {unreachable(e)}") from None
        if answer.status_code == 200:
            return True
        pause = retry_after(dict(answer.headers))
        if answer.status_code == 429:
            raise SlackError(
                "Slack asks for a pause", code="ratelimited", retry_after=pause if pause is not None else 30.0
            )
        code = (answer.body or "").strip()
        words = _REFUSALS.get(code)
        said = f"{words.format(place=self._url.place)} ({code})" if words else "no reason that is known"
        raise SlackError(f"Slack's webhook answers HTTP {answer.status_code}: {said}", retry_after=pause)
