"""What one interval costs: the tests of many canaries brought up to date and judged, in milliseconds.

    python benchmarks/update.py [--most 10000]

Synthetic counts, no input or output: `update` is canaryd.stats.evidence.update for one stretch of each canary,
`judge` the verdicts and sentences of all of them. A row is one test: failed requests, or slower than one edge. The
ratio to the smallest run of the same rows says how the cost grows; 1.0 is linear. Exits with 1 when 1000 canaries
with 20 rows cost more than a second together, that is more than a tenth of a core at an interval of 10 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np

from canaryd.adapters.memory import EDGES_MS
from canaryd.judge import Subject, judge
from canaryd.model import ArmCounts, Floats, Stretch
from canaryd.policy import Spec, parse_canary
from canaryd.stats import evidence
from canaryd.stats.evidence import Arrays, Item, Rules

LIMIT_S = 1.0
WEIGHT = 10  # percent
START = datetime(2026, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(seconds=30)


def spec() -> Spec:
    """Defaults throughout: five steps, errors and latency."""
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "bench"},
        "spec": {"workloads": {"pools": ["a", "b"]}, "route": {"envoyFile": {"path": "bench.yaml"}}},
    }
    return parse_canary(document).spec


def arm(random: np.random.Generator, n: int, edges: Floats) -> ArmCounts:
    """`n` requests, 0.1 % failed, durations around 40 ms."""
    slower = np.array([(1 - _below(edge)) * n for edge in edges])
    failures = float(random.binomial(n, 0.001))
    return ArmCounts(True, float(n), failures, timed=float(n), slower=np.floor(slower))


def _below(edge: float) -> float:
    """Logistic in ln(duration), 40 ms in the middle: close enough to a log-normal service."""
    return float(1 / (1 + np.exp(-3 * np.log(edge / 40.0))))


def fleet(count: int, rows: int) -> tuple[list[Item], list[Subject]]:
    """Canaries that are two intervals old: rates learnt, one interval scored."""
    random, policy = np.random.default_rng(1), spec()
    edges, rules = np.array(EDGES_MS[: rows - 1]), Rules.of(policy)
    arrays: Arrays = evidence.empty(edges, len(policy.steps))
    for k, scored in enumerate((False, True)):
        (arrays,) = evidence.update([item(random, arrays, edges, rules, k, scored=scored)])
    items = [item(random, arrays, edges, rules, 2, scored=True) for _ in range(count)]
    return items, [Subject(policy, i.arrays, edges, 1, WEIGHT) for i in items]


def item(random: np.random.Generator, arrays: Arrays, edges: Floats, rules: Rules, k: int, *, scored: bool) -> Item:
    """One canary's next interval at 100 requests/s."""
    n = int(random.poisson(3000))
    n_c = int(random.binomial(n, WEIGHT / 100))
    start = START + k * INTERVAL
    stretch = Stretch(start, start + INTERVAL, arm(random, n - n_c, edges), arm(random, n_c, edges), edges)
    return Item(arrays, edges, rules, stretch, WEIGHT / 100, scored)


def best(work: Callable[[], object], runs: int) -> float:
    """Seconds of the best run: what the work costs without what else the machine did."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def measure(count: int, rows: int, runs: int) -> tuple[float, float]:
    items, subjects = fleet(count, rows)
    return best(lambda: evidence.update(items), runs), best(lambda: judge(subjects), runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000, help="largest number of canaries")
    most = parser.parse_args().most
    print(f"{'canaries':>8} {'rows':>5} {'update':>11} {'judge':>11} {'each':>9} {'growth':>7}")
    total = 0.0
    for rows in (12, 20):
        first = 0.0
        for count in (100, 1000, 10_000):
            if count > most:
                continue
            update, judged = measure(count, rows, 5 if count <= 1000 else 2)
            each = (update + judged) / count
            first = first or each
            growth = each / first
            print(
                f"{count:>8} {rows:>5} {update * 1e3:>8.0f} ms {judged * 1e3:>8.0f} ms {each * 1e3:>6.2f} ms "
                f"{growth:>6.2f}x"
            )
            if (count, rows) == (1000, 20):
                total = update + judged
    print(f"1000 canaries with 20 rows: {total:.2f} s for one interval; limit {LIMIT_S:g} s")
    return 0 if total <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
