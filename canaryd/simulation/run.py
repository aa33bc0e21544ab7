"""Runs cases many times over, on one process or two, and counts how they ended. Same seed, same numbers.

The seed of every part comes from the seed of the run, the case's name and the part's number, so the numbers depend
neither on which cases run, nor in which order, nor on how many processes.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import betaincinv

from canaryd.model import Floats
from canaryd.simulation.cases import EACH, LOOP, WEIGHTS, Case, default_spec
from canaryd.simulation.trial import Result, closed_loop, schedule

PART = 100  # rollouts at a time: their state stays in the processor's cache
LONGEST = 480  # intervals of a closed loop: 4 h
ERRORS_ALLOWED = 3.0  # standard errors by which a promise may be missed by chance


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the repetitions of a case, the unit of work of a process."""

    case: Case
    number: int
    copies: int
    seed: int


@dataclass(frozen=True, slots=True)
class Share:
    """A count among n repetitions."""

    count: int
    n: int

    @property
    def rate(self) -> float:
        return self.count / self.n

    @property
    def error(self) -> float:
        """Standard error of the rate."""
        return sqrt(self.rate * (1 - self.rate) / self.n)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Exact binomial interval (Clopper and Pearson 1934), shares 0..1."""
        tail, k, n = (1 - level) / 2, self.count, self.n
        low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
        high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
        return low, high

    def exceeds(self, promise: float) -> bool:
        """More than `promise` by more than three of the standard errors that a rate of `promise` has."""
        return self.rate > promise + ERRORS_ALLOWED * sqrt(promise * (1 - promise) / self.n)


@dataclass(frozen=True, slots=True)
class Tally:
    """How the repetitions of a case ended. Times are in canary intervals."""

    case: Case
    rolled_back: Share
    promoted: Share
    median_back: float  # of all repetitions; one more than the longest possible where more than half did not end so
    earliest_back: float  # lower end of the 99 % interval of `median_back`, by order statistics
    median_promoted: float
    median_failed: float  # canary requests that failed until the end
    furthest: tuple[int, ...]  # how many got as far as each step

    @property
    def broken(self) -> bool:
        """What was promised of the case is missed by more than chance."""
        if self.case.promise is None:
            return False
        return (self.promoted if self.case.how == LOOP else self.rolled_back).exceeds(self.case.promise)


def seed_of(seed: int, name: str, number: int) -> int:
    """A seed of its own for each part of each case."""
    words = np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)
    return int(words[0])


def parts(cases: Sequence[Case], repetitions: int, seed: int) -> list[Part]:
    """The work; every case gets the same number of repetitions."""
    out = []
    for case in cases:
        done = number = 0
        while done < repetitions:
            copies = min(PART, repetitions - done)
            out.append(Part(case, number, copies, seed_of(seed, case.name, number)))
            done, number = done + copies, number + 1
    return out


def run_part(part: Part) -> Result:
    """One part, start to end."""
    case, spec = part.case, default_spec(part.case.per_hour if part.case.how == LOOP else None)
    if case.how == LOOP:
        return closed_loop(
            spec, case.scenario, part.copies, part.seed, LONGEST, guard=case.guard, past_pods=case.past_pods
        )
    return schedule(
        spec,
        case.scenario,
        part.copies,
        part.seed,
        WEIGHTS,
        EACH,
        guard=case.guard,
        past_pods=case.past_pods,
    )


def run(
    cases: Sequence[Case],
    repetitions: int,
    seed: int,
    processes: int = 1,
    tick: Callable[[int, int], None] | None = None,
) -> Iterator[Tally]:
    """Tallies in the order of the cases, each as soon as it is complete. `tick` hears (parts done, parts in all)."""
    work = parts(cases, repetitions, seed)
    results: dict[str, dict[int, Result]] = {case.name: {} for case in cases}
    waiting = list(cases)
    for done, (part, result) in enumerate(_results(work, processes), start=1):
        results[part.case.name][part.number] = result
        if tick is not None:
            tick(done, len(work))
        while waiting and len(results[waiting[0].name]) == -(-repetitions // PART):
            case = waiting.pop(0)
            yield tally(case, [r for _, r in sorted(results.pop(case.name).items())])


def _results(work: Sequence[Part], processes: int) -> Iterator[tuple[Part, Result]]:
    if processes <= 1:
        for part in work:
            yield part, run_part(part)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            futures = {pool.submit(run_part, part): part for part in work}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def tally(case: Case, results: Sequence[Result]) -> Tally:
    """All parts of one case together."""
    back, promoted, failed, furthest = (
        np.concatenate([getattr(r, name) for r in results])
        for name in ("rolled_back", "promoted", "failed", "furthest")
    )
    n, longest = len(back), LONGEST if case.how == LOOP else len(WEIGHTS) * EACH
    steps = np.bincount(furthest.astype(int), minlength=1)
    return Tally(
        case=case,
        rolled_back=Share(int(np.isfinite(back).sum()), n),
        promoted=Share(int(np.isfinite(promoted).sum()), n),
        median_back=_median(back, longest + 1),
        earliest_back=float(np.sort(_ended(back, longest + 1))[max(int(n / 2 - 1.288 * sqrt(n)), 0)]),
        median_promoted=_median(promoted, longest + 1),
        median_failed=float(np.median(failed)),
        furthest=tuple(int(k) for k in steps),
    )


def _median(times: Floats, never: float) -> float:
    return float(np.median(_ended(times, never)))


def _ended(times: Floats, never: float) -> Floats:
    return np.where(np.isfinite(times), times, never)
