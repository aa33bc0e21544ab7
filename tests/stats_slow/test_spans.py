"""The claims about spans on more rollouts than the core's tests have time for."""

from __future__ import annotations

import os
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core" / "stats"))

from test_span_evidence import ALPHA, CANARY, PLAN, Rollouts, Traffic

from canaryd.stats import traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CANARYD_LONG" not in os.environ, reason="two minutes; set CANARYD_LONG=1"),
]


@pytest.mark.parametrize("spans", [20, 3])
def test_no_good_canary_of_hundreds_is_suspected(spans: int) -> None:
    """30 operations, 80 looks: hardly ever 1/alpha, of which a rollback by spans alone needs 20 times as much."""
    values = np.array(Rollouts(Traffic(30, seed=11), 300, spans, PLAN).log_e)
    assert (values.max(0) >= log(1 / ALPHA)).sum() <= 6  # 1 % of 300 and three standard errors
    assert (values >= log(20 / ALPHA)).sum() == 0


def test_at_the_edge_of_the_tolerance_the_promise_holds() -> None:
    traffic = Traffic(30, seed=12)
    traffic.failing[:, CANARY] = 1.05 * 0.01 + 0.001
    values = np.array(Rollouts(traffic, 200, 20, PLAN).log_e)
    assert (values.max(0) >= log(1 / ALPHA)).sum() <= 6
    assert (values >= log(20 / ALPHA)).sum() == 0


def test_how_soon_one_of_thirty_operations_is_found() -> None:
    """1 % to 20 % at 20 spans an interval: always, with a median of at most 45 intervals; at 3 spans hardly ever."""
    for spans, share, median in ((20, 1.0, 45), (3, 0.0, 81)):
        traffic = Traffic(30, seed=13)
        traffic.failing[7, CANARY] = 0.20
        trials = Rollouts(traffic, 100, spans, PLAN)
        found = np.array(trials.log_e) >= log(20 / ALPHA)
        when = np.where(found.any(0), found.argmax(0) + 1, len(PLAN) + 1)
        print(f"{spans} spans: found {found.any(0).mean():.2f}, median {np.median(when):.0f} intervals")
        assert found.any(0).mean() >= share
        assert np.median(when) <= median
        named = trials.seen().named
        others = named.sum() - named[:, 7, traces.FAILED].sum()
        assert others <= 0.05 * max(named.sum(), 1)
