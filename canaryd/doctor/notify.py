"""Whether people would hear of a decision: each channel's secrets, tokens and places. Tells nobody anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from canaryd import wiring
from canaryd.adapters.memory import MemoryStore
from canaryd.config import Settings
from canaryd.config.notify import Channel
from canaryd.doctor.findings import Check, Finding, error, fine, warning
from canaryd.doctor.further import Site
from canaryd.errors import NotifyError

WHY = "nobody hears of a decision there; what is owed waits, and is given up after notify.giveUp"
HERE = "canaryd doctor looks with the files and variables of the place where it runs: in a cluster, use kubectl exec"


def channels(site: Site) -> Iterator[Finding]:
    """Of all channels; nothing where none are set, or where the settings are not known."""
    if site.settings is None:
        return
    for channel in site.settings.notify.channels:
        yield _looked_at(channel.name, partial(_notifier, channel, site.settings))
        if channel.slack is not None and channel.slack.buttons is not None:
            yield _looked_at(f"{channel.name}, buttons", partial(_listener, channel))


def _notifier(channel: Channel, settings: Settings) -> str:
    return wiring.notifier(channel, settings, MemoryStore()).probe()


def _listener(channel: Channel) -> str:
    listener = wiring.listener(channel, MemoryStore())
    return listener.probe() if listener is not None else ""


def _looked_at(name: str, probe: Callable[[], str]) -> Finding:
    try:
        return fine(f"{name}: {probe()}")
    except NotifyError as e:
        if "cannot be read" in str(e) or "is not set" in str(e):
            return warning(f"{name}: {e}", WHY, HERE)
        return error(f"{name}: {e}", WHY, "put that right; docs/notifications.md says how")


CHECKS = (Check("notify", channels),)
