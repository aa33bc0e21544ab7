"""`canaryd traces`: what traces say about a rollout, as it was recorded or, without a record, asked now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group
from rich.text import Text

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, UsageError
from canaryd.cli.session import Session, local, name_argument, now, with_session

if TYPE_CHECKING:
    from canaryd.ports import TraceSource

LOOKED_THROUGH = 1000  # records
_ACTIVE = ("Waiting", "Progressing", "Paused", "Promoting", "RollingBack")


@click.command()
@global_options
@name_argument
@click.option("--rollout", metavar="ID", help="An earlier one, such as api-3; default the present one.")
@click.option("--live", is_flag=True, help="Ask now, whatever was recorded.")
@click.option("--jaeger", metavar="URL", help="Ask this Jaeger; default traces.jaeger.url of the configuration.")
@output.format_option("table", "json", "yaml")
@with_session
def traces(session: Session, name: str, rollout: str | None, live: bool, jaeger: str | None, form: str) -> int:
    """Show what traces say about a rollout.

    Exemplar traces of the canary (failed first, then the slowest), operations that fail only there, calls that only it
    makes or makes more often, and where on the critical path its extra time is spent. As recorded with the decision;
    where nothing was recorded, Jaeger is asked now.

    \b
    Examples:
      canaryd traces api                     of the present rollout, or the last
      canaryd traces api --rollout api-3     of an earlier one, as recorded
      canaryd traces api --live              ask Jaeger now
      canaryd traces api -o json             for scripts
    """
    name = session.name(name)
    body = session.body(name)
    wanted = rollout or body.get("rollout") or ""
    if rollout and live:
        raise UsageError("--live asks about the present rollout; it cannot go with --rollout")
    kept = None if live else recorded(session, name, wanted)
    if kept is None and rollout:
        raise NotFoundError(f"{session.plain(name)} has no record of {rollout[:80]} with traces")
    at, found = kept if kept is not None else _asked(session, name, body, jaeger)
    shown = {"canary": session.plain(name), "rollout": wanted, "at": at, "live": kept is None, "traces": found}
    if form != "table":
        output.emit(shown, form)
        return Exit.OK
    output.show(_picture(shown, local(now())))
    return Exit.OK


def recorded(session: Session, name: str, rollout: object) -> tuple[str, Mapping[str, Any]] | None:
    """When the latest record of a rollout with traces was made, and the traces; None where there is none."""
    if not rollout or session.stored(name) is None:
        return None
    for record in session.records(name, limit=LOOKED_THROUGH):
        found = record.body.get("traces")
        if isinstance(found, Mapping) and record.body.get("rollout") == rollout:
            return str(record.body.get("at") or record.at.isoformat()), found
    return None


def with_recorded(session: Session, name: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with the traces of its rollout, where any were recorded with an earlier decision against the canary."""
    against = body.get("phase") in ("RollingBack", "RolledBack") or body.get("verdict") == "regressed"
    kept = recorded(session, name, body.get("rollout")) if against and "traces" not in body else None
    return {**body, "traces": kept[1]} if kept is not None else body


def _asked(session: Session, name: str, body: Mapping[str, Any], jaeger: str | None) -> tuple[str, Mapping[str, Any]]:
    from canaryd.traces.asking import Asking
    from canaryd.traces.evidence import gather, window_of

    canary = session.canary(name)
    if canary is None:
        raise NotFoundError(f"{session.plain(name)} has no valid document: what its spans are called is not known")
    source = _source(session, jaeger)
    ended = body.get("at") if body.get("phase") not in _ACTIVE else None
    end = datetime.fromisoformat(str(ended)) if ended else now()
    return end.isoformat(), gather(source, Asking.about(canary, body), *window_of(body, end))


def _source(session: Session, jaeger: str | None) -> TraceSource:
    from canaryd.wiring import trace_source

    if jaeger is not None:
        from canaryd.adapters.jaeger import JaegerSource

        try:
            return JaegerSource(jaeger, external_url=jaeger)
        except ValueError as error:
            raise UsageError(f"--jaeger: {error}") from error
    source = trace_source(session.settings) if session.settings is not None else None
    if source is None:
        raise UsageError(
            "nothing was recorded, and no Jaeger is known here: set traces.jaeger.url, or use --jaeger URL"
        )
    return source


def _picture(shown: Mapping[str, Any], at: datetime) -> Group:
    head = Text(render.clean(shown["canary"], 130), "bold")
    head.append(f"   {render.clean(shown['rollout'], 130)}" if shown["rollout"] else "")
    when = render.clock(shown["at"], at, seconds=True)
    head.append(f"   asked now, up to {when}" if shown["live"] else f"   recorded {when}", render.QUIET)
    return Group(head, *render.traces(shown["traces"], at))
