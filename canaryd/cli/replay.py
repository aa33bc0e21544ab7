"""`canaryd replay`: decides a stored rollout once more and says whether everything comes out as it did."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from canaryd import render
from canaryd.cli import output, past
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
@functools.partial(past.server_options, required=False)
@output.format_option("table", "json")
@with_session
def replay(session: Session, rollout: str, form: str, **server: Any) -> int:
    """Decide a stored rollout once more from Prometheus and the records, and compare.

    ROLLOUT is one such as api-3, or a canary's name for its latest. Every look is repeated with the counters that
    Prometheus still has; verdict, decision, counts and log e-value must be those that were recorded. Exits with 1 when
    one of them is not. In a cluster --prometheus says where the counters are, else spec.prometheus of the Canary.

    \b
    Examples:
      canaryd replay api
      canaryd replay api-3 -o json
      canaryd replay api -n shop --prometheus http://127.0.0.1:9090
    """
    from canaryd.hindsight.replay import ReplayError
    from canaryd.hindsight.replay import replay as again

    name, number = which(session, rollout)
    canary = _canary(session, name)
    source = _source(session, canary, server)
    try:
        found = list(again(canary, source, session.records(name, limit=MOST_RECORDS), number))
    except ReplayError as error:
        raise NotFoundError(str(error)) from error
    differing = [one for one in found if one.differences]
    if form == "json":
        output.emit({"rollout": number, "agrees": not differing, "looks": [_body(one) for one in found]}, form)
    else:
        _tell(number, found, differing)
    return Exit.ROLLED_BACK if differing else Exit.OK


def which(session: Session, given: str) -> tuple[str, str]:
    """(canary, rollout) of "api-3" or "api". Raises NotFoundError."""
    match = re.fullmatch(r"(.+)-(\d{1,9})", given)
    try:
        name = session.name(given)
    except NotFoundError:
        if match is None:
            raise
        return session.name(match[1]), session.plain(given)
    stored = session.stored(name)
    if stored is None or stored.state is None or not stored.state.rollout:
        raise NotFoundError(f"{session.plain(name)} has not been rolled out yet")
    return name, stored.state.rollout


def _canary(session: Session, name: str) -> Canary:
    """The document as it is now. Raises UsageError, NotFoundError."""
    if not session.clustered:
        session.require_config()
    found = session.canary(name)
    if found is None:
        asks = "canaryd doctor" if session.clustered else "canaryd validate"
        raise NotFoundError(f"the document of {session.plain(name)} is not there or has problems; {asks} says which")
    return found


def _source(session: Session, canary: Canary, server: Mapping[str, Any]) -> MetricSource:
    """The one that was named, else the configured one. Raises UsageError when it keeps no past."""
    from canaryd.wiring import metric_source

    url = server["url"] or (canary.spec.prometheus.url if canary.spec.prometheus else None)
    if url:
        return past.server(**{**server, "url": url}).source()
    if session.clustered:
        raise UsageError("where the counters are is not known here: --prometheus URL")
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
