"""Four verdicts, each with a sentence that has the numbers; unknown is never good news."""

from __future__ import annotations

import re
from dataclasses import astuple, replace
from datetime import timedelta
from math import isfinite, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service import FOUR_EDGES, START, TEN, Plan, Service, history, run, spec

from canaryd.judge import Subject, compared, judge
from canaryd.model import ArmCounts, Finding, Floats, Judgement, Stretch, Verdict
from canaryd.stats.evidence import Rules, empty

SPEC = spec()
ERRORS = {"name": "errors", "kind": "errors"}
LATENCY = {"name": "latency", "kind": "latency"}
GAUGE = {"name": "memory", "kind": "gauge", "query": {"stable": "a", "canary": "b"}}
QUERY = {
    "name": "orders",
    "kind": "query",
    "failures": {"stable": "a", "canary": "b"},
    "total": {"stable": "c", "canary": "d"},
}
NO_EDGES = np.zeros(0)


def rollout(
    p_c: float = 0.004, slower: float = 1.0, n: int = 30, weight: float = 0.25, rps: float = 200.0, **more: Any
) -> Plan:
    service = Service(more.pop("edges", FOUR_EDGES), rps=rps, seed=more.pop("seed", 1))
    return [*history(service), *((service.stretch(weight, p_c, slower, **more), weight, True) for _ in range(n))]


def subject(plan: Plan, edges: Floats = FOUR_EDGES, by: Any = SPEC, **more: Any) -> Subject:
    weight = round(100 * plan[-1][1]) if plan else 5
    arrays = run(plan, edges, Rules.of(by))
    return Subject(**{"spec": by, "arrays": arrays, "edges": edges, "step": 1, "weight": weight, **more})


def verdict(plan: Plan, edges: Floats = FOUR_EDGES, by: Any = SPEC, **more: Any) -> Judgement:
    return judge([subject(plan, edges, by, **more)])[0]


def finding(judgement: Judgement, metric: str) -> Finding:
    return next(f for f in judgement.findings if f.metric == metric)


def only(arm: str, n: float, weight: float = 0.25, times: int = 1) -> Plan:
    """Stretches in which one arm served n requests in all and the other none."""
    some, none = ArmCounts(True, n, 0.0), ArmCounts(True)
    pair = (some, none) if arm == "stable" else (none, some)
    service = Service(NO_EDGES)
    return [*history(service), *((Stretch(START, START + TEN, *pair), weight, True) for _ in range(times))]


# ── the four ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("plan", "expected", "decisive"),
    [
        pytest.param(rollout(n=60), Verdict.HEALTHY, "errors", id="as-good-as-stable-long-enough"),
        pytest.param(rollout(n=2), Verdict.INCONCLUSIVE, "errors", id="as-good-as-stable-not-long-enough"),
        pytest.param(rollout(0.04, n=8), Verdict.REGRESSED, "errors", id="ten-times-the-errors"),
        pytest.param(rollout(slower=1.6, n=8), Verdict.REGRESSED, "latency", id="60-percent-slower"),
        pytest.param(rollout(0.3, n=2, young=1.0), Verdict.REGRESSED, "errors", id="warming-up-excuses-no-outage"),
        pytest.param(rollout(n=0), Verdict.INCONCLUSIVE, "", id="nothing-scored-yet"),
        pytest.param([], Verdict.INCONCLUSIVE, "", id="nothing-at-all-yet"),
        pytest.param(rollout(n=30, rps=1.0), Verdict.INCONCLUSIVE, "latency", id="one-request-a-second"),
        pytest.param(only("stable", 9e3), Verdict.BLIND, "", id="no-request-reaches-the-canary"),
        pytest.param(only("canary", 9e3), Verdict.BLIND, "errors", id="no-request-reaches-stable"),
        pytest.param(
            [*rollout(n=2), *rollout(0.2, weight=1.0, n=3)[6:]],
            Verdict.REGRESSED,
            "errors",
            id="a-canary-alone-against-stables-past",
        ),
    ],
)
def test_the_verdict(plan: Plan, expected: Verdict, decisive: str) -> None:
    by = SPEC if len(plan) == 0 or len(plan[0][0].edges) else spec(metrics=[ERRORS])
    edges = FOUR_EDGES if by is SPEC else NO_EDGES
    got = verdict(plan, edges, by)
    assert got.verdict is expected, got.sentence
    assert got.decisive == decisive
    assert got.sentence
    assert not got.sentence.endswith(".")


