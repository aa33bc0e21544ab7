"""Who asks, and what they may do: tokens from a file, a trusted proxy's headers, or anybody on loopback.

A session is a signed cookie and nothing is remembered of it here, so it outlives a restart and is good at every
replica; it ends when its time is over or its token is taken out of the file. Time comes in as an argument. No token is
ever logged, shown or put into an error.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock

from canaryd.config.dashboard import ROLES, Auth
from canaryd.errors import DashboardError

VIEWER, OPERATOR = ROLES
LEAST = 20  # characters of a token that is not hashed
MOST_BYTES = 100_000  # of a file of tokens
MOST_PEOPLE = 1000
MOST_ADDRESSES = 4096  # that are remembered by a limit
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who asks."""

    name: str
    role: str  # viewer or operator
    key: bytes = field(repr=False)  # signs this person's sessions and forms
    until: float = float("inf")  # seconds since the epoch
    session: str = ""  # tells one session from another
    by_cookie: bool = True  # the browser says who it is by itself: forms must prove that they are ours

    @property
    def may_act(self) -> bool:
        return self.role == OPERATOR

    def form_token(self) -> str:
        """What a form must bring along to be taken for one of ours."""
        return hmac.new(self.key, f"form {self.name} {self.session}".encode(), sha256).hexdigest()

    def is_form_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.form_token().encode())


@dataclass(frozen=True, slots=True)
class _Known:
    """One line of the file of tokens."""

    name: str
    role: str
    digest: bytes = field(repr=False)  # SHA-256 of the token
    key: bytes = field(repr=False)


class Limit:
    """So many at once and then one every few seconds, for each name; those long unheard of are forgotten."""

    def __init__(self, burst: int, every: float) -> None:
        """`every`: seconds after which one more is allowed."""
        self._burst, self._every = burst, every
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> (how many, when)
        self._lock = Lock()

    def spend(self, name: str, at: float) -> float:
        """0 when it is allowed, else the seconds to wait. `at`: a clock that never goes back."""
        with self._lock:
            spent = self._left(name, at)
            if spent + 1 > self._burst:
                return (spent + 1 - self._burst) * self._every
            self._spent[name] = (spent + 1, at)
            self._spent.move_to_end(name)
            while len(self._spent) > MOST_ADDRESSES:
                self._spent.popitem(last=False)
            return 0.0

    def wait(self, name: str, at: float) -> float:
        """The seconds to wait, spending nothing."""
        with self._lock:
            return max(0.0, (self._left(name, at) + 1 - self._burst) * self._every)

    def _left(self, name: str, at: float) -> float:
        spent, when = self._spent.get(name, (0.0, at))
        return max(0.0, spent - (at - when) / self._every)


