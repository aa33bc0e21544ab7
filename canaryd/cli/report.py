"""`canaryd report`: one rollout as a page, as JSON, or as a text for a ticket; made of the records alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from canaryd import render
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, UsageError
from canaryd.cli.replay import which
from canaryd.cli.session import Session, complete_name, now, with_session

if TYPE_CHECKING:
    from canaryd.story import Story

MOST_RECORDS = 20_000
FORMS = ("html", "json", "md")


@click.command()
@global_options
@click.argument("rollout", shell_complete=complete_name)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    help="Where to write; its ending says what: .html, .json or .md. One of these words alone: standard output. "
    "Default ROLLOUT.html.",
)
@with_session
def report(session: Session, rollout: str, target: str | None) -> int:
    """Write down one rollout: what happened, why, what now.

    Every number behind it, too. ROLLOUT is one such as api-3, or a canary's name for its latest. The page is one file
    without scripts; it prints, and can be attached to a ticket. The same as Markdown (.md), or for machines (.json, its
    shape has a version).

    \b
    Examples:
      canaryd report api                       the latest, as api-3.html
      canaryd report api-3 -o /tmp/api.html
      canaryd report api -o md | pbcopy        for a ticket
      canaryd report api -n shop -o json
    """
    name, wanted = which(session, rollout)
    story = story_of(session, name, wanted)
    file = None if target in FORMS else Path(target or f"{wanted}.html")
    form = target if target in FORMS else str(file).rpartition(".")[2].lower()
    if form not in FORMS:
        raise UsageError(f"-o {target}: its ending says what is written; use .html, .json or .md")
    text = WRITERS[form](story, now())
    if file is None:
        click.echo(text, nl=False)
        return Exit.OK
    write(file, text)
    click.echo(f"{file}: {render.clean(story.what, 600)}")
    return Exit.OK


def story_of(session: Session, name: str, rollout: str) -> Story:
    """Raises NotFoundError when nothing of it is kept."""
    from canaryd.story import Story

    found = session.records(name, limit=MOST_RECORDS)
    if not any(record.body.get("rollout") == rollout for record in found):
        raise NotFoundError(f"there are no records of {rollout}; canaryd keeps them for a limited time")
    return Story.of(found, session.canary(name), rollout=rollout, now=now())


def _html(story: Story, at: datetime) -> str:
    from canaryd.report import html

    return html(story, at)


def _json(story: Story, at: datetime) -> str:
    from canaryd.report import document

    return json.dumps(document(story, at), indent=1) + "\n"


def _md(story: Story, at: datetime) -> str:
    from canaryd.report import markdown

    return markdown(story, at)


WRITERS: Mapping[str, Callable[[Story, datetime], str]] = {"html": _html, "json": _json, "md": _md}


def write(file: Path, text: str) -> None:
    """The whole text or nothing. Raises UsageError."""
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(name).chmod(0o644 & ~_umask())
            Path(name).replace(file)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{file}: it cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
