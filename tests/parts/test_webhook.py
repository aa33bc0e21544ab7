"""Webhooks: CloudEvents as receivers get them, signatures as documented, and where they never go."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from canaryd.adapters.webhook import WebhookNotifier
from canaryd.errors import NotifyError
from canaryd.model import DecisionKind, Record
from canaryd.notices.kinds import Wish
from canaryd.notices.words import Words
from canaryd.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = "planted-signing-key"


def record(n: int = 1, kind: str = "rollback") -> Record:
    body = {"rollout": "api-1", "namespace": "shop", "severity": "critical", "phase": "RollingBack"}
    return Record(f"shop/api/{n}", "shop/api", NOW, DecisionKind(kind), "api 25 % → 0 %", body, tell=True)


class Receiver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str], float]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/in?key=planted-query-secret"

    def handle_error(self, *_: Any) -> None:
        """Of those who were too slow."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code, headers, seconds = self.server.answers.pop(0) if self.server.answers else (204, {}, 0.0)
        time.sleep(seconds)
        self.server.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(code)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def hook(receiver: Receiver, **more: Any) -> WebhookNotifier:
    receiver.got.clear()
    given = {"allow_local": True, "clock": lambda: NOW, "timeout": timedelta(seconds=1), **more}
    return WebhookNotifier("own", given.pop("url", receiver.url), **given)


def key(tmp_path: Path, text: str = KEY) -> Secret:
    file = tmp_path / "key"
    file.write_text(text + "\n")
    return Secret(str(file))


def test_a_decision_arrives_as_a_cloudevent_with_the_whole_record(receiver: Receiver) -> None:
    assert hook(receiver).notify(record()) is True
    ((path, headers, body),) = receiver.got
    event = json.loads(body)
    assert path == "/in?key=planted-query-secret"
    assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert {k: event[k] for k in ("specversion", "id", "source", "type", "subject", "time", "datacontenttype")} == {
        "specversion": "1.0",
        "id": "shop/api/1@20260301T120000.000000Z",
        "source": "/canaryd/namespaces/shop/canaries/api",
        "type": "io.canaryd.decision.rollback",
        "subject": "api-1",
        "time": "2026-03-01T12:00:00Z",
        "datacontenttype": "application/json",
    }
    assert event["data"]["decision"] == record().body
    assert (event["data"]["kind"], event["data"]["text"]) == ("rollback", "api 25 % → 0 %")
    assert "webhook-signature" not in headers


@pytest.mark.parametrize("text", [KEY, "whsec_cGxhbnRlZC1zaWduaW5nLWtleQ=="], ids=["plain", "base64"])
def test_the_documented_example_accepts_the_signature_and_nothing_that_was_changed(
    receiver: Receiver, tmp_path: Path, text: str
) -> None:
    hook(receiver, key=key(tmp_path, text)).notify(record())
    ((_, headers, body),) = receiver.got
    page = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
    (example,) = re.findall(r"```python\n(.*?def verified.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(example, "docs/notifications.md", "exec"), scope)
    verified, at = scope["verified"], NOW.timestamp()
    assert verified(KEY.encode(), headers, body, at)
    assert not verified(b"another key", headers, body, at)
    assert not verified(KEY.encode(), headers, body + b" ", at)
    assert not verified(KEY.encode(), {**headers, "webhook-id": "another"}, body, at)
    assert not verified(KEY.encode(), {**headers, "webhook-timestamp": str(int(at) + 1)}, body, at)
    assert not verified(KEY.encode(), headers, body, at + 600)  # somebody sends it again later


def test_a_rotated_key_signs_the_next_event_and_a_wrong_one_is_named(receiver: Receiver, tmp_path: Path) -> None:
    own = hook(receiver, key=key(tmp_path))
    own.notify(record())
    key(tmp_path, "another")
    own.notify(record())
    assert receiver.got[0][1]["webhook-signature"] != receiver.got[1][1]["webhook-signature"]
    key(tmp_path, "whsec_***planted***")
    with pytest.raises(NotifyError, match="no base64") as caught:
        own.notify(record())
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param((500, {}, 0.0), "127.0.0.1 answers HTTP 500", id="500"),
        pytest.param((302, {"Location": "http://169.254.169.254/"}, 0.0), "redirects are not followed", id="redirect"),
        pytest.param((200, {}, 1.5), "no complete answer within 1 s", id="slow"),
    ],
)
def test_what_goes_wrong_is_one_line_without_the_address(
    receiver: Receiver, answer: tuple[int, dict[str, str], float], words: str
) -> None:
    receiver.answers.append(answer)
    with pytest.raises(NotifyError) as caught:
        hook(receiver).notify(record())
    assert words in str(caught.value)
    assert "planted" not in str(caught.value)


def test_the_other_side_says_how_long_to_wait(receiver: Receiver) -> None:
    receiver.answers.append((503, {"Retry-After": "7"}, 0.0))
    with pytest.raises(NotifyError) as caught:
        hook(receiver).notify(record())
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "[::ffff:127.0.0.1]"]
)
def test_nothing_goes_to_this_machine_or_its_link_unless_that_is_allowed(receiver: Receiver, host: str) -> None:
    url = f"http://{host}:{receiver.server_address[1]}/"
    with pytest.raises(NotifyError, match=r"this machine or its link.*allowLocal"):
        hook(receiver, url=url, allow_local=False).notify(record())
    assert receiver.got == []


def test_an_address_may_be_a_secret_and_is_read_again(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("nonsense planted")
    own = hook(receiver, url=Secret(str(file)))
    for text in ("nonsense planted", "ftp://planted.example.com"):
        file.write_text(text)
        with pytest.raises(NotifyError) as caught:
            own.notify(record())
        assert str(file) in str(caught.value)
        assert "planted" not in str(caught.value)
    file.write_text(receiver.url)
    own.notify(record())
    assert len(receiver.got) == 1


def test_only_what_was_wished_for_is_sent_and_in_other_words_where_there_are_some(receiver: Receiver) -> None:
    own = hook(receiver, wishes=(Wish(kinds=("rollback",)),), words=Words({"default": "{{ key }}: {{ kind }}!"}))
    assert own.notify(record(kind="advance")) is False
    assert own.notify(record()) is True
    assert json.loads(receiver.got[-1][2])["data"]["text"] == "shop/api: rollback!"
