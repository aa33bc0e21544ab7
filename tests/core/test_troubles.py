"""Troubles are told when they have lasted, once, and again when they are over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from canaryd.model import Observation, Phase, RolloutState, WorkloadView
from canaryd.reconcile import Outcome
from canaryd.troubles import AGAIN, LASTS, Troubles, text_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROUTE = "VirtualService shop/api does not exist"


def outcome(*trouble: str, failed: str = "", detail: str = "", phase: Phase = Phase.PROGRESSING) -> Outcome:
    view = WorkloadView(ready=not detail, detail=detail)
    seen = Observation(at=NOW, release=None, route=None, workloads=view, trouble=trouble)
    return Outcome("shop/api", RolloutState(phase=phase, stable_revision="r1"), seen=seen, failed=failed)


def test_what_is_over_in_a_moment_is_never_told() -> None:
    troubles = Troubles()
    assert troubles.due(outcome(ROUTE), NOW) is None
    assert troubles.due(outcome(ROUTE), NOW + LASTS / 2) is None
    assert troubles.due(outcome(), NOW + LASTS) is None
    assert troubles.due(outcome(ROUTE), NOW + 2 * LASTS) is None, "it begins anew"


def test_what_lasts_is_told_once_and_so_is_its_end() -> None:
    troubles = Troubles()
    troubles.due(outcome(ROUTE), NOW)
    assert troubles.due(outcome(ROUTE), NOW + LASTS) == ROUTE
    troubles.told("shop/api", ROUTE, NOW + LASTS)
    assert troubles.due(outcome(ROUTE), NOW + 100 * LASTS) is None
    assert troubles.due(outcome(), NOW + 101 * LASTS) == ""
    troubles.told("shop/api", "", NOW + 101 * LASTS)
    assert troubles.due(outcome(), NOW + 102 * LASTS) is None


def test_only_for_how_long_it_has_been_so_is_no_news_but_another_trouble_is_after_a_while() -> None:
    troubles = Troubles()
    troubles.due(outcome("no answer for 3 s"), NOW)
    troubles.told("shop/api", "no answer for 3 s", NOW)
    assert troubles.due(outcome("no answer for 99 s"), NOW + 2 * AGAIN) is None
    assert troubles.due(outcome(ROUTE), NOW + AGAIN - timedelta(seconds=1)) is None
    assert troubles.due(outcome(ROUTE), NOW + AGAIN) == ROUTE


def test_trouble_that_could_not_be_written_is_due_again() -> None:
    troubles = Troubles()
    troubles.due(outcome(failed="forbidden"), NOW)
    assert troubles.due(outcome(failed="forbidden"), NOW + LASTS) == "forbidden"
    assert troubles.due(outcome(failed="forbidden"), NOW + LASTS) == "forbidden", "nobody has been told"
    assert troubles.texts == ("forbidden",)
    troubles.keep(set())
    assert troubles.known == frozenset()


def test_workloads_that_lack_something_are_trouble_only_where_nothing_waits_for_them() -> None:
    few = "api-stable has 0 of 3 pods ready"
    assert text_of(outcome(detail=few, phase=Phase.SUCCEEDED)) == few
    assert text_of(outcome(detail=few, phase=Phase.WAITING)) == "", "the sentence of the decision says it"
    being_adopted = replace(outcome(detail=few, phase=Phase.IDLE), state=RolloutState())
    assert text_of(being_adopted) == ""
