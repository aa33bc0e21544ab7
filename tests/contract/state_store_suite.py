"""What every state store promises, as tests that want two fixtures: `store` and `ability`.

Run by tests/contract for the stores that need nothing, and by tests/cluster for the one that needs an API server.
Where a store cannot do what another can, its ability says so and the test says what it promises instead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from canaryd.errors import ConflictError, OverrideError, StoreError
from canaryd.model import (
    Action,
    Answer,
    DecisionKind,
    Evidence,
    Override,
    Phase,
    Record,
    Release,
    RolloutState,
)
from canaryd.ports import MOST_NOTES, NOTE

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
API, WEB, CART = "shop/api", "shop/web", "shop/cart"


@dataclass(frozen=True)
class Ability:
    """What stores may differ in. The default is a store that keeps everything itself."""

    releases: bool = True  # people say it which revision should run
    any_name: bool = True  # a canary may be called anything
    counts_words: bool = True  # the version rises with a word of a person, not only with a save
    writes_told: bool = True  # that something was told is a write of its own
    forgets_by_age: bool = True  # else by size
    keeps_heartbeat: bool = True  # else it is told who leads
    heartbeat: tuple[str, datetime] | None = None  # what it was told


def record(n: int, canary: str = API, *, at: datetime | None = None, tell: bool = False, kind: str = "hold") -> Record:
    return Record(f"{canary}/{n}", canary, at or NOW + n * SECOND, DecisionKind(kind), f"decision {n}", {"n": n}, tell)


def word(id_: str, *, action: Action = Action.PAUSE, at: datetime = NOW) -> Override:
    return Override(id_, action, "r2", "anna", "looks odd", at)


def answer(id_: str, *, accepted: bool = True) -> Answer:
    return Answer(id_, Action.PAUSE, accepted, "paused at 25 %", NOW)


def ids(records: tuple[Record, ...]) -> list[str]:
    return [r.id for r in records]


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_anything_there_is_version_zero_and_no_state(store: Any) -> None:
    stored = store.load(API)
    assert (stored.version, stored.state, stored.release, stored.overrides) == (0, None, None, ())
    assert store.records(API) == ()
    assert store.owed() == ()
    assert store.canaries() == ()


def test_what_was_saved_is_loaded_with_its_version(store: Any) -> None:
    evidence = Evidence(NOW, arrays={"wealth": np.array([1.0, np.inf, np.nan])}, pods={"b-1": NOW})
    state = RolloutState(rollout="api-1", phase=Phase.PROGRESSING, weight=25, evidence=evidence, latest={"step": 2})
    assert store.save(API, state, 0, []) == 1
    stored = store.load(API)
    assert stored.version == 1
    assert (stored.state.weight, stored.state.phase, stored.state.latest) == (25, Phase.PROGRESSING, {"step": 2})
    assert stored.state.evidence.arrays["wealth"].tobytes() == evidence.arrays["wealth"].tobytes()
    assert store.save(API, RolloutState(weight=50), 1, []) == 2
    assert store.load(API).state == RolloutState(weight=50)


def test_the_loser_of_a_race_changes_nothing(store: Any) -> None:
    store.override(API, word("o1"))
    store.save(API, RolloutState(weight=4), store.load(API).version, [])
    seen = store.save(API, RolloutState(weight=5), store.load(API).version, [record(1)])
    loser = RolloutState(weight=99, answered=(answer("o1"),))
    for stale in (0, seen - 1, seen + 1):
        mark = store.mark()
        with pytest.raises(ConflictError):
            store.save(API, loser, stale, [record(2, tell=True)])
        assert store.mark() == mark
    stored = store.load(API)
    assert (stored.version, stored.state) == (seen, RolloutState(weight=5))
    assert [o.id for o in stored.overrides] == ["o1"]
    assert ids(store.records(API)) == [f"{API}/1"]
    assert store.owed() == ()


def test_a_decision_made_without_hearing_a_release_is_refused(store: Any, ability: Ability) -> None:
    seen = store.load(API).version
    if not ability.releases:
        with pytest.raises(OverrideError, match="pod template"):
            store.release(API, Release("r2", "anna", NOW))
        assert store.save(API, RolloutState(), seen, []) == seen + 1
        return
    assert store.release(API, Release("r2", "anna", NOW)) == seen + 1
    with pytest.raises(ConflictError):
        store.save(API, RolloutState(), seen, [])
    stored = store.load(API)
    assert (stored.release, stored.state, stored.version) == (Release("r2", "anna", NOW), None, seen + 1)


def test_a_decision_made_without_hearing_an_override_is_refused(store: Any, ability: Ability) -> None:
    seen = store.save(API, RolloutState(weight=5), 0, [])
    assert store.override(API, word("o1")) == seen + ability.counts_words
    with pytest.raises(ConflictError):
        store.save(API, RolloutState(weight=10), seen, [])
    assert store.load(API).state == RolloutState(weight=5)
    heard = store.load(API).version
    assert store.save(API, RolloutState(weight=10), heard, []) == heard + 1


def test_a_release_outlives_saves_and_the_last_one_counts(store: Any, ability: Ability) -> None:
    if not ability.releases:
        assert store.load(API).release is None  # whoever reads the pod template knows
        return
    store.release(API, Release("r2"))
    store.release(API, Release("r3", "ben", NOW))
    store.save(API, RolloutState(), 2, [])
    assert store.load(API).release == Release("r3", "ben", NOW)


def test_canaries_do_not_touch_each_other(store: Any, ability: Ability) -> None:
    store.save(API, RolloutState(weight=5), 0, [record(1)])
    store.save(WEB, RolloutState(weight=7), 0, [record(1, WEB)])
    store.override(WEB, word("o1"))
    store.override(CART, word("o2"))
    assert store.load(API).version == 1
    assert store.load(API).overrides == ()
    words = ability.counts_words
    assert (store.load(WEB).version, store.load(CART).version) == (1 + words, words)
    assert ids(store.records(WEB)) == [f"{WEB}/1"]
    assert store.canaries() == (API, CART, WEB)


def test_any_name_is_a_name_or_is_said_not_to_be_one(store: Any, ability: Ability) -> None:
    odd = "a'; DROP TABLE rollouts; --\n✓\x00"
    if not ability.any_name:
        for name in (odd, "shop/api/../../kube-system/secret", "api", "", "shop/%61pi"):
            with pytest.raises(StoreError, match="no Canary"):
                store.save(name, RolloutState(), 0, [])
            with pytest.raises(StoreError, match="no Canary"):
                store.load(name)
        return
    store.save(odd, RolloutState(sentence=odd), 0, [record(1, odd)])
    assert store.load(odd).state.sentence == odd
    assert ids(store.records(odd)) == [f"{odd}/1"]


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_loaded_whole_and_in_the_order_they_were_said(store: Any) -> None:
    said = [word("z", at=NOW + SECOND), word("a", action=Action.PROMOTE), word("m", at=NOW - SECOND)]
    for override in said:
        store.override(API, override)
    assert store.load(API).overrides == tuple(said)


def test_the_same_override_twice_is_once(store: Any) -> None:
    version = store.override(API, word("o1"))
    mark = store.mark()
    assert store.override(API, word("o1", action=Action.ABORT)) == version
    assert store.load(API).overrides == (word("o1"),)
    assert store.mark() == mark


def test_an_answered_override_vanishes_and_never_comes_back(store: Any) -> None:
    store.override(API, word("o1"))
    store.override(API, word("o2"))
    heard = store.load(API).version
    version = store.save(API, RolloutState(answered=(answer("o1"), answer("never-said"))), heard, [])
    assert [o.id for o in store.load(API).overrides] == ["o2"]
    assert store.override(API, word("o1")) == version
    store.save(API, RolloutState(), version, [])  # the answer has left the bounded list of the state
    assert [o.id for o in store.load(API).overrides] == ["o2"]


def test_an_answer_to_another_canarys_override_answers_nothing(store: Any) -> None:
    store.override(API, word("o1"))
    store.save(WEB, RolloutState(answered=(answer("o1"),)), 0, [])
    assert [o.id for o in store.load(API).overrides] == ["o1"]


def test_the_audit_keeps_every_word_with_its_first_answer(store: Any) -> None:
    store.override(API, word("o1"))
    store.override(API, word("o2"))
    store.override(WEB, word("o3"))
    heard = store.load(API).version
    version = store.save(API, RolloutState(answered=(answer("o1", accepted=False),)), heard, [])
    store.save(API, RolloutState(answered=(answer("o1"),)), version, [])
    assert store.audit(API) == ((word("o2"), None), (word("o1"), answer("o1", accepted=False)))
    assert store.audit(API, limit=1) == ((word("o2"), None),)
    assert store.audit(CART) == ()


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_kept_once_and_a_save_that_repeats_one_changes_nothing(store: Any) -> None:
    store.save(API, RolloutState(weight=5), 0, [record(1)])
    for again in ([record(1)], [record(2), record(1)], [record(3), record(3)]):
        with pytest.raises(ConflictError):
            store.save(API, RolloutState(weight=10), 1, again)
    assert (store.load(API).version, store.load(API).state) == (1, RolloutState(weight=5))
    assert ids(store.records(API)) == [f"{API}/1"]


def test_records_come_whole_and_newest_first_also_when_the_clock_was_set_back(store: Any) -> None:
    saved = [record(1, tell=True), record(2, at=NOW - timedelta(hours=1)), record(3)]
    store.save(API, RolloutState(), 0, saved)
    assert store.records(API) == tuple(reversed(saved))
    assert ids(store.records(API, limit=2)) == [f"{API}/3", f"{API}/2"]
    assert store.records(API, limit=0) == ()


def test_records_are_chosen_by_time_and_kind(store: Any) -> None:
    kinds = ["start", "hold", "advance", "hold", "rollback"]
    store.save(API, RolloutState(), 0, [record(n, kind=k) for n, k in enumerate(kinds, 1)])
    assert ids(store.records(API, before=NOW + 3 * SECOND)) == [f"{API}/3", f"{API}/2", f"{API}/1"]
    assert ids(store.records(API, kinds=["hold"])) == [f"{API}/4", f"{API}/2"]
    assert ids(store.records(API, kinds=(DecisionKind.START, DecisionKind.ROLLBACK))) == [f"{API}/5", f"{API}/1"]
    assert ids(store.records(API, kinds=["hold"], before=NOW + 3 * SECOND, limit=1)) == [f"{API}/2"]
    assert store.records(API, kinds=["no such kind"]) == ()


def test_what_shall_be_told_is_owed_oldest_first_until_it_is_told(store: Any) -> None:
    store.save(API, RolloutState(), 0, [record(1, tell=True), record(2), record(3, tell=True)])
    store.save(WEB, RolloutState(), 0, [record(1, WEB, at=NOW + 4 * SECOND, tell=True)])
    assert ids(store.owed()) == [f"{API}/1", f"{API}/3", f"{WEB}/1"]
    assert ids(store.owed(limit=1)) == [f"{API}/1"]
    store.told([f"{API}/1", "unknown", f"{API}/2"])
    store.told([])
    assert ids(store.owed()) == [f"{API}/3", f"{WEB}/1"]
    store.told([f"{API}/3", f"{WEB}/1"])
    assert store.owed() == ()
    assert ids(store.records(API)) == [f"{API}/3", f"{API}/2", f"{API}/1"]


def test_what_is_owed_of_one_canary_keeps_its_order_when_the_clock_was_set_back(store: Any) -> None:
    saved = [record(1, tell=True), record(2, at=NOW - timedelta(hours=1), tell=True), record(3, tell=True)]
    store.save(API, RolloutState(), 0, saved)
    assert store.owed() == tuple(saved)


def test_telling_does_not_make_a_decision_stale(store: Any) -> None:
    version = store.save(API, RolloutState(), 0, [record(1, tell=True)])
    store.told([f"{API}/1"])
    assert store.save(API, RolloutState(), version, []) == version + 1


def test_what_one_notifier_has_told_another_still_owes(store: Any) -> None:
    store.save(API, RolloutState(), 0, [record(1, tell=True), record(2), record(3, tell=True)])
    both = ("log", "slack")
    store.told([f"{API}/1", f"{API}/2", "unknown"], "log", both)
    assert ids(store.owed(by="log")) == [f"{API}/3"]
    assert ids(store.owed(by="slack")) == [f"{API}/1", f"{API}/3"]
    assert ids(store.owed()) == [f"{API}/1", f"{API}/3"]
    store.told([f"{API}/1"], "log", both)
    assert ids(store.owed(limit=1, by="log")) == [f"{API}/3"]
    store.told([f"{API}/3", f"{API}/1"], "slack", both)
    assert (store.owed(by="slack"), ids(store.owed(by="log"))) == ((), [f"{API}/3"])
    assert ids(store.owed()) == [f"{API}/3"]
    store.told([f"{API}/3"], "log", both)
    assert store.owed() == ()


def test_a_notifier_that_is_new_owes_what_is_owed_and_one_that_is_gone_holds_up_nothing(store: Any) -> None:
    store.save(API, RolloutState(), 0, [record(n, tell=True) for n in (1, 2)])
    store.told([f"{API}/1"], "log", ("log", "gone"))
    assert ids(store.owed(by="new")) == [f"{API}/1", f"{API}/2"]
    store.told([f"{API}/1"], "new", ("log", "new"))
    assert ids(store.owed()) == [f"{API}/2"]
    store.told([f"{API}/2"])
    assert store.owed() == store.owed(by="log") == ()


def test_an_amended_record_is_the_amended_one_everywhere_and_nothing_else_of_it_changes(store: Any) -> None:
    version = store.save(API, RolloutState(), 0, [record(1, tell=True), record(2)])
    first = store.records(API)[1]
    store.amend(replace(first, sentence="something else", tell=False, body={**first.body, "traces": {"note": "none"}}))
    amended = replace(first, body={"n": 1, "traces": {"note": "none"}})
    assert store.records(API) == (record(2), amended)
    assert store.owed() == (amended,)
    store.amend(record(9))
    store.amend(replace(record(1), id="unknown"))
    assert len(store.records(API)) == 2
    assert store.save(API, RolloutState(), version, [record(3)]) == version + 1  # no decision became stale
    assert store.records(API)[-1] == amended


def test_notes_are_kept_small_few_and_apart(store: Any) -> None:
    version = store.save(API, RolloutState(), 0, [])
    store.save(WEB, RolloutState(), 0, [])
    assert store.memo(API) == {}
    store.remember(API, "slack/api-1", "C1 1.5")
    store.remember(API, "slack/api-1", "C1 2.5")
    store.remember(API, "gone", "x")
    store.remember(API, "gone", "")
    store.remember(WEB, "slack/web-1", "C2")
    assert (store.memo(API), store.memo(WEB)) == ({"slack/api-1": "C1 2.5"}, {"slack/web-1": "C2"})
    for n in range(MOST_NOTES):
        store.remember(API, f"note {n}", "✓")
    store.save(API, RolloutState(), version, [])
    assert list(store.memo(API)) == [f"note {n}" for n in range(MOST_NOTES)]
    for key, value in (("k", "x" * (NOTE + 1)), ("k" * (NOTE + 1), "x"), ("", "x")):
        with pytest.raises(StoreError, match="a note of"):
            store.remember(API, key, value)


def test_what_notifiers_write_down_does_not_make_a_decision_stale(store: Any) -> None:
    version = store.save(API, RolloutState(), 0, [record(1, tell=True)])
    store.remember(API, "slack/api-1", "C1")
    store.told([f"{API}/1"], "slack", ("slack", "log"))
    store.prune(NOW, 0)
    assert store.save(API, RolloutState(), version, []) == version + 1
    assert (ids(store.owed(by="log")), store.owed(by="slack")) == ([f"{API}/1"], ())


def test_pruning_keeps_the_latest_the_young_and_what_was_not_told(store: Any, ability: Ability) -> None:
    store.save(API, RolloutState(), 0, [record(n, tell=n == 2) for n in range(1, 8)])
    store.save(WEB, RolloutState(), 0, [record(1, WEB)])
    if not ability.forgets_by_age:
        assert store.prune(NOW + timedelta(days=1), keep_at_least=0) == 0
        assert ids(store.records(API)) == [f"{API}/{n}" for n in range(7, 0, -1)]
        return
    keep_after = NOW + 5 * SECOND
    assert store.prune(keep_after, keep_at_least=4) == 2
    assert ids(store.records(API)) == [f"{API}/7", f"{API}/6", f"{API}/5", f"{API}/4", f"{API}/2"]
    assert ids(store.records(WEB)) == [f"{WEB}/1"]
    assert store.prune(keep_after, keep_at_least=0) == 2
    assert ids(store.records(API)) == [f"{API}/7", f"{API}/6", f"{API}/5", f"{API}/2"]
    assert store.records(WEB) == ()
    store.told([f"{API}/2"])
    assert store.prune(keep_after, keep_at_least=0) == 1
    assert store.prune(keep_after, keep_at_least=0) == 0


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mark_changes_with_every_write_and_with_nothing_else(store: Any, ability: Ability) -> None:
    writes: list[Callable[[], Any]] = [
        lambda: store.save(API, RolloutState(), 0, [record(1, tell=True), record(2)]),
        lambda: store.override(API, word("o1")),
        lambda: store.told([f"{API}/1"]),
        lambda: store.prune(NOW + timedelta(days=1), 0),  # forgets the record, or writes down that it was told
        lambda: store.release(API, Release("r2")),
        lambda: store.beat("pid 1", NOW),
    ]
    if not ability.writes_told:
        del writes[2]
        store_told = writes[2]
        writes[2] = lambda: (store.told([f"{API}/1"]), store_told())
    if not ability.releases:
        writes = writes[:3]
    marks = [store.mark()]
    for write in writes:
        write()
        marks.append(store.mark())
        store.load(API), store.records(API), store.owed(), store.canaries(), store.audit(API), store.heartbeat()
        store.told(["unknown"])
        assert store.mark() == marks[-1]
    assert len(set(marks)) == len(writes) + 1


def test_the_heartbeat_says_who_ticked_last_and_when(store: Any, ability: Ability) -> None:
    if ability.keeps_heartbeat:
        assert store.heartbeat() is None
    store.beat("pid 7 on blue", NOW)
    store.beat("pid 8 on blue", NOW + SECOND)
    assert store.heartbeat() == (("pid 8 on blue", NOW + SECOND) if ability.keeps_heartbeat else ability.heartbeat)


def test_of_two_threads_that_save_at_the_same_version_exactly_one_wins_two_hundred_times(store: Any) -> None:
    rounds, barrier = 200, Barrier(2, timeout=30)
    won: list[list[int]] = [[], []]

    def race(me: int) -> None:
        for n in range(1, rounds + 1):
            version = store.load(API).version
            barrier.wait()
            try:
                saved = store.save(API, RolloutState(weight=me, decisions=n), version, [record(2 * n + me)])
                won[me].append(saved)
            except ConflictError:
                pass
            except BaseException:
                barrier.abort()
                raise
            barrier.wait()

    with ThreadPoolExecutor(2) as two:
        list(two.map(race, (0, 1)))
    assert sorted(won[0] + won[1]) == list(range(1, rounds + 1))
    kept = [int(id_.rpartition("/")[2]) for id_ in ids(store.records(API, limit=1000))]
    assert [sum(n % 2 == me for n in kept) for me in (0, 1)] == [len(won[0]), len(won[1])]
