"""Tallies as tables, for Markdown, for the terminal and for machines. Only arranges; never runs a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from canaryd.simulation.cases import EACH, LOOP, WEIGHTS
from canaryd.simulation.run import LONGEST, Share, Tally


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column is for words, the others for numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


NULL_HEAD = ("the canary is no worse than tolerated, and", "n", "rolled back", "s.e.", "95 % interval", "promised")
FOUND_HEAD = ("regression", "n", "found", "95 % interval", "median intervals", "aim", "failed canary requests")
LOOP_HEAD = ("release", "n", "promoted", "95 % interval", "rolled back", "undecided", "median intervals", "promised")


def percent(share: float) -> str:
    """`0.3 %`; enough digits for one rollout in a thousand."""
    return f"{100 * share:.1f} %"


def between(share: Share) -> str:
    low, high = share.interval()
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def nulls(tallies: Sequence[Tally]) -> tuple[Table, ...]:
    """One table for each group of cases."""
    return tuple(
        Table(group.capitalize(), NULL_HEAD, tuple(_null_row(t) for t in some))
        for group, some in groupby(tallies, key=lambda t: t.case.group)
    )


def _null_row(t: Tally) -> tuple[str, ...]:
    back, promise = t.rolled_back, t.case.promise
    promised = "nothing" if promise is None else f"at most {percent(promise)}" + (", BROKEN" if t.broken else "")
    return (t.case.says, str(back.n), percent(back.rate), percent(back.error), between(back), promised)


def found(tallies: Sequence[Tally], title: str = "Regressions") -> Table:
    """Detection on the fixed schedule."""
    return Table(title, FOUND_HEAD, tuple(_found_row(t) for t in tallies))


def _found_row(t: Tally) -> tuple[str, ...]:
    back, aim = t.rolled_back, t.case.aim
    wanted = "" if aim is None else f"{percent(aim[0])} / {_intervals(aim[1])}" + ("" if reached(t) else ", MISSED")
    return (
        t.case.says,
        str(back.n),
        percent(back.rate),
        between(back),
        _intervals(t.median_back),
        wanted,
        f"{t.median_failed:.0f}",
    )


def reached(t: Tally) -> bool:
    """The aim is met, unless chance at 99 % cannot be blamed for the difference."""
    if t.case.aim is None:
        return True
    share, median = t.case.aim
    _, high = t.rolled_back.interval(0.99)
    return high >= share and t.earliest_back <= median


def _intervals(value: float) -> str:
    return f"over {len(WEIGHTS) * EACH}" if value > len(WEIGHTS) * EACH else f"{value:g}"


def loops(tallies: Sequence[Tally], title: str) -> Table:
    """Whole rollouts."""
    return Table(title, LOOP_HEAD, tuple(_loop_row(t) for t in tallies))


def _loop_row(t: Tally) -> tuple[str, ...]:
    n, promise = t.rolled_back.n, t.case.promise
    ended, median = max((t.promoted, t.median_promoted), (t.rolled_back, t.median_back), key=lambda e: e[0].count)
    promised = "" if promise is None else f"at most {percent(promise)} promoted" + (", BROKEN" if t.broken else "")
    return (
        t.case.says,
        str(n),
        percent(t.promoted.rate),
        between(t.promoted),
        percent(t.rolled_back.rate),
        percent((n - t.promoted.count - t.rolled_back.count) / n),
        f"{median:g}" if ended.count > n / 2 and median <= LONGEST else "",
        promised,
    )


def markdown(table: Table) -> str:
    """A heading and a table."""
    lines = [f"### {table.title}", "", _line(table.head), _line(("---", *["---:"] * (len(table.head) - 1)))]
    return "\n".join([*lines, *(_line(row) for row in table.rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def as_json(t: Tally) -> dict[str, Any]:
    """One case for machines. Shares are 0..1, times in intervals."""
    share = t.promoted if t.case.how == LOOP else t.rolled_back
    low, high = share.interval()
    out: dict[str, Any] = {"scenario": t.case.name, "group": t.case.group, "description": t.case.says, "n": share.n}
    out |= {"rolledBack": t.rolled_back.count, "rate": t.rolled_back.rate, "standardError": t.rolled_back.error}
    return out | {"low": low, "high": high, "promised": t.case.promise, "broken": t.broken}