def test_nobody_to_judge_is_no_trouble() -> None:
    assert judge([]) == []


def test_canaries_judged_together_get_the_judgement_they_get_alone() -> None:
    plans = [rollout(n=60), rollout(0.04, n=8), rollout(n=0), only("stable", 9e3)]
    subjects = [subject(p, by=spec(steps=[10 * (i + 1), 100])) for i, p in enumerate(plans[:3])]
    subjects.append(subject(plans[3], NO_EDGES, spec(metrics=[ERRORS], steps=[1, 2, 3, 4])))
    alone = [judge([s])[0] for s in subjects]
    for one, other in zip(judge(subjects[::-1])[::-1], alone, strict=True):
        assert (one.verdict, one.sentence, one.decisive) == (other.verdict, other.sentence, other.decisive)
        assert one.log_e == pytest.approx(other.log_e, rel=1e-12)


# ── blind ────────────────────────────────────────────────────────────────────────────────────────────────────

ONLY_ERRORS = spec(metrics=[ERRORS])


@pytest.mark.parametrize(
    ("arm", "n", "weight", "blind"),
    [
        pytest.param("stable", 20, 0.25, False, id="6.7-canary-requests-expected"),
        pytest.param("stable", 21, 0.25, True, id="7-canary-requests-expected"),
        pytest.param("canary", 2, 0.25, False, id="6-stable-requests-expected"),
        pytest.param("canary", 3, 0.25, True, id="9-stable-requests-expected"),
        pytest.param("stable", 1, 1.0, True, id="at-100-percent-a-single-one-astray"),
        pytest.param("canary", 1000, 1.0, False, id="at-100-percent-stable-has-none"),
        pytest.param("stable", 1000, 0.0, False, id="at-0-percent-the-canary-has-none"),
    ],
)
def test_silence_is_blindness_once_seven_requests_are_missing(arm: str, n: float, weight: float, blind: bool) -> None:
    got = verdict(only(arm, n, weight), NO_EDGES, ONLY_ERRORS, canary="api-b", stable="api-a")
    assert (got.verdict is Verdict.BLIND) is blind
    if blind:
        missing = "api-b" if arm == "stable" else "api-a"
        assert got.sentence.startswith(f"no request reached {missing}, though about ")


def test_what_could_not_be_read_is_said_and_every_finding_is_blind() -> None:
    got = verdict(rollout(n=60), unseen="prometheus:9090 did not answer within 5 s")
    assert got.verdict is Verdict.BLIND
    assert got.sentence == "prometheus:9090 did not answer within 5 s"
    assert [(f.verdict, f.note) for f in got.findings] == [(Verdict.BLIND, got.sentence)] * 2


def test_a_proven_regression_stays_one_when_sight_is_lost() -> None:
    got = verdict(rollout(0.04, n=8), unseen="no answer")
    assert got.verdict is Verdict.REGRESSED
    assert finding(got, "latency").verdict is Verdict.BLIND


def test_a_missing_histogram_is_blindness_for_latency_alone() -> None:
    got = verdict(rollout(n=60, edges=NO_EDGES), NO_EDGES)
    assert got.verdict is Verdict.BLIND
    assert finding(got, "latency").verdict is Verdict.BLIND
    assert finding(got, "errors").verdict is Verdict.HEALTHY
    assert got.sentence == "latency: no latency histogram with edges that both arms share"


def test_the_source_says_why_there_is_no_histogram() -> None:
    got = verdict(rollout(n=3, edges=NO_EDGES), NO_EDGES, note="ask for classic buckets")
    assert got.sentence == "latency: ask for classic buckets"


def test_before_the_first_interval_latency_is_open_not_blind() -> None:
    got = verdict(rollout(n=0))
    assert finding(got, "latency").verdict is Verdict.INCONCLUSIVE
    assert finding(got, "latency").note == "no interval has been counted yet"
    assert got.sentence == "no request has been counted yet"
    unread = verdict(rollout(n=0), unseen="no answer")
    assert (finding(unread, "latency").verdict, finding(unread, "latency").note) == (Verdict.BLIND, "no answer")


def test_a_weight_that_has_just_changed_has_no_share_yet() -> None:
    got = verdict(rollout(n=10), weight=50)
    assert got.share is not None
    assert (got.share.observed, got.share.requests, got.share.confirmed) == (None, 0, False)


