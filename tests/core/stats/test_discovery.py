"""Naming what is worse, among the metrics of one canary and among the releases of a fleet."""

from __future__ import annotations

import numpy as np
import pytest

from canaryd import render
from canaryd.stats.discovery import e_bh


def naive(e: list[float], rate: float) -> list[bool]:
    """The procedure as it is published, one hypothesis at a time."""
    count, best = len(e), 0
    for k in range(1, count + 1):
        if sum(v >= count / (rate * k) for v in e) >= k:
            best = k
    return [best > 0 and v >= count / (rate * best) for v in e]


def test_the_procedure_is_the_published_one() -> None:
    draw = np.random.default_rng(3)
    for _ in range(300):
        log_e = draw.normal(2, 3, draw.integers(1, 9))
        got = e_bh(log_e, np.ones(len(log_e), dtype=bool), 0.05)
        assert got.tolist() == naive(np.exp(log_e).tolist(), 0.05)


def test_what_is_not_tested_neither_counts_nor_is_named() -> None:
    log_e = np.log(np.array([[45.0, 1e9, 1.0]]))
    assert e_bh(log_e, np.array([[True, False, True]])).tolist() == [[True, False, False]]
    assert e_bh(log_e, np.array([[True, True, True]])).tolist() == [[True, True, False]]
    assert not e_bh(log_e, np.zeros((1, 3), dtype=bool)).any()


def test_among_true_nulls_alarms_are_rare_whatever_the_dependence() -> None:
    draw = np.random.default_rng(4)
    common = draw.normal(size=(4000, 1))
    z = 0.8 * common + 0.6 * draw.normal(size=(4000, 20))  # twenty e-values that rise and fall together
    log_e = 1.5 * z - 1.5**2 / 2
    assert e_bh(log_e, np.ones_like(log_e, dtype=bool)).any(1).mean() <= 0.05


def test_an_alarm_that_only_the_many_releases_explain_does_not_stand() -> None:
    def release(name: str, log_e: float, verdict: str) -> dict[str, object]:
        return {"canary": name, "verdict": verdict, "evidence": {"logE": log_e}}

    calm = [release(f"calm-{i}", -0.5, "healthy") for i in range(20)]
    alarms = [release("surely", 30.0, "regressed"), release("barely", 4.7, "regressed")]
    said = render.standing([*calm, *alarms])
    assert "1 of 2 regressed releases stand among 22" in said
    assert said.endswith(": surely")
    assert render.standing([*calm, alarms[0]]) == ""


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0)], ids=str)
def test_nothing_to_test_names_nothing(shape: tuple[int, ...]) -> None:
    assert not e_bh(np.zeros(shape), np.ones(shape, dtype=bool)).any()
