"""The lease on a real API server: one leader at a time, whoever is killed, frozen or has a wrong clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from bench import Bench

from canaryd.demo.processes import Child, wait_until
from canaryd.errors import KubeConflictError, KubeNotFoundError
from canaryd.kube.client import JSON, KubeClient
from canaryd.kube.kinds import LEASES
from canaryd.kube.lease import Lease

NAMESPACE, NAME = "canaryd", "canaryd"
DURATION_S = 10.0

# Prints "TIME LEADING" 20 times a second, on the clock that all processes of a machine share.
CANDIDATE = """
import sys, time
from canaryd.kube.client import KubeClient
from canaryd.kube.lease import Lease
lease = Lease(KubeClient.connect(kubeconfig=sys.argv[1]), "canaryd", "canaryd", sys.argv[2])
lease.start()
while True:
    print(time.monotonic(), lease.leading, flush=True)
    time.sleep(0.05)
"""


class Candidate:
    """Another process that wants to lead."""

    def __init__(self, bench: Bench, name: str) -> None:
        argv = [sys.executable, "-c", CANDIDATE, str(bench.kubeconfig()), name]
        self.child: Child = bench.nursery.start(name, argv)

    def looks(self) -> list[tuple[float, bool]]:
        """When it looked, and whether it led."""
        lines = [line.split() for line in self.child.log.read_text().splitlines() if line[:1].isdigit()]
        return [(float(line[0]), line[1] == "True") for line in lines if len(line) == 2]

    def leads(self) -> bool:
        looks = self.looks()
        return bool(looks) and looks[-1][1]


@pytest.fixture
def admin(control_plane: Bench) -> Iterator[KubeClient]:
    """Starts without a lease."""
    client = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig()))
    remove(client)
    yield client
    remove(client)
    client.close()


def remove(client: KubeClient) -> None:
    with suppress(KubeNotFoundError):
        client.delete(LEASES, NAMESPACE, NAME)


@contextmanager
def candidate(
    bench: Bench,
    holder: str,
    on_gain: Callable[[], None] | None = None,
    on_loss: Callable[[], None] | None = None,
) -> Iterator[Lease]:
    client = KubeClient.connect(kubeconfig=str(bench.kubeconfig()))
    lease = Lease(client, NAMESPACE, NAME, holder)
    lease.start(on_gain, on_loss)
    try:
        yield lease
    finally:
        lease.stop()
        client.close()


def spec(client: KubeClient) -> JSON:
    found: JSON = client.get(LEASES, NAMESPACE, NAME)["spec"]
    return found


def seconds_until(probe: Callable[[], bool], what: str, timeout: float) -> float:
    began = time.monotonic()
    wait_until(probe, what, timeout)
    return time.monotonic() - began


def test_one_leads_and_a_release_hands_over_within_three_seconds(control_plane: Bench, admin: KubeClient) -> None:
    told: list[str] = []
    with candidate(control_plane, "one", lambda: told.append("gain"), lambda: told.append("loss")) as one:
        wait_until(lambda: one.leading, "the first to lead")
        with candidate(control_plane, "two") as two:
            wait_until(lambda: two.holder() == "one", "the second to see who leads")
            assert not two.leading
            assert one.holder() == "one"
            first = spec(admin)
            one.stop()
            assert not one.leading
            assert told == ["gain", "loss"]
            assert seconds_until(lambda: two.leading, "the second to lead", 5) <= 3.0
            second = spec(admin)
    assert (first["holderIdentity"], second["holderIdentity"]) == ("one", "two")
    assert second["leaseTransitions"] == first["leaseTransitions"] + 1
    assert second["leaseDurationSeconds"] == 10
    assert datetime.fromisoformat(first["renewTime"]).utcoffset() == timedelta(0)
    assert spec(admin)["holderIdentity"] == ""  # given back
    assert one.holder() == two.holder() == ""


def test_the_leader_renews_every_two_seconds_with_one_request_each(control_plane: Bench, admin: KubeClient) -> None:
    client = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig()))
    lease = Lease(client, NAMESPACE, NAME, "one")
    lease.start()
    wait_until(lambda: lease.leading, "it to lead")
    client.requests.clear()
    acquired = spec(admin)["acquireTime"]
    time.sleep(6.5)
    assert client.requests == {("update", "leases"): 3}
    assert spec(admin)["acquireTime"] == acquired
    lease.stop()
    client.close()


def test_a_leader_killed_with_kill_9_is_followed_within_twelve_seconds(control_plane: Bench, admin: KubeClient) -> None:
    first = Candidate(control_plane, "killed")
    wait_until(first.leads, "the process to lead", timeout=20)
    with candidate(control_plane, "heir") as heir:
        wait_until(lambda: heir.holder() == "killed", "the heir to see it")
        renewed = spec(admin)["renewTime"]
        wait_until(lambda: spec(admin)["renewTime"] != renewed, "a renewal")  # the worst moment is right after one
        first.child.kill()
        took = seconds_until(lambda: heir.leading, "the heir to lead", 15)
        print(f"failover after kill -9: {took:.1f} s")
        assert took <= 12.0
        assert heir.holder() == "heir"


def test_a_leader_that_was_frozen_knows_at_its_first_look_that_it_leads_no_more(
    control_plane: Bench, admin: KubeClient
) -> None:
    frozen = Candidate(control_plane, "frozen")
    wait_until(frozen.leads, "the process to lead", timeout=20)
    with candidate(control_plane, "other") as other:
        wait_until(lambda: other.holder() == "frozen", "the other to see it")
        frozen.child.freeze()
        stopped = time.monotonic()
        wait_until(lambda: other.leading, "the other to lead", 13)
        led_from = time.monotonic()
        time.sleep(15 - (time.monotonic() - stopped))
        thawed = time.monotonic()
        frozen.child.thaw()
        wait_until(lambda: frozen.looks()[-1][0] > thawed + 4, "some looks afterwards")
        after = [leading for at, leading in frozen.looks() if at > thawed]
        assert len(after) > 20
        assert not any(after)
        assert not [at for at, leading in frozen.looks() if leading and at > led_from]
        assert other.leading
    frozen.child.kill()


def elsewhere(hours: int) -> JSON:
    """The record of a leader whose clock is so many hours ahead."""
    there = (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "holderIdentity": "elsewhere",
        "leaseDurationSeconds": 10,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": there,
        "leaseTransitions": 3,
    }


def test_a_leader_whose_clock_is_an_hour_slow_keeps_its_lease_while_it_renews(
    control_plane: Bench, admin: KubeClient
) -> None:
    lease = admin.create(LEASES, NAMESPACE, {"metadata": {"name": NAME}, "spec": elsewhere(-1)})
    with candidate(control_plane, "here") as here:
        for _ in range(7):  # longer than the duration
            lease = admin.replace(LEASES, NAMESPACE, NAME, {**lease, "spec": elsewhere(-1)})  # never a conflict
            time.sleep(2)
            assert not here.leading
            assert here.holder() == "elsewhere"


def test_a_dead_leader_whose_clock_was_an_hour_fast_is_followed_all_the_same(
    control_plane: Bench, admin: KubeClient
) -> None:
    lease = admin.create(LEASES, NAMESPACE, {"metadata": {"name": NAME}, "spec": elsewhere(1)})
    with candidate(control_plane, "here") as here:
        took = seconds_until(lambda: here.leading, "it to be taken over", 15)
        assert DURATION_S <= took <= 12
        assert spec(admin)["leaseTransitions"] == 4
        with pytest.raises(KubeConflictError):  # the dead one was only asleep
            admin.replace(LEASES, NAMESPACE, NAME, {**lease, "spec": elsewhere(1)})


def test_a_lease_deleted_under_its_leader_is_made_anew_by_the_leader_and_nobody_else(
    control_plane: Bench, admin: KubeClient
) -> None:
    with candidate(control_plane, "one") as one:
        wait_until(lambda: one.leading, "the first to lead")
        with candidate(control_plane, "two") as two:
            wait_until(lambda: two.holder() == "one", "the second to see it")
            for _ in range(2):
                remove(admin)
                until = time.monotonic() + 3
                while time.monotonic() < until:
                    assert not two.leading
                    assert one.leading
                    time.sleep(0.05)
                assert spec(admin)["holderIdentity"] == "one"


def test_a_lease_deleted_after_its_leader_died_is_taken_when_the_leaders_time_is_over(
    control_plane: Bench, admin: KubeClient
) -> None:
    first = Candidate(control_plane, "dying")
    wait_until(first.leads, "the process to lead", timeout=20)
    with candidate(control_plane, "heir") as heir:
        wait_until(lambda: heir.holder() == "dying", "the heir to see it")
        first.child.kill()
        remove(admin)
        took = seconds_until(lambda: heir.leading, "the heir to lead", 15)
        assert 5 < took <= 12.5


def test_a_lease_stolen_by_force_is_lost_at_the_next_renewal(control_plane: Bench, admin: KubeClient) -> None:
    with candidate(control_plane, "one") as one:
        wait_until(lambda: one.leading, "it to lead")
        admin.patch(LEASES, NAMESPACE, NAME, {"spec": {"holderIdentity": "thief"}}, how="merge")
        assert seconds_until(lambda: not one.leading, "it to notice", 5) <= 2.5
        assert one.holder() == "thief"


def test_the_same_name_taken_by_another_process_counts_as_anothers(control_plane: Bench, admin: KubeClient) -> None:
    with candidate(control_plane, "twin") as one:
        wait_until(lambda: one.leading, "the first to lead")
        with candidate(control_plane, "twin") as two:
            time.sleep(4)
            assert one.leading
            assert not two.leading


def test_a_server_that_is_away_for_longer_than_the_lease_leaves_nobody_leading(
    control_plane: Bench, admin: KubeClient
) -> None:
    told: list[tuple[str, float]] = []
    with candidate(
        control_plane,
        "one",
        lambda: told.append(("gain", time.monotonic())),
        lambda: told.append(("loss", time.monotonic())),
    ) as one:
        wait_until(lambda: one.leading, "it to lead")
        control_plane.plane.kill_apiserver()
        try:
            away = time.monotonic()
            took = seconds_until(lambda: not one.leading, "it to stop leading", 10)
            assert 5 < took <= 8.1  # 80 % of the duration, counted from the last renewal
            wait_until(lambda: len(told) == 2, "the loss to be told", 1)
            time.sleep(max(0.0, away + 12 - time.monotonic()))
            assert not one.leading
        finally:
            control_plane.plane.start_apiserver()
        wait_until(lambda: one.leading, "it to lead again", 15)
        assert [what for what, _ in told] == ["gain", "loss", "gain"]


def test_a_server_that_hangs_costs_the_lead_on_time(control_plane: Bench, admin: KubeClient) -> None:
    lost: list[float] = []
    with candidate(control_plane, "one", None, lambda: lost.append(time.monotonic())) as one:
        wait_until(lambda: one.leading, "it to lead")
        control_plane.plane.apiserver.freeze()
        frozen = time.monotonic()
        try:
            wait_until(lambda: bool(lost), "the loss to be told", 12)
            assert lost[0] - frozen <= 8.5
            assert not one.leading
        finally:
            control_plane.plane.apiserver.thaw()


def test_two_leads_never_overlap_while_processes_are_frozen_and_thawed(control_plane: Bench, admin: KubeClient) -> None:
    both = [Candidate(control_plane, name) for name in ("left", "right")]
    wait_until(lambda: any(c.leads() for c in both), "somebody to lead", timeout=20)
    for _ in range(2):
        leader = next(c for c in both if c.leads())
        leader.child.freeze()
        wait_until(lambda leader=leader: any(c.leads() for c in both if c is not leader), "the other", timeout=14)
        leader.child.thaw()
        time.sleep(1)
    for one in both:
        one.child.kill()
    spans = [_spans(one.looks()) for one in both]
    assert all(spans)
    for begin, end in spans[0]:
        for start, stop in spans[1]:
            assert end < start or stop < begin, spans


def _spans(looks: list[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Stretches of looks without a gap at which it led: when the first and the last of them was."""
    spans: list[list[float]] = []
    for (before, led), (at, leads) in pairwise(looks):
        if leads and led and at - before < 1:
            spans[-1][1] = at
        elif leads:
            spans.append([at, at])
    return [(begin, end) for begin, end in spans]