# ── healthy ──────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = subject(rollout(n=60))


def changed(**arrays: Any) -> Judgement:
    """The healthy canary with some of its evidence replaced."""
    new = {k: v.copy() for k, v in GOOD.arrays.items()}
    for name, change in arrays.items():
        change(new[name])
    return judge([replace(GOOD, arrays=new)])[0]


def set_at(index: Any, value: float) -> Any:
    return lambda array: array.__setitem__(index, value)


def test_every_row_that_matters_must_be_proven_fine() -> None:
    proof = -log(SPEC.beta)
    assert judge([GOOD])[0].verdict is Verdict.HEALTHY
    critical = []
    for row in range(5):
        got = changed(fine=set_at((row, 1), 0.99 * proof))
        critical += [row] if got.verdict is not Verdict.HEALTHY else []
        assert got.verdict in (Verdict.HEALTHY, Verdict.INCONCLUSIVE)
        assert got.toward_step == (pytest.approx(0.99) if row in critical else 1)
    assert critical[0] == 0
    assert len(critical) >= 3


def test_proof_at_another_gate_does_not_count() -> None:
    assert changed(fine=set_at((0, 0), -9.0)).verdict is Verdict.HEALTHY
    assert changed(fine=set_at((0, 1), -9.0)).verdict is Verdict.INCONCLUSIVE


def test_no_step_on_half_the_evidence_to_roll_back() -> None:
    """M >= sqrt(1 / alpha), though every row is proven acceptable."""
    half = -log(SPEC.alpha) / 2
    below = changed(hard=set_at(slice(None), half + log(10) - 0.5))
    above = changed(hard=set_at(slice(None), half + log(10) + 0.01))
    assert (below.verdict, above.verdict) == (Verdict.HEALTHY, Verdict.INCONCLUSIVE)
    assert above.log_e < -log(SPEC.alpha)
    assert above.sentence.endswith("of the evidence to roll back; no step on that")


def test_no_step_while_users_get_another_share_than_the_route_says() -> None:
    got = changed(share=set_at(2, 9.0), clock=set_at(5, 2000.0))
    assert got.verdict is Verdict.INCONCLUSIVE
    assert got.share is not None
    assert got.share.mismatch
    assert re.fullmatch(r"the route says 25 % but [0-9.]+ % of [0-9 ]+ requests reached the canary", got.sentence)


def test_the_share_is_shown_and_confirmed() -> None:
    share = judge([GOOD])[0].share
    assert share is not None
    assert share.observed == pytest.approx(0.25, abs=0.02)
    assert share.requests == pytest.approx(120_000, rel=0.02)
    assert (share.confirmed, share.mismatch) == (True, False)


@pytest.mark.parametrize("metrics", [[ERRORS], [LATENCY]], ids=["errors-alone", "latency-alone"])
def test_one_metric_alone_can_be_healthy(metrics: list[dict[str, Any]]) -> None:
    got = verdict(rollout(n=60), by=spec(metrics=metrics))
    assert got.verdict is Verdict.HEALTHY
    assert [f.metric for f in got.findings] == [metrics[0]["name"]]


def test_a_gauge_without_values_yet_holds_nothing_up() -> None:
    got = verdict(rollout(n=60), by=spec(metrics=[ERRORS, LATENCY, GAUGE]))
    assert got.verdict is Verdict.HEALTHY
    assert (finding(got, "memory").verdict, finding(got, "memory").means) == (Verdict.INCONCLUSIVE, None)
    assert finding(got, "memory").note == "no value of both arms yet"
    assert "memory" not in got.sentence


def test_a_query_that_nothing_was_counted_of_is_never_healthy() -> None:
    got = verdict(rollout(n=60), by=spec(metrics=[ERRORS, LATENCY, QUERY]))
    assert got.verdict is Verdict.INCONCLUSIVE
    assert (finding(got, "orders").canary_n, finding(got, "orders").toward_step) == (0, 0)


# ── the culprit and the innocent ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("p_c", "slower", "culprit", "innocent"),
    [(0.04, 1.0, "errors", "latency"), (0.004, 1.6, "latency", "errors")],
    ids=["errors", "latency"],
)
def test_the_culprit_is_named_and_the_innocent_is_cleared(
    p_c: float, slower: float, culprit: str, innocent: str
) -> None:
    got = verdict(rollout(p_c, slower, n=8))
    assert finding(got, culprit).verdict is Verdict.REGRESSED
    assert finding(got, innocent).verdict is not Verdict.REGRESSED
    assert got.decisive == culprit
    assert got.sentence.endswith(f". Not the cause: {innocent}")


