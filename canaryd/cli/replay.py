"""`canaryd replay`: decides a stored rollout once more and says whether everything comes out as it did."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, UsageError
from canaryd.cli.session import Session, complete_name, local, with_session

if TYPE_CHECKING:
    from canaryd.hindsight.replay import Compared
    from canaryd.policy import Canary
    from canaryd.ports import MetricSource

MOST_RECORDS = 100_000
SHOWN = 20  # differences


@click.command()
@global_options
@click.argument("rollout", shell_complete=complete_name)
@output.format_option("table", "json")
@with_session
def replay(session: Session, rollout: str, form: str) -> int:
    """Decide a stored rollout once more from Prometheus and the records, and compare.

    ROLLOUT is one such as api-3, or a canary's name for its latest. Every look is repeated with the counters that
    Prometheus still has; verdict, decision, counts and log e-value must be those that were recorded. Exits with 1 when
    one of them is not.

    \b
    Examples:
      canaryd replay api
      canaryd replay api-3 -o json
    """
    from canaryd.hindsight.replay import ReplayError
    from canaryd.hindsight.replay import replay as again

    name, number = _which(session, rollout)
    canary, source = _canary(session, name), _source(session)
    try:
        found = list(again(canary, source, session.store.records(name, limit=MOST_RECORDS), number))
    except ReplayError as error:
        raise NotFoundError(str(error)) from error
    differing = [one for one in found if one.differences]
    if form == "json":
        output.emit({"rollout": number, "agrees": not differing, "looks": [_body(one) for one in found]}, form)
    else:
        _tell(number, found, differing)
    return Exit.ROLLED_BACK if differing else Exit.OK


def _which(session: Session, given: str) -> tuple[str, str]:
    """(canary, rollout) of "api-3" or "api". Raises NotFoundError."""
    names = session.names()
    match = re.fullmatch(r"(.+)-(\d{1,9})", given)
    if given not in names and match and match[1] in names:
        return match[1], given
    name = session.name(given)
    stored = session.stored(name)
    if stored is None or stored.state is None or not stored.state.rollout:
        raise NotFoundError(f"{name} has not been rolled out yet")
    return name, stored.state.rollout


def _canary(session: Session, name: str) -> Canary:
    """The document as it is now. Raises UsageError, NotFoundError."""
    session.require_config()
    found = [c for c in session.documents.canaries if c.name == name] if session.documents else []
    if not found:
        raise NotFoundError(f"the document of {name} is not there or has problems; canaryd validate says which")
    return found[0]


def _source(session: Session) -> MetricSource:
    """The configured source. Raises UsageError when it keeps no past."""
    from canaryd.wiring import metric_source

    assert session.settings is not None
    source = metric_source(session.settings)
    if not source.remembers:
        raise UsageError(
            f"the source {session.settings.metrics.source} does not remember the past; a replay needs prometheus"
        )
    return source


def _body(one: Compared) -> dict[str, Any]:
    return {**asdict(one), "at": one.at.isoformat(), "agrees": not one.differences}


def _tell(rollout: str, found: list[Compared], differing: list[Compared]) -> None:
    if not differing:
        first, last = (local(found[i].at) for i in (0, -1))
        span = f"{first:%Y-%m-%d %H:%M:%S} to {last:%H:%M:%S}"
        click.echo(f"{rollout}: all {len(found)} looks from {span} come out as they were recorded")
        return
    click.echo(f"{rollout}: {len(differing)} of {len(found)} looks come out otherwise; the first:")
    for one in differing[:1]:
        click.echo(f"  {local(one.at):%Y-%m-%d %H:%M:%S}  {one.record} ({one.kind} at {one.weight} %)")
        for text in one.differences[:SHOWN]:
            click.echo(f"    {render.clean(text, 200)}")