class Doorkeeper:
    """Tells who asks. Safe to use from several threads."""

    def __init__(self, auth: Auth, *, fresh: bytes | None = None) -> None:
        """Reads the files. `fresh`: random bytes for what no file signs. Raises DashboardError that names the line."""
        self._auth = auth
        self._fresh = fresh or secrets.token_bytes(32)
        self._trusted = [ipaddress.ip_network(network) for network in auth.proxy.trusted]
        self._signing = self._fresh
        if auth.session_key_file is not None:
            self._signing = _signing_key(auth.session_key_file)
        self._known: Mapping[str, _Known] = {}
        self._stamp: object = None
        self._lock = Lock()
        if auth.tokens_file is not None:
            self._known, self._stamp = self._read(auth.tokens_file), _stamp(auth.tokens_file)

    @property
    def has_tokens(self) -> bool:
        """People can sign in with a token."""
        return self._auth.tokens_file is not None

    # ── who ──────────────────────────────────────────────────────────────────────────────────────────────────

    def anonymous(self) -> Person | None:
        """Whoever it is, where that is enough."""
        role = self._auth.anonymous
        return Person("anonymous", role, self._fresh) if role else None

    def of_proxy(self, peer: str, headers: Mapping[str, str]) -> Person | None:
        """Whom a trusted proxy names. `headers` in lower case; None for who may not even look."""
        proxy = self._auth.proxy
        if not self.is_trusted(peer):
            return None
        name = headers.get(proxy.user_header.lower(), "").strip()
        if not name or len(name) > 200 or not name.isprintable():
            return None
        groups = {g.strip() for g in headers.get(proxy.groups_header.lower(), "").split(",")}
        called = {name, *groups} - {""}
        if called & set(proxy.operators):
            return Person(name, OPERATOR, self._signing)
        if not proxy.viewers or called & set(proxy.viewers):
            return Person(name, VIEWER, self._signing)
        return None

    def is_trusted(self, peer: str) -> bool:
        """The address is the proxy's."""
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._trusted)

    def of_token(self, token: str) -> Person | None:
        """Whose token it is; takes as long for a wrong one as for a right one."""
        self._refresh()
        digest, found = sha256(token.encode()).digest(), None
        for known in self._known.values():
            if hmac.compare_digest(known.digest, digest):
                found = known
        return Person(found.name, found.role, found.key, by_cookie=False) if found else None

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, person: Person, at: float) -> str:
        """The text of a cookie for who has shown a token. `at`: seconds since the epoch."""
        until = int(at + self._auth.session.total_seconds())
        name = urlsafe_b64encode(person.name.encode()).decode().rstrip("=")
        said = f"1.{name}.{until}.{secrets.token_hex(8)}"
        return f"{said}.{_signature(person.key, said)}"

    def of_session(self, cookie: str, at: float) -> Person | None:
        """Whose session it is; None when it is over, forged, or its token is not known any more."""
        self._refresh()
        said, _, signature = cookie.rpartition(".")
        parts = said.split(".")
        if len(parts) != 4 or parts[0] != "1" or len(cookie) > 500 or not parts[2].isdecimal():
            return None
        try:
            name = urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).decode()
        except (Base64Error, UnicodeError, ValueError):
            return None
        known = self._known.get(name)
        if known is None or not hmac.compare_digest(_signature(known.key, said).encode(), signature.encode()):
            return None
        until = float(parts[2])
        return Person(known.name, known.role, known.key, until, parts[3]) if at < until else None

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────

    def _refresh(self) -> None:
        """Take over a changed file; one that became wrong changes nothing, but one that is gone lets nobody in."""
        file = self._auth.tokens_file
        if file is None or (stamp := _stamp(file)) == self._stamp:
            return
        with self._lock:
            try:
                self._known = self._read(file)
            except DashboardError as e:
                if stamp is None:
                    self._known = {}
                self.trouble = str(e)
            else:
                self.trouble = ""
            self._stamp = stamp

    trouble = ""  # what is wrong with the file as it is now

    def _read(self, file: str) -> Mapping[str, _Known]:
        """The people of a file. Raises DashboardError."""
        text, mode = _secret(file, "dashboard.auth.tokensFile")
        people: dict[str, _Known] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            known = self._person(line.split(), f"{file}:{number}", mode)
            if known.name in people:
                raise DashboardError(f"{file}:{number}: {known.name} has a line already; names are unique")
            people[known.name] = known
        if not 1 <= len(people) <= MOST_PEOPLE:
            raise DashboardError(f"{file}: {len(people)} people; it takes 1 to {MOST_PEOPLE} lines: NAME ROLE TOKEN")
        return people

    def _person(self, words: Sequence[str], place: str, mode: int) -> _Known:
        if len(words) != 3:
            raise DashboardError(f"{place}: {len(words)} words; a line is NAME ROLE TOKEN")
        name, role, token = words
        if not _NAME.fullmatch(name):
            raise DashboardError(f"{place}: the name must be of letters, digits and ._@+-, at most 100")
        if role not in ROLES:
            raise DashboardError(f"{place}: the role of {name} is not known; use {' or '.join(ROLES)}")
        if hashed := _HASHED.fullmatch(token):
            digest = bytes.fromhex(hashed[1])
            return _Known(name, role, digest, hmac.new(self._signing, digest, sha256).digest())
        if token.startswith("sha256:"):
            raise DashboardError(f"{place}: sha256: is followed by 64 hexadecimal digits in lower case")
        if mode & 0o007:
            raise DashboardError(
                f"{place}: everybody on this machine may read this token: chmod o= the file, or hash it"
            )
        if len(token) < LEAST:
            raise DashboardError(f"{place}: the token of {name} is too short; take {LEAST} random characters or more")
        return _Known(
            name, role, sha256(token.encode()).digest(), hmac.new(token.encode(), b"canaryd session", sha256).digest()
        )


def _signature(key: bytes, said: str) -> str:
    return hmac.new(key, f"session {said}".encode(), sha256).hexdigest()


def _stamp(file: str) -> object:
    """Changes when the file does; None when it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _secret(file: str, key: str) -> tuple[str, int]:
    """Text and mode of a file that nobody else may change. Raises DashboardError."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as f:
            mode = os.fstat(f.fileno()).st_mode
            text = f.read(MOST_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as e:
        raise DashboardError(f"{key}: {file}: {e.strerror}") from None
    if not text or len(text) > MOST_BYTES:
        raise DashboardError(f"{key}: {file}: it must be a plain file of 1 to {MOST_BYTES} bytes")
    if mode & 0o022:
        raise DashboardError(f"{key}: {file}: others may write it: chmod go-w it")
    try:
        return text.decode(), mode
    except UnicodeDecodeError:
        raise DashboardError(f"{key}: {file}: it is not UTF-8") from None


def _signing_key(file: str) -> bytes:
    key = "dashboard.auth.sessionKeyFile"
    try:
        with open(file, "rb") as f:
            found, mode = f.read(MOST_BYTES), os.fstat(f.fileno()).st_mode
    except OSError as e:
        raise DashboardError(f"{key}: {file}: {e.strerror}") from None
    if len(found.strip()) < 32:
        raise DashboardError(f"{key}: {file}: {len(found.strip())} bytes; take 32 random ones or more")
    if mode & 0o027:
        raise DashboardError(f"{key}: {file}: others may read or write it: chmod g-w,o= it")
    return sha256(found.strip()).digest()
