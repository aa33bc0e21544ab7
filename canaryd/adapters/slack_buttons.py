"""Buttons in Slack: presses come over a WebSocket that canaryd opens (Socket Mode), so that nothing has to listen.

A press becomes the same word in the same inbox as a command's, for the revision that the message spoke of, by a person
on the list; the same press is one word however often Slack reports it. Runs where canaryd leads and nowhere else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from slack_sdk import WebClient
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from canaryd.errors import CanarydError, NotifyError
from canaryd.model import Stored
from canaryd.notices.blocks import fit
from canaryd.notices.press import Press, press
from canaryd.ports import StateStore
from canaryd.secret import Secret
from canaryd.slackapi import QUIET, SlackError, call, client

LOOK_S = 1.0  # between two looks at the connection and the token
PATIENCE_S = 20.0  # with a connection that is lost; slack-sdk itself tries again within it
LONGEST_S = 60.0  # between two tries
REMEMBERED = 1000  # envelopes

log = structlog.get_logger("canaryd.slack")


class SlackButtons:
    """ports.Listener. `allow` are ids of the users who may press; `ping` in seconds."""

    def __init__(
        self,
        name: str,
        app_token: Secret,
        bot_token: Secret,
        store: StateStore,
        allow: Collection[str],
        *,
        api_url: str = "https://slack.com/api/",
        timeout: timedelta = timedelta(seconds=10),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        ping: float = 5.0,
    ) -> None:
        self.name = name
        self.trouble = "not connected yet"
        self._app_token, self._bot_token, self._store = app_token, bot_token, store
        self._allow, self._api_url, self._timeout = frozenset(allow), api_url, timeout
        self._clock, self._ping = clock, ping
        self._envelopes: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, in a thread of its own; connects again for as long as it runs."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"buttons-{self.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def probe(self) -> str:
        """See ports.Notifier."""
        self._address(self._app_token.line())
        return "Slack lets the app listen for buttons"

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._listen()
                failures = 0
            except NotifyError as e:
                failures += 1
                if self.trouble != str(e):
                    log.warning("no buttons", notifier=self.name, reason=str(e))
                self.trouble = str(e)
            except Exception as e:  # noqa: BLE001 - slack-sdk raises anything; its text may hold the address
                failures += 1
                self.trouble = f"Slack's WebSocket failed ({type(e).__name__})"
                log.warning("no buttons", notifier=self.name, reason=self.trouble)
            self._stopping.wait(min(LONGEST_S, 2.0 ** min(failures, 6) / 2) if failures else 0)
        self.trouble = "not connected"

    def _listen(self) -> None:
        """Until asked to stop, until the token is another one, or until the connection stays lost."""
        token = self._app_token.line()
        web, address = self._address(token)
        socket = SocketModeClient(token, logger=QUIET, web_client=web, ping_interval=self._ping, concurrency=2)
        socket.wss_uri = address
        socket.socket_mode_request_listeners.append(self._heard)  # type: ignore[arg-type]  # of this very client
        try:
            socket.connect()
            log.info("buttons", notifier=self.name)
            lost = 0.0
            while not self._stopping.wait(LOOK_S):
                lost = 0.0 if socket.is_connected() else lost + LOOK_S
                self.trouble = "" if not lost else "the connection to Slack is lost"
                if lost > PATIENCE_S or self._app_token.line() != token:
                    return
        finally:
            socket.close()

    def _address(self, token: str) -> tuple[WebClient, str]:
        """Where to connect to, for a while. Raises NotifyError."""
        if token.startswith("xoxb-"):
            raise NotifyError(f"{self._app_token.place} holds a bot token; Socket Mode needs the app's (xapp-…)")
        web = client(token, self._api_url, self._timeout)
        address = str(call(web, "apps.connections.open", place=self._app_token.place).get("url"))
        if not address.startswith(("wss://", "ws://")):
            raise NotifyError("Slack names no address to connect to; is Socket Mode enabled for the app?")
        return web, address

    def _heard(self, socket: SocketModeClient, request: SocketModeRequest) -> None:
        """Acknowledged at once: Slack waits three seconds, and a person for the little wheel."""
        socket.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
        with self._lock:
            if request.envelope_id in self._envelopes:
                return
            self._envelopes[request.envelope_id] = None
            if len(self._envelopes) > REMEMBERED:
                self._envelopes.popitem(last=False)
        if request.type != "interactive" or self._stopping.is_set():
            return
        if (pressed := press(request.payload)) is not None:
            self._answer(pressed, self.take(pressed))

    # ── the word ─────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, pressed: Press) -> str:
        """Put the word into the inbox, or do not; what the person is told."""
        said: dict[str, Any] = {"by": pressed.by, "action": str(pressed.action), "canary": pressed.canary}
        if pressed.user not in self._allow:
            log.warning("press refused", **said, reason="not on the list")
            return f"You may not {pressed.action} {pressed.canary}: your id {pressed.user} is not on canaryd's list."
        try:
            if why := _void(pressed, self._store.load(pressed.canary)):
                log.info("press void", **said, reason=why)
                return why
            self._store.override(pressed.canary, pressed.override(self._clock()))
        except CanarydError as e:
            log.warning("press not taken", **said, reason=str(e))
            return f"canaryd could not take it: {e}"
        log.info("press", **said, revision=pressed.revision, id=pressed.id)
        return (
            f"{pressed.action} of {pressed.canary} {pressed.revision} is on its way; the answer comes in this thread."
        )

    def _answer(self, pressed: Press, text: str) -> None:
        """To that person alone."""
        try:
            call(
                client(self._bot_token.line(), self._api_url, self._timeout),
                "chat.postEphemeral",
                place=self._bot_token.place,
                where=pressed.channel,
                channel=pressed.channel,
                user=pressed.user,
                thread_ts=pressed.thread or None,
                text=fit(text, 1000),
            )
        except (NotifyError, SlackError) as e:
            log.info("press not answered", by=pressed.by, reason=str(e))


def _void(pressed: Press, stored: Stored) -> str:
    """Why the message speaks of something that is over; "" when it does not."""
    state = stored.state
    if state is None or not state.phase.is_active:
        return f"{pressed.canary}: no rollout is under way any more."
    if state.revision != pressed.revision or (pressed.rollout and state.rollout != pressed.rollout):
        now = f"revision {state.revision} is under way by now, not {pressed.revision}"
        return f"{pressed.canary}: {now}; nothing was done."
    return ""
