"""Who is told what, and where: the section `notify` of canaryd.yaml. Secrets are named here, by file or environment
variable, and never held. Never opens a file or a connection.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from canaryd.notices.kinds import KINDS, SEVERITIES
from canaryd.policy import Document, Duration, MisfitError, Name, Url, format_duration, said

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", max_length=128)]
SlackId = Annotated[str, Field(max_length=40)]
SLACK_API = "https://slack.com/api/"
MOST_CHANNELS = 50
MOST_ROUTES = 200
LONGEST_TEMPLATE = 10_000  # characters
_MENTION = re.compile(r"[UWS][A-Z0-9]{2,30}|here|channel|everyone")
_USER = re.compile(r"[UW][A-Z0-9]{2,30}")


def _exactly_one(of: Document, *names: str) -> None:
    """Raises ValueError that names the keys."""
    keys = [type(of).model_fields[n].alias or n for n in names]
    given = [key for n, key in zip(names, keys, strict=True) if getattr(of, n) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise ValueError(f"exactly one of {', '.join(keys)} is needed; {found}")


def _at_most_one(of: Document, *names: str) -> None:
    keys = [type(of).model_fields[n].alias or n for n in names]
    given = [key for n, key in zip(names, keys, strict=True) if getattr(of, n) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; one of them is enough")


def _of(values: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [
        ((i,), f"{said(v)} is not known here; known: {', '.join(known)}")
        for i, v in enumerate(values)
        if v not in known
    ]
    if wrong:
        raise MisfitError(*wrong)
    return values


class Mentions(Document):
    """Whom a message calls, by how grave it is: ids of users (U…) or groups (S…), or here, channel, everyone."""

    info: tuple[SlackId, ...] = Field(default=(), description="for what needs nobody")
    warning: tuple[SlackId, ...] = Field(default=(), description="for what somebody should look at")
    critical: tuple[SlackId, ...] = Field(default=(), description="for rollbacks and what needs a person now")

    @field_validator("info", "warning", "critical")
    @classmethod
    def _ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 20:
            raise ValueError(f"{len(value)} mentions; use at most 20, or a group")
        hint = "use the id of a user (U…) or a group (S…), or here, channel, everyone"
        wrong = [((i,), f"{said(v)} is no mention; {hint}") for i, v in enumerate(value) if not _MENTION.fullmatch(v)]
        if wrong:
            raise MisfitError(*wrong)
        return value

    def of(self, severity: str) -> tuple[str, ...]:
        return {"info": self.info, "warning": self.warning, "critical": self.critical}.get(severity, ())


class Buttons(Document):
    """Promote, Pause and Abort in Slack, over a connection that canaryd opens (Socket Mode): nothing listens."""

    app_token_file: FilePath | None = Field(default=None, description="file with the token of the app (xapp-…)")
    app_token_env: EnvName | None = Field(default=None, description="environment variable that holds it instead")
    allow: tuple[SlackId, ...] = Field(description="ids of the users who may press them")

    @field_validator("allow")
    @classmethod
    def _users(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(value) <= 500:
            raise ValueError(f"{len(value)} users; use 1 to 500")
        wrong = [
            ((i,), f"{said(v)} is not the id of a user, such as U024BE7LH")
            for i, v in enumerate(value)
            if not _USER.fullmatch(v)
        ]
        if wrong:
            raise MisfitError(*wrong)
        return value

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        _exactly_one(self, "app_token_file", "app_token_env")
        return self


class Slack(Document):
    """A channel of Slack: a bot that keeps one thread for each rollout, or an incoming webhook without threads."""

    bot_token_file: FilePath | None = Field(
        default=None, description="file with the token of a bot (xoxb-…), read again for each message"
    )
    bot_token_env: EnvName | None = Field(default=None, description="environment variable that holds it instead")
    webhook_url_file: FilePath | None = Field(
        default=None, alias="webhookURLFile", description="file with the URL of an incoming webhook, in place of a bot"
    )
    webhook_url_env: EnvName | None = Field(
        default=None, alias="webhookURLEnv", description="environment variable that holds it instead"
    )
    channel: Annotated[str, Field(max_length=80)] | None = Field(
        default=None, description="id of the channel (C…), or its name with #; needed with a bot"
    )
    api_url: Url = Field(
        default=SLACK_API, alias="apiURL", description="of Slack's API; https://slack-gov.com/api/ for GovSlack"
    )
    timeout: Duration = Field(default=timedelta(seconds=10), description="longest wait for one answer")
    mentions: Mentions = Field(default=Mentions(), description="whom a message calls")
    broadcast: bool = Field(default=True, description="critical replies in a thread are shown in the channel, too")
    buttons: Buttons | None = Field(default=None, description="none: messages have no buttons")

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=500), timedelta(minutes=1))

    @field_validator("channel")
    @classmethod
    def _channel(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"#[^\s#<>&,]{1,79}|[CG][A-Z0-9]{2,30}", value):
            raise ValueError(f'{said(value)} is no channel; use its id, such as C024BE91L, or "#name"')
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _exactly_one(self, "bot_token_file", "bot_token_env", "webhook_url_file", "webhook_url_env")
        if self.is_bot and self.channel is None:
            raise ValueError("channel is missing; a bot must know where to write")
        if not self.is_bot and (self.channel or self.buttons):
            raise ValueError(
                "channel and buttons need a bot; an incoming webhook has a channel of its own and no buttons"
            )
        return self

    @property
    def is_bot(self) -> bool:
        return self.bot_token_file is not None or self.bot_token_env is not None


class Webhook(Document):
    """Somebody else's program: CloudEvents 1.0 in JSON, signed."""

    url: Url | None = Field(default=None, description="where to")
    url_file: FilePath | None = Field(
        default=None, alias="urlFile", description="file with the URL, where it is a secret"
    )
    url_env: EnvName | None = Field(
        default=None, alias="urlEnv", description="environment variable that holds it instead"
    )
    secret_file: FilePath | None = Field(
        default=None, description="file with the key of the signature, read again for each event"
    )
    secret_env: EnvName | None = Field(default=None, description="environment variable that holds it instead")
    ca_file: FilePath | None = Field(default=None, description="certificates to trust instead of the system's")
    timeout: Duration = Field(default=timedelta(seconds=10), description="longest wait for one answer")
    allow_local: bool = Field(
        default=False, description="it may be on this machine or its link (loopback, 169.254.0.0/16)"
    )
    source: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default="/canaryd", description="of the events; the Canary's place is put behind it"
    )

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=500), timedelta(minutes=1))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _exactly_one(self, "url", "url_file", "url_env")
        _at_most_one(self, "secret_file", "secret_env")
        return self


