"""canaryd is killed at any line, over and over, while releases go on.

CANARYD_KILLS=200 asks for as many kills (12 without it); 200 take about half an hour. Each run prints its seed, and
CANARYD_SEED repeats one, as far as processes and the clock can be repeated.
"""

from __future__ import annotations

import os
import random

import pytest
from bench import Bench, BenchPrometheus
from kill_scenes import Killer, Moves, Rollouts, history, quick, quick_service

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CANARYD_KILLS", "12"))
SEED = int(os.environ.get("CANARYD_SEED", "0")) or random.randrange(1, 10**6)


def test_however_often_it_is_killed_no_step_is_lost_doubled_or_undone_and_no_request_is_lost(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with quick(mesh, prometheus, tmp_path_factory.mktemp("kills")) as running:
        one = quick_service(mesh, "kills")
        killer = Killer(running, Moves(mesh, "kills"), SEED)
        rollouts = Rollouts(one, bad_every=4).start()
        while killer.kills < KILLS and not rollouts.failed:
            killer.strike()
        rollouts.finish()
        assert one.load is not None
        totals = one.load.stop()
    hits = f"{killer.leaders} of them of the leader, {killer.aimed} in the moment of a move"
    print(f"seed {SEED}: {killer.kills} kills, {killer.terms} SIGTERMs, {hits}")
    print(f"{rollouts.count('Succeeded')} promoted, {rollouts.count('RolledBack')} rolled back: {rollouts.done}")
    print(f"{totals.requests} requests, {len(totals.lost)} lost, {dict(totals.by_status)}")
    report = history(mesh)
    assert totals.lost == []
    assert report.saves > 0
