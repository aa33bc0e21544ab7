"""What every state store promises; naming one in the registry enrols it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from canaryd.adapters import STATE_STORES
from canaryd.adapters import load as load_adapter
from canaryd.errors import ConflictError
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

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)

MAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "memory": lambda kind, path: kind(),
    "sqlite": lambda kind, path: kind(path / "state.db"),
}


@pytest.fixture(params=sorted(STATE_STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with closing(MAKERS[request.param](load_adapter(STATE_STORES, request.param), tmp_path)) as made:
        yield made


def record(
    n: int, canary: str = "api", *, at: datetime | None = None, tell: bool = False, kind: str = "hold"
) -> Record:
    return Record(f"{canary}/{n}", canary, at or NOW + n * SECOND, DecisionKind(kind), f"decision {n}", {"n": n}, tell)


def word(id_: str, *, action: Action = Action.PAUSE, at: datetime = NOW) -> Override:
    return Override(id_, action, "r2", "anna", "looks odd", at)


def answer(id_: str, *, accepted: bool = True) -> Answer:
    return Answer(id_, Action.PAUSE, accepted, "paused at 25 %", NOW)


def ids(records: tuple[Record, ...]) -> list[str]:
    return [r.id for r in records]


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_anything_there_is_version_zero_and_no_state(store: Any) -> None:
    stored = store.load("api")
    assert (stored.version, stored.state, stored.release, stored.overrides) == (0, None, None, ())
    assert store.records("api") == ()
    assert store.owed() == ()
    assert store.canaries() == ()


def test_what_was_saved_is_loaded_with_its_version(store: Any) -> None:
    evidence = Evidence(NOW, arrays={"wealth": np.array([1.0, np.inf, np.nan])}, pods={"b-1": NOW})
    state = RolloutState(rollout="api-1", phase=Phase.PROGRESSING, weight=25, evidence=evidence, latest={"step": 2})
    assert store.save("api", state, 0, []) == 1
    stored = store.load("api")
    assert stored.version == 1
    assert (stored.state.weight, stored.state.phase, stored.state.latest) == (25, Phase.PROGRESSING, {"step": 2})
    assert stored.state.evidence.arrays["wealth"].tobytes() == evidence.arrays["wealth"].tobytes()
    assert store.save("api", RolloutState(weight=50), 1, []) == 2
    assert store.load("api").state == RolloutState(weight=50)


def test_the_loser_of_a_race_changes_nothing(store: Any) -> None:
    store.override("api", word("o1"))
    store.save("api", RolloutState(weight=5), 1, [record(1)])
    loser = RolloutState(weight=99, answered=(answer("o1"),))
    for stale in (0, 1, 3):
        mark = store.mark()
        with pytest.raises(ConflictError):
            store.save("api", loser, stale, [record(2, tell=True)])
        assert store.mark() == mark
    stored = store.load("api")
    assert (stored.version, stored.state) == (2, RolloutState(weight=5))
    assert [o.id for o in stored.overrides] == ["o1"]
    assert ids(store.records("api")) == ["api/1"]
    assert store.owed() == ()


def test_a_decision_made_without_hearing_a_release_is_refused(store: Any) -> None:
    seen = store.load("api").version
    assert store.release("api", Release("r2", "anna", NOW)) == seen + 1
    with pytest.raises(ConflictError):
        store.save("api", RolloutState(), seen, [])
    stored = store.load("api")
    assert (stored.release, stored.state, stored.version) == (Release("r2", "anna", NOW), None, seen + 1)


def test_a_decision_made_without_hearing_an_override_is_refused(store: Any) -> None:
    seen = store.save("api", RolloutState(weight=5), 0, [])
    assert store.override("api", word("o1")) == seen + 1
    with pytest.raises(ConflictError):
        store.save("api", RolloutState(weight=10), seen, [])
    assert store.load("api").state == RolloutState(weight=5)


def test_a_release_outlives_saves_and_the_last_one_counts(store: Any) -> None:
    store.release("api", Release("r2"))
    store.release("api", Release("r3", "ben", NOW))
    store.save("api", RolloutState(), 2, [])
    assert store.load("api").release == Release("r3", "ben", NOW)


def test_canaries_do_not_touch_each_other(store: Any) -> None:
    store.save("api", RolloutState(weight=5), 0, [record(1)])
    store.save("web", RolloutState(weight=7), 0, [record(1, "web")])
    store.override("web", word("o1"))
    store.release("cart", Release("r1"))
    assert store.load("api").version == 1
    assert store.load("api").overrides == ()
    assert (store.load("web").version, store.load("cart").version) == (2, 1)
    assert ids(store.records("web")) == ["web/1"]
    assert store.canaries() == ("api", "cart", "web")


def test_any_name_is_a_name(store: Any) -> None:
    odd = "a'; DROP TABLE rollouts; --\n✓\x00"
    store.save(odd, RolloutState(sentence=odd), 0, [record(1, odd)])
    assert store.load(odd).state.sentence == odd
    assert ids(store.records(odd)) == [f"{odd}/1"]


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_loaded_whole_and_in_the_order_they_were_said(store: Any) -> None:
    said = [word("z", at=NOW + SECOND), word("a", action=Action.PROMOTE), word("m", at=NOW - SECOND)]
    for override in said:
        store.override("api", override)
    assert store.load("api").overrides == tuple(said)


def test_the_same_override_twice_is_once(store: Any) -> None:
    assert store.override("api", word("o1")) == 1
    mark = store.mark()
    assert store.override("api", word("o1", action=Action.ABORT)) == 1
    assert store.load("api").overrides == (word("o1"),)
    assert store.mark() == mark


def test_an_answered_override_vanishes_and_never_comes_back(store: Any) -> None:
    store.override("api", word("o1"))
    store.override("api", word("o2"))
    version = store.save("api", RolloutState(answered=(answer("o1"), answer("never-said"))), 2, [])
    assert [o.id for o in store.load("api").overrides] == ["o2"]
    assert store.override("api", word("o1")) == version
    store.save("api", RolloutState(), version, [])  # the answer has left the bounded list of the state
    assert [o.id for o in store.load("api").overrides] == ["o2"]


def test_an_answer_to_another_canarys_override_answers_nothing(store: Any) -> None:
    store.override("api", word("o1"))
    store.save("web", RolloutState(answered=(answer("o1"),)), 0, [])
    assert [o.id for o in store.load("api").overrides] == ["o1"]


def test_the_audit_keeps_every_word_with_its_first_answer(store: Any) -> None:
    store.override("api", word("o1"))
    store.override("api", word("o2"))
    store.override("web", word("o3"))
    store.save("api", RolloutState(answered=(answer("o1", accepted=False),)), 2, [])
    store.save("api", RolloutState(answered=(answer("o1"),)), 3, [])
    assert store.audit("api") == ((word("o2"), None), (word("o1"), answer("o1", accepted=False)))
    assert store.audit("api", limit=1) == ((word("o2"), None),)
    assert store.audit("nobody") == ()


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_kept_once_and_a_save_that_repeats_one_changes_nothing(store: Any) -> None:
    store.save("api", RolloutState(weight=5), 0, [record(1)])
    for again in ([record(1)], [record(2), record(1)], [record(3), record(3)]):
        with pytest.raises(ConflictError):
            store.save("api", RolloutState(weight=10), 1, again)
    assert (store.load("api").version, store.load("api").state) == (1, RolloutState(weight=5))
    assert ids(store.records("api")) == ["api/1"]


def test_records_come_whole_and_newest_first_also_when_the_clock_was_set_back(store: Any) -> None:
    saved = [record(1, tell=True), record(2, at=NOW - timedelta(hours=1)), record(3)]
    store.save("api", RolloutState(), 0, saved)
    assert store.records("api") == tuple(reversed(saved))
    assert ids(store.records("api", limit=2)) == ["api/3", "api/2"]
    assert store.records("api", limit=0) == ()


def test_records_are_chosen_by_time_and_kind(store: Any) -> None:
    kinds = ["start", "hold", "advance", "hold", "rollback"]
    store.save("api", RolloutState(), 0, [record(n, kind=k) for n, k in enumerate(kinds, 1)])
    assert ids(store.records("api", before=NOW + 3 * SECOND)) == ["api/3", "api/2", "api/1"]
    assert ids(store.records("api", kinds=["hold"])) == ["api/4", "api/2"]
    assert ids(store.records("api", kinds=(DecisionKind.START, DecisionKind.ROLLBACK))) == ["api/5", "api/1"]
    assert ids(store.records("api", kinds=["hold"], before=NOW + 3 * SECOND, limit=1)) == ["api/2"]
    assert store.records("api", kinds=["no such kind"]) == ()


def test_what_shall_be_told_is_owed_oldest_first_until_it_is_told(store: Any) -> None:
    store.save("api", RolloutState(), 0, [record(1, tell=True), record(2), record(3, tell=True)])
    store.save("web", RolloutState(), 0, [record(1, "web", tell=True)])
    assert ids(store.owed()) == ["api/1", "api/3", "web/1"]
    assert ids(store.owed(limit=1)) == ["api/1"]
    store.told(["api/1", "unknown", "api/2"])
    store.told([])
    assert ids(store.owed()) == ["api/3", "web/1"]
    store.told(["api/3", "web/1"])
    assert store.owed() == ()
    assert ids(store.records("api")) == ["api/3", "api/2", "api/1"]


def test_telling_does_not_make_a_decision_stale(store: Any) -> None:
    version = store.save("api", RolloutState(), 0, [record(1, tell=True)])
    store.told(["api/1"])
    assert store.save("api", RolloutState(), version, []) == version + 1


def test_pruning_keeps_the_latest_the_young_and_what_was_not_told(store: Any) -> None:
    store.save("api", RolloutState(), 0, [record(n, tell=n == 2) for n in range(1, 8)])
    store.save("web", RolloutState(), 0, [record(1, "web")])
    keep_after = NOW + 5 * SECOND
    assert store.prune(keep_after, keep_at_least=4) == 2
    assert ids(store.records("api")) == ["api/7", "api/6", "api/5", "api/4", "api/2"]
    assert ids(store.records("web")) == ["web/1"]
    assert store.prune(keep_after, keep_at_least=0) == 2
    assert ids(store.records("api")) == ["api/7", "api/6", "api/5", "api/2"]
    assert store.records("web") == ()
    store.told(["api/2"])
    assert store.prune(keep_after, keep_at_least=0) == 1
    assert store.prune(keep_after, keep_at_least=0) == 0


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mark_changes_with_every_write_and_with_nothing_else(store: Any) -> None:
    writes: list[Callable[[], Any]] = [
        lambda: store.save("api", RolloutState(), 0, [record(1, tell=True)]),
        lambda: store.release("api", Release("r2")),
        lambda: store.override("api", word("o1")),
        lambda: store.told(["api/1"]),
        lambda: store.prune(NOW + timedelta(days=1), 0),
        lambda: store.beat("pid 1", NOW),
    ]
    marks = [store.mark()]
    for write in writes:
        write()
        marks.append(store.mark())
        store.load("api"), store.records("api"), store.owed(), store.canaries(), store.audit("api"), store.heartbeat()
        store.told(["unknown"])
        assert store.mark() == marks[-1]
    assert len(set(marks)) == len(writes) + 1


def test_the_heartbeat_says_who_ticked_last_and_when(store: Any) -> None:
    assert store.heartbeat() is None
    store.beat("pid 7 on blue", NOW)
    store.beat("pid 8 on blue", NOW + SECOND)
    assert store.heartbeat() == ("pid 8 on blue", NOW + SECOND)


def test_of_two_threads_that_save_at_the_same_version_exactly_one_wins_two_hundred_times(store: Any) -> None:
    rounds, barrier = 200, Barrier(2, timeout=30)
    won: list[list[int]] = [[], []]

    def race(me: int) -> None:
        for n in range(rounds):
            version = store.load("api").version
            barrier.wait()
            try:
                new = store.save("api", RolloutState(weight=me, decisions=n), version, [record(n, f"api-{me}")])
                won[me].append(new)
            except ConflictError:
                pass
            except BaseException:
                barrier.abort()
                raise
            barrier.wait()

    with ThreadPoolExecutor(2) as two:
        list(two.map(race, (0, 1)))
    assert sorted(won[0] + won[1]) == list(range(1, rounds + 1))
    assert [len(store.records(f"api-{me}", limit=1000)) for me in (0, 1)] == [len(won[0]), len(won[1])]
