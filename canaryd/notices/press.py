"""A press of a button in Slack, as Slack reports it: who wants what for which revision. Pure; trusts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from canaryd.model import Action, Override
from canaryd.notices.blocks import ACTION
from canaryd.notices.notice import plain

ACTIONS = (Action.PROMOTE, Action.PAUSE, Action.RESUME, Action.ABORT)


@dataclass(frozen=True, slots=True)
class Press:
    """One press."""

    id: str  # the same however often Slack reports it
    user: str  # Slack's id
    name: str  # for people
    action: Action
    canary: str
    revision: str
    rollout: str
    channel: str
    thread: str

    @property
    def by(self) -> str:
        return f"slack:{self.user} ({self.name})" if self.name else f"slack:{self.user}"

    def override(self, at: datetime) -> Override:
        """The word that a press stands for; it is void for any other revision."""
        return Override(self.id, self.action, self.revision, self.by, f"{self.action} pressed in Slack", at)


def press(payload: Mapping[str, Any]) -> Press | None:
    """None for whatever is none of canaryd's buttons."""
    actions, user = payload.get("actions"), payload.get("user")
    if payload.get("type") != "block_actions" or not isinstance(actions, list) or not isinstance(user, Mapping):
        return None
    found = next((a for a in actions if isinstance(a, Mapping) and str(a.get("action_id")).startswith(ACTION)), None)
    if found is None:
        return None
    try:
        action = Action(str(found["action_id"]).removeprefix(ACTION))
        about = json.loads(found["value"])
        canary, revision, rollout = (about[key] for key in ("canary", "revision", "rollout"))
    except (ValueError, KeyError, TypeError):
        return None
    who, ts = plain(user.get("id"), 40), plain(found.get("action_ts"), 40)
    texts = (canary, revision, rollout)
    if action not in ACTIONS or not who or not ts or not all(isinstance(t, str) and len(t) <= 320 for t in texts):
        return None
    if not canary or not revision:
        return None
    place, message = _part(payload, "channel"), _part(payload, "message")
    name = plain(user.get("username") or user.get("name"), 80)
    thread = plain(message.get("thread_ts") or message.get("ts"), 40)
    id_ = f"slack-{who}-{action}-{ts}"
    return Press(id_, who, name, action, canary, revision, rollout, plain(place.get("id"), 40), thread)


def _part(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = payload.get(key)
    return found if isinstance(found, Mapping) else {}
