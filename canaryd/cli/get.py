"""`canaryd get`: the short list, as kubectl shows it."""

from __future__ import annotations

import click

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit
from canaryd.cli.session import Session, local, now, optional_name, with_session


@click.command()
@global_options
@optional_name
@output.format_option("table", "wide", "json", "yaml", "name")
@with_session
def get(session: Session, name: str | None, form: str) -> int:
    """List canaries, short: one line each, for eyes and for grep.

    \b
    Examples:
      canaryd get                 all canaries
      canaryd get -o name         their names, one in each line
      canaryd get api -o yaml     the latest decision record
      canaryd get -A              all canaries of a cluster
    """
    names = (session.name(name),) if name else session.names()
    if form == "name":
        for n in names:
            click.echo(f"canary.canaryd.io/{session.plain(n)}")
        return Exit.OK
    bodies = [session.body(n) for n in names]
    if form in ("json", "yaml"):
        output.emit(bodies[0] if name else bodies, form)
    else:
        output.show(render.short(bodies, local(now()), wide=form == "wide", namespaces=session.several_namespaces))
    return Exit.OK
