"""`canaryd validate`: every problem of every document at once, with file, line and what would be right."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import config_option
from canaryd.cli.exits import Exit
from canaryd.cli.session import Session, with_files
from canaryd.errors import ConfigError

if TYPE_CHECKING:
    from canaryd.config import Loaded


@click.command()
@config_option
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--show", is_flag=True, help="Print the documents with every default written out.")
@output.format_option("table", "json")
@with_files
def validate(session: Session, files: tuple[str, ...], show: bool, form: str) -> int:
    """Check Canary documents and the configuration; without FILES, the configuration and all it names.

    \b
    Examples:
      canaryd validate                               the configuration and its canaries
      canaryd validate config/canaries/api.yaml      one file
      canaryd validate --show api.yaml               with every default
    """
    loaded = _check(session, files)
    if form == "json":
        output.emit(_as_json(loaded, show=show), form)
    else:
        _tell(loaded, show=show)
    return Exit.DOCUMENT if loaded.problems else Exit.OK


def _check(session: Session, files: tuple[str, ...]) -> Loaded:
    from canaryd.config import check

    if not files:
        return check([session.require_config()])
    try:
        settings = session.settings if session.config_path is not None else None
    except ConfigError:  # its problems are listed with those of the files
        return check([session.require_config(), *files])
    return check(files, settings)


def _as_json(loaded: Loaded, *, show: bool) -> dict[str, Any]:
    from canaryd.policy import dump_canary

    result: dict[str, Any] = {
        "valid": not loaded.problems,
        "problems": [asdict(problem) for problem in loaded.problems],
        "notes": [asdict(note) for note in loaded.notes],
        "canaries": [canary.name for canary in loaded.canaries],
    }
    if show:
        result["documents"] = [dump_canary(canary) for canary in loaded.canaries]
    return result


def _tell(loaded: Loaded, *, show: bool) -> None:
    if show:
        from canaryd.config import show as text

        click.echo("---\n".join(text(canary) for canary in loaded.canaries), nl=False)
    for problem in (*loaded.problems, *loaded.notes):
        click.echo(render.clean(problem, 2000), err=True)
    if loaded.problems:
        n = len(loaded.problems)
        click.echo(f"{n} error{'s' if n > 1 else ''}, nothing changed.", err=True)
    elif not show:
        n = len(loaded.canaries)
        names = f": {', '.join(canary.name for canary in loaded.canaries)}" if n else ""
        click.echo(f"{n} canar{'y' if n == 1 else 'ies'}, no errors{names}.")
