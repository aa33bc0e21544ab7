"""`canaryd null-simulation`: how often a canary that is no worse than stable is rolled back, by this very code."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from canaryd.cli import output
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.session import is_terminal

if TYPE_CHECKING:
    from canaryd.simulation.cases import Case
    from canaryd.simulation.run import Tally

SMALLER_REPETITIONS = 150


@click.command(name="null-simulation")
@click.option("--reps", type=click.IntRange(1, 1_000_000), help="Rollouts of each scenario; default 1000.")
@click.option("--scenario", "names", multiple=True, metavar="S", help="Only this one; may be given more than once.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="Same seed, same numbers."
)
@click.option("--smaller", is_flag=True, help="Four scenarios, 150 rollouts each: under a minute.")
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="Work on so many at once.")
@click.option("--list", "listing", is_flag=True, help="Name the scenarios and what they are.")
@output.format_option("table", "json")
def null_simulation(
    reps: int | None, names: tuple[str, ...], seed: int, smaller: bool, processes: int, listing: bool, form: str
) -> int:
    """Check by simulation how often good canaries are rolled back.

    Simulates rollouts, 80 looks each, under every kind of noise, and judges them by the code that judges real
    ones. The promise is at most 1 %. Exits with 1 when a scenario breaks its promise by more than three standard
    errors. The whole takes about 20 minutes on one core.

    \b
    Examples:
      canaryd null-simulation --smaller
      canaryd null-simulation --scenario outages --scenario skew-0.5 --reps 2000
    """
    chosen = _chosen(names, smaller=smaller)
    if listing:
        for case in chosen:
            click.echo(f"{case.name:20} {case.says}")
        return Exit.OK
    from canaryd.simulation.run import run

    repetitions = reps or (SMALLER_REPETITIONS if smaller else 1000)
    tallies = list(run(chosen, repetitions, seed, min(processes, len(chosen)), _Progress()))
    _tell(tallies, seed, form)
    return Exit.ROLLED_BACK if any(t.broken for t in tallies) else Exit.OK


def _chosen(names: tuple[str, ...], *, smaller: bool) -> list[Case]:
    """The cases that were asked for. Raises UsageError that lists what there is."""
    from canaryd.simulation.cases import SMALLER, null_cases

    known = {case.name: case for case in null_cases()}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f'no scenario "{unknown[0][:60]}"; there is: {", ".join(known)}')
    return [known[name] for name in (names or (SMALLER if smaller else known))]


class _Progress:
    """One line on stderr that is written over, for people at a terminal alone."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.shown = is_terminal() and sys.stderr.isatty()

    def __call__(self, done: int, whole: int) -> None:
        if not self.shown:
            return
        left = (monotonic() - self.began) * (whole - done) / done
        text = f"{done} of {whole} parts, about {left / 60:.0f} min left" if left > 90 else f"{done} of {whole} parts"
        click.echo(f"\r{text:<60}" + ("\r" + " " * 60 + "\r" if done == whole else ""), nl=False, err=True)


def _tell(tallies: list[Tally], seed: int, form: str) -> None:
    from canaryd import __version__
    from canaryd.simulation import tables

    if form == "json":
        body: dict[str, Any] = {"version": __version__, "seed": seed, "looks": 80, "alpha": 0.01}
        output.emit(body | {"scenarios": [tables.as_json(t) for t in tallies]}, form)
        return
    from rich.table import Table

    for table in tables.nulls(tallies):
        shown = Table(title=table.title, title_justify="left", box=None, pad_edge=False)
        for i, name in enumerate(table.head):
            shown.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        output.show(shown)
    broken = [t.case.name for t in tallies if t.broken]
    click.echo(f"Broken: {', '.join(broken)}" if broken else "Every promise holds, up to chance.")
