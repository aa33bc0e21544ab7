"""HTTP as it is, without a browser's manners."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

HTML = {"accept": "text/html"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, path: str = "/", *, method: str = "GET", form: dict[str, str] | None = None, **headers: str
) -> Answer:
    """One request on a connection of its own; `headers` with _ for -."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=10)
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None
    if form is not None:
        method, body = "POST", urlencode(form)
        said = {"content-type": "application/x-www-form-urlencoded", **said}
    try:
        connection.request(method, there.path + path, body, said)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, names, answer.read())
    finally:
        connection.close()


def sign_in(url: str, token: str) -> dict[str, str]:
    """The header of a session."""
    answer = ask(url, "/login", form={"token": token})
    assert answer.status == 303, answer.text
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


def form_token(url: str, session: dict[str, str], path: str = "/") -> str:
    found = re.search(r'name="form" value="([0-9a-f]{64})"', ask(url, path, accept="text/html", **session).text)
    assert found
    return found[1]


class Stream:
    """A page that looks on."""

    def __init__(self, url: str, path: str = "/events", **headers: str) -> None:
        there = urlsplit(url)
        self.socket = socket.create_connection((there.hostname or "", there.port or 0), timeout=10)
        said = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        self.socket.sendall(f"GET {there.path}{path} HTTP/1.1\r\nhost: {there.netloc}\r\n{said}\r\n".encode())
        self._held = b""
        head = self._until(b"\r\n\r\n")
        self.status = int(head.split()[1])

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._held:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError(self._held)
            self._held += more
        found, _, self._held = self._held.partition(mark)
        return found

    def event(self, timeout: float = 10.0) -> tuple[str, str, Any]:
        """(name, id, data) of the next event; comments are ("", "", None)."""
        self.socket.settimeout(timeout)
        while True:
            size = int(self._until(b"\r\n"), 16)  # chunked: one chunk is one event here
            while len(self._held) < size + 2:
                self._held += self.socket.recv(65536)
            chunk, self._held = self._held[:size].decode(), self._held[size + 2 :]
            if not size:
                raise EOFError
            chunk = chunk.removeprefix("retry: 2000\n\n")
            fields = dict(line.partition(": ")[::2] for line in chunk.strip().split("\n") if not line.startswith(":"))
            if not fields:
                return "", "", None
            return fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])

    def news(self, timeout: float = 10.0) -> tuple[str, Any]:
        """(id, data) of the next message with news."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            name, id_, data = self.event(timeout)
            if name == "news":
                return id_, data
        raise TimeoutError

    def close(self) -> None:
        self.socket.close()
