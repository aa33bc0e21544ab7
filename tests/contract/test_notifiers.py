"""What every Notifier promises; naming one in the registry enrols it here, or in tests/cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

sys.path.append(str(Path(__file__).parents[1] / "parts"))

from slack_server import CHANNEL, TOKEN, WEBHOOK_PATH, Slack, running

from canaryd.adapters import NOTIFIERS
from canaryd.adapters import load as load_adapter
from canaryd.adapters.log import LogNotifier
from canaryd.adapters.memory import MemoryStore
from canaryd.adapters.slack import Style
from canaryd.errors import NotifyError
from canaryd.model import DecisionKind, Record
from canaryd.notices.kinds import Wish
from canaryd.secret import Secret

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise imports it

ELSEWHERE = {"events": "tests/cluster/test_kubernetes_events.py"}  # needs a real API server
ALWAYS = {"log", "memory"}  # have no other side that could be away
NONE = (Wish(namespaces=("nowhere",)),)


def record(severity: str = "info") -> Record:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Record(
        "shop/4", "shop", at, DecisionKind.ROLLBACK, "errors are 4 % worse", {"severity": severity}, tell=True
    )


class Other:
    """The other side of each: where it is, and what arrived there."""

    def __init__(self, slack: Slack, http: ThreadingHTTPServer, directory: Path) -> None:
        self.slack, self.http, self.directory = slack, http, directory

    def secret(self, name: str, text: str) -> Secret:
        file = self.directory / name
        file.write_text(text)
        return Secret(str(file))

    def make(self, name: str, *, wishes: Any = (), away: bool = False) -> Any:
        kind = load_adapter(NOTIFIERS, name)
        port = 9 if away else self.http.server_address[1]
        api = "http://127.0.0.1:9/api/" if away else self.slack.url
        style = Style(wishes=wishes, timeout=timedelta(seconds=1))
        if name == "slack":
            return kind("mine", self.secret("token", TOKEN), CHANNEL, MemoryStore(), api_url=api, style=style)
        if name == "slackWebhook":
            return kind("mine", self.secret("hook", api.removesuffix("/api/") + WEBHOOK_PATH), style=style)
        if name == "webhook":
            return kind("mine", f"http://127.0.0.1:{port}/", allow_local=True, wishes=wishes)
        if name == "apprise":
            return kind("mine", self.secret("urls", f"# mine\njson://127.0.0.1:{port}/\n"), wishes=wishes)
        return kind()

    def arrived(self) -> int:
        return len(self.slack.messages) + len(self.slack.posts) + self.http.arrived  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.arrived += 1  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads, http.arrived = True, 0  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    with running() as slack:
        yield Other(slack, http, tmp_path)
    http.shutdown()
    http.server_close()


all_of_them = pytest.mark.parametrize("name", sorted(set(NOTIFIERS) - set(ELSEWHERE)))
those_outside = pytest.mark.parametrize("name", sorted(set(NOTIFIERS) - set(ELSEWHERE) - ALWAYS))


@all_of_them
def test_a_record_may_be_told_twice(other: Other, name: str) -> None:
    notifier = other.make(name)
    with capture_logs():
        assert notifier.notify(record()) is not False
        assert notifier.notify(record()) is not False
    assert notifier.name in ("mine", name)
    assert name in ALWAYS or other.arrived() in (1, 2)


@all_of_them
def test_what_can_be_seen_of_the_other_side_is_said_and_tells_nobody_anything(other: Other, name: str) -> None:
    assert len(other.make(name).probe()) > 10
    assert other.arrived() == 0


@those_outside
def test_what_is_not_for_its_people_is_not_sent(other: Other, name: str) -> None:
    assert other.make(name, wishes=NONE).notify(record()) is False
    assert other.arrived() == 0


@those_outside
def test_the_other_side_that_is_away_is_one_line_of_an_error(other: Other, name: str) -> None:
    with pytest.raises(NotifyError) as caught:
        other.make(name, away=True).notify(record())
    assert "\n" not in str(caught.value)
    assert not caught.value.final
    assert other.arrived() == 0


@those_outside
def test_a_record_that_holds_anything_at_all_is_told(other: Other, name: str) -> None:
    odd = {
        "rollout": "a\x00<!here>",
        "findings": [None, 7, {"metric": {"a": []}}],
        "weight": [],
        "traces": 1,
        "step": "x",
    }
    assert other.make(name).notify(replace(record(), sentence="<&>\u202e`" * 3000, body=odd)) is not False
    assert other.arrived() >= 1


def test_a_notifier_that_is_tried_elsewhere_is_tried_there() -> None:
    root = Path(__file__).parents[2]
    for name, file in ELSEWHERE.items():
        assert load_adapter(NOTIFIERS, name).__name__ in (root / file).read_text()


def test_a_library_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    make: Callable[..., Any] = load_adapter(NOTIFIERS, "apprise")
    with pytest.raises(NotifyError, match=r"pip install 'canaryd\[apprise\]'"):
        make("mine", Secret(env="X"))


@pytest.mark.parametrize(
    ("severity", "level"), [("info", "info"), ("warning", "warning"), ("critical", "error"), ("unheard-of", "info")]
)
def test_the_log_carries_one_event_with_the_sentence_and_its_keys(severity: str, level: str) -> None:
    with capture_logs() as events:
        LogNotifier().notify(record(severity))
    assert events == [
        {
            "event": "decision",
            "log_level": level,
            "id": "shop/4",
            "canary": "shop",
            "at": "2026-01-02T03:04:05+00:00",
            "kind": "rollback",
            "sentence": "errors are 4 % worse",
        }
    ]
