"""HTTP exchanges that always end: bounded in time and in bytes, whatever the other side does.

The time-outs of http.client and requests bound each read of the socket, not the whole: a server that sends one byte
a second is never late for them. Here a deadline covers everything from looking up the name to the last byte.

It never follows a redirect, never uses a proxy or credentials from the environment, never skips the check of a
certificate, and never puts a password or a query into a message.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from canaryd.errors import SourceError

MAX_BYTES = 64 * 1024 * 1024  # of one answer; 50 canaries with 20 pods each need about 3
MAX_SECRET = 64 * 1024  # characters of a bearer token or of a user and password


class TooLargeError(SourceError):
    """The answer is larger than allowed; whoever asks for less may get it."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of one read, shared by all its exchanges."""

    seconds: float  # as configured, for messages
    at: float  # on time.monotonic()

    @classmethod
    def after(cls, timeout: timedelta) -> Self:
        return cls(timeout.total_seconds(), time.monotonic() + timeout.total_seconds())

    def left(self) -> float:
        """Seconds, 0 when it has passed."""
        return max(0.0, self.at - time.monotonic())

    def check(self, name: str) -> None:
        """Raises SourceError, naming the server, when it has passed: digesting a huge answer takes time, too."""
        if not self.left():
            raise SourceError(f"{name}: no complete answer within {self.seconds:g} s")


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, not longer than allowed."""

    status: int
    reason: str
    body: bytes
    retry_after: float | None = None  # seconds, where the server has said them


def checked_url(url: str) -> SplitResult:
    """The parts of an http or https URL. Raises ValueError, without repeating a password, when it is none."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable or any(c <= " " or c == "\x7f" for c in url):
        raise ValueError(f"{public(parts)!r} is not usable; use a URL such as http://prometheus:9090")
    return parts


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After, up to an hour; a date is not understood."""
    return min(float(value), 3600.0) if value is not None and value.strip().isdecimal() else None


def host_and_port(parts: SplitResult) -> str:
    """host:port, with the port of the scheme where none is written."""
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def public(parts: SplitResult) -> str:
    """The URL as it may be shown to anybody: no user, no password, no query."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def basic_authorization(parts: SplitResult) -> dict[str, str]:
    """The header for a user and password written into the URL; empty when there are none."""
    if not parts.username and not parts.password:
        return {}
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def bearer_authorization(path: str | None) -> dict[str, str]:
    """The header of the bearer token as its file has it now; empty without a file. Raises SourceError."""
    return {} if path is None else {"Authorization": f"Bearer {_secret(path, 'bearer token')}"}


