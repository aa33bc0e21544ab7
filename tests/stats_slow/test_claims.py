"""The claims of the tests on simulated traffic, smaller than `make simulate`; and that it could refute them."""

from __future__ import annotations

import numpy as np
import pytest

from canaryd.simulation import cases
from canaryd.simulation.cases import default_spec
from canaryd.simulation.power import Effect, assumed, power
from canaryd.simulation.run import run
from canaryd.simulation.traffic import Scenario
from canaryd.simulation.trial import closed_loop, schedule

pytestmark = pytest.mark.slow

REPETITIONS = 150
SEED = 20260301
NULLS = {case.name: case for case in cases.null_cases()}
FOUND = {case.name: case for case in (*cases.regressions(), *cases.few_pods_regressions())}
LOOPS = {case.name: case for case in (*cases.loops(), *cases.low_traffic())}


@pytest.mark.parametrize("name", cases.SMALLER)
def test_a_canary_that_is_no_worse_is_rolled_back_no_more_often_than_promised(name: str) -> None:
    (tally,) = run([NULLS[name]], REPETITIONS, SEED)
    assert not tally.broken, tally


@pytest.mark.parametrize("case", cases.unprotected(), ids=lambda case: case.name)
def test_without_its_protection_the_promise_is_broken_and_that_is_seen(case: cases.Case) -> None:
    (tally,) = run([case], REPETITIONS, SEED)
    assert tally.broken, tally


@pytest.mark.parametrize("name", ["crash-100", "errors-5-100", "tail-100", "few-errors-2-past"])
def test_regressions_are_found_as_soon_as_the_design_says(name: str) -> None:
    (tally,) = run([FOUND[name]], 60, SEED)
    assert tally.case.aim is not None
    share, median = tally.case.aim
    assert tally.rolled_back.rate >= share - 0.05
    assert tally.median_back <= median + 1


def test_good_releases_arrive_and_bad_ones_never_do() -> None:
    good, bad, low = run([LOOPS["good-100"], LOOPS["bad-100"], LOOPS["low-good-3"]], 40, SEED)
    assert good.promoted.rate == 1
    assert good.median_promoted <= 31
    assert bad.rolled_back.rate == 1
    assert low.promoted.rate == 1
    assert low.median_promoted <= 105


@pytest.mark.parametrize(
    ("rps", "step", "effect"),
    [(100.0, 0, Effect("errors", 5.0)), (10.0, 2, Effect("errors", 10.0)), (100.0, 1, Effect("latency", 1.2))],
)
def test_power_is_right_about_the_time_to_a_rollback(rps: float, step: int, effect: Effect) -> None:
    """To a quarter or three intervals, the 80 % quantile of 100 simulated rollouts."""
    spec = default_spec()
    told = power(spec, assumed(rps, 10, 0.001)).steps[step].found[effect]
    worse = {"canary_failures": 0.001 * effect.times} if effect.kind == "errors" else {"canary_slowdown": effect.times}
    scenario = Scenario(rps=rps, **worse)  # type: ignore[arg-type]
    result = schedule(spec, scenario, 100, SEED, [spec.steps[step].weight / 100], each=int(2.5 * told))
    times = np.where(np.isfinite(result.rolled_back), result.rolled_back, np.inf)
    seen = float(np.quantile(times, 0.8, method="higher"))
    assert abs(told - seen) <= max(3, 0.25 * seen), (told, seen)


@pytest.mark.parametrize("rps", [10.0, 100.0, 1000.0])
def test_power_is_right_about_the_time_of_a_good_release(rps: float) -> None:
    told = power(default_spec(), assumed(rps, 10, 0.001))
    result = closed_loop(default_spec(), Scenario(rps=rps), 60, SEED)
    median, slow = np.quantile(result.promoted, [0.5, 0.8])
    assert abs(told.good - median) <= max(3, 0.25 * median), (told.good, median)
    assert abs(told.good_slow - slow) <= max(3, 0.25 * slow), (told.good_slow, slow)
