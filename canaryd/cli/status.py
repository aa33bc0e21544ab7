"""`canaryd status`: the table of all canaries, or the tree of one; with -w for as long as somebody looks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit
from canaryd.cli.session import Session, is_terminal, local, now, optional_name, with_session
from canaryd.cli.traces import with_recorded

LOOK = 0.2  # seconds between two looks at the state's mark
REDRAW = 1.0  # seconds between two drawings when nothing changed: the countdown goes on


@click.command()
@global_options
@optional_name
@click.option("-w", "--watch", is_flag=True, help="Keep showing; Ctrl-C ends.")
@output.format_option("table", "wide", "json", "yaml", "name")
@with_session
def status(session: Session, name: str | None, watch: bool, form: str) -> int:
    """Show where every canary is, or one with its evidence.

    WANT/SET/SEEN are the weight that was decided, the one in the route, and the share of requests that reached the
    canary. With -o json: a list of decision records, or the record of NAME; with -w one record in each line.

    \b
    Examples:
      canaryd status                 all canaries
      canaryd status -w              keep watching
      canaryd status api             one canary, with its evidence
      canaryd status api -o json     for scripts
      canaryd status -A -w           a whole cluster
    """
    names = (session.name(name),) if name else session.names()
    if watch:
        try:
            _watch(session, names if name else None, form)
        except KeyboardInterrupt:  # the way to end watching
            click.echo()
        return Exit.OK
    bodies = [session.body(n) for n in names]
    if name and form != "name":
        bodies = [with_recorded(session, names[0], bodies[0])]
    if form in ("json", "yaml"):
        output.emit(bodies[0] if name else bodies, form)
    elif form == "name":
        for n in names:
            click.echo(f"canary.canaryd.io/{session.plain(n)}")
    else:
        output.show(_picture(session, bodies, name is not None and form == "table", wide=form == "wide"))
    missing = session.absent(now(), names[0] if name else None)
    if missing:
        click.echo(f"canaryd: {missing}; this is what was last known.", err=True)
    return Exit.OK


def _picture(session: Session, bodies: Sequence[Mapping[str, Any]], one: bool, *, wide: bool = False) -> RenderableType:
    at = local(now())
    if one:
        return render.tree(bodies[0], at)
    width = 10_000 if wide else output.width()
    table = render.table(bodies, at, width, namespaces=session.several_namespaces)
    fleet = render.standing(bodies)
    return Group(table, Text(), Text(fleet, render.QUIET)) if fleet else table


def _changes(session: Session, only: tuple[str, ...] | None) -> Iterator[dict[str, Mapping[str, Any]]]:
    """Name → body of those, or of all, at once and again when anybody wrote anything or it is time to draw again."""
    mark, drawn, bodies = -1, 0.0, dict[str, Mapping[str, Any]]()
    while True:
        new = session.mark()
        if new != mark:
            mark, bodies = new, {name: session.body(name) for name in only or session.names()}
        elif time.monotonic() - drawn < REDRAW:
            time.sleep(LOOK)
            continue
        drawn = time.monotonic()
        yield bodies


def _watch(session: Session, only: tuple[str, ...] | None, form: str) -> None:
    if form in ("json", "yaml", "name") or not is_terminal():
        _follow(session, only, form)
        return
    from rich.live import Live

    tree, wide = only is not None and form == "table", form == "wide"
    with Live(console=output.console(), auto_refresh=False, vertical_overflow="visible") as live:
        for bodies in _changes(session, only):
            missing = session.absent(now(), only[0] if only else None)
            below = [Text(), Text(f"{missing}; this is what was last known.", render.CARE)] if missing else []
            live.update(Group(_picture(session, list(bodies.values()), tree, wide=wide), *below), refresh=True)


def _follow(session: Session, only: tuple[str, ...] | None, form: str) -> None:
    """Without a terminal: a line when a decision changes something; machines get every record."""
    told: dict[str, object] = {}
    missing = ""
    for bodies in _changes(session, only):
        for name, body in bodies.items():
            key = body.get("at") if form == "json" else outline(body)
            if told.get(name, told) != key:
                told[name] = key
                line = json.dumps(body, ensure_ascii=True) if form == "json" else render.lines([body])[0]
                click.echo(line)
        if (now_missing := session.absent(now(), only[0] if only else None)) != missing:
            missing = now_missing
            click.echo(
                f"canaryd: {missing}; this is what was last known." if missing else "canaryd: is back.", err=True
            )


def outline(body: Mapping[str, Any]) -> tuple[object, ...]:
    """What must change to be worth another line."""
    weight = body.get("weight")
    wanted = weight.get("desired") if isinstance(weight, Mapping) else None
    return (body.get("kind"), body.get("revision"), body.get("phase"), body.get("step"), wanted, body.get("verdict"))