def basic_file_authorization(path: str | None) -> dict[str, str]:
    """The header of the user and password, "user:password", as their file has them now. Raises SourceError."""
    if path is None:
        return {}
    pair = _secret(path, "user:password")
    if ":" not in pair:
        raise SourceError(f"the file {path} holds no user:password; write both with a colon between")
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _secret(path: str, kind: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            secret = file.read(MAX_SECRET + 1).strip()
    except OSError as e:
        raise SourceError(f"the {kind} file {path} cannot be read: {e.strerror}") from e
    if not secret or len(secret) > MAX_SECRET or not all("!" <= c <= "~" for c in secret):
        raise SourceError(f"the {kind} file {path} holds no {kind} of printable ASCII")
    return secret


class Connection:
    """One connection to one server, kept for all exchanges of one read so that one server answers them all.

    Used by one thread at a time. Each exchange runs in a thread of its own, because nothing can interrupt a name
    look-up; past the deadline that thread is left behind with its socket shut down, and ends.

    `public_only`: for an address that somebody else has named. It is connected to only when it is none of this machine
    and none of its link (where clouds keep credentials); the address that was looked at is the one that is used.
    """

    def __init__(
        self,
        parts: SplitResult,
        deadline: Deadline,
        max_bytes: int,
        ca_file: str | None = None,
        *,
        public_only: bool = False,
    ) -> None:
        self.name = public(parts)
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._thread: threading.Thread | None = None
        self._public_only = public_only
        self._http = self._opened(parts, ca_file)

    def _opened(self, parts: SplitResult, ca_file: str | None) -> http.client.HTTPConnection:
        if parts.scheme == "http":
            kind = _PublicHTTP if self._public_only else http.client.HTTPConnection
            return kind(parts.hostname or "", parts.port)
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as e:
            raise SourceError(f"{self.name}: the CA file {ca_file} cannot be used: {_reason(e)}") from e
        if self._public_only:
            return _PublicHTTPS(parts.hostname or "", parts.port, context)
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Harmless when called again. A thread left behind closes for itself."""
        if self._thread is None or not self._thread.is_alive():
            self._http.close()

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """One exchange; `target` is path and query. Raises SourceError naming the server when no answer is complete."""
        outcome: Future[Answer] = Future()
        self._thread = threading.Thread(
            target=self._exchange, args=(outcome, method, target, headers, body), name="exchange", daemon=True
        )
        self._thread.start()
        try:
            answer = outcome.result(self._deadline.left())
        except TimeoutError as e:
            self._cut()
            raise SourceError(f"{self.name}: no complete answer within {self._deadline.seconds:g} s") from e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise SourceError(f"{self.name}: {_reason(e)}") from e
        self._thread.join()
        return answer

    def _exchange(
        self, outcome: Future[Answer], method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        try:
            if self._http.sock is None:
                self._http.timeout = max(0.001, self._deadline.left())
                self._http.connect()
            if not self._deadline.left():  # nobody waits any more, and nobody may have seen the socket to cut it
                raise TimeoutError  # the caller is the other thread
            wanted = {**headers, "Accept-Encoding": "identity"}  # what is not compressed cannot explode
            self._http.request(method, target, body or None, wanted)
            with self._http.getresponse() as response:
                pause = _seconds(response.headers.get("Retry-After"))
                outcome.set_result(Answer(response.status, response.reason, self._body(response), pause))
        except (OSError, http.client.HTTPException, ValueError, SourceError) as e:
            self._http.close()
            outcome.set_exception(e)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise SourceError(f"{self.name}: the answer is encoded as {encoding[:40]!r}, which was not asked for")
        if response.length is not None and response.length > self._max_bytes:
            raise self._too_large()
        # With a length, only a read without a size notices that the connection ended too early.
        body = response.read() if response.length is not None else response.read(self._max_bytes + 1)
        if len(body) > self._max_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"{self.name}: the answer is larger than {self._max_bytes / 1024 / 1024:g} MB")

    def _cut(self) -> None:
        """Wake the thread that is left behind by ending its connection."""
        sock = self._http.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(0.2)


class _PublicHTTP(http.client.HTTPConnection):
    """Connects to other machines only."""

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self.timeout)


class _PublicHTTPS(http.client.HTTPSConnection):
    """Likewise."""

    def __init__(self, host: str, port: int | None, context: ssl.SSLContext) -> None:
        super().__init__(host, port, context=context)
        self._checks = context

    def connect(self) -> None:
        sock = _connected(self.host, self.port, self.timeout)
        self.sock = self._checks.wrap_socket(sock, server_hostname=self.host)


def _connected(host: str, port: int, timeout: float | None) -> socket.socket:
    """A connection to the first address of a host that answers. Raises OSError when one of them is not allowed."""
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if refused := [address for address in addresses if not is_elsewhere(address)]:
        raise OSError(f"{refused[0]} is an address of this machine or its link, which a Canary may not name")
    trouble = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as e:
            trouble = e
    raise trouble


# Where a cloud tells its machines their credentials, outside of the ranges that say so of themselves.
_METADATA = ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")


def is_elsewhere(address: str) -> bool:
    """An address of another machine beyond this one's link; one that is IPv4 in IPv6 counts as that IPv4."""
    ip = ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    local = ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved
    return not local and str(ip) not in _METADATA


def _reason(error: Exception) -> str:
    """What went wrong, for people; http.client's messages can repeat a header, so only its kind is told."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ended too early"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return f"not a proper HTTP exchange ({type(error).__name__})"
