"""What the spans of a service are asked by, and when they are given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from world import canary

from canaryd.deployments.objects import mesh_version
from canaryd.model import ArmCounts, Evidence, Phase, RolloutState, SpanCounts, SpanEvidence, Stretch, Waiting
from canaryd.operations import MOST_WAITING, Intake, Look, aliases_of, arms_of, due, service_of
from canaryd.policy import Canary, parse_canary
from canaryd.stats import traces
from canaryd.tally import EDGES

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEN = timedelta(seconds=10)
SPANS = {"name": "spans", "kind": "traces"}


def deployed(**spec: Any) -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "pay", "namespace": "shop", "uid": "1"},
            "spec": {
                "workloads": {"deployment": {"name": "api"}},
                "route": {"istio": {"virtualServices": [{"name": "api-route"}]}},
                "metrics": [{"name": "errors", "kind": "errors"}, {**SPANS, **spec}],
            },
        }
    )


def piped(**spec: Any) -> Canary:
    return canary(metrics=[{"name": "errors", "kind": "errors"}, {**SPANS, **spec}])


STATE = RolloutState(
    stable="api-stable", canary="api", stable_revision="r1", revision="r2", phase=Phase.PROGRESSING, weight=20
)


# ── who is who ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_service_is_called_as_istio_calls_it_unless_the_document_says_otherwise() -> None:
    for by, name in ((deployed(), "api.shop"), (piped(), "api"), (deployed(service="payments"), "payments")):
        metric = by.spec.traces()
        assert metric is not None
        assert service_of(by, metric) == name


def test_routes_and_services_of_both_arms_are_one_name_of_the_service() -> None:
    assert aliases_of(deployed(), ("api-stable", "api-canary")) == ("api", "api-stable", "api-canary", "api-route")


def test_the_arms_are_told_by_workloads_revisions_and_what_the_mesh_calls_their_versions() -> None:
    found = arms_of(deployed(), STATE, ("v1", "v2"))
    assert found.stable == ("api-stable", "r1", "v1")
    assert found.canary == ("api", "r2", "v2")
    assert found.arm({"istio.canonical_revision": "v2"})[0] == "canary"
    alike = arms_of(deployed(), STATE, ("latest", "latest"))
    assert alike.arm({"istio.canonical_revision": "latest"}, "api-stable-7d9f-x2x")[0] == "stable"
    assert alike.arm({"istio.canonical_revision": "latest"}, "api-6c8b-y3y")[0] == "canary"


def test_values_of_the_document_replace_what_is_derived() -> None:
    found = arms_of(deployed(tag="release", arms={"stable": ["old"], "canary": ["new"]}), STATE, ("v1", "v2"))
    assert (found.tag, found.stable, found.canary) == ("release", ("old",), ("new",))


def test_what_tells_the_arms_apart_stays_for_the_whole_rollout() -> None:
    held = SpanEvidence(tag="t", stable=("a",), canary=("b",))
    state = replace(STATE, evidence=Evidence(START, spans=held))
    assert arms_of(deployed(), state, ("v1", "v2")).stable == ("a",)


@pytest.mark.parametrize(
    ("labels", "version"),
    [
        ({}, "latest"),
        ({"version": "v1"}, "v1"),
        ({"version": "v1", "app.kubernetes.io/version": "1.2"}, "1.2"),
        ({"app.kubernetes.io/version": "1.2", "service.istio.io/canonical-revision": "blue"}, "blue"),
    ],
)
def test_the_version_of_pods_is_read_from_the_labels_that_istio_reads(labels: dict[str, str], version: str) -> None:
    assert mesh_version({"spec": {"template": {"metadata": {"labels": labels}}}}) == version
    assert mesh_version(None) == ""


# ── what is counted, and when ────────────────────────────────────────────────────────────────────────────────


def stretch(k: int, *, young: float = 0.0, spans: SpanCounts | None = None) -> Stretch:
    arm = ArmCounts(present=True, requests=100.0, young_requests=young)
    return Stretch(START + k * TEN, START + (k + 1) * TEN, ArmCounts(present=True, requests=900.0), arm, spans=spans)


def counted(k: int, *, n: float = 30.0, **more: Any) -> SpanCounts:
    spans = np.array([[[n, 0.0], [n, 0.0]]])
    durations = np.zeros((1, 2, len(EDGES) + 1))
    durations[0, :, 3] = n
    given = {"spans": spans, "durations": durations, "edges": EDGES, "sampled": (n, n), **more}
    return SpanCounts(START + k * TEN, START + (k + 1) * TEN, ("GET /",), **given)


def taken(
    held: SpanEvidence | None, looks: list[Look], *arrived: SpanCounts, **more: Any
) -> tuple[Intake, SpanEvidence]:
    state = replace(STATE, evidence=Evidence(START, spans=held) if held else None, **more)
    intake = Intake(deployed(source="traces"), state, arms_of(deployed(), state), looks, arrived)
    for k in range(len(intake)):
        (intake.arrays,) = traces.update([intake.item(k)])
    return intake, intake.result()


def test_an_interval_waits_until_its_spans_come_and_is_counted_once() -> None:
    _, held = taken(None, [Look(stretch(k), scored=False) for k in range(4)])
    assert [(w.start, w.end) for w in held.waiting] == [(START, START + 4 * TEN)]
    past = replace(counted(0), end=START + 4 * TEN)
    intake, held = taken(held, [Look(stretch(4), scored=True)], past)
    assert intake.taken == (past,)
    assert [w.start for w in held.waiting] == [START + 4 * TEN]
    _, held = taken(held, [Look(stretch(5), scored=True)], counted(4), counted(5), past)
    assert held.waiting == ()
    assert traces.clock(held.arrays, "intervals") == 2
    again, held = taken(held, [], counted(4), counted(5))
    assert again.taken == ()
    assert traces.clock(held.arrays, "intervals") == 2


def test_what_does_not_come_is_given_up_in_time() -> None:
    held: SpanEvidence | None = None
    for k in range(MOST_WAITING + 5):
        _, held = taken(held, [Look(stretch(k), scored=True)])
    assert held is not None
    assert len(held.waiting) == MOST_WAITING
    assert held.lost == 5
    assert held.waiting[-1].end == START + (MOST_WAITING + 5) * TEN


@pytest.mark.parametrize(
    ("look", "spans"),
    [
        (Look(stretch(0, young=5.0), scored=True), counted(0)),
        (Look(stretch(0), scored=False), counted(0)),
        (Look(stretch(0), scored=True), counted(0, complete=False, note="truncated: the newest 500")),
    ],
    ids=["warming-pods", "the-weight-changed", "truncated"],
)
def test_what_is_no_evidence_teaches_what_stable_is_like(look: Look, spans: SpanCounts) -> None:
    _, held = taken(SpanEvidence(source="traces"), [look])
    _, held = taken(held, [], spans)
    assert traces.clock(held.arrays, "intervals") == 0
    assert held.arrays["known"][0, 0] == 30


def test_while_stable_is_upgraded_nothing_is_counted() -> None:
    _, held = taken(SpanEvidence(source="traces"), [Look(stretch(0), scored=True)])
    intake, after = taken(held, [Look(stretch(1), scored=True)], counted(0), phase=Phase.PROMOTING)
    assert intake.taken == ()
    assert after.arrays == held.arrays
    assert after.waiting == held.waiting


def test_spans_are_due_when_they_have_had_time_to_arrive() -> None:
    waiting = tuple(Waiting(START + k * TEN, START + (k + 1) * TEN, scored=True) for k in range(3))
    held = SpanEvidence(waiting=waiting)
    assert due(held, START + timedelta(seconds=25), timedelta(seconds=5)) == waiting[:2]
    assert due(held, START + timedelta(seconds=24), timedelta(seconds=5)) == waiting[:1]


def test_another_number_of_operations_begins_again() -> None:
    _, held = taken(SpanEvidence(source="traces"), [Look(stretch(0), scored=True)])
    _, held = taken(held, [], counted(0))
    assert held.operations == ("GET /",)
    state = replace(STATE, evidence=Evidence(START, spans=held))
    by = deployed(source="traces", operations=5)
    assert Intake(by, state, arms_of(by, state), []).result().operations == ()
