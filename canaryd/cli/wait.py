"""`canaryd wait`: until a rollout has ended, for scripts and pipelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

import click
from rich.console import Group
from rich.text import Text

from canaryd import render, wording
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit
from canaryd.cli.session import Session, is_terminal, local, name_argument, now, with_session
from canaryd.cli.status import outline
from canaryd.model import Phase, Stored, Verdict
from canaryd.policy import parse_duration

LOOK = 0.2  # seconds between two looks at the state's mark


class Goal(StrEnum):
    PROMOTED = "promoted"
    ROLLED_BACK = "rolledback"
    SETTLED = "settled"


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def duration_option(name: str, default: str, words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option such as `--timeout 10m`."""
    return click.option(name, metavar="TIME", default=default, show_default=True, callback=_duration, help=words)


@click.command()
@global_options
@name_argument
@click.option(
    "--for", "goal", type=click.Choice([g.value for g in Goal]), default=Goal.SETTLED.value, show_default=True
)
@duration_option("--timeout", "10m", "Longest wait.")
@click.option("--revision", metavar="R", help="The rollout of this revision; default the one that was last started.")
@output.format_option("table", "json", "yaml")
@with_session
def wait(session: Session, name: str, goal: str, timeout: timedelta, revision: str | None, form: str) -> int:
    """Wait until a rollout ends, and say how by the exit code.

    0 when what was waited for has come (settled: promoted), 1 rolled back, 4 ended another way; when the time runs
    out: 2 undecided, 3 blind, 69 canaryd is not running.

    \b
    Examples:
      canaryd start api --revision 7f3c && canaryd wait api --for promoted --timeout 2h
      canaryd wait api --for settled -o json
    """
    name = session.name(name)
    with _Telling(form) as telling:
        code = _watch(session, name, Goal(goal), revision, timeout, telling)
    body = session.body(name)
    if form != "table":
        output.emit(body, form)
    elif code in (Exit.OK, Exit.ROLLED_BACK, Exit.OTHERWISE):
        click.echo(render.clean(body.get("sentence"), 2000))
    else:
        missing = session.absent(now(), name)
        why = missing or f"not {goal} within {wording.span(timeout)}: {render.clean(body.get('sentence'), 2000)}"
        click.echo(f"canaryd: {why}", err=True)
    return code


def _watch(
    session: Session, name: str, goal: Goal, revision: str | None, timeout: timedelta, telling: _Telling
) -> Exit:
    """Look until the end or the deadline."""
    deadline, mark = time.monotonic() + timeout.total_seconds(), -1
    while True:
        new = session.mark()
        if new != mark:
            mark, stored = new, session.stored(name)
            end = ended(stored, goal, revision, session.wanted(name))
            if end is not None:
                return end
        telling.tell(session, name)
        left = deadline - time.monotonic()
        if left <= 0:
            return _run_out(session, name)
        time.sleep(min(LOOK, left))


def _run_out(session: Session, name: str) -> Exit:
    """What the clock found when it ran out."""
    if session.absent(now(), name):
        return Exit.UNAVAILABLE
    stored = session.stored(name)
    blind = stored is not None and stored.state is not None and stored.state.verdict is Verdict.BLIND
    return Exit.BLIND if blind else Exit.UNDECIDED


def ended(stored: Stored | None, goal: Goal, revision: str | None, release: str | None) -> Exit | None:
    """How the rollout ended; None while it has not, or while canaryd has not yet heard of it.

    `revision`: the one that was named; `release`: the one that should run.
    """
    state = stored.state if stored is not None else None
    wanted = revision or release
    if state is None:
        return Exit.OTHERWISE if wanted is None else None
    if wanted is not None and wanted not in (state.revision, state.stable_revision):
        # another revision than the one waited for: not begun yet, or replaced by a newer one
        return Exit.OTHERWISE if revision is not None and release not in (None, revision) else None
    if not state.phase.is_settled:
        return None
    if state.phase is Phase.ROLLED_BACK:
        return Exit.OK if goal is Goal.ROLLED_BACK else Exit.ROLLED_BACK
    if state.phase is Phase.SUCCEEDED and (wanted is None or wanted == state.revision):
        return Exit.OTHERWISE if goal is Goal.ROLLED_BACK else Exit.OK
    return Exit.OTHERWISE


class _Telling:
    """Shows what is waited for: one live picture on a terminal, otherwise a line when something changes."""

    def __init__(self, form: str) -> None:
        self._told: object = None
        self._live: Any = None
        self._quiet = form != "table"

    def __enter__(self) -> _Telling:
        if is_terminal() and not self._quiet:
            from rich.live import Live

            self._live = Live(console=output.console(), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, session: Session, name: str) -> None:
        body: Mapping[str, Any] = session.body(name)
        at = now()
        missing = session.absent(at, name)
        if self._live is not None:
            picture = render.table([body], local(at), output.width())
            self._live.update(Group(picture, Text(missing, render.CARE)) if missing else picture, refresh=True)
        elif not self._quiet and (outline(body), bool(missing)) != self._told:
            self._told = (outline(body), bool(missing))
            click.echo(render.lines([body])[0] + (f" ({missing})" if missing else ""), err=True)
