"""`canaryd explain`: the sentence, the numbers behind it, and the decisions around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from rich.text import Text

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, UsageError
from canaryd.cli.session import Session, local, name_argument, now, with_session
from canaryd.cli.traces import with_recorded
from canaryd.model import Record

EARLIER, LATER = 6, 3  # decisions shown before and after the one explained
MOST_LOOKS = 5000  # records whose counts are added up
_AGO = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@global_options
@name_argument
@click.option("--at", "when", metavar="TIME", help='The decision in force then: "14:05", "10m" (ago) or an ISO time.')
@click.option("-v", "--verbose", is_flag=True, help="The arithmetic, too, to be checked by hand.")
@output.format_option("table", "json", "yaml")
@with_session
def explain(session: Session, name: str, when: str | None, verbose: bool, form: str) -> int:
    """Say why the latest decision, or an earlier one, was made.

    Shows the sentence, each metric with its difference, interval and tolerance, how far each decision is, what comes
    next, and the decisions around it. With --verbose every number from the counts of each look to the e-value of the
    decisive metric, so that it can be checked by hand.

    \b
    Examples:
      canaryd explain api                 the latest decision
      canaryd explain api --at 14:05      the one in force at 14:05 today
      canaryd explain api --at 10m -v     ten minutes ago, with the arithmetic
    """
    name, at = session.name(name), now()
    moment = parse_time(when, local(at)) if when else None
    around = _around(session, name, moment)
    if moment is None:
        body = with_recorded(session, name, session.body(name))
    elif around and around[0].at <= moment:
        body = around[0].body
    else:
        raise NotFoundError(
            f"{session.plain(name)} has no decision at or before {when}; canaryd keeps them for a limited time."
        )
    if form != "table":
        output.emit(body, form)
        return Exit.OK
    output.show(render.explanation(body, local(at), verbose=verbose))
    if verbose:
        _show_workings(session, name, body)
    _show_history(session, name, around, moment, local(at))
    return Exit.OK


def _show_workings(session: Session, name: str, body: Mapping[str, Any]) -> None:
    """The arithmetic of the decisive metric; not wrapped, so that it can be copied."""
    from canaryd.workings import workings

    kept = session.records(name, limit=MOST_LOOKS) if session.stored(name) is not None else ()
    for line in ("", *workings(body, [record.body for record in kept])):
        click.echo(line)


def _around(session: Session, name: str, moment: datetime | None) -> Sequence[Record]:
    if session.stored(name) is None:
        return ()
    return session.records(name, limit=EARLIER + 1, before=moment)


def _show_history(session: Session, name: str, around: Sequence[Record], moment: datetime | None, at: datetime) -> None:
    """The decisions up to the moment, newest last, and a few after it."""
    later: Sequence[Record] = ()
    if moment is not None and around:
        newest_first = session.records(name, limit=1000)
        later = [record for record in newest_first if record.at > moment][-LATER:]
    if not around and not later:
        return
    lines = Text("\ndecisions around it\n", "bold")
    explained = around[0].id if around else None
    for record in [*reversed(around), *reversed(later)]:
        lines.append("» " if record.id == explained else "  ").append_text(render.decision_line(record, at)).append(
            "\n"
        )
    lines.rstrip()
    output.show(lines)


def parse_time(text: str, at: datetime) -> datetime:
    """ "14:05" (the latest one), "10m" (ago) or an ISO time; without a zone it is that of `at`. Raises UsageError."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return at - timedelta(**{_UNITS[ago.group(2)]: int(ago.group(1))})
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text.strip()):
            parts = [int(part) for part in text.strip().split(":")]
            today = at.replace(
                hour=parts[0], minute=parts[1], second=parts[2] if len(parts) > 2 else 59, microsecond=999_999
            )
            return today if today - timedelta(minutes=1) <= at else today - timedelta(days=1)
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        raise UsageError(f'"{text[:60]}" is not a time; use "14:05", "10m" (ago) or "2026-01-31T14:05:00Z"') from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=at.tzinfo)


def facts(body: Mapping[str, Any]) -> str:
    """The short form used in questions: "Progressing at 10 %, healthy"."""
    weight = body.get("weight")
    wanted = weight.get("desired") if isinstance(weight, Mapping) else None
    parts = [render.clean(body.get("phase"), 20), render.clean(body.get("verdict"), 20)]
    parts[0] += f" at {render.clean(wanted, 10)} %" if wanted is not None else ""
    return ", ".join(part for part in parts if part)
