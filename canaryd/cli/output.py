"""How results leave: JSON, YAML or names for machines, rich text for people. Never decides what to show."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, RenderableType

from canaryd import render
from canaryd.cli.session import is_terminal

PIPE_WIDTH = 200  # columns where no terminal says how wide it is: each canary stays on one line


def format_option(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`-o`; the first format is the default."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="Output format.",
    )


def width() -> int:
    """Columns to write in."""
    if is_terminal() or os.environ.get("COLUMNS", "").isdecimal():
        return max(shutil.get_terminal_size().columns, 40)
    return PIPE_WIDTH


def console() -> Console:
    """The person's terminal. NO_COLOR is obeyed; without a terminal there is no colour and no control character."""
    plain = not is_terminal() or bool(os.environ.get("NO_COLOR"))
    return Console(
        width=width(),
        no_color=plain,
        color_system=None if plain else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(what: RenderableType) -> None:
    """Write for a person, without the spaces that pad lines."""
    screen = console()
    if is_terminal():
        screen.print(what)
        return
    with screen.capture() as caught:
        screen.print(what)
    # not click.echo, which writes UTF-8 where the stream said ASCII
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in caught.get().splitlines()))


def emit(value: Any, form: str) -> None:
    """Write for a machine: `value` as JSON or YAML, exactly as it is kept."""
    click.echo(render.as_json(value) if form == "json" else _yaml(value), nl=form == "json")


def _yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = not render.is_deceptive(str(value))
    yaml.width = 4096
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