class Apprise(Document):
    """E-mail, Teams, Discord and what else Apprise knows; needs `pip install canaryd[apprise]`."""

    urls_file: FilePath | None = Field(default=None, description="file with one URL of Apprise on each line")
    urls_env: EnvName | None = Field(default=None, description="environment variable that holds them instead")

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "urls_file", "urls_env")
        return self


class Channel(Document):
    """One place where people read."""

    name: Name = Field(description="its name in routes, logs, metrics and `/status`")
    slack: Slack | None = Field(default=None, description="exactly one of slack, webhook and apprise")
    webhook: Webhook | None = Field(default=None, description="exactly one of slack, webhook and apprise")
    apprise: Apprise | None = Field(default=None, description="exactly one of slack, webhook and apprise")
    templates: dict[str, str] = Field(
        default_factory=dict,
        max_length=len(KINDS) + 1,
        description="other words (Jinja2) for the sentence of some kinds of decision, or of all (default)",
    )

    @field_validator("name")
    @classmethod
    def _not_taken(cls, value: str) -> str:
        if value in ("log", "events"):
            raise ValueError(f"{said(value)} is what canaryd calls one of its own; use another name")
        return value

    @field_validator("templates")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        from canaryd.notices.templates import problem  # Jinja2 is loaded only where there are templates

        known = (*KINDS, "default")
        wrong: list[Any] = []
        for kind, text in value.items():
            if kind not in known:
                wrong.append(((kind,), f"{said(kind)} is no kind of decision; known: {', '.join(known)}"))
            elif len(text) > LONGEST_TEMPLATE:
                wrong.append(((kind,), f"{len(text)} characters; use at most {LONGEST_TEMPLATE}"))
            elif why := problem(text):
                wrong.append(((kind,), why))
        if wrong:
            raise MisfitError(*wrong)
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "slack", "webhook", "apprise")
        return self


class NotifyRoute(Document):
    """Which decisions go where: all that is given must fit. A decision goes to the channels of every route it fits."""

    namespaces: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = Field(
        default=(), description="of the Canary, with * and ?; empty: all"
    )
    labels: dict[str, str] = Field(default_factory=dict, max_length=16, description="that the Canary must have")
    severities: tuple[str, ...] = Field(default=(), description=f"{', '.join(SEVERITIES)}; empty: all")
    kinds: tuple[str, ...] = Field(default=(), description=f"{', '.join(KINDS)}; empty: all")
    channels: tuple[Name, ...] = Field(description="names of channels")

    @field_validator("severities")
    @classmethod
    def _known_severities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _of(value, SEVERITIES)

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _of(value, KINDS)

    @field_validator("channels")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(value) <= MOST_CHANNELS:
            raise ValueError(f"{len(value)} channels; use 1 to {MOST_CHANNELS}")
        return value


class Notify(Document):
    """Who is told of decisions besides the log and, in a cluster, Events."""

    give_up: Duration = Field(
        default=timedelta(hours=24), description="a message that could not be delivered for so long is given up"
    )
    late_after: Duration = Field(
        default=timedelta(minutes=1), description="a message that comes so long after the decision says that it is late"
    )
    channels: tuple[Channel, ...] = Field(default=(), description="at most 50")
    routes: tuple[NotifyRoute, ...] = Field(
        default=(), description="a channel that no route names is told everything; at most 200"
    )

    @field_validator("give_up")
    @classmethod
    def _give_up_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(minutes=1), timedelta(days=30))

    @field_validator("late_after")
    @classmethod
    def _late_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(seconds=1), timedelta(days=1))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [c.name for c in self.channels]
        wrong: list[Any] = []
        if len(names) > MOST_CHANNELS:
            wrong.append((("channels",), f"{len(names)} channels; use at most {MOST_CHANNELS}"))
        if len(self.routes) > MOST_ROUTES:
            wrong.append((("routes",), f"{len(self.routes)} routes; use at most {MOST_ROUTES}"))
        wrong += [
            (("channels", i, "name"), f"there are two channels of the name {said(name)}")
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        known = ", ".join(names) or "none"
        wrong += [
            (("routes", i, "channels", j), f"there is no channel {said(name)}; there are: {known}")
            for i, route in enumerate(self.routes)
            for j, name in enumerate(route.channels)
            if name not in names
        ]
        if wrong:
            raise MisfitError(*wrong)
        return self


def _between(value: timedelta, least: timedelta, most: timedelta) -> timedelta:
    if not least <= value <= most:
        plain = f"use {format_duration(least)} to {format_duration(most)}"
        raise ValueError(f"{format_duration(value)} is out of range; {plain}")
    return value
