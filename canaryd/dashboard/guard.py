"""Around every request: where it belongs, how large it is, who asks, and what a browser may do with the answer.

The only place that lets somebody in. Whatever goes wrong behind it, a client sees a sentence and a number to look for
in the log, never a traceback.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from canaryd.config.dashboard import Dashboard, is_loopback
from canaryd.dashboard.auth import Doorkeeper, Limit, Person

log = structlog.get_logger("canaryd.dashboard")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 16 * 1024  # bytes of a request
PATIENCE = 10.0  # seconds for each part of it
METHODS = ("GET", "HEAD", "POST")
OPEN = ("/login", "/static/")  # what is shown to everybody
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all, forms would come without an origin
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
STRICT_TRANSPORT = "max-age=31536000"


class _TooLargeError(Exception):
    """More bytes than any form has."""


class Guard:
    """ASGI around an ASGI. `scope["state"]` then holds `person` (a Person, or None where all may come) and `peer`."""

    def __init__(
        self,
        app: App,
        settings: Dashboard,
        door: Doorkeeper,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: seconds since the epoch; `steady`: a clock that never goes back."""
        self._app, self._settings, self._door = app, settings, door
        self._clock, self._steady = clock, steady
        self._prefix = settings.prefix
        self.wrong = Limit(burst=10, every=6.0)  # wrong tokens of one address
        self.cookie = "__Secure-canaryd" if settings.is_encrypted else "canaryd"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSockets here
            return
        headers = _headers(scope)
        begun = False

        async def guarded_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = self._answer_headers(message["headers"])
            await send(message)

        try:
            answer = self._refuse(scope, headers)
            await (answer or self._app)(scope, _bounded(receive, scope["method"] == "POST"), guarded_send)
        except _TooLargeError:
            await PlainTextResponse(f"At most {MOST_BODY} bytes.\n", 413)(scope, receive, guarded_send)
        except TimeoutError:
            if not begun:
                await PlainTextResponse("The request took too long.\n", 408)(scope, receive, guarded_send)
        except Exception:
            number = secrets.token_hex(4)
            log.exception("page failed", number=number, path=scope["path"][:200])
            if not begun:
                words = f"Something is wrong with this page. canaryd's log says what, under the number {number}.\n"
                await PlainTextResponse(words, 500)(scope, receive, guarded_send)

    # ── before ───────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """The answer to a request that goes no further; None lets it through, with the person in its state."""
        path = scope["path"]
        if self._prefix and (path == self._prefix or path.startswith(self._prefix + "/")):
            path = path[len(self._prefix) :] or "/"
        scope["path"], scope["raw_path"] = path, quote(path).encode()
        if scope["method"] not in METHODS:
            return PlainTextResponse("Use GET or POST.\n", 405, {"allow": ", ".join(METHODS)})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > MOST_BODY:
            return PlainTextResponse(f"At most {MOST_BODY} bytes.\n", 413)
        if self._settings.auth.is_open and not self._is_ours(headers.get("host", "")):
            return PlainTextResponse("This name is not that of this dashboard.\n", 421)
        peer = scope["client"][0] if scope.get("client") else ""
        state = scope.setdefault("state", {})
        state["peer"] = self.address(peer, headers)
        if scope["method"] == "POST" and not _is_same_origin(headers, self._settings.external_url):
            return PlainTextResponse("This form is not from here.\n", 403)
        state["person"], wait = self.who(peer, headers)
        if wait:
            return PlainTextResponse(
                f"Too many wrong tokens. Try again in {wait:.0f} s.\n", 429, {"retry-after": f"{wait:.0f}"}
            )
        if state["person"] is None and not path.startswith(OPEN):
            return self._ask_who(path, scope, headers)
        return None

    def who(self, peer: str, headers: dict[str, str]) -> tuple[Person | None, float]:
        """Who asks; with seconds to wait instead for who has shown too many wrong tokens."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._door.has_tokens:
            address = self.address(peer, headers)
            if wait := self.wrong.wait(address, self._steady()):
                return None, wait
            person = self._door.of_token(token.strip())
            if person is None:
                self.wrong.spend(address, self._steady())
            return person, 0.0
        if cookie := _cookie(headers.get("cookie", ""), self.cookie):
            person = self._door.of_session(cookie, self._clock())
            if person is not None:
                return person, 0.0
        return self._door.of_proxy(peer, headers) or self._door.anonymous(), 0.0

    def address(self, peer: str, headers: dict[str, str]) -> str:
        """Whose request it is, for limits: of IPv6 the network, behind a trusted proxy what that one says."""
        if self._door.is_trusted(peer):
            peer = headers.get("x-forwarded-for", "").rpartition(",")[2].strip() or peer
        try:
            found = ipaddress.ip_address(peer)
        except ValueError:
            return peer[:100]
        return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))

    def _ask_who(self, path: str, scope: Scope, headers: dict[str, str]) -> Response:
        if not self._door.has_tokens:
            return PlainTextResponse("You may not look at this dashboard.\n", 403)
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            there = quote(path + (f"?{query}" if query else ""), safe="")
            return RedirectResponse(f"{self._prefix}/login?next={there}", 303)
        return JSONResponse({"error": "sign in"}, 401, {"www-authenticate": 'Bearer realm="canaryd"'})

    def _is_ours(self, host: str) -> bool:
        """The name by which it was called: another one may be a page elsewhere that was led here by its DNS."""
        name = (urlsplit(f"//{host}").hostname or "") if host.isascii() and "@" not in host else ""
        return is_loopback(name) or (bool(name) and name == urlsplit(self._settings.external_url).hostname)

    # ── after ────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer_headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What the answer says itself goes first."""
        said = {name.lower() for name, _ in given}
        more = {**HEADERS, **({"strict-transport-security": STRICT_TRANSPORT} if self._settings.is_encrypted else {})}
        return [*given, *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in said)]


def _bounded(receive: Receive, brings: bool) -> Receive:
    """Counts what comes, whatever its length was said to be, and waits so long for it and no longer.

    `brings`: something is to come; otherwise all that comes is the end of the connection, however late.
    """
    taken, whole = 0, not brings

    async def count() -> Message:
        nonlocal taken, whole
        message = await (receive() if whole else asyncio.wait_for(receive(), PATIENCE))
        taken += len(message.get("body", b""))
        whole = whole or not message.get("more_body", False)
        if taken > MOST_BODY:
            raise _TooLargeError
        return message

    return count


def _headers(scope: Scope) -> dict[str, str]:
    """In lower case; of one that comes twice all values, so that neither hides the other."""
    out: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        out[key] = f"{out[key]}, {text}" if key in out and key != "cookie" else text
    return out


def _cookie(header: str, name: str) -> str:
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _is_same_origin(headers: dict[str, str], external: str) -> bool:
    """A form of ours, as far as the browser says; programs say nothing and have to bring a token."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    host = urlsplit(origin).netloc.lower()
    return bool(host) and host in (headers.get("host", "").lower(), urlsplit(external).netloc.lower())
