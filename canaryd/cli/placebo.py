"""`canaryd placebo`: how often stable pods in the canary's place are rolled back, on real traffic of the past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from canaryd import wording
from canaryd.cli import output, past
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.session import local

if TYPE_CHECKING:
    from canaryd.hindsight.placebo import Draw, Rate
    from canaryd.policy import Canary


@click.command()
@past.server_options
@click.option("--workload", metavar="W", help="The stable workload; default: the first pool of --canary.")
@click.option("--namespace", metavar="N", help="Its namespace; default: that of --canary, else default.")
@past.window_options
@click.option("--canary", "document", metavar="FILE", type=click.Path(), help="Judge as this document says.")
@click.option("--draws", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Pretended canaries.")
@click.option("--pods", type=click.IntRange(1, 1000), default=1, show_default=True, help="Pods in each of them.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="Same seed, same draws.")
@output.format_option("table", "json")
def placebo(
    url: str,
    scrape: str,
    bearer_token_file: str | None,
    ca_file: str | None,
    workload: str | None,
    namespace: str | None,
    start: str,
    end: str,
    document: str | None,
    draws: int,
    pods: int,
    seed: int,
    form: str,
) -> int:
    """How often would canaries be rolled back that cannot be worse?

    Calls random pods of the stable workload the canary, over random stretches of the window, and judges them as real
    ones. Every rollback is a false alarm; the chance promised is alpha. Exits with 1 when more than alpha is proven.

    \b
    Examples:
      canaryd placebo --prometheus http://127.0.0.1:9090 --workload api-v1 --start 24h --end 10m
      canaryd placebo --prometheus http://127.0.0.1:9090 --canary api.yaml --start 24h --end 10m --draws 1000 -o json
    """
    from canaryd.hindsight.placebo import PlaceboError, Rate, draw

    canary, stable = _judged_as(document, workload, namespace)
    first, last = past.window(start, end)
    source = past.server(url, scrape, bearer_token_file, ca_file).source()
    try:
        drawn = list(draw(canary, stable, source, first, last, draws=draws, pods=pods, seed=seed))
    except PlaceboError as error:
        raise UsageError(str(error)) from error
    rate = Rate.of(drawn)
    if form == "json":
        output.emit(_body(canary, stable, rate, drawn), form)
    else:
        _tell(canary, stable, rate, drawn)
    return Exit.ROLLED_BACK if rate.low > canary.spec.alpha else Exit.OK


def _judged_as(document: str | None, workload: str | None, namespace: str | None) -> tuple[Canary, str]:
    """The document (a usual one without a file) and the stable workload. Raises ConfigError, UsageError."""
    from pydantic import ValidationError

    from canaryd.hindsight.placebo import usual

    if document is None:
        if workload is None:
            raise UsageError("which workload? give --workload W or --canary FILE")
        try:
            return usual(workload, namespace or "default"), workload
        except ValidationError as error:
            raise UsageError(f'"{workload[:60]}" is no workload, or "{(namespace or "")[:60]}" no namespace') from error
    canary = past.read_canary(document)
    if namespace is not None:
        metadata = canary.metadata.model_copy(update={"namespace": namespace})
        canary = canary.model_copy(update={"metadata": metadata})
    return canary, workload or canary.spec.workloads.names[0]


def _body(canary: Canary, stable: str, rate: Rate, drawn: Sequence[Draw]) -> dict[str, Any]:
    alarms = [{**asdict(d), "begin": d.begin.isoformat()} for d in drawn if d.rolled_back]
    return {
        "workload": stable,
        "alpha": canary.spec.alpha,
        "draws": rate.draws,
        "rollbacks": rate.rollbacks,
        "rate": rate.rollbacks / rate.draws,
        "low": rate.low,
        "high": rate.high,
        "alarms": alarms,
    }


def _tell(canary: Canary, stable: str, rate: Rate, drawn: Sequence[Draw]) -> None:
    limits = f"{wording.percent(rate.low)} to {wording.percent(rate.high)}"
    click.echo(
        f"{rate.rollbacks} of {rate.draws} pretended canaries of {stable} would have been rolled back: "
        f"{wording.percent(rate.rollbacks / rate.draws)} ({limits}), promised is {wording.percent(canary.spec.alpha)}"
    )
    for one in [d for d in drawn if d.rolled_back][:10]:
        names = ", ".join(one.pods)
        click.echo(f"  {local(one.begin):%Y-%m-%d %H:%M:%S}  {names} at look {one.looks}: {one.sentence}")
    click.echo("Draws share pods and requests, so the limits are a little too narrow.")
