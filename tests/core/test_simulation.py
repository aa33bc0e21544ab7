"""The simulations that check the tests: same seed, same numbers; the traffic is what it is said to be; plain tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest

from canaryd.adapters.memory import MemoryMetrics
from canaryd.cli.app import run as canaryd
from canaryd.cli.exits import Exit
from canaryd.errors import SourceError
from canaryd.ports import CountsQuery
from canaryd.simulation import cases, tables
from canaryd.simulation.cases import Case, default_spec
from canaryd.simulation.observed import learn
from canaryd.simulation.plot import svg
from canaryd.simulation.power import Effect, Power, StepPower, Traffic, assumed, power
from canaryd.simulation.run import Share, Tally, parts, run, seed_of, tally
from canaryd.simulation.traffic import Interval, Scenario, Service
from canaryd.simulation.trial import Result, past

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    case.name: case
    for group in (
        cases.null_cases,
        cases.regressions,
        cases.few_pods_regressions,
        cases.loops,
        cases.few_pods_loops,
        cases.low_traffic,
    )
    for case in group()
}
NULLS = {case.name: case for case in cases.null_cases()}
FAST = replace(NULLS["plain-10"], scenario=replace(NULLS["plain-10"].scenario, stable_pods=2, canary_pods=2))


def served(
    scenario: Scenario, copies: int = 50, seed: int = 1, intervals: int = 20, weight: float = 0.0
) -> list[Interval]:
    service = Service(scenario, copies, seed)
    return [service.step(weight) for _ in range(intervals)]


# ── the traffic ──────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_failures_and_durations_are_as_many_as_they_should_be() -> None:
    told = Scenario(rps=200.0, failures=0.02, daily=0.0)
    seen = served(told, weight=0.25)
    n_s, n_c = (np.array([getattr(o, k).sum(1) for o in seen]) for k in ("n_s", "n_c"))
    assert n_s.mean() == pytest.approx(200 * 30 * 0.75, rel=0.03)
    assert n_c.mean() == pytest.approx(200 * 30 * 0.25, rel=0.03)
    assert sum(o.x_s.sum() for o in seen) / n_s.sum() == pytest.approx(0.02, rel=0.02)
    for o in seen:
        assert np.array_equal(o.h_s.sum(-1), o.n_s)
        assert np.array_equal(o.h_c.sum(-1), o.n_c)
        assert (o.n_c > 0).sum(1).max() <= 3  # ceil(0.25 * 10) pods


def test_the_quantiles_are_those_that_the_tables_tell() -> None:
    plain = Scenario()
    assert cases.share_below(plain, 43.6) == pytest.approx(0.5, abs=0.005)
    assert cases.share_below(plain, 103) == pytest.approx(0.9, abs=0.003)
    assert cases.share_below(plain, 321) == pytest.approx(0.99, abs=0.0005)
    slower = cases.slower_tail()
    assert cases.share_below(plain, 321 * 1.2, slower) == pytest.approx(cases.share_below(plain, 321), abs=2e-4)


def test_failures_in_clusters_of_five_have_nine_times_the_variance() -> None:
    told = Scenario(rps=1000.0, failures=0.01, cluster=5.0, daily=0.0, volume_sd=0.0, stable_pods=1)
    x = np.array([o.x_s[:, 0] for o in served(told, copies=2000, intervals=3)])
    assert x.mean() == pytest.approx(300, rel=0.02)
    assert x.var() / x.mean() == pytest.approx(9, rel=0.1)


def test_a_pod_that_differs_does_so_for_as_long_as_it_lives() -> None:
    o = served(Scenario(rps=1e5, failures=0.01, pods_failures=0.3), copies=100, intervals=2)
    first, second = (np.log((i.x_s + 0.5) / i.n_s) for i in o)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.95
    assert first.std() == pytest.approx(0.3, rel=0.1)


def test_an_outage_hits_both_arms_and_skew_lets_the_canarys_counters_see_it_first() -> None:
    told = Scenario(rps=1000.0, outages=0.2, outage_length=3.0)
    for skew in (0.0, 0.5):
        seen = served(replace(told, skew=skew), copies=200, intervals=30, weight=0.5)
        stable, canary = (
            np.array([getattr(o, x).sum(1) / getattr(o, n).sum(1) for o in seen]) > 0.05
            for x, n in (("x_s", "n_s"), ("x_c", "n_c"))
        )
        assert 0.2 < stable.mean() < 0.8
        assert np.array_equal(stable, canary) == (skew == 0)
        assert not (stable & ~canary)[:-1].any()


def test_cold_pods_warm_up_and_a_crash_is_a_crash() -> None:
    cold = served(Scenario(rps=1e4, cold_failures=0.1, cold_slowdown=1.0), weight=0.1, intervals=8)
    shares = [o.x_c.sum() / o.n_c.sum() for o in cold]
    assert shares[0] == pytest.approx(0.1, rel=0.1)
    assert shares[-1] < 0.002
    assert shares == sorted(shares, reverse=True) or shares[-1] < shares[1] < shares[0]
    (crashed,) = served(Scenario(crash=True), weight=0.1, intervals=1)
    assert crashed.x_c.sum() / crashed.n_c.sum() == pytest.approx(0.98, abs=0.01)


# ── cases and runs ───────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_fourteen_noises_and_every_case_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert len(cases.noises()) == 14
    groups = (cases.null_cases(), cases.regressions(), cases.few_pods_regressions(), cases.loops())
    some = [case for group in (*groups, cases.few_pods_loops(), cases.low_traffic()) for case in group]
    for group in (*groups, cases.few_pods_loops(), cases.low_traffic()):
        assert len({case.name for case in group}) == len(group)
    for case in some:
        assert len(case.says) > 15
        assert case.scenario.name == case.name
    for case in cases.noises():
        plain = Scenario(name=case.name)
        assert case.scenario.canary_failures is None
        assert case.scenario.canary_slowdown == case.scenario.canary_tail_slowdown == 1.0
        assert case.scenario != plain or case.name == "plain-100"
    assert set(cases.SMALLER) <= set(NULLS)


def test_the_same_seed_gives_the_same_numbers_whatever_else_runs_and_on_two_processes() -> None:
    crash = replace(KNOWN["crash-10"], scenario=replace(KNOWN["crash-10"].scenario, stable_pods=2, canary_pods=2))
    alone = list(run([crash], 20, seed=3))
    together = list(run([FAST, crash], 20, seed=3, processes=2))
    assert together[1] == alone[0]
    assert list(run([crash], 20, seed=4)) != alone
    assert alone[0].rolled_back == Share(20, 20)
    assert alone[0].median_back == 2  # the guard waits for the next interval, and no longer


def test_every_part_of_every_case_has_a_seed_of_its_own() -> None:
    work = parts(list(NULLS.values()), 250, 1)
    assert len({p.seed for p in work}) == len(work) == 3 * len(NULLS)
    assert sum(p.copies for p in work) == 250 * len(NULLS)
    assert seed_of(1, "a", 0) != seed_of(2, "a", 0) != seed_of(1, "b", 0)


def test_progress_is_told_part_by_part() -> None:
    told: list[tuple[int, int]] = []
    list(run([FAST], 101, 1, tick=lambda done, whole: told.append((done, whole))))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(("count", "n"), [(0, 1000), (1, 3), (13, 1000), (1000, 1000)])
def test_the_interval_of_a_share_is_the_exact_binomial_one(count: int, n: int) -> None:
    exact = binomtest(count, n).proportion_ci(0.95, method="exact")
    assert Share(count, n).interval() == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_a_promise_is_broken_when_chance_cannot_be_blamed() -> None:
    for count, broken in ((10, False), (19, False), (20, True)):  # of 1000 at 1 %: three standard errors are 9.4
        assert Share(count, 1000).exceeds(0.01) == broken
    never = np.full(100, np.nan)
    for case, hit, broken in (
        (NULLS["plain-1"], "rolled_back", True),
        (NULLS["few-mild-1-new"], "rolled_back", False),  # nothing is promised
        (KNOWN["edge-100"], "promoted", True),
        (KNOWN["edge-100"], "rolled_back", False),
    ):
        ended = {"rolled_back": never, "promoted": never, hit: np.full(100, 7.0)}
        t = tally(case, [Result(failed=np.zeros(100), furthest=np.zeros(100), **ended)])
        assert t.broken == broken
        assert getattr(t, "median_back" if hit == "rolled_back" else "median_promoted") == 7


def test_pods_of_the_past_are_learnt_to_differ_as_they_do() -> None:
    told = Scenario(rps=300.0, stable_pods=2, pods_failures=0.3, pods_latency=0.1)
    tau2, freedom = past(told, 10, 20, seed=1)
    assert np.sqrt(tau2[:, 0].mean()) == pytest.approx(0.3, rel=0.3)
    assert freedom.max() <= 10
    assert freedom[:, 0].min() > 5


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────


def a_tally(case: Case, back: int = 0, promoted: int = 0, n: int = 200, median: float = 5.0) -> Tally:
    return Tally(case, Share(back, n), Share(promoted, n), median, median, median, 3.0, (n,))


def test_a_table_names_what_is_broken_and_what_is_missed_and_nothing_else() -> None:
    good, bad = a_tally(NULLS["pods"]), a_tally(NULLS["pods"], back=40)
    assert "BROKEN" not in tables.markdown(tables.nulls([good])[0])
    assert "BROKEN" in tables.markdown(tables.nulls([bad])[0])
    found, missed = a_tally(KNOWN["crash-10"], 200, median=2.0), a_tally(KNOWN["crash-10"], 200, median=9.0)
    assert "MISSED" not in tables.markdown(tables.found([found]))
    assert "MISSED" in tables.markdown(tables.found([missed]))
    assert "MISSED" in tables.markdown(tables.found([a_tally(KNOWN["crash-10"], 100, median=81.0)]))
    assert "BROKEN" in tables.markdown(tables.loops([a_tally(KNOWN["edge-100"], promoted=60)], "x"))


def test_a_table_has_a_row_for_each_case_and_a_cell_for_each_column() -> None:
    all_nulls = tables.nulls([a_tally(c) for c in NULLS.values()])
    assert sum(len(t.rows) for t in all_nulls) == len(NULLS)
    loops = tables.loops([a_tally(c, promoted=150) for c in cases.loops()], "Loops")
    for table in (*all_nulls, loops, tables.found([a_tally(c) for c in cases.regressions()])):
        lines = tables.markdown(table).splitlines()
        assert {line.count("|") for line in lines[2:]} == {len(table.head) + 1}


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hundred() -> Power:
    return power(default_spec(), assumed(100.0, 10, 0.001))


def test_what_is_worse_is_found_sooner_and_more_traffic_finds_it_sooner(hundred: Power) -> None:
    for step in hundred.steps:
        for kind in ("errors", "latency"):
            times = [t for e, t in step.found.items() if e.kind == kind]
            assert times == sorted(times, reverse=True)
    for before, after in zip(hundred.steps, hundred.steps[1:], strict=False):
        assert all(after.found[e] <= t for e, t in before.found.items())
    thousand = power(default_spec(), assumed(1000.0, 10, 0.001))
    assert thousand.good < hundred.good
    for few, many in zip(hundred.steps, thousand.steps, strict=True):
        assert all(many.found[e] <= t for e, t in few.found.items())


def test_a_good_release_stays_at_least_the_bake_and_the_slow_one_longer(hundred: Power) -> None:
    assert [s.weight for s in hundred.steps] == [5, 10, 25, 50]
    assert all(4 <= s.good <= s.good_slow < s.limit == 480 and s.decides for s in hundred.steps)
    assert hundred.good == sum(s.good for s in hundred.steps)


def test_a_service_without_traffic_cannot_decide_and_says_so() -> None:
    answer = power(default_spec(per_hour=0), assumed(0.5, 10, 0.001))
    assert not isfinite(answer.good)
    assert not any(s.decides for s in answer.steps)


def test_the_smallest_regression_lies_between_the_one_found_late_and_the_one_found_soon() -> None:
    found = {Effect("errors", 2.0): float("inf"), Effect("errors", 5.0): 100.0, Effect("errors", 10.0): 10.0}
    step = StepPower(5, 100.0, 20.0, 30.0, 480.0, found)
    assert step.smallest("errors", 100.0) == 5
    assert step.smallest("errors", 200.0) == 5  # nothing is known of what lies below
    assert step.smallest("errors", 10.0) == pytest.approx(10)
    middle = step.smallest("errors", 10**1.5)
    assert middle == pytest.approx(np.sqrt(50))
    assert step.smallest("errors", 5.0) is None
    assert step.smallest("latency", 100.0) is None


def test_slower_requests_move_over_the_edges_as_the_distribution_says() -> None:
    traffic = assumed(10.0, 3, 0.001)
    assert traffic.slower(1.0) == pytest.approx(traffic.rates)
    for factor in (1.1, 1.3, 2.0):
        truth = [1 - cases.share_below(Scenario(), float(edge) / factor) for edge in traffic.edges]
        assert traffic.slower(factor)[1:] == pytest.approx(truth, abs=0.02)
    assert replace(traffic, edges=np.zeros(0), rates=np.array([0.01])).slower(2.0) == pytest.approx([0.01])


def test_the_picture_is_svg_with_a_line_for_each_step_and_nothing_that_can_be_injected(hundred: Power) -> None:
    drawing = ElementTree.fromstring(svg(hundred, 30.0, 'api: <script>"&'))
    lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * len(hundred.steps)
    assert drawing[0].text == 'api: <script>"&'
    numbers = [float(x) for line in lines for pair in line.attrib["points"].split() for x in pair.split(",")]
    assert all(isfinite(x) and 0 <= x <= 960 for x in numbers)


def read(minutes: int, seed: int = 1, differ: float = 0.0, pods: int = 3) -> Traffic:
    """What is learnt of a service with 40 requests/s of which 1 % fail, by reading a real source of readings."""
    draw, start, step = np.random.default_rng(seed), datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(seconds=30)
    metrics, points = MemoryMetrics(), [start + i * step for i in range(2 * minutes + 1)]
    own = 0.01 * np.exp(differ * draw.normal(size=pods))
    for at in points:
        for i in range(pods):
            n = int(draw.poisson(1200 / pods))
            bad = int(draw.binomial(n, own[i]))
            metrics.serve("stable", f"pod-{i}", n=n - bad, ms=draw.lognormal(np.log(40), 0.5, n - bad))
            metrics.serve("stable", f"pod-{i}", code="500", n=bad)
        metrics.tick(at)
    spec = default_spec()
    query = CountsQuery("api", "default", "stable", "canary", tuple(points), step, spec.source)
    return learn(spec, metrics.read([query])["api"].readings)


def test_traffic_is_learnt_from_the_past_as_it_was() -> None:
    seen = read(60)
    assert seen.rps == pytest.approx(40, rel=0.02)
    assert (seen.stable_pods, seen.canary_pods) == (3, 3)
    assert seen.rates[0] == pytest.approx(0.01, rel=0.1)
    at_50 = 1 + list(seen.edges).index(50)
    assert seen.rates[at_50] == pytest.approx(0.33, abs=0.02)
    assert seen.clustering[0] == pytest.approx(1, abs=0.3)
    assert "60 min" in seen.source
    assert np.sqrt(read(60, differ=0.5, pods=8).between_pods[0]) > 0.2


def test_too_short_a_past_is_refused() -> None:
    with pytest.raises(SourceError, match="4 intervals with requests to stable in the past; 10 are needed"):
        read(2)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_null_simulation_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["null-simulation", "--scenario", "plain-100", "--reps", "5", "--seed", "2"]
    assert canaryd(arguments) == Exit.OK
    shown = capsys.readouterr().out
    assert "independent requests, 100 rps" in shown
    assert "Every promise holds" in shown
    assert canaryd([*arguments, "-o", "json"]) == Exit.OK
    (row,) = json.loads(capsys.readouterr().out)["scenarios"]
    assert (row["scenario"], row["n"], row["rolledBack"], row["promised"], row["broken"]) == (
        "plain-100",
        5,
        0,
        0.01,
        False,
    )


def test_null_simulation_lists_its_scenarios_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert canaryd(["null-simulation", "--list"]) == Exit.OK
    assert len(capsys.readouterr().out.splitlines()) == len(NULLS)
    assert canaryd(["null-simulation", "--scenario", "nothing"]) == Exit.USAGE
    assert "plain-100" in capsys.readouterr().err


def test_power_says_how_long_and_what_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, drawing = str(ROOT / "config/canaries/api.yaml"), tmp_path / "api.svg"
    arguments = ["power", file, "--rps", "200", "--stable-pods", "10"]
    assert canaryd([*arguments, "--plot", str(drawing)]) == Exit.OK
    shown = capsys.readouterr().out
    assert shown.startswith("api: 200 requests/s, 10 stable pods, 0.1 % fail")
    assert "A good release takes" in shown
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")
    assert canaryd([*arguments, "-o", "json"]) == Exit.OK
    body = json.loads(capsys.readouterr().out)
    assert body["good"]["median"] == sum(step["good"]["median"] for step in body["steps"])


def test_power_exits_otherwise_where_a_step_cannot_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "config/canaries/api.yaml").read_text()
    assert "budget" not in text
    file = tmp_path / "api.yaml"
    file.write_text(text.rstrip() + "\n  budget: {share: 0.1%, perHour: 0}\n")
    assert canaryd(["power", str(file), "--rps", "0.5", "--stable-pods", "10"]) == Exit.UNDECIDED
    assert "Cannot decide at this traffic: 5 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], Exit.USAGE, "Use either --rps N or --prometheus URL"),
        (["--rps", "5", "--prometheus", "http://127.0.0.1:1"], Exit.USAGE, "either"),
        (["--rps", "5", "--failures", "5"], Exit.USAGE, 'write a percentage such as "5%"'),
        (["--rps", "5", "--failures", "90%"], Exit.USAGE, "out of range"),
        (["--rps", "0"], Exit.USAGE, "--rps"),
        (["--prometheus", "http://127.0.0.1:1"], Exit.UNAVAILABLE, "127.0.0.1:1"),
        (["--prometheus", "nowhere"], Exit.USAGE, "--prometheus"),
        (["--rps", "5", "--canary", "other"], Exit.USAGE, "which canary?"),
        (["--rps", "5", "--plot", "/nowhere/x.svg"], Exit.UNAVAILABLE, "cannot be written"),
    ],
)
def test_power_refuses_what_it_cannot_do_in_a_sentence(
    arguments: list[str], code: Exit, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert canaryd(["power", str(ROOT / "config/canaries/api.yaml"), *arguments]) == code
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said


def test_the_daemon_never_imports_scipy_or_the_simulation() -> None:
    script = (
        "import sys, canaryd.daemon, canaryd.wiring, canaryd.reconcile, canaryd.cli.daemon, canaryd.cli.status\n"
        "print(sorted(m for m in sys.modules if m == 'scipy' or m.startswith('canaryd.simulation')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
