"""`make simulate`: runs every published simulation and writes docs/statistics-tables.md, which is never typed by hand.

Exit status 1 when a promise is broken by more than chance; the tables are written all the same and say which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from canaryd import __version__
from canaryd.simulation import cases, tables
from canaryd.simulation.cases import Case
from canaryd.simulation.run import Tally, run

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "statistics-tables.md"

HEAD = """# What the tests do, measured

Written by `make simulate` (canaryd {version}, seed {seed}); never edited by hand. The command
`canaryd null-simulation` gives the first part for the code that is installed, on any machine.

Simulated is the whole way from counts to verdict with the code that judges real rollouts: 30 s intervals, 20 of stable
alone before the canary, 10 stable pods and up to 10 canary pods unless said otherwise, each served by requests whose
volume has a daily wave of 30 % and AR(1) noise of 10 %; 0.1 % of requests fail; latency p50 44 ms, p90 103 ms,
p99 321 ms in Istio's default buckets; the default policy: alpha 1 %, beta 5 %, 120 s of warm-up; an interval is judged
when stable's next one is known. The magnitudes of the noises are assumptions, not measurements of anybody's mesh.
Intervals are exact binomial ones at 95 %.
"""
NULLS = """## Good canaries that are rolled back

Fixed steps of 5, 10, 25 and 50 %, 20 intervals each, looked at after each of the 80: the share of rollouts that would
ever have been rolled back although the canary was no worse than tolerated. BROKEN: over the promise by more than three
standard errors.
"""
FOUND = """## Regressions that are found

The same schedule with a canary that is worse from its first interval. The aim is what the design's study found
(share found / median intervals), plus the one interval that the guard against scrapes out of phase costs; MISSED: not
reached, and chance is not to blame (99 %). The last column is the price: canary requests that failed until the
rollback, median.
"""
LOOPS = """## Whole rollouts

The tests choose when to go on: 5, 10, 25, 50, then 100 %, at least four intervals at each, at most 480 in all (4 h).
The median is that of the more frequent end.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status for make."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=1000, help="rollouts of each case of the first part")
    parser.add_argument("--reps-found", type=int, default=200, help="and of each of the others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)

    def measured(some: Sequence[Case], reps: int) -> list[Tally]:
        began, out = monotonic(), []
        for tally in run(some, reps, given.seed, given.processes):
            out.append(tally)
            back, promoted = (f"{100 * s.rate:.1f} %" for s in (tally.rolled_back, tally.promoted))
            note = " BROKEN" if tally.broken else "" if tables.reached(tally) else " MISSED"
            words = f"{monotonic() - began:5.0f} s  {tally.case.name}: {back} back, {promoted} promoted"
            print(f"{words}, median {tally.median_back:g}/{tally.median_promoted:g}{note}", flush=True)
        return out

    nulls = measured(cases.null_cases(), given.reps)
    found = measured(cases.regressions(), given.reps_found)
    few = measured(cases.few_pods_regressions(), given.reps_found)
    loops = measured(cases.loops(), given.reps_found)
    low = measured(cases.low_traffic(), given.reps_found)
    few_loops = measured(cases.few_pods_loops(), given.reps_found)
    parts = [
        HEAD.format(version=__version__, seed=given.seed),
        NULLS,
        *(tables.markdown(table) for table in tables.nulls(nulls)),
        FOUND,
        tables.markdown(tables.found(found, "Ten stable pods, alike")),
        tables.markdown(tables.found(few, "Few stable pods that differ by 0.1 / 0.03, 300 rps")),
        LOOPS,
        tables.markdown(tables.loops(loops, "A budget of 0.1 % of all requests")),
        tables.markdown(tables.loops(low, "The default budget: the larger of that and 100 failed requests an hour")),
        tables.markdown(tables.loops(few_loops, "Few pods that differ by 0.1 / 0.03, a budget of 0.1 %")),
    ]
    given.output.write_text("\n".join(parts), encoding="utf-8")
    return 1 if any(t.broken for t in (*nulls, *found, *few, *loops, *low, *few_loops)) else 0


if __name__ == "__main__":
    sys.exit(main())
