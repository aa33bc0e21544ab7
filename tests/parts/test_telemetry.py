"""The daemon's own metrics, without a daemon."""

from __future__ import annotations

from datetime import UTC, datetime

from canaryd.model import RolloutState
from canaryd.reconcile import Outcome
from canaryd.telemetry import Telemetry

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def outcome(name: str) -> Outcome:
    body = {"phase": "Progressing", "verdict": "healthy", "weight": {"desired": 10, "configured": 10, "observed": None}}
    return Outcome(name, RolloutState(latest=body))


def test_a_tick_still_under_way_does_not_bring_back_a_canary_that_is_gone() -> None:
    telemetry = Telemetry()
    telemetry.ticked([outcome("api"), outcome("cart")], 0.01, NOW)
    telemetry.keep({"api"})
    telemetry.ticked([outcome("api"), outcome("cart")], 0.01, NOW)  # began before the document was deleted
    telemetry.placebo("cart", 50, 1)
    text = telemetry.exposition().decode()
    assert 'canaryd_weight{canary="api",kind="desired"} 10.0' in text
    assert 'canary="cart",' not in text
    assert 'canaryd_placebo_draws{canary="cart"}' not in text


def test_a_canary_that_comes_back_has_its_series_again() -> None:
    telemetry = Telemetry()
    telemetry.keep(set())
    telemetry.ticked([outcome("api")], 0.01, NOW)
    assert 'canaryd_phase{canary="api"' not in telemetry.exposition().decode()
    telemetry.keep({"api"})
    telemetry.ticked([outcome("api")], 0.01, NOW)
    assert 'canaryd_phase{canary="api",phase="Progressing"} 1.0' in telemetry.exposition().decode()
