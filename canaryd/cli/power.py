"""`canaryd power`: before a release, what would be found, in how long, and how long a good one takes."""

from __future__ import annotations

from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from canaryd import wording
from canaryd.cli import output
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.session import now
from canaryd.errors import CanarydError, ConfigError

if TYPE_CHECKING:
    from canaryd.policy import Canary
    from canaryd.simulation.power import Power, Traffic

HOUR = timedelta(hours=1)
LAG = timedelta(seconds=20)
DASH = "–"


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--rps", type=click.FloatRange(0.001, 1e6), help="Requests/s of the whole service, as assumed.")
@click.option(
    "--stable-pods", type=click.IntRange(1, 32), default=3, show_default=True, help="Pods that run now, as assumed."
)
@click.option("--failures", default="0.1%", show_default=True, help="Share of stable's requests that fail, as assumed.")
@click.option("--prometheus", metavar="URL", help="Measure all that instead, over the last hour.")
@click.option("--canary", "name", metavar="NAME", help="Which one, where FILE has several.")
@click.option("--plot", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw it, too.")
@output.format_option("table", "json")
def power(
    file: str,
    rps: float | None,
    stable_pods: int,
    failures: str,
    prometheus: str | None,
    name: str | None,
    plot: Path | None,
    form: str,
) -> int:
    """Say before a release what will be found, and in how long.

    For each step: how long a good release stays, which regressions eight of ten times are found by then, and
    whether this traffic can decide it before its time-out at all. Times are right to about a quarter; with one to
    four stable pods, whose past is not looked at here, they are rather too long.

    \b
    Examples:
      canaryd power api.yaml --rps 40 --stable-pods 2
      canaryd power api.yaml --prometheus http://localhost:9090 --plot api.svg
    """
    if (rps is None) == (prometheus is None):
        raise UsageError("what is the traffic? Use either --rps N or --prometheus URL")
    canary = _canary(file, name)
    if prometheus is not None:
        traffic = _measured(canary, prometheus)
    else:
        assert rps is not None
        traffic = _assumed(rps, stable_pods, failures)
    from canaryd.simulation.power import power as answer

    result = answer(canary.spec, traffic)
    if plot is not None:
        _draw(canary, traffic, result, plot)
    if form == "json":
        output.emit(_as_json(canary, traffic, result), form)
    else:
        _tell(canary, traffic, result)
    return Exit.OK if all(step.decides for step in result.steps) else Exit.UNDECIDED


def _canary(file: str, name: str | None) -> Canary:
    """The document that was meant. Raises ConfigError with its problems, UsageError when there is a choice."""
    from canaryd.config import check

    loaded = check([file])
    if loaded.problems:
        raise ConfigError(list(loaded.problems))
    found = [c for c in loaded.canaries if name in (None, c.name)]
    if len(found) != 1:
        names = ", ".join(c.name for c in loaded.canaries) or "none"
        raise UsageError(f"which canary? {file} has: {names}; use --canary NAME")
    return found[0]


def _assumed(rps: float, pods: int, failures: str) -> Traffic:
    from canaryd.policy import parse_share
    from canaryd.simulation.power import assumed

    try:
        share = parse_share(failures)
    except ValueError as e:
        raise UsageError(f"--failures: {e}") from e
    if not 0 < share <= 0.5:
        raise UsageError('--failures is out of range; use more than 0% and at most 50%, such as "0.1%"')
    return assumed(rps, pods, share)


def _measured(canary: Canary, url: str) -> Traffic:
    """Stable's last hour. Raises SourceError, UsageError for an unusable URL."""
    from canaryd.adapters.prometheus import PrometheusSource
    from canaryd.measure import grid_floor
    from canaryd.ports import CountsQuery
    from canaryd.simulation.observed import learn

    spec, (stable, other) = canary.spec, canary.spec.workloads.names
    try:
        source = PrometheusSource(url, timeout=timedelta(seconds=30), lag=LAG)
    except ValueError as e:
        raise UsageError(f"--prometheus: {e}") from e
    step = max(spec.interval, timedelta(seconds=1))
    end, n = grid_floor(now() - LAG, step), min(int(HOUR / step), 720)
    query = CountsQuery(
        canary=canary.name,
        namespace=canary.metadata.namespace,
        stable=stable,
        canary_workload=other,
        points=tuple(end - (n - i) * step for i in range(n + 1)),
        step=step,
        source=spec.source,
        durations=any(m.kind == "latency" for m in spec.metrics),
    )
    return learn(spec, source.read([query])[canary.name].readings)


def _draw(canary: Canary, traffic: Traffic, result: Power, path: Path) -> None:
    from canaryd.simulation.plot import svg

    text = svg(result, canary.spec.interval.total_seconds(), f"{canary.name}: {_facts(traffic)}")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise CanarydError(f"{path} cannot be written: {e.strerror}") from e


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────


def _facts(t: Traffic) -> str:
    pods = wording.plural(t.stable_pods, "stable pod")
    return f"{t.rps:.3g} requests/s, {pods}, {wording.percent(float(t.rates[0]))} fail ({t.source})"


def _time(intervals: float, canary: Canary) -> str:
    return wording.span(intervals * canary.spec.interval) if isfinite(intervals) else "never"


def _tell(canary: Canary, traffic: Traffic, result: Power) -> None:
    from rich.table import Table

    from canaryd.doctor.traffic import found_while

    click.echo(f"{canary.name}: {_facts(traffic)}")
    whole = (
        f"A good release takes {_time(result.good, canary)}, eight of ten at most {_time(result.good_slow, canary)}."
    )
    click.echo(whole if isfinite(result.good) else "A good release does not reach 100 % at this traffic.")
    click.echo("")
    steps = Table(box=None, pad_edge=False)
    for i, head in enumerate(("WEIGHT", "REQUESTS/LOOK", "GOOD STAYS", "8 OF 10", "FOUND MEANWHILE, 8 OF 10")):
        steps.add_column(head, justify="right" if i < 4 else "left")
    for step in result.steps:
        found = found_while(step, traffic) if step.decides else f"cannot decide in {_time(step.limit, canary)}"
        stays = (_time(step.good, canary), _time(step.good_slow, canary))
        steps.add_row(f"{step.weight} %", wording.count(step.requests), *stays, found)
    output.show(steps)
    click.echo("")
    output.show(_matrix(canary, traffic, result))
    hard = [f"{s.weight} %" for s in result.steps if not s.decides]
    if hard:
        advice = "more weight, a larger budget or margin, or a longer maxHold would help"
        click.echo(f"\nCannot decide at this traffic: {', '.join(hard)}; {advice}.")


def _matrix(canary: Canary, traffic: Traffic, result: Power) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("FOUND 8 OF 10 TIMES IN")
    for step in result.steps:
        table.add_column(f"AT {step.weight} %", justify="right")
    for effect in result.steps[0].found if result.steps else ():
        if effect.kind == "errors":
            share = min(float(traffic.rates[0]) * effect.times, 1.0)
            what = f"failures {wording.percent(share)}"
        else:
            what = f"{100 * (effect.times - 1):.0f} % slower"
        times = (_time(step.found[effect], canary) for step in result.steps)
        table.add_row(what, *(DASH if t == "never" else t for t in times))
    return table


def _as_json(canary: Canary, traffic: Traffic, result: Power) -> dict[str, Any]:
    """Times in intervals, null for never; shares 0..1."""
    return {
        "canary": canary.name,
        "interval": canary.spec.interval.total_seconds(),
        "requestsPerSecond": traffic.rps,
        "stablePods": traffic.stable_pods,
        "failures": float(traffic.rates[0]),
        "source": traffic.source,
        "good": {"median": _or_null(result.good), "eightOfTen": _or_null(result.good_slow)},
        "steps": [
            {
                "weight": step.weight,
                "requests": step.requests,
                "good": {"median": _or_null(step.good), "eightOfTen": _or_null(step.good_slow)},
                "limit": step.limit,
                "decides": step.decides,
                "found": [{"kind": e.kind, "times": e.times, "intervals": _or_null(t)} for e, t in step.found.items()],
                "smallest": {kind: step.smallest(kind, step.good) for kind in ("errors", "latency")},
            }
            for step in result.steps
        ],
    }


def _or_null(value: float) -> float | None:
    return value if isfinite(value) else None
