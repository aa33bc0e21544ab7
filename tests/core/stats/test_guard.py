"""The guard against scrapes out of phase: a neighbouring interval may only take evidence away, in either direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from service import FOUR_EDGES, RULES, Service, history, run

from canaryd.model import Floats, Stretch
from canaryd.stats.evidence import Arrays, Item, update


def outage(stretch: Stretch, arm: str, share: float = 0.3) -> Stretch:
    """The same interval with so many of one arm's requests failing."""
    counts = getattr(stretch, arm)
    return replace(stretch, **{arm: replace(counts, failures=float(round(share * counts.requests)))})


def scored(now: Stretch, around: tuple[Stretch | None, Stretch | None], known: Arrays) -> tuple[Floats, Floats]:
    """Gains against and for the canary's errors, by one interval with its neighbours."""
    (after,) = update([Item(known, FOUR_EDGES, RULES, now, 0.25, True, around)])
    return after["worse"][0, 0] - known["worse"][0, 0], after["fine"][0] - known["fine"][0]


@pytest.mark.parametrize("side", [0, 1], ids=["before", "after"])
def test_an_outage_that_the_canary_shows_first_is_no_evidence_against_it(side: int) -> None:
    service = Service(FOUR_EDGES, seed=3)
    known = run(history(service, 12))
    now, neighbour = outage(service.stretch(0.25), "canary"), outage(service.stretch(0.25), "stable")
    around = (neighbour, None) if side == 0 else (None, neighbour)
    bare, _ = scored(now, (None, None), known)
    guarded, _ = scored(now, around, known)
    assert bare.max() > 50
    assert guarded.max() < 3


@pytest.mark.parametrize("side", [0, 1], ids=["before", "after"])
def test_an_outage_that_stable_shows_first_is_no_evidence_for_the_canary(side: int) -> None:
    service = Service(FOUR_EDGES, seed=4)
    known = run(history(service, 12))
    now, neighbour = outage(service.stretch(0.25), "stable"), service.stretch(0.25)
    around = (neighbour, None) if side == 0 else (None, neighbour)
    _, bare = scored(now, (None, None), known)
    _, guarded = scored(now, around, known)
    assert (bare > 5).all()  # beside a stable that fails so much, anything looks acceptable
    assert (guarded < bare / 5).all()


def test_whatever_the_neighbours_show_the_evidence_never_grows() -> None:
    draw = np.random.default_rng(5)
    service = Service(FOUR_EDGES, seed=5)
    known = run(history(service, 12))
    for _ in range(40):
        shares = draw.choice([0.0, 0.01, 0.1, 0.5], 4)
        now = outage(outage(service.stretch(0.25), "stable", shares[0]), "canary", shares[1])
        around = tuple(outage(service.stretch(0.25), "stable", s) for s in shares[2:])
        against, favour = scored(now, (None, None), known)
        less_against, less_favour = scored(now, (around[0], around[1]), known)
        assert (less_against <= against + 0.5).all()  # the neighbours' requests are not exactly as many
        assert (less_favour <= favour + 0.5).all()


def test_neighbours_that_are_alike_change_nothing() -> None:
    service = Service(FOUR_EDGES, seed=6)
    known = run(history(service, 12))
    now, before, after = (service.stretch(0.25) for _ in range(3))
    for bare, guarded in zip(scored(now, (None, None), known), scored(now, (before, after), known), strict=True):
        np.testing.assert_array_equal(bare, guarded)
