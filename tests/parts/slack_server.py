"""A server that speaks the shapes of Slack's API, on loopback: messages, threads, metadata, faults, Socket Mode.

Used by the real slack-sdk. It refuses what Slack refuses: unknown channels and tokens, blocks beyond the limits.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from websockets.sync.server import ServerConnection, serve

from canaryd.notices.blocks import problems

TOKEN, APP_TOKEN = "xoxb-planted-bot-secret", "xapp-planted-app-secret"
WEBHOOK_PATH = "/services/T0/B0/planted-webhook-secret"
CHANNEL = "C0RELEASES"

Fault = Callable[["_Handler", str], bool]  # answers itself: True


def limited(seconds: float) -> Fault:
    def fault(handler: _Handler, _method: str) -> bool:
        handler.answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": f"{seconds:g}"})
        return True

    return fault


def status(code: int, text: str = "<html>oops</html>") -> Fault:
    def fault(handler: _Handler, _method: str) -> bool:
        handler.answer(code, text)
        return True

    return fault


def refusal(code: str, **more: Any) -> Fault:
    def fault(handler: _Handler, _method: str) -> bool:
        handler.answer(200, {"ok": False, "error": code, **more})
        return True

    return fault


def slow(seconds: float) -> Fault:
    def fault(_handler: _Handler, _method: str) -> bool:
        time.sleep(seconds)
        return False

    return fault


def reset(handler: _Handler, _method: str) -> bool:
    """The connection is gone before anything was done."""
    handler.connection.close()
    return True


def swallowed(handler: _Handler, method: str) -> bool:
    """It is done, and the answer is lost."""
    handler.server.slack.do(method, handler.asked)
    handler.connection.close()
    return True


class Slack:
    """What is in the workspace, and what shall go wrong."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []  # in the order of posting
        self.posts: list[dict[str, Any]] = []  # to the incoming webhook
        self.ephemeral: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.faults: deque[Fault] = deque()  # of the next calls
        self.down = False
        self.tokens = {TOKEN, APP_TOKEN}
        self.scopes = True  # the bot may read the channel
        self.archived = False
        self.acks: list[str] = []
        self.connected = threading.Semaphore(0)
        self.sockets: list[ServerConnection] = []
        self.lock = threading.RLock()
        self.url = ""
        self.socket_url = ""
        self._ts = 1_700_000_000

    def heads(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if "thread_ts" not in m]

    def replies(self, ts: str = "") -> list[dict[str, Any]]:
        return [m for m in self.messages if m.get("thread_ts") and ts in ("", m["thread_ts"])]

    def texts(self) -> list[str]:
        return [m["text"] for m in self.replies()]

    def do(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            return getattr(self, method.replace(".", "_"))(asked)

    def chat_postMessage(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        if asked["channel"] not in (CHANNEL, "#releases"):
            return {"ok": False, "error": "channel_not_found"}
        if self.archived:
            return {"ok": False, "error": "is_archived"}
        if wrong := problems(asked.get("blocks") or []):
            return {"ok": False, "error": "invalid_blocks", "errors": wrong}
        self._ts += 1
        message = {**asked, "channel": CHANNEL, "ts": f"{self._ts}.000100"}
        self.messages.append(message)
        return {"ok": True, "channel": CHANNEL, "ts": message["ts"]}

    def chat_update(self, asked: dict[str, Any]) -> dict[str, Any]:
        for message in self.messages:
            if message["ts"] == asked["ts"] and message["channel"] == asked["channel"]:
                message.update(text=asked["text"], blocks=asked["blocks"])
                return {"ok": True, "ts": asked["ts"]}
        return {"ok": False, "error": "message_not_found"}

    def chat_postEphemeral(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.ephemeral.append(asked)
        return {"ok": True}

    def conversations_history(self, asked: dict[str, Any]) -> dict[str, Any]:
        if not self.scopes:
            return {"ok": False, "error": "missing_scope", "needed": "channels:history"}
        return {"ok": True, "messages": list(reversed(self.heads()))}

    def conversations_replies(self, asked: dict[str, Any]) -> dict[str, Any]:
        if not self.scopes:
            return {"ok": False, "error": "missing_scope", "needed": "channels:history"}
        head = [m for m in self.heads() if m["ts"] == asked["ts"]]
        return {"ok": True, "messages": [*head, *self.replies(asked["ts"])]}

    def conversations_info(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("channel") != CHANNEL:
            return {"ok": False, "error": "channel_not_found"}
        channel = {"id": CHANNEL, "name": "releases", "is_archived": self.archived, "is_member": True}
        return {"ok": True, "channel": channel}

    def auth_test(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "team": "Example", "user": "canaryd", "bot_id": "B1"}

    def apps_connections_open(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "url": self.socket_url}

    # ── Socket Mode ──────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, socket: ServerConnection) -> None:
        with self.lock:
            self.sockets.append(socket)
        socket.send(json.dumps({"type": "hello", "num_connections": 1}))
        self.connected.release()
        for text in socket:
            answer = json.loads(text)
            with self.lock:
                self.acks.append(answer["envelope_id"])

    def press(self, envelope: str, user: str, action: str, value: str, *, ts: str = "1.1", **more: Any) -> None:
        payload = {
            "type": "block_actions",
            "user": {"id": user, "username": "anna", "name": "anna"},
            "channel": {"id": CHANNEL},
            "message": {"ts": "1700000001.000100"},
            "actions": [{"action_id": action, "value": value, "action_ts": ts, "type": "button"}],
            **more,
        }
        self.sockets[-1].send(json.dumps({"type": "interactive", "envelope_id": envelope, "payload": payload}))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    slack: Slack

    def handle_error(self, *_: Any) -> None:
        """Connections that were cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    asked: dict[str, Any]

    def do_POST(self) -> None:
        slack = self.server.slack
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        method = self.path.rpartition("/")[2]
        if "json" in self.headers.get("Content-Type", ""):
            self.asked = json.loads(text or "{}")
        else:
            self.asked = {k: v[0] for k, v in parse_qs(text).items()}
        with slack.lock:
            slack.calls.append(method)
            if slack.down:
                self.connection.close()
                return
            fault = slack.faults.popleft() if slack.faults else None
        if fault is not None and fault(self, method):
            return
        if self.path == WEBHOOK_PATH:
            with slack.lock:
                slack.posts.append(self.asked)
            self.answer(200, "ok")
            return
        if self.path.startswith("/services/"):
            self.answer(403, "invalid_token")
            return
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in slack.tokens:
            self.answer(200, {"ok": False, "error": "invalid_auth"})
            return
        self.answer(200, slack.do(method, self.asked))

    def answer(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/html" if isinstance(value, str) else "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def running() -> Iterator[Slack]:
    """A workspace that is there for as long as the block runs."""
    slack, server = Slack(), _Server(("127.0.0.1", 0), _Handler)
    server.slack = slack
    slack.url = f"http://127.0.0.1:{server.server_address[1]}/api/"
    with serve(slack.hear, "127.0.0.1", 0) as socket:
        slack.socket_url = f"ws://127.0.0.1:{socket.socket.getsockname()[1]}/?ticket=planted-ticket-secret"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        threading.Thread(target=socket.serve_forever, daemon=True).start()
        yield slack
        socket.shutdown()
    server.shutdown()
    server.server_close()
