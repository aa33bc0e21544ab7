"""`canaryd analyze`: a past window of a real Prometheus, judged as if live."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from canaryd.cli import output, past
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.session import now

if TYPE_CHECKING:
    from canaryd.hindsight.analysis import Interval, Summary
    from canaryd.hindsight.past import Weights
    from canaryd.policy import Canary

EXITS = {"healthy": Exit.OK, "regressed": Exit.ROLLED_BACK, "inconclusive": Exit.UNDECIDED, "blind": Exit.BLIND}


@click.command()
@click.argument("document", metavar="CANARY.yaml", type=click.Path())
@past.server_options
@past.window_options
@click.option("--schedule", metavar="FILE.csv", type=click.Path(), help="The weight over time: rows of time,weight.")
@click.option("--weight", type=click.IntRange(1, 100), metavar="N", help="The weight, where it was constant.")
@click.option("--interval", metavar="TIME", help="One look every so often; default: the document's.")
@click.option("--stop-at-decision", is_flag=True, help="End at the first rollback or promotion.")
@output.format_option("jsonl", "json", "table")
def analyze(
    document: str,
    url: str,
    scrape: str,
    bearer_token_file: str | None,
    ca_file: str | None,
    start: str,
    end: str,
    schedule: str | None,
    weight: int | None,
    interval: str | None,
    stop_at_decision: bool,
    form: str,
) -> int:
    """Judge a past window as the daemon would have done, at each interval with what was readable then.

    The weight over time comes from --schedule, else from the metric canaryd_weight{kind="configured"}, else it is
    --weight throughout. What canaryd would have decided is said at every interval; the weights stay what they were.
    Exits with 0 healthy, 1 regressed (it once called for a rollback), 2 inconclusive, 3 blind.

    \b
    Examples:
      canaryd analyze api.yaml --prometheus http://127.0.0.1:9090 --start 2h --end 1h --schedule weights.csv
      canaryd analyze api.yaml --prometheus http://127.0.0.1:9090 --start 14:00 --end 15:00 --weight 10 -o table
    """
    if schedule is not None and weight is not None:
        raise UsageError("--schedule and --weight exclude each other")
    canary = past.read_canary(document, interval)
    server = past.server(url, scrape, bearer_token_file, ca_file)
    first, last = past.window(start, end)
    weights = _weights(server, canary, first, last, schedule, weight)
    found = _looks(canary, server, weights, first, last, stop=stop_at_decision)
    summary = _WRITERS[form](found)
    return EXITS[summary.verdict]


def _weights(
    server: past.Server, canary: Canary, first: datetime, last: datetime, schedule: str | None, weight: int | None
) -> Weights:
    from canaryd.hindsight.past import Weights

    if schedule is not None:
        return past.read_schedule(schedule)
    if weight is None:
        return server.weights(canary, first, last)
    try:
        return server.weights(canary, first, last)
    except UsageError:  # nothing is told of a weight: it was what was said
        return Weights.of([(first - timedelta(hours=1), weight)])


def _looks(
    canary: Canary, server: past.Server, weights: Weights, first: datetime, last: datetime, *, stop: bool
) -> Iterator[Interval]:
    """Raises UsageError when there is nothing to look at, before anything is written."""
    from canaryd.hindsight import analysis
    from canaryd.measure import grid_floor

    source, interval = server.source(), canary.spec.interval
    last = min(last, grid_floor(now() - source.lag, interval))  # what is younger is not readable yet
    if (last - first) / interval > analysis.MOST_INTERVALS:
        raise UsageError(f"more than {analysis.MOST_INTERVALS} intervals; use a shorter window or a longer --interval")
    if analysis.first_interval(weights, first, last, interval) is None:
        raise UsageError("the canary has no weight above 0 during any whole interval of this window")
    return _until(analysis.analyze(canary, source, weights, first, last), stop=stop)


def _until(found: Iterator[Interval], *, stop: bool) -> Iterator[Interval]:
    for one in found:
        yield one
        if stop and one.decision in ("rollback", "promote"):
            return


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────


def interval_body(one: Interval) -> dict[str, Any]:
    """One line; no number in it is NaN or infinite."""
    from canaryd.records import finding

    judged = one.judgement
    body = {
        "type": "interval",
        "index": one.index,
        "time": one.time.isoformat(),
        "weight": one.weight,
        "verdict": str(judged.verdict),
        "decision": one.decision,
        "reason": one.reason,
        "sentence": one.sentence,
        "logE": judged.log_e,
        "towardRollback": judged.toward_rollback,
        "towardStep": judged.toward_step,
        "findings": [finding(f) for f in judged.findings],
    }
    cleaned: dict[str, Any] = _finite(body)
    return cleaned


def summary_body(summary: Summary) -> dict[str, Any]:
    """The last line."""
    return {
        "type": "summary",
        "verdict": str(summary.verdict),
        "decision": summary.decision,
        "first_rollback_index": summary.first_rollback,
        "intervals": summary.intervals,
        "sentence": summary.sentence,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _lines(found: Iterator[Interval]) -> Summary:
    from canaryd.hindsight.analysis import Summary

    summary = Summary()
    for one in found:
        summary.add(one)
        click.echo(json.dumps(interval_body(one), ensure_ascii=False, allow_nan=False))
        sys.stdout.flush()  # whoever reads along sees every look when it is made
    click.echo(json.dumps(summary_body(summary), ensure_ascii=False, allow_nan=False))
    return summary


def _document(found: Iterator[Interval]) -> Summary:
    from canaryd.hindsight.analysis import Summary

    summary, bodies = Summary(), []
    for one in found:
        summary.add(one)
        bodies.append(interval_body(one))
    output.emit({"intervals": bodies, "summary": summary_body(summary)}, "json")
    return summary


def _table(found: Iterator[Interval]) -> Summary:
    """Every look at which something changed, then the summary."""
    from rich.table import Table
    from rich.text import Text

    from canaryd import render
    from canaryd.cli.session import local
    from canaryd.hindsight.analysis import Summary

    summary, before = Summary(), ("", "", -1)
    table = Table(box=None, pad_edge=False)
    for head in ("LOOK", "TIME", "WEIGHT", "VERDICT", "DECISION"):
        table.add_column(head, no_wrap=True, justify="right" if head in ("LOOK", "WEIGHT") else "left")
    table.add_column("WHY", overflow="fold")
    for one in found:
        summary.add(one)
        what = (str(one.judgement.verdict), one.decision, one.weight)
        if what != before:
            cells = (f"{local(one.time):%H:%M:%S}", f"{one.weight} %", what[0], one.decision)
            table.add_row(str(one.index), *cells, Text(render.clean(one.sentence, 400)))
        before = what
    output.show(table)
    click.echo(f"\n{summary.intervals} looks, {summary.verdict}: {summary.sentence}")
    return summary


_WRITERS = {"jsonl": _lines, "json": _document, "table": _table}
