"""What most commands need: the configuration, the state, the names, and the time.

The only place of the command line that asks for the time. Never writes; `canaryd.cli.say` does.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from canaryd.cli.app import Options
from canaryd.cli.exits import NotFoundError, UsageError
from canaryd.errors import CanarydError

if TYPE_CHECKING:
    from canaryd.adapters.sqlite_store import SqliteStore
    from canaryd.config import Loaded, Settings
    from canaryd.model import Stored

PLACES = (Path("config/canaryd.yaml"), Path("/etc/canaryd/canaryd.yaml"))
PREFIXES = ("canary.canaryd.io/", "canaries.canaryd.io/", "canary/", "canaries/")
INTERVAL = timedelta(seconds=30)  # of a canary whose document is not at hand: the documents' default


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def local(at: datetime) -> datetime:
    """The same time in the time zone of the person who looks."""
    return at.astimezone()


def find_config(given: str | None) -> Path | None:
    """The configuration file that applies, or None. One that was named must exist: that is checked by who reads it."""
    named = given or os.environ.get("CANARYD_CONFIG")
    if named:
        return Path(named)
    return next((place for place in PLACES if place.is_file()), None)


class Session:
    """One command's view of the world; everything is read when first asked for."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @cached_property
    def config_path(self) -> Path | None:
        if self._options.state and not self._options.config:
            return None  # --state alone: no configuration, not even one that happens to lie around
        return find_config(self._options.config)

    def require_config(self) -> Path:
        """The configuration file. Raises UsageError that says where it was looked for."""
        if self.config_path is None:
            places = ", ".join(str(place) for place in PLACES)
            raise UsageError(
                f"no configuration: $CANARYD_CONFIG is not set and there is no {places}; use --config FILE"
            )
        return self.config_path

    @cached_property
    def settings(self) -> Settings | None:
        """None without a configuration. Raises ConfigError."""
        if self.config_path is None:
            return None
        from canaryd.config import load_settings

        return load_settings(self.config_path)

    @cached_property
    def documents(self) -> Loaded | None:
        """The Canary documents that can be read; None without a configuration."""
        if self.settings is None or self.config_path is None:
            return None
        from canaryd.config import load_canaries

        return load_canaries(self.settings, self.config_path.parent)

    @cached_property
    def state_path(self) -> Path:
        if self._options.state:
            return Path(self._options.state)
        path = self.require_config()
        assert self.settings is not None
        return path.parent / self.settings.state.path

    @cached_property
    def has_state(self) -> bool:
        """False only where there is surely no state file yet, and reading must not make one."""
        try:
            return bool(self._options.state) or self.state_path.exists()
        except OSError:  # not ours to look at: opening it says why
            return True

    @cached_property
    def store(self) -> SqliteStore:
        """The state. Raises StoreError; never creates a file where `--state` names one that does not exist."""
        from canaryd.adapters.sqlite_store import SqliteStore

        return SqliteStore(self.state_path, create=not self._options.state)

    # ── canaries ─────────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> tuple[str, ...]:
        """Every canary that has a document or a state, sorted."""
        documents = {c.name for c in self.documents.canaries} | self.documents.refused if self.documents else set()
        stored = set(self.store.canaries()) if self.has_state else set()
        return tuple(sorted(documents | stored))

    def name(self, given: str) -> str:
        """`given` without a kubectl-like prefix. Raises NotFoundError that lists what there is."""
        prefix = next((p for p in PREFIXES if given.startswith(p)), "")
        name, known = given.removeprefix(prefix), self.names()
        if name in known:
            return name
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else "."
        there = f"There are: {', '.join(known[:50])}" if known else "There are none"
        raise NotFoundError(f'no canary "{name[:80]}"{hint} {there}.')

    def stored(self, name: str) -> Stored | None:
        """What is held; None before there is a state file."""
        return self.store.load(name) if self.has_state else None

    def body(self, name: str) -> Mapping[str, Any]:
        """What there is to show of one canary: the body of its latest decision, or that it is idle."""
        stored = self.stored(name)
        state = stored.state if stored is not None else None
        if state is not None and state.latest:
            return state.latest
        phase = state.phase.value if state is not None else "Idle"
        return {"canary": name, "phase": phase, "sentence": f"{name}: canaryd has not decided anything yet."}

    def interval(self, name: str) -> timedelta:
        """Time between two looks at this canary."""
        found = [c.spec.interval for c in self.documents.canaries if c.name == name] if self.documents else []
        return found[0] if found else INTERVAL

    # ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────

    def absent(self, at: datetime, name: str | None = None) -> str:
        """Why nobody is at work: "canaryd is not running (last seen …)"; "" while the daemon's heart beats."""
        beat = self.store.heartbeat() if self.has_state else None
        if beat is None:
            return "canaryd is not running (it never ran on this state)"
        holder, seen = beat
        names = [name] if name else [canary.name for canary in self.documents.canaries] if self.documents else []
        patience = 3 * min((self.interval(n) for n in names), default=INTERVAL)
        if at - seen <= patience:
            return ""
        return f"canaryd is not running (last seen {local(seen):%Y-%m-%d %H:%M:%S}, {holder})"


# ── for the commands ─────────────────────────────────────────────────────────────────────────────────────────


def with_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command a Session as its first argument."""

    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        return command(Session(ctx.ensure_object(Options)), *args, **kwargs)

    return wrapped


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell; nothing when they cannot be had."""
    try:
        options = ctx.find_object(Options) or Options()
        return [name for name in Session(options).names() if name.startswith(incomplete)]
    except (CanarydError, OSError):
        return []


def name_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=complete_name)(command)


def optional_name(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", required=False, shell_complete=complete_name)(command)


def is_terminal() -> bool:
    """Somebody looks at the output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
