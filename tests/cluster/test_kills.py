"""canaryd is killed at any line, over and over, while releases go on.

CANARYD_KILLS=200 asks for as many kills (12 without it); 200 take about half an hour. Each run prints its seed, and
CANARYD_SEED repeats one, as far as processes and the clock can be repeated.
"""

from __future__ import annotations

import os
import random

import pytest
from bench import Bench, BenchPrometheus
from kill_scenes import NAME, RPS, Killer, Moves, Rollouts, history, quick
from release_scenes import Service

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CANARYD_KILLS", "12"))
SEED = int(os.environ.get("CANARYD_SEED", "0")) or random.randrange(1, 10**6)


def test_however_often_it_is_killed_no_step_is_lost_doubled_or_undone_and_no_request_is_lost(
    mesh: Bench, prometheus: BenchPrometheus, victim: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    load = mesh.load(RPS, f"{NAME}.shop.svc.cluster.local")
    with quick(mesh, prometheus, tmp_path_factory.mktemp("kills")) as running:
        killer = Killer(running, Moves(mesh, NAME), SEED)
        rollouts = Rollouts(victim, bad_every=4).start()
        while killer.kills < KILLS and not rollouts.failed:
            killer.strike()
        rollouts.finish()
    totals = load.stop()
    hits = f"{killer.leaders} of them of the leader, {killer.aimed} in the moment of a move"
    print(f"seed {SEED}: {killer.kills} kills, {killer.terms} SIGTERMs, {hits}")
    print(f"{rollouts.count('Succeeded')} promoted, {rollouts.count('RolledBack')} rolled back: {rollouts.done}")
    print(f"{totals.requests} requests, {len(totals.lost)} lost, {dict(totals.by_status)}")
    report = history(victim)
    assert totals.lost == []
    assert report.moves > 0
