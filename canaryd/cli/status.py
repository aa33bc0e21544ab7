"""`canaryd status`: the table of all canaries, or the tree of one; with -w for as long as somebody looks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit
from canaryd.cli.session import Session, is_terminal, local, now, optional_name, with_session

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
    """
    names = (session.name(name),) if name else session.names()
    if watch:
        try:
            _watch(session, names, name is not None, form)
        except KeyboardInterrupt:  # the way to end watching
            click.echo()
        return Exit.OK
    bodies = [session.body(n) for n in names]
    if form in ("json", "yaml"):
        output.emit(bodies[0] if name else bodies, form)
    elif form == "name":
        for n in names:
            click.echo(f"canary.canaryd.io/{n}")
    else:
        output.show(_picture(bodies, name is not None and form == "table", wide=form == "wide"))
    missing = session.absent(now(), names[0] if name else None)
    if missing:
        click.echo(f"canaryd: {missing}; this is what was last known.", err=True)
    return Exit.OK


def _picture(bodies: list[Mapping[str, Any]], one: bool, *, wide: bool = False) -> RenderableType:
    at = local(now())
    if one:
        return render.tree(bodies[0], at)
    table, fleet = render.table(bodies, at, 10_000 if wide else output.width()), render.standing(bodies)
    return Group(table, Text(), Text(fleet, render.QUIET)) if fleet else table


def _changes(session: Session, names: tuple[str, ...]) -> Iterator[list[Mapping[str, Any]]]:
    """All bodies, at once and again whenever anybody wrote anything or it is time to draw again."""
    mark, drawn, bodies = -1, 0.0, list[Mapping[str, Any]]()
    while True:
        new = session.store.mark()
        if new != mark:
            mark, bodies = new, [session.body(name) for name in names]
        elif time.monotonic() - drawn < REDRAW:
            time.sleep(LOOK)
            continue
        drawn = time.monotonic()
        yield bodies


def _watch(session: Session, names: tuple[str, ...], one: bool, form: str) -> None:
    if form in ("json", "yaml", "name") or not is_terminal():
        _follow(session, names, form)
        return
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False, vertical_overflow="visible") as live:
        for bodies in _changes(session, names):
            missing = session.absent(now(), names[0] if one else None)
            below = [Text(), Text(f"{missing}; this is what was last known.", render.CARE)] if missing else []
            live.update(Group(_picture(bodies, one and form == "table", wide=form == "wide"), *below), refresh=True)


def _follow(session: Session, names: tuple[str, ...], form: str) -> None:
    """Without a terminal: a line when a decision changes something; machines get every record."""
    told: dict[str, object] = {}
    for bodies in _changes(session, names):
        for name, body in zip(names, bodies, strict=True):
            key = body.get("at") if form == "json" else outline(body)
            if told.get(name, told) != key:
                told[name] = key
                line = json.dumps(body, ensure_ascii=True) if form == "json" else render.lines([body])[0]
                click.echo(line)


def outline(body: Mapping[str, Any]) -> tuple[object, ...]:
    """What must change to be worth another line."""
    weight = body.get("weight")
    wanted = weight.get("desired") if isinstance(weight, Mapping) else None
    return (body.get("kind"), body.get("revision"), body.get("phase"), body.get("step"), wanted, body.get("verdict"))
