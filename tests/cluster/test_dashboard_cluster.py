"""Two replicas with a dashboard each, on a real API server: the one that only watches shows and takes the same."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from bench import Bench, BenchPrometheus
from kill_scenes import NAME, Moves, quick, release
from release_scenes import Replica, Service

from canaryd.demo.processes import wait_until

pytestmark = pytest.mark.slow
KEY = f"shop/{NAME}"


def ask(port: int, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and text of a page; a form is sent as a person's browser would."""
    headers = {"accept": "application/json" if form else "text/html"}
    data = urlencode(form).encode() if form else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_the_replica_that_watches_shows_what_the_leader_does_and_takes_words_for_it(
    mesh: Bench, prometheus: BenchPrometheus, victim: Service, tmp_path: Path
) -> None:
    moves = Moves(mesh, NAME)
    with quick(mesh, prometheus, tmp_path, replicas=1) as whole:
        first = whole.leader()
        first.child.kill()  # only so that both that follow have a dashboard
        ports: dict[str, int] = {}
        for number, identity in enumerate(("canaryd", "canaryd-2")):
            port = 9290 + number
            board = {"listen": f"127.0.0.1:{port}", "actions": True, "auth": {"anonymous": "operator"}}
            ports[whole.start(identity, dashboard=board).child.name] = port
        leader = whole.leader()
        watching: Replica = next(r for r in whole.replicas if r.child.running and r is not leader)
        there, here = ports[leader.child.name], ports[watching.child.name]
        wait_until(lambda: "This one watches." in ask(here, "/")[1], "the replica that watches to say so", 20)
        assert leader.page()["me"] in ask(here, "/")[1]
        assert "This one watches." not in ask(there, "/")[1]
        with release(victim, moves, ends="RolledBack"):
            moves.wait_for("Progressing")
            run = victim.status()["rollout"]
            page = f"/canaries/{KEY}/rollouts/{run}"
            wait_until(lambda: "Progressing" in ask(there, page)[1], "the rollout to be shown by the leader", 20)
            wait_until(lambda: "Progressing" in ask(here, page)[1], "and by the one that watches", 20)
            text = ask(here, page)[1]
            words = {"form": text.partition('name="form" value="')[2][:64], "revision": victim.status()["revision"]}
            status, said = ask(
                here, f"/canaries/{KEY}/say", {**words, "action": "abort", "reason": "from the one that watches"}
            )
            told: dict[str, Any] = json.loads(said)
            assert (status, told["answer"]) == (200, "accepted"), told
            wait_until(lambda: "Rolled back" in ask(here, page)[1], "the end to be shown", 30, every=0.2)
        assert "from the one that watches" in ask(there, page)[1]
        status, said = ask(here, f"/canaries/{KEY}/say", {**words, "action": "resume", "reason": "too late"})
        assert (status, json.loads(said)["answer"]) == (409, "refused")
