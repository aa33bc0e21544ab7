"""What the operator set for the dashboard: the section `dashboard` of canaryd.yaml, strict, with its defaults.

Says what would be unsafe and why; reads no file and opens no port. Secrets are named by their files.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from canaryd.policy import Document, Duration, MisfitError, format_duration, said

ROLES = ("viewer", "operator")

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
Header = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9-]+$")]
Names = tuple[Annotated[str, Field(min_length=1, max_length=200)], ...]


def host_and_port(value: str, example: str) -> str:
    """A `listen` as it was written, when it is host:port or empty. Raises ValueError."""
    if not value:
        return value
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (
        colon
        and 0 < len(host) <= 255
        and (bracketed or ":" not in host)
        and not any(c.isspace() or not c.isprintable() for c in host)
        and port.isascii()
        and port.isdigit()
        and len(port) <= 5
        and int(port) <= 65535
    ):
        raise ValueError(
            f'{said(value)} is not host:port; write "127.0.0.1:{example}", "[::1]:{example}" or "" for off'
        )
    return value


def address(listen: str) -> tuple[str, int] | None:
    """Host and port of a `listen`; None: off."""
    host, _, port = listen.rpartition(":")
    return (host.strip("[]"), int(port)) if listen else None


def is_loopback(host: str) -> bool:
    """Only this machine can connect to it. A name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Proxy(Document):
    """A proxy in front that signs people in (OIDC, SAML, ...) and names them in headers."""

    trusted: tuple[Annotated[str, Field(max_length=100)], ...] = Field(
        default=(), description="addresses or networks of the proxy; what others send in these headers is not believed"
    )
    user_header: Header = Field(default="X-Forwarded-User", description="the header that names the person")
    groups_header: Header = Field(
        default="X-Forwarded-Groups", description="the header with the person's groups, separated by commas"
    )
    operators: Names = Field(default=(), description="users and groups whose role is operator")
    viewers: Names = Field(default=(), description="users and groups that may look; empty: whoever the proxy lets in")

    @field_validator("trusted")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for i, network in enumerate(value):
            try:
                wide = ipaddress.ip_network(network).prefixlen == 0
            except ValueError:
                raise MisfitError(
                    ((i,), f"{said(network)} is no address and no network; use 10.1.2.3 or 10.1.2.0/24")
                ) from None
            if wide:
                raise MisfitError(((i,), f"{said(network)} is everybody; name the proxy alone"))
        return value


class Auth(Document):
    """Who may look, and who may act."""

    tokens_file: FilePath | None = Field(
        default=None, description="a line for each person: name, role, token; readable by canaryd's user only"
    )
    session_key_file: FilePath | None = Field(
        default=None,
        description="32 or more random bytes that sign sessions, where tokens are hashed; none: new with each start",
    )
    session: Duration = Field(default=timedelta(hours=12), description="after so long a token is asked for again")
    proxy: Proxy = Proxy()
    anonymous: str = Field(
        default="", description="role of whoever connects without signing in, on loopback only; empty: nobody"
    )

    @field_validator("session")
    @classmethod
    def _range(cls, value: timedelta) -> timedelta:
        least, most = timedelta(minutes=1), timedelta(days=30)
        if not least <= value <= most:
            plain = f"use {format_duration(least)} to {format_duration(most)}"
            raise ValueError(f"{format_duration(value)} is out of range; {plain}")
        return value

    @field_validator("anonymous")
    @classmethod
    def _role(cls, value: str) -> str:
        if value and value not in ROLES:
            raise ValueError(f'{said(value)} is no role; use {" or ".join(ROLES)}, or "" for nobody')
        return value

    @property
    def is_open(self) -> bool:
        """Nobody has to say who they are."""
        return bool(self.anonymous)

    @property
    def is_set(self) -> bool:
        return bool(self.tokens_file or self.proxy.trusted or self.anonymous)


class Tls(Document):
    """A certificate of the dashboard's own."""

    cert_file: FilePath | None = Field(
        default=None, description="the certificate and its chain, PEM; read again when it changes"
    )
    key_file: FilePath | None = Field(default=None, description="its key, PEM")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("needs both certFile and keyFile, or neither")
        return self


class Dashboard(Document):
    """The pages for people."""

    listen: str = Field(default="", description="host:port; port 0: any free one; empty: off")
    external_url: Annotated[str, Field(max_length=2048)] = Field(
        default="",
        alias="externalURL",
        description="where people find it, with its path if it has one; links in messages begin with it",
    )
    actions: bool = Field(default=False, description="operators may promote, abort, pause, resume and retry")
    auth: Auth = Auth()
    tls: Tls = Tls()

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        return host_and_port(value, "9096")

    @field_validator("external_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not value:
            return value
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or "@" in url.netloc:
            raise ValueError(f'{said(value)} is no plain address; write "https://canaryd.example.com" or with a path')
        return value.rstrip("/")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        """Raises ValueError for what nobody should find out from somebody else."""
        there = address(self.listen)
        if there is None:
            return self
        local = is_loopback(there[0])
        if not self.auth.is_set:
            raise ValueError(
                "auth is empty: name auth.tokensFile or auth.proxy.trusted"
                + (", or say auth.anonymous: viewer, since only this machine can connect" if local else "")
            )
        if self.auth.is_open and not local:
            raise ValueError(
                f"auth.anonymous lets everybody in who can connect to {said(self.listen)};"
                " it is for loopback (127.0.0.1, ::1, localhost): name auth.tokensFile or auth.proxy.trusted"
            )
        if not local and not self.is_encrypted:
            raise ValueError(
                f"tokens and sessions would cross the network in the clear to {said(self.listen)}: set tls, or"
                ' externalURL with "https://" when a proxy in front encrypts'
            )
        return self

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None: off."""
        return address(self.listen)

    @property
    def is_encrypted(self) -> bool:
        """Browsers reach it by HTTPS."""
        return self.tls.cert_file is not None or self.external_url.startswith("https://")

    def seen_from(self, root: Path) -> Dashboard:
        """With its files where they are, when their names are relative to `root`."""
        auth, tls = self.auth, self.tls
        found = {k: str(root / v) for k in ("tokens_file", "session_key_file") if (v := getattr(auth, k)) is not None}
        certificates = {k: str(root / v) for k in ("cert_file", "key_file") if (v := getattr(tls, k)) is not None}
        return self.model_copy(
            update={"auth": auth.model_copy(update=found), "tls": tls.model_copy(update=certificates)}
        )

    @property
    def prefix(self) -> str:
        """The path of `external_url`, such as "/canaryd"; "" for none."""
        return urlsplit(self.external_url).path.rstrip("/")