def test_two_culprits_are_both_named_and_nothing_is_cleared() -> None:
    got = verdict(rollout(0.04, 1.6, n=8))
    assert [f.verdict for f in got.findings] == [Verdict.REGRESSED] * 2
    assert "Not the cause" not in got.sentence


def test_stable_that_fails_more_is_noticed() -> None:
    plan = rollout(n=8)
    swapped = [(replace(s, stable=s.canary, canary=s.stable), 1 - w, y) for s, w, y in rollout(0.04, n=8)[6:]]
    assert verdict([*plan[:6], *swapped]).stable_worse
    assert not verdict(plan).stable_worse


# ── the sentence and the numbers ─────────────────────────────────────────────────────────────────────────────


def test_the_sentence_of_a_regression_has_both_rates_n_the_interval_and_what_was_tolerated() -> None:
    got = verdict(rollout(0.04, n=8))
    assert re.fullmatch(
        r"errors [0-9.]+ % canary vs 0\.[0-9]+ % stable \(n [0-9 ]+ / [0-9 ]+\); "
        r"difference \+[0-9.]+ pt \(\+[0-9.]+\.\.\+[0-9.]+\), tolerated \+0\.0[0-9]+ pt\. Not the cause: latency",
        got.sentence,
    )


def test_the_sentence_about_latency_says_at_which_edge() -> None:
    assert re.match(
        r"latency: slower than [0-9]+ ms [0-9.]+ % canary vs [0-9.]+ % stable \(n ",
        verdict(rollout(slower=1.6, n=8)).sentence,
    )


def test_the_sentence_of_a_healthy_canary_has_all_metrics() -> None:
    sentence = judge([GOOD])[0].sentence
    assert re.fullmatch(r"errors .+ canary vs .+ stable \(n .+ / .+\), latency: slower than .+ \(n .+ / .+\)", sentence)


def test_waiting_says_how_many_requests_and_how_long() -> None:
    got = verdict(rollout(n=4, rps=50.0))
    assert re.fullmatch(
        r"[0-9 ]+ canary requests? more needed \(about [0-9a-z ]+\) to rule out \+[0-9.]+ pt more .+", got.sentence
    )
    needed = finding(got, got.decisive).needed
    assert needed is not None
    assert needed > 0


def test_the_requests_said_to_be_needed_are_about_those_that_it_takes() -> None:
    service = Service(NO_EDGES, rps=100)
    plan = history(service) + [(service.stretch(0.25), 0.25, True) for _ in range(4)]
    errors = finding(verdict(plan, NO_EDGES, ONLY_ERRORS), "errors")
    assert errors.needed is not None
    expected = errors.needed + errors.canary_n
    arrays = run(plan, NO_EDGES, Rules.of(ONLY_ERRORS))
    for _ in range(100):
        arrays = run([(service.stretch(0.25), 0.25, True)], NO_EDGES, Rules.of(ONLY_ERRORS), arrays)
        now = judge([Subject(ONLY_ERRORS, arrays, NO_EDGES, 1, 25)])[0]
        if now.verdict is Verdict.HEALTHY:
            break
    assert finding(now, "errors").canary_n == pytest.approx(expected, rel=0.6)


def test_at_100_percent_no_number_of_requests_helps_without_stable() -> None:
    plan = [*rollout(n=1), *rollout(n=1, weight=1.0)[6:]]
    got = verdict(plan)
    assert got.verdict is Verdict.INCONCLUSIVE
    assert got.sentence.startswith("more stable requests needed to rule out ")
    assert finding(got, got.decisive).needed is None


def test_without_a_rate_of_requests_there_is_no_estimate_of_the_time() -> None:
    long = [(replace(s, end=s.end + timedelta(hours=1)), w, y) for s, w, y in rollout(n=3, rps=50.0)]
    got = verdict(long)
    assert "about" not in got.sentence
    assert "more needed to rule out" in got.sentence


def test_a_canary_that_was_never_beside_stable_is_compared_with_nothing() -> None:
    service = Service(NO_EDGES)
    plan = [*history(service), *((service.stretch(1.0, 0.5), 1.0, True) for _ in range(3))]
    got = verdict(plan, NO_EDGES, ONLY_ERRORS)
    assert got.verdict is Verdict.REGRESSED
    assert re.fullmatch(r"errors [0-9.]+ % canary \(n [0-9 ]+\)", got.sentence)
    assert finding(got, "errors").stable is None
    assert finding(got, "errors").low is None
    assert finding(got, "errors").log_e >= -log(SPEC.alpha)


