"""Slack's Web API by slack-sdk: calls whose failures are said in words, with nothing secret in a log or an error.

slack-sdk's own logger is silent here: at some levels it writes whole requests. Its errors repeat answers and addresses,
so that only Slack's short code of an error is passed on, with what to do about it.
"""

from __future__ import annotations

import http.client
import logging
import ssl
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from canaryd.errors import NotifyError

JSON = dict[str, Any]

QUIET = logging.Logger("slack_sdk.quiet", level=logging.CRITICAL + 10)  # of nobody's tree: no handler ever hears it
QUIET.addHandler(logging.NullHandler())

# Slack's code of an error → what is wrong and what to do; {place}: where the token is, {where}: the channel.
_WORDS = {
    "invalid_auth": "Slack does not know the token; put the bot token (xoxb-…) of the app into {place}",
    "not_authed": "Slack got no token; put the bot token (xoxb-…) of the app into {place}",
    "not_allowed_token_type": "the token is of the wrong kind; put a bot token (xoxb-…) into {place}",
    "token_revoked": "the token was revoked; install the app again and put the new token into {place}",
    "token_expired": "the token has expired; put a new one into {place}",
    "account_inactive": "the bot or its workspace is gone; install the app again and put the new token into {place}",
    "team_access_not_granted": "the workspace does not let the app in; ask its administrator",
    "channel_not_found": "Slack knows no channel {where} that the bot can see; name its id, and /invite the bot",
    "not_in_channel": "the bot is not in the channel {where}; /invite it there",
    "is_archived": "the channel {where} is archived; unarchive it or name another",
    "restricted_action": "the workspace does not let the app post in {where}; ask its administrator",
    "missing_scope": "the app lacks a scope{needed}; add it under OAuth & Permissions and install the app again",
    "ratelimited": "Slack asks for a pause",
    "rate_limited": "Slack asks for a pause",
    "service_unavailable": "Slack is not available",
    "fatal_error": "Slack failed",
    "internal_error": "Slack failed",
}
TOO_MUCH = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long"})
GONE = frozenset({"message_not_found", "thread_not_found", "cant_update_message", "edit_window_closed"})


class SlackError(NotifyError):
    """Slack said no; `code` is its own word, "" where it said none."""

    def __init__(self, message: str, *, code: str = "", retry_after: float | None = None) -> None:
        self.code = code
        super().__init__(message, retry_after=retry_after)


def client(token: str, api_url: str, timeout: timedelta) -> WebClient:
    """Tries nothing twice by itself: a message that may have arrived would come again."""
    seconds = max(1, round(timeout.total_seconds()))
    return WebClient(
        token, base_url=api_url.rstrip("/") + "/", timeout=seconds, logger=QUIET, retry_handlers=[], ssl=None
    )


def call(web: WebClient, method: str, *, place: str, where: str = "", **arguments: Any) -> Mapping[str, Any]:
    """The answer. Raises SlackError with words; `place` is where the token comes from, `where` the channel."""
    try:
        answer = web.api_call(method, json={k: v for k, v in arguments.items() if v is not None})
    except SlackApiError as e:
        raise _refused(e, method, place, where) from None
    except (SlackClientError, OSError, http.client.HTTPException, ValueError) as e:
        raise SlackError(f"Slack at {urlsplit(web.base_url).hostname}: {unreachable(e)}") from None
    data = answer.data
    return data if isinstance(data, Mapping) else {}


def _refused(error: SlackApiError, method: str, place: str, where: str) -> SlackError:
    response = error.response
    data = response.get("data", response) if isinstance(response, dict) else response.data
    headers = response.get("headers", {}) if isinstance(response, dict) else response.headers
    status = response.get("status", 0) if isinstance(response, dict) else response.status_code
    code = data.get("error") if isinstance(data, Mapping) else None
    known = isinstance(code, str) and len(code) <= 60 and code.replace("_", "").isalnum()
    pause = retry_after(headers)
    if status == 429 or code in ("ratelimited", "rate_limited"):
        return SlackError(
            "Slack asks for a pause", code="ratelimited", retry_after=pause if pause is not None else 30.0
        )
    if not known:
        return SlackError(f"Slack answers {method} with HTTP {status} and no reason", retry_after=pause)
    needed = data.get("needed") if isinstance(data, Mapping) else None
    scope = f" ({needed})" if isinstance(needed, str) and len(needed) < 100 and needed.isprintable() else ""
    words = _WORDS.get(str(code), "Slack refuses {method}").format(
        place=place, where=where or "that was named", needed=scope, method=method
    )
    return SlackError(f"{words} ({code})", code=str(code), retry_after=pause)


def retry_after(headers: Mapping[str, Any]) -> float | None:
    """Seconds, where the other side has said them."""
    found = next((v for k, v in headers.items() if k.lower() == "retry-after"), None)
    try:
        return min(max(float(found), 0.0), 3600.0) if found is not None else None
    except (TypeError, ValueError):
        return None


def unreachable(error: Exception) -> str:
    """What went wrong on the way, without the address, which may be a secret."""
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError):
        return (cause.strerror or type(cause).__name__).lower()
    return f"not a proper exchange ({type(cause).__name__})"
