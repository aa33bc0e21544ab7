"""The checker itself: silent about a legal history, and it names each step that should not be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bench.audit import Audit
from history_checker import ACCOUNT, Report, check

from canaryd.adapters.route_stamps import STAMP, Stamp
from canaryd.kube.packed import pack_state
from canaryd.model import Phase, RolloutState, Transition

AT = datetime(2026, 3, 1, tzinfo=UTC)
STEPS = (20, 50)
UID = "uid-of-the-canary"


class Log:
    """An audit log, written as a daemon at work would have it written."""

    def __init__(self, file: Path) -> None:
        self.state = RolloutState(stable="api-stable", canary="api")
        self.version = 0
        self._file = file
        self._etcd = 100
        self._spec: dict[str, Any] = {"api": {"replicas": 2, "template": {"image": "v1"}}}

    def save(self, phase: Phase, step: int, weight: int, *, answered: int = 200, **changes: Any) -> None:
        """The next version; `answered` 0 is a write of which the log does not know whether it was done."""
        moved = Transition(at=AT, phase=phase, step=step, weight=weight, sentence="")
        same = (phase, step, weight) == (self.state.phase, self.state.step, self.state.weight)
        history = changes.pop("history", self.state.history if same else (*self.state.history, moved))
        self.state = replace(self.state, phase=phase, step=step, weight=weight, history=history, **changes)
        self.version += 1
        status = {"version": self.version, "state": pack_state(self.state, self.version)}
        tested = {"op": "test", "path": "/metadata/uid", "value": UID}
        body = [tested, {"op": "add", "path": "/status", "value": status}]
        spec = {"steps": [{"weight": w} for w in STEPS]}
        answer = {"metadata": self._meta("api", UID), "spec": spec, "status": status}
        self._write("canaries", "api", body, answer, answered, subresource="status")

    def route(self, weight: int | None = None, *, version: int | None = None, says: int | None = None) -> None:
        """The VirtualService for a version; `says` is what its routes give where that is not what the stamp says."""
        weight = self.state.weight if weight is None else weight
        stamp = str(Stamp("shop/api", UID, version or self.version, weight, "api"))
        given = weight if says is None else says
        to = [{"destination": {"host": "api-canary"}, "weight": given}, {"destination": {"host": "api-stable"}}]
        answer = {"metadata": self._meta("api", "uid-of-the-route", stamp), "spec": {"http": [{"route": to}]}}
        self._write("virtualservices", "api", [_stamped(stamp)], answer)

    def deployment(self, name: str, *, version: int | None = None, **spec: Any) -> None:
        first = name not in self._spec
        self._spec[name] = {**self._spec.get(name, {"replicas": 2, "template": {"image": "v1"}}), **spec}
        stamp = str(Stamp("shop/api", UID, version or self.version, self.state.weight, "api"))
        answer = {"metadata": self._meta(name, f"uid-of-{name}", stamp), "spec": self._spec[name]}
        body = answer if first else [_stamped(stamp)]
        self._write("deployments", name, body, answer, verb="create" if first else "patch")

    def people(self, name: str, **spec: Any) -> None:
        """Somebody else changes a Deployment."""
        self._spec[name] = {**self._spec[name], **spec}
        answer = {"metadata": self._meta(name, f"uid-of-{name}"), "spec": self._spec[name]}
        self._write("deployments", name, {"spec": spec}, answer, user="anna")

    def report(self, *outages: datetime) -> Report:
        return check(Audit(self._file).requests(), outages=outages)

    def now(self) -> datetime:
        return AT + timedelta(seconds=self._etcd)

    def _meta(self, name: str, uid: str, stamp: str = "") -> dict[str, Any]:
        self._etcd += 1
        marks = {"annotations": {STAMP: stamp}} if stamp else {}
        return {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": str(self._etcd), **marks}

    def _write(
        self,
        resource: str,
        name: str,
        body: Any,
        answer: Any,
        status: int = 200,
        *,
        subresource: str = "",
        verb: str = "patch",
        user: str = ACCOUNT,
    ) -> None:
        at = self.now().isoformat()
        event = {
            "verb": verb,
            "user": {"username": user},
            "objectRef": {"resource": resource, "subresource": subresource, "namespace": "shop", "name": name},
            "requestURI": f"/{resource}/{name}",
            "requestReceivedTimestamp": at,
            "stageTimestamp": at,
            "stage": "ResponseComplete",
            "responseStatus": {"code": status},
            "requestObject": body,
            "responseObject": answer if status == 200 else None,
        }
        with self._file.open("a") as lines:
            lines.write(json.dumps(event) + "\n")


def _stamped(stamp: str) -> dict[str, Any]:
    return {"op": "add", "path": f"/metadata/annotations/{STAMP.replace('/', '~1')}", "value": stamp}


def adopt(log: Log) -> None:
    log.save(Phase.IDLE, -1, 0)
    log.deployment("api-stable")
    log.route()
    log.save(Phase.IDLE, -1, 0, stable_revision="a")
    log.deployment("api", replicas=0)


def begin(log: Log) -> None:
    log.people("api", template={"image": "v2"})
    log.save(Phase.WAITING, -1, 0, number=1, rollout="api-1", revision="b")
    log.route()
    log.deployment("api", replicas=2)
    log.deployment("api", paused=True)


def step(log: Log, number: int) -> None:
    log.save(Phase.PROGRESSING, number, STEPS[number])
    log.route()
    log.save(Phase.PROGRESSING, number, STEPS[number], decisions=1)  # a look


def promote(log: Log) -> None:
    log.save(Phase.PROMOTING, 1, 100)
    log.route()
    log.deployment("api-stable", template={"image": "v2"})
    for weight in (50, 0):
        log.save(Phase.PROMOTING, 1, weight)
        log.route()
    log.save(Phase.SUCCEEDED, 1, 0, stable_revision="b")
    log.route()
    log.deployment("api", replicas=0, paused=None)


def begun(log: Log) -> None:
    adopt(log)
    begin(log)
    step(log, 0)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "audit.log")


def test_a_whole_promotion_is_legal(log: Log) -> None:
    begun(log)
    step(log, 1)
    promote(log)
    report = log.report()
    assert report.violations == []
    assert (report.saves, report.routes, report.interrupted, report.late) == (11, 8, 0, 0)


def test_a_whole_rollback_is_legal(log: Log) -> None:
    begun(log)
    log.save(Phase.ROLLING_BACK, 0, 0)
    log.route()
    log.save(Phase.ROLLED_BACK, 0, 0)
    log.route()
    log.deployment("api", replicas=0)
    assert log.report().violations == []


def test_a_killed_daemon_whose_successor_writes_the_route_is_legal_and_counted(log: Log) -> None:
    begun(log)
    log.save(Phase.PROGRESSING, 1, 50)
    log.save(Phase.PROGRESSING, 1, 50, decisions=2)  # somebody else's look, who then writes the route
    log.route()
    report = log.report()
    assert report.violations == []
    assert report.interrupted == 1


def test_a_save_without_an_answer_counts_when_the_next_one_builds_on_it(log: Log) -> None:
    begun(log)
    log.save(Phase.PROGRESSING, 1, 50, answered=504)
    log.save(Phase.PROGRESSING, 1, 50, decisions=2)
    log.route()
    report = log.report()
    assert report.violations == []
    assert report.unanswered == 1


def test_a_version_may_be_missing_only_where_the_server_was_killed(log: Log) -> None:
    begun(log)
    killed = log.now()
    log.version += 1
    log.save(Phase.PROGRESSING, 0, 20, decisions=2)
    log.route(version=log.version - 1)
    assert log.report(killed).violations == []
    assert log.report(killed - timedelta(seconds=5)).violations != []
    log.version += 2
    log.save(Phase.PROGRESSING, 0, 20, decisions=3)
    assert log.report(killed, log.now() - timedelta(seconds=1)).violations != []


def _lost_save(log: Log) -> None:
    log.version += 1
    log.save(Phase.PROGRESSING, 0, 20, decisions=2)


def _skipped(log: Log) -> None:
    log.save(Phase.PROMOTING, 0, 100)
    log.route()


def _doubled(log: Log) -> None:
    again = Transition(at=AT, phase=Phase.PROGRESSING, step=0, weight=20, sentence="")
    log.save(Phase.PROGRESSING, 0, 20, history=(*log.state.history, again))


def _undone(log: Log) -> None:
    step(log, 1)
    log.save(Phase.PROGRESSING, 0, 20)
    log.route()


def _wrong_weight(log: Log) -> None:
    log.save(Phase.PROGRESSING, 1, 60)
    log.route()


def _forgot(log: Log) -> None:
    log.save(Phase.PROGRESSING, 1, 50, history=())
    log.route()


def _again_from_the_start(log: Log) -> None:
    log.save(Phase.WAITING, -1, 0)
    log.route()


def _uncounted(log: Log) -> None:
    log.save(Phase.WAITING, -1, 0, number=3, history=())
    log.route()


def _during_promotion(log: Log) -> None:
    step(log, 1)
    log.save(Phase.PROMOTING, 1, 100)
    log.route()
    log.save(Phase.WAITING, -1, 0, number=2, revision="c", history=())
    log.route()


def _no_such_state(log: Log) -> None:
    log.route(50)


def _before_the_save(log: Log) -> None:
    log.route(50, version=log.version + 1)
    log.save(Phase.PROGRESSING, 1, 50)


def _stale(log: Log) -> None:
    older = log.version
    step(log, 1)
    log.route(20, version=older)
    log.route()


def _lying_stamp(log: Log) -> None:
    log.save(Phase.PROGRESSING, 1, 50)
    log.route(says=20)


def _left_behind(log: Log) -> None:
    log.save(Phase.PROGRESSING, 1, 50)


def _pods_under_traffic(log: Log) -> None:
    log.deployment("api", replicas=0)


def _unproven(log: Log) -> None:
    log.deployment("api-stable", template={"image": "v2"})


def _stale_deployment(log: Log) -> None:
    log.deployment("api", version=log.version - 3, paused=True)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        pytest.param(_lost_save, "versions must rise by one", id="version-gap"),
        pytest.param(_skipped, "no such transition", id="skipped-step"),
        pytest.param(_doubled, "1 transitions were added", id="doubled-step"),
        pytest.param(_undone, "no such transition", id="step-back"),
        pytest.param(_wrong_weight, "no such transition", id="weight-of-no-step"),
        pytest.param(_forgot, "its history is not that of", id="forgotten-history"),
        pytest.param(_again_from_the_start, "no such transition", id="restart-without-a-release"),
        pytest.param(_uncounted, "counted one by one", id="rollout-skipped"),
        pytest.param(_during_promotion, "never during a promotion", id="restart-during-promotion"),
        pytest.param(_no_such_state, "written with 50 %, but version 5", id="weight-that-was-not-saved"),
        pytest.param(_before_the_save, "before that was saved", id="route-before-save"),
        pytest.param(_stale, "after it had been for version", id="older-stamp"),
        pytest.param(_lying_stamp, "where the stamp says 50 %", id="stamp-and-route-disagree"),
        pytest.param(_left_behind, "at the end, but the last save", id="route-never-written"),
        pytest.param(_pods_under_traffic, "while the route gave it 20 %", id="pods-taken-under-traffic"),
        pytest.param(_unproven, "another template while the canary had 20 %", id="stable-upgraded-early"),
        pytest.param(_stale_deployment, "after it had been for version", id="older-stamp-on-a-deployment"),
    ],
)
def test_what_should_not_be_there_is_named(log: Log, planted: Callable[[Log], None], said: str) -> None:
    begun(log)
    assert log.report().violations == [], "legal so far"
    planted(log)
    violations = log.report().violations
    assert any(said in one for one in violations), violations