def test_a_regression_by_a_metric_that_was_since_removed_is_still_told() -> None:
    got = judge([replace(subject(rollout(0.04, n=8)), spec=spec(metrics=[LATENCY]))])[0]
    assert got.verdict is Verdict.REGRESSED
    assert (got.decisive, got.sentence) == ("", "the canary is worse than tolerated. Not the cause: latency")
    assert compared(Finding("errors", Verdict.REGRESSED, "errors")) == "errors – canary (n 0)"


def test_the_findings_carry_the_numbers_of_the_sentence() -> None:
    got = verdict(rollout(0.04, n=8))
    errors = finding(got, "errors")
    assert errors.event == "errors"
    assert None not in (errors.canary, errors.stable, errors.difference, errors.low, errors.high, errors.tolerated)
    assert errors.canary - errors.stable == pytest.approx(errors.difference)  # type: ignore[operator]
    assert errors.low > errors.tolerated > 0  # type: ignore[operator]
    assert errors.log_e >= -log(SPEC.alpha)
    assert errors.toward_rollback == got.toward_rollback == 1
    assert (errors.canary_n, errors.stable_n) == pytest.approx((4000, 12000), rel=0.05)


def test_a_threshold_is_never_rounded_up_to() -> None:
    almost = -log(SPEC.beta) * (1 - 1e-9)
    got = changed(fine=set_at((0, 1), almost))
    assert got.verdict is Verdict.INCONCLUSIVE
    assert got.toward_step == 0.999


# ── whatever was counted ─────────────────────────────────────────────────────────────────────────────────────

sizes = st.sampled_from([0, 1, 2, 50, 3000, 10**9, 10**15])
parts = st.sampled_from([0.0, 1e-6, 0.004, 0.3, 1.0])


@st.composite
def arms(draw: st.DrawFn) -> ArmCounts:
    n, timed = draw(sizes), draw(sizes)
    bad, young = round(n * draw(parts)), draw(parts)
    slow = sorted((float(round(timed * draw(parts))) for _ in range(4)), reverse=True)
    return ArmCounts(
        present=n > 0,
        requests=float(n),
        failures=float(bad),
        young_requests=float(round((n - bad) * young) + round(bad * young)),
        young_failures=float(round(bad * young)),
        timed=float(timed),
        slower=np.array(slow),
    )


plans = st.lists(
    st.tuples(
        st.builds(Stretch, st.just(START), st.just(START + TEN), arms(), arms(), st.just(FOUR_EDGES)),
        st.sampled_from([0.01, 0.5, 1.0]),
        st.booleans(),
    ),
    max_size=4,
)
texts = st.sampled_from(["", "no answer"])


@settings(max_examples=40)
@given(plans, st.integers(0, 2), st.sampled_from([0, 1, 50, 100]), texts)
def test_nothing_that_is_no_number_ever_reaches_a_person(plan: Plan, step: int, weight: int, unseen: str) -> None:
    got = verdict(plan, by=spec(metrics=[ERRORS, LATENCY, GAUGE]), step=step, weight=weight, unseen=unseen)
    assert got.sentence
    assert not re.search(r"\bnan\b|\binf|None|[0-9]e[+-]?[0-9]|−0 %", got.sentence), got.sentence
    assert got.share is not None
    everything = [*astuple(got.share), got.log_e, got.toward_rollback, got.toward_step]
    everything += [v for f in got.findings for v in astuple(f)]
    assert all(isfinite(v) for v in everything if isinstance(v, float))
    for f in got.findings:
        assert 0 <= f.toward_rollback <= 1
        assert 0 <= f.toward_step <= 1
        assert all(v is None or 0 <= v <= 1 for v in (f.canary, f.stable))
    if unseen:
        assert got.verdict in (Verdict.BLIND, Verdict.REGRESSED)


def test_a_state_that_is_empty_is_judged_as_knowing_nothing() -> None:
    got = judge([Subject(SPEC, empty(NO_EDGES, 3), NO_EDGES, 0, 5)])[0]
    assert (got.verdict, got.sentence) == (Verdict.INCONCLUSIVE, "no request has been counted yet")
