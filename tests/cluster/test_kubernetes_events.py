"""Events on a real API server: seen by kubectl, told once, never in a flood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import Bench, Client

pytest.register_assert_rewrite("objects")
pytest_plugins = ["objects"]

from objects import caught_up, document  # noqa: E402

from canaryd.adapters.kubernetes_events import AT_ONCE, COMPLAINT_S, REASONS, REFILL_S, KubernetesEvents  # noqa: E402
from canaryd.demo.processes import wait_until  # noqa: E402
from canaryd.errors import NotifyError  # noqa: E402
from canaryd.kube.client import KubeClient  # noqa: E402
from canaryd.kube.informer import Informer  # noqa: E402
from canaryd.model import DecisionKind, Record  # noqa: E402

API = "shop/api"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Watch:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(
    n: int, kind: DecisionKind = DecisionKind.ADVANCE, *, sentence: str = "", severity: str = "info", canary: str = API
) -> Record:
    at = NOW + timedelta(seconds=n, microseconds=n)
    return Record(f"{canary}/{n}", canary, at, kind, sentence or f"decision {n}", {"severity": severity}, tell=True)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def events(kube: KubeClient, informer: Informer, watch: Watch) -> Iterator[KubernetesEvents]:
    return KubernetesEvents(kube, informer, instance="canaryd-7", clock=watch)


def told(admin: Client) -> list[dict[str, Any]]:
    path = "/apis/events.k8s.io/v1/namespaces/shop/events"
    return sorted(admin.request("GET", path)["items"], key=lambda e: str(e["eventTime"]))


def test_kubectl_describe_tells_the_story_of_this_canary_and_of_no_earlier_one(
    events: KubernetesEvents, canary_plane: Bench, admin: Client, informer: Informer
) -> None:
    story = [
        (DecisionKind.START, "RolloutStarted", "info", "api: rollout of revision r2 begins"),
        (DecisionKind.ADVANCE, "StepAdvanced", "info", "api 0 % → 5 %: api is ready"),
        (DecisionKind.ROLLBACK, "RollbackStarted", "critical", "api 5 % → 0 %: errors 4 % worse"),
    ]
    for n, (kind, _, severity, sentence) in enumerate(story):
        events.notify(record(n, kind, sentence=sentence, severity=severity))
    shown = canary_plane.kubectl("describe", "canary", "api", "-n", "shop").stdout.partition("Events:")[2]
    for _, reason, severity, sentence in story:
        (line,) = (line for line in shown.splitlines() if reason in line)
        assert sentence in line
        assert line.split()[0] == ("Normal" if severity == "info" else "Warning")
        assert "canaryd" in line
    assert "<none>" in canary_plane.kubectl("describe", "canary", "web", "-n", "shop").stdout.partition("Events:")[2]
    admin.delete("canaries", "api")
    admin.create(document("api"))
    caught_up(informer, admin)
    assert "<none>" in canary_plane.kubectl("describe", "canary", "api", "-n", "shop").stdout.partition("Events:")[2]
    events.notify(record(0, DecisionKind.START))  # the same id, but another Canary
    shown = canary_plane.kubectl("describe", "canary", "api", "-n", "shop").stdout.partition("Events:")[2]
    assert "RolloutStarted" in shown


def test_every_kind_of_decision_has_a_reason_of_its_own_and_the_server_takes_it(
    events: KubernetesEvents, admin: Client, watch: Watch
) -> None:
    assert set(REASONS) == set(DecisionKind)
    assert len({reason for reason, _ in REASONS.values()}) == len(REASONS)
    for n, kind in enumerate(DecisionKind):
        events.notify(record(n, kind, severity="warning"))
    made = told(admin)
    assert [e["reason"] for e in made] == [REASONS[kind][0] for kind in DecisionKind]
    assert {e["type"] for e in made} == {"Warning"}
    assert {(e["reportingController"], e["reportingInstance"]) for e in made} == {("canaryd.io/canaryd", "canaryd-7")}
    assert made[3]["eventTime"] == "2026-03-01T12:00:03.000003Z"
    uid = admin.get("canaries", "api")["metadata"]["uid"]
    assert {(e["regarding"]["uid"], e["regarding"]["kind"], e["regarding"]["apiVersion"]) for e in made} == {
        (uid, "Canary", "canaryd.io/v1alpha1")
    }


def test_a_record_that_is_told_again_is_one_event_also_after_a_new_start(
    events: KubernetesEvents, kube: KubeClient, informer: Informer, admin: Client
) -> None:
    for _ in range(3):
        events.notify(record(1))
    KubernetesEvents(kube, informer, instance="canaryd-8").notify(record(1))
    assert len(told(admin)) == 1


@pytest.mark.parametrize("sentence", ["x" * 5000, "ä" * 600, "😀" * 400, "\ud800 half a character", "→" * 341 + "é"])
def test_a_sentence_of_any_length_is_cut_to_what_the_server_takes(
    events: KubernetesEvents, admin: Client, sentence: str
) -> None:
    events.notify(record(1, sentence=sentence))
    (made,) = told(admin)
    assert len(made["note"].encode()) <= 1024
    assert made["note"][:20] == sentence.encode(errors="replace").decode()[:20]


def test_a_flood_is_cut_but_what_begins_ends_or_undoes_a_promotion_is_always_told(
    events: KubernetesEvents, admin: Client, watch: Watch
) -> None:
    for n in range(AT_ONCE + 10):
        events.notify(record(n, DecisionKind.DRIFT))
    assert len(told(admin)) == AT_ONCE
    assert events.dropped == 10
    for n, kind in enumerate(
        (DecisionKind.PROMOTE, DecisionKind.SUCCEED, DecisionKind.ROLLBACK, DecisionKind.ROLLED_BACK)
    ):
        events.notify(record(100 + n, kind))
    assert len(told(admin)) == AT_ONCE + 4
    events.notify(record(1, DecisionKind.DRIFT, canary="shop/web"))  # the others have a pace of their own
    assert len(told(admin)) == AT_ONCE + 5
    watch.now += 2 * REFILL_S
    for n in range(200, 205):
        events.notify(record(n, DecisionKind.DRIFT))
    assert len(told(admin)) == AT_ONCE + 7


def test_a_canary_that_is_gone_needs_to_be_told_nothing(
    events: KubernetesEvents, admin: Client, informer: Informer
) -> None:
    events.notify(record(1, canary="shop/nobody"))
    events.notify(record(1, canary="elsewhere/api"))
    admin.delete("canaries", "api")
    wait_until(lambda: informer.get("shop", "api") is None, "the deletion to be seen")
    events.notify(record(1))
    assert told(admin) == []


def test_without_the_right_to_it_the_verb_is_named_once_and_nobody_else_is_held_up(
    client_of: Callable[[str], KubeClient], informer: Informer, admin: Client, watch: Watch
) -> None:
    events = KubernetesEvents(client_of("anna"), informer, clock=watch)
    with pytest.raises(NotifyError, match=r"forbidden: create events\.events\.k8s\.io in shop, as anna"):
        events.notify(record(1))
    events.notify(record(1))  # counts as told
    events.notify(record(2))
    assert events.dropped == 2
    watch.now += COMPLAINT_S
    with pytest.raises(NotifyError, match="forbidden"):
        events.notify(record(3))
    assert told(admin) == []


def test_an_api_server_that_is_gone_leaves_the_record_owed_and_it_comes_again(
    canary_plane: Bench, events: KubernetesEvents, admin: Client
) -> None:
    canary_plane.plane.kill_apiserver()
    try:
        for _ in range(2):
            with pytest.raises(NotifyError, match=f"the Event of {API}/1"):
                events.notify(record(1))
    finally:
        canary_plane.plane.start_apiserver()
    events.notify(record(1))
    assert [e["note"] for e in told(admin)] == ["decision 1"]
