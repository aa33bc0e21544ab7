"""What most commands need: the configuration, the state, the names, and the time.

The only place of the command line that asks for the time. Never writes but what a person says. `canaryd.cli.cluster`
is the same for a cluster; `session_of` chooses.
"""

from __future__ import annotations

import difflib
import functools
import getpass
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
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
    from canaryd.model import Answer, Override, Record, Stored
    from canaryd.policy import Canary
    from canaryd.ports import StateStore

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
    """One command's view of the world; everything is read when first asked for.

    Canaries go by their key: the plain name here, "NAMESPACE/NAME" in a cluster; `plain` is what people read.
    """

    clustered = False
    several_namespaces = False  # a table needs a column to tell them apart
    answers_within = 1.0  # seconds in which a daemon that is there usually answers what a person says

    def __init__(self, options: Options) -> None:
        self._options = options

    def close(self) -> None:
        """Let go of what was opened; harmless when nothing was."""

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
    def sqlite(self) -> SqliteStore:
        """The state file. Raises StoreError; never creates one where `--state` names one that does not exist."""
        from canaryd.adapters.sqlite_store import SqliteStore

        return SqliteStore(self.state_path, create=not self._options.state)

    @property
    def store(self) -> StateStore:
        """The state."""
        return self.sqlite

    def mark(self) -> int:
        """Another number when anybody wrote anything; cheap, for looking again and again."""
        return self.store.mark()

    def records(
        self, name: str, *, limit: int = 50, before: datetime | None = None, kinds: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        """The latest decisions, newest first."""
        return self.store.records(name, limit=limit, before=before, kinds=kinds)

    # ── what people say ──────────────────────────────────────────────────────────────────────────────────────

    def who(self) -> str:
        """user@host of the person who types; behind sudo, the person and not root."""
        try:
            user = os.environ.get("SUDO_USER") or getpass.getuser()
        except (KeyError, OSError):  # a container without a passwd entry
            user = f"uid-{os.getuid()}"
        return f"{user}@{socket.gethostname()}"

    def say(self, name: str, override: Override) -> None:
        """Write down what a person wants. Raises StoreError."""
        self.store.override(name, override)

    def answer(self, name: str, id_: str) -> Answer | None:
        """What the daemon answered to the word of this id; None as long as it has not."""
        state = self.store.load(name).state
        return next((a for a in state.answered if a.id == id_), None) if state is not None else None

    def beginning(self, name: str) -> str:
        """The command that begins a rollout."""
        return f"canaryd start {name} --revision R"

    def must_start_by_command(self, name: str) -> None:
        """Raises OverrideError where a rollout begins in another way than by `canaryd start`."""

    # ── canaries ─────────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> tuple[str, ...]:
        """Every canary that has a document or a state, sorted."""
        documents = {c.name for c in self.documents.canaries} | self.documents.refused if self.documents else set()
        stored = set(self.sqlite.canaries()) if self.has_state else set()
        return tuple(sorted(documents | stored))

    def name(self, given: str) -> str:
        """The key of `given`, which may have a prefix as kubectl has. Raises NotFoundError that lists what there is."""
        name, known = without_prefix(given), self.names()
        if name in known:
            return name
        raise not_found(name, known)

    def plain(self, name: str) -> str:
        """What people call it."""
        return name

    def completions(self) -> tuple[str, ...]:
        """Names for the shell, in a short time."""
        return self.names()

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

    def canary(self, name: str) -> Canary | None:
        """Its document as it is now; None when it is not there or has problems."""
        return next((c for c in self.documents.canaries if c.name == name), None) if self.documents else None

    def wanted(self, name: str) -> str | None:
        """The revision that should run, as far as that is known outside the state."""
        stored = self.stored(name)
        return stored.release.revision if stored is not None and stored.release is not None else None

    def interval(self, name: str) -> timedelta:
        """Time between two looks at this canary."""
        canary = self.canary(name)
        return canary.spec.interval if canary is not None else INTERVAL

    # ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────

    def absent(self, at: datetime, name: str | None = None) -> str:
        """Why nobody is at work: "canaryd is not running (last seen …)"; "" while the daemon's heart beats."""
        beat = self.sqlite.heartbeat() if self.has_state else None
        if beat is None:
            return "canaryd is not running (it never ran on this state)"
        holder, seen = beat
        names = [name] if name else [canary.name for canary in self.documents.canaries] if self.documents else []
        patience = 3 * min((self.interval(n) for n in names), default=INTERVAL)
        if at - seen <= patience:
            return ""
        return f"canaryd is not running (last seen {local(seen):%Y-%m-%d %H:%M:%S}, {holder})"


# ── which one ────────────────────────────────────────────────────────────────────────────────────────────────


def session_of(options: Options) -> Session:
    """A cluster's where one was asked for, by an option, $CANARYD_CONTEXT, kubectl or the configuration; else files.

    What was typed goes before what is set. Raises UsageError for a contradiction, ConfigError.
    """
    if options.cluster and options.state:
        raise UsageError("--state is a file without a cluster; it cannot go with --context, --kubeconfig, -n and -A")
    named_files = options.state or options.config
    wanted = options.cluster or (not named_files and (os.environ.get("CANARYD_CONTEXT") or options.plugin))
    if not wanted and not options.state and find_config(options.config) is not None:
        settings = Session(options).settings
        wanted = settings is not None and settings.mode == "cluster"
    if not wanted:
        return Session(options)
    from canaryd.cli.cluster import ClusterSession

    return ClusterSession(options)


def without_prefix(given: str) -> str:
    """ "canary.canaryd.io/api" → "api"."""
    return given.removeprefix(next((p for p in PREFIXES if given.startswith(p)), ""))


def not_found(name: str, known: Sequence[str]) -> NotFoundError:
    """There is no canary of that name; which ones there are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    there = f"There are: {', '.join(known[:50])}" if known else "There are none"
    return NotFoundError(f'no canary "{name[:80]}"{hint} {there}.')


# ── for the commands ─────────────────────────────────────────────────────────────────────────────────────────


def with_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command its Session as its first argument."""

    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        session = session_of(ctx.ensure_object(Options))
        try:
            return command(session, *args, **kwargs)
        finally:
            session.close()

    return wrapped


def with_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command a Session of files as its first argument, for what is about the configuration alone."""

    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *args: Any, **kwargs: Any) -> Any:
        return command(Session(ctx.ensure_object(Options)), *args, **kwargs)

    return wrapped


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell; nothing when they cannot be had."""
    try:
        session = session_of(ctx.find_object(Options) or Options())
        return [name for name in session.completions() if name.startswith(incomplete)]
    except (CanarydError, OSError):
        return []


def name_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=complete_name)(command)


def optional_name(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", required=False, shell_complete=complete_name)(command)


def is_terminal() -> bool:
    """Somebody looks at the output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
