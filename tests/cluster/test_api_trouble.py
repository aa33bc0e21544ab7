"""The API server dies, forgets, stalls or is fought over in the middle of a rollout: nothing is lost, all ends right.

In short form its death while the canary has traffic, and a second writer; CANARYD_LONG=1 adds all else.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from bench import ApiError, Bench, BenchPrometheus
from history_checker import ACCOUNT
from kill_scenes import NAME, Moves, outage, quick, release
from release_scenes import Canaryd, Service

pytestmark = pytest.mark.slow

LONG = os.environ.get("CANARYD_LONG") == "1"
long_form = pytest.mark.skipif(not LONG, reason="only with CANARYD_LONG=1")


@pytest.fixture(scope="module")
def moves(mesh: Bench, victim: Service) -> Moves:
    return Moves(mesh, NAME)


@pytest.fixture(scope="module")
def running(
    mesh: Bench, prometheus: BenchPrometheus, victim: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    with quick(mesh, prometheus, tmp_path_factory.mktemp("trouble")) as both:
        yield both


@pytest.mark.parametrize(
    ("phase", "step", "words", "ends"),
    [
        pytest.param("Progressing", "2/2", "", "Succeeded", id="Progressing"),
        pytest.param("Waiting", "", "", "Succeeded", id="Waiting", marks=long_form),
        pytest.param("Promoting", "", "", "Succeeded", id="Promoting", marks=long_form),
        pytest.param("RollingBack", "", "-err60", "RolledBack", id="RollingBack", marks=long_form),
    ],
)
def test_an_api_server_that_is_killed_and_comes_back_costs_no_step_and_no_request(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves, phase: str, step: str, words: str, ends: str
) -> None:
    with release(victim, moves, words, ends=ends):
        moves.wait_for(phase, step)
        with outage():
            mesh.plane.kill_apiserver()
        time.sleep(random.uniform(5, 8))
        mesh.plane.start_apiserver()


@long_form
def test_watches_that_the_server_has_forgotten_are_opened_anew_and_nothing_is_missed(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves
) -> None:
    with release(victim, moves):
        for phase in ("Progressing", "Promoting"):
            moves.wait_for(phase)
            with outage():
                mesh.plane.expire_watches()


@long_form
def test_an_etcd_that_stands_still_for_20_seconds_holds_a_rollout_and_harms_nothing(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves
) -> None:
    with release(victim, moves):
        moves.wait_for("Progressing")
        mesh.plane.pause_etcd(20)


def test_a_second_writer_of_labels_fifty_times_a_second_disturbs_no_rollout(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves
) -> None:
    since = datetime.now(UTC)
    with _storm(mesh) as written, release(victim, moves) as made:
        pass
    asked = Counter(
        (request.verb, request.resource, request.status)
        for request in mesh.audit.requests(ACCOUNT, since)
        if request.resource not in ("leases", "selfsubjectaccessreviews", "events") and request.resource
    )
    print(f"{sum(written.values())} labels in {made.seconds:.0f} s against {sum(asked.values())} requests: {asked}")
    assert min(written.values()) > 5 * made.seconds
    assert sum(asked.values()) < 150


@long_form
def test_a_token_that_is_replaced_and_revoked_in_mid_rollout_is_read_anew(
    mesh: Bench, prometheus: BenchPrometheus, victim: Service, moves: Moves, tmp_path_factory: pytest.TempPathFactory
) -> None:
    token = mesh.plane.rotating_token("canaryd", "canaryd")
    directory = tmp_path_factory.mktemp("token")
    with quick(mesh, prometheus, directory, kubeconfig=token.kubeconfig) as running:
        leader = running.leader()
        with release(victim, moves):
            for phase, step in (("Progressing", "1/2"), ("Progressing", "2/2"), ("Promoting", "")):
                moves.wait_for(phase, step)
                token.rotate()
                time.sleep(1)
        assert leader.leads()


@contextmanager
def _storm(mesh: Bench) -> Iterator[Counter[str]]:
    """Labels of the Canary, its VirtualService and both Deployments, about 50 times a second in all."""
    ended, written, refused = threading.Event(), Counter[str](), list[str]()
    places = (("canaries", NAME), ("virtualservices", NAME), ("deployments", NAME), ("deployments", f"{NAME}-stable"))

    def write() -> None:
        client = mesh.plane.new_client("admin")
        for number in range(10**6):
            for resource, name in places:
                began = time.monotonic()
                try:
                    client.patch(resource, name, {"metadata": {"labels": {"storm": str(number)}}})
                    written[f"{resource} {name}"] += 1
                except ApiError as e:
                    refused.append(str(e))
                if ended.wait(max(0.0, 0.02 - (time.monotonic() - began))):
                    client.close()
                    return

    thread = threading.Thread(target=write, name="storm", daemon=True)
    thread.start()
    try:
        yield written
    finally:
        ended.set()
        thread.join(10)
    assert refused == []
