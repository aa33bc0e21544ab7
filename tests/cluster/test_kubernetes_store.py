"""The state store on a real API server: the suite that every store passes, and what only a cluster can do to it."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bench import Bench, Client

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("contract", "core"))
pytest.register_assert_rewrite("objects", "state_store_suite")
pytest_plugins = ["objects"]

from objects import caught_up, connect, document, storm, watching  # noqa: E402
from state_store_suite import *  # noqa: E402, F403
from state_store_suite import API, NOW, SECOND, Ability, answer, record, word  # noqa: E402
from world import World  # noqa: E402
from world import canary as canary_document  # noqa: E402

from canaryd.adapters.kubernetes_store import MOST_RECORDS, RECORDS, WHOLE, KubernetesStore  # noqa: E402
from canaryd.codec import encode_state  # noqa: E402
from canaryd.demo.processes import wait_until  # noqa: E402
from canaryd.errors import ConflictError, OverrideError, Problem, StoreError  # noqa: E402
from canaryd.kube import words  # noqa: E402
from canaryd.kube.client import KubeClient  # noqa: E402
from canaryd.kube.companion import MOST_BYTES, OWED  # noqa: E402
from canaryd.kube.informer import Direct, Informer  # noqa: E402
from canaryd.kube.kinds import CANARIES  # noqa: E402
from canaryd.model import (  # noqa: E402
    Action,
    DecisionKind,
    Override,
    Phase,
    Record,
    RolloutState,
    Stored,
    Verdict,
)

LEADER = ("canaryd-7", NOW)
COMPANION = "canaryd-history-api"
UNDER_WAY = RolloutState(
    rollout="api-3", number=3, revision="r2", stable_revision="r1", phase=Phase.PROGRESSING, weight=25, step=1,
    sentence="api stays at 25 %", ticked=NOW,
)  # fmt: skip


@pytest.fixture
def store(kube: KubeClient, informer: Informer) -> Iterator[KubernetesStore]:
    made = KubernetesStore(kube, informer, heartbeat=lambda: LEADER)
    yield made
    made.close()


@pytest.fixture
def ability() -> Ability:
    return Ability(
        releases=False,
        any_name=False,
        counts_words=False,
        writes_told=False,
        forgets_by_age=False,
        keeps_heartbeat=False,
        heartbeat=LEADER,
    )


def annotate(admin: Client, text: str | None, name: str = "api") -> None:
    admin.patch("canaries", name, {"metadata": {"annotations": {words.OVERRIDE: text}}})


def status(admin: Client, name: str = "api") -> dict[str, Any]:
    found: dict[str, Any] = admin.get("canaries", name).get("status") or {}
    return found


def conditions(admin: Client, name: str = "api") -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in status(admin, name)["conditions"]}


def wordy(n: int, *, tell: bool = False, size: int = 1200) -> Record:
    """A record that cannot be made small."""
    body = {"n": n, "noise": b64encode(random.Random(n).randbytes(size)).decode()}
    return Record(f"{API}/{n}", API, NOW + n * SECOND, DecisionKind.HOLD, f"decision {n}", body, tell)


def sent(kube: KubeClient) -> dict[tuple[str, str], int]:
    return dict(kube.requests)


# ── what others write at the same time ───────────────────────────────────────────────────────────────────────


def test_labels_changed_fifty_times_a_second_cost_no_conflict_and_no_request(
    store: KubernetesStore, kube: KubeClient, admin: Client
) -> None:
    stored = store.load(API)
    before = sent(kube)
    with storm(admin) as count:
        for n in range(200):
            version = store.save(API, RolloutState(weight=n % 100, decisions=n), stored.version, [])
            stored = store.load(API)
            assert stored.version == version == n + 1
    assert count[0] >= 20
    after = sent(kube)
    assert after["patch", "canaries"] - before.get(("patch", "canaries"), 0) == 200
    assert after.get(("get", "canaries"), 0) == before.get(("get", "canaries"), 0)
    assert admin.get("canaries", "api")["metadata"]["labels"]["storm"] == str(count[0])


ODD = 'ö 😀 <b>&amp; "quoted" \\ \u2028 \x7f \x01'


@pytest.mark.parametrize("odd", ["plain", ODD, "ä" * 2000])
def test_whatever_the_annotation_holds_the_storm_costs_no_conflict(
    store: KubernetesStore, kube: KubeClient, admin: Client, informer: Informer, odd: str
) -> None:
    annotate(admin, json.dumps({"action": "abort", "reason": odd}, ensure_ascii=False))
    caught_up(informer, admin)
    version = store.load(API).version
    before = sent(kube)
    with storm(admin):
        for n in range(50):
            version = store.save(API, RolloutState(decisions=n), version, [])
    after = sent(kube)
    assert version == 50
    assert after["patch", "canaries"] - before.get(("patch", "canaries"), 0) == 50
    assert after.get(("get", "canaries"), 0) == before.get(("get", "canaries"), 0)


def test_an_idle_look_costs_no_request(store: KubernetesStore, kube: KubeClient) -> None:
    store.save(API, UNDER_WAY, 0, [record(n) for n in range(1, 6)])
    before = sent(kube)
    for _ in range(20):
        store.load(API), store.owed(), store.mark(), store.canaries(), store.reject(API), store.audit(API)
        store.records(API, limit=5)
        store.accept(API)
        store.condition(API, "Ready", "True", "Valid", "The document is valid; canaryd looks after it.")
    assert sent(kube) == before


@pytest.mark.parametrize(
    "said",
    ['{"action": "abort"}', '{"action": "abort", "reason": "ö"}', '{"action": "abort", "reason": "<&>"}', "garbage",
     "\u2028", "x" * 200_000],
)  # fmt: skip
def test_a_word_that_was_not_heard_refuses_the_save_whatever_it_looks_like(
    store: KubernetesStore, admin: Client, said: str
) -> None:
    heard = store.load(API).version
    annotate(admin, said)
    with pytest.raises(ConflictError, match="somebody said something"):
        store.save(API, UNDER_WAY, heard, [])
    assert status(admin) == {}
    again = store.load(API).version  # after the conflict it is seen at once
    version = store.save(API, UNDER_WAY, again, [])
    annotate(admin, None)
    with pytest.raises(ConflictError, match="somebody said something"):
        store.save(API, UNDER_WAY, version, [])
    assert store.save(API, UNDER_WAY, store.load(API).version, []) == version + 1


def test_another_annotation_that_appears_is_no_word(store: KubernetesStore, admin: Client) -> None:
    heard = store.load(API).version
    admin.patch("canaries", "api", {"metadata": {"annotations": {"team": "shop"}}})
    version = store.save(API, UNDER_WAY, heard, [])
    admin.patch("canaries", "api", {"metadata": {"annotations": None}})
    assert store.save(API, UNDER_WAY, version, []) == 2


def test_what_was_decided_for_a_deleted_canary_is_never_written_to_a_new_one(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    version = store.save(API, UNDER_WAY, 0, [])
    admin.delete("canaries", "api")
    with pytest.raises(StoreError):
        store.save(API, UNDER_WAY, version, [])
    admin.create(document("api"))
    with pytest.raises(StoreError):  # whatever of it is seen by now
        store.save(API, UNDER_WAY, version, [])
    caught_up(informer, admin)
    fresh = store.load(API)
    assert (fresh.state, fresh.version, status(admin)) == (None, 0, {})
    with pytest.raises(ConflictError, match="made anew"):
        store.save(API, UNDER_WAY, version, [])
    assert store.save(API, UNDER_WAY, fresh.version, []) == 1


def test_a_decision_of_version_zero_is_not_written_to_another_object_of_version_zero(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    old = store.load(API).version
    admin.delete("canaries", "api")
    admin.create(document("api"))
    caught_up(informer, admin)
    with pytest.raises(ConflictError, match="made anew"):
        store.save(API, UNDER_WAY, old, [])
    assert status(admin) == {}


def test_of_two_daemons_exactly_one_saves_each_version_and_the_other_looks_again(
    canary_plane: Bench, canaries: None
) -> None:
    rounds, barrier = 200, threading.Barrier(2, timeout=30)
    won: list[list[int]] = [[], []]

    def race(me: int) -> None:
        kube = connect(canary_plane, "admin")
        with watching(kube) as informer:
            mine = KubernetesStore(kube, informer)
            for n in range(rounds):
                deadline = time.monotonic() + 10
                while (stored := mine.load(API)).version != n:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
                barrier.wait()
                try:
                    state = RolloutState(weight=me, decisions=n)
                    won[me].append(mine.save(API, state, stored.version, [record(10_000 * me + n)]))
                except ConflictError:
                    assert mine.load(API).version == n + 1  # seen without waiting for the watch
                barrier.wait()
        kube.close()

    with ThreadPoolExecutor(2) as two:
        list(two.map(race, (0, 1)))
    assert sorted(won[0] + won[1]) == list(range(1, rounds + 1))
    assert all(won)


@pytest.fixture
def asleep(kube: KubeClient, canaries: None) -> Iterator[KubernetesStore]:
    """A store whose watch has ended a moment ago: it decides upon a past that it cannot know to be one."""
    with watching(kube) as informer:
        store = KubernetesStore(kube, informer)
        informer.stop()
        yield store


def test_a_sleeper_writes_nothing_to_a_canary_that_was_made_anew(asleep: KubernetesStore, admin: Client) -> None:
    version = asleep.load(API).version
    admin.delete("canaries", "api")
    admin.create(document("api"))
    with pytest.raises(ConflictError, match="made anew"):
        asleep.condition(API, "Ready", "False", "Forbidden", "…")
    with pytest.raises(ConflictError, match="made anew"):
        asleep.save(API, UNDER_WAY, version, [])
    assert status(admin) == {}


def test_a_sleeper_saves_nothing_to_a_canary_that_was_made_anew(asleep: KubernetesStore, admin: Client) -> None:
    version = asleep.load(API).version
    admin.delete("canaries", "api")
    admin.create(document("api"))
    with pytest.raises(ConflictError, match="made anew"):
        asleep.save(API, UNDER_WAY, version, [])
    assert status(admin) == {}
    assert asleep.load(API).version == 0  # after the refusal it knows


@pytest.mark.parametrize("said", ['{"action": "abort"}', '{"action": "abort", "reason": "ö<&>"}', "x" * 100_000])
def test_a_sleeper_writes_nothing_over_a_word_that_it_has_not_heard_nor_over_one_that_was_taken_back(
    asleep: KubernetesStore, admin: Client, said: str
) -> None:
    admin.patch("canaries", "web", {"metadata": {"annotations": {"team": "shop"}}})
    for canary in ("api", "web"):  # without any annotation, and with another one
        version = asleep.load(f"shop/{canary}").version
        annotate(admin, said, canary)
        with pytest.raises(ConflictError, match="somebody said"):
            asleep.save(f"shop/{canary}", UNDER_WAY, version, [])
        version = asleep.load(f"shop/{canary}").version
        annotate(admin, None, canary)
        with pytest.raises(ConflictError, match="somebody said"):
            asleep.save(f"shop/{canary}", UNDER_WAY, version, [])
        assert status(admin, canary) == {}


def test_a_sleeper_writes_nothing_over_a_newer_state(
    asleep: KubernetesStore, store: KubernetesStore, admin: Client
) -> None:
    old = asleep.load(API).version
    version = store.save(API, RolloutState(weight=50), old, [record(1)])
    for write in (
        lambda: asleep.save(API, RolloutState(weight=5), old, [record(2)]),
        lambda: asleep.save(API, RolloutState(weight=5), 0, [record(2)]),
    ):
        with pytest.raises(ConflictError, match="at 1 now"):
            write()
    assert asleep.load(API).version == version == status(admin)["version"]
    assert asleep.load(API).state == RolloutState(weight=50)


# ── what people and GitOps tools say ─────────────────────────────────────────────────────────────────────────


def heard(store: KubernetesStore) -> list[str]:
    return [o.id for o in store.load(API).overrides]


def carry_out(store: KubernetesStore) -> list[str]:
    """Answer every word that waits, as the daemon does; their ids."""
    stored = store.load(API)
    said = tuple(answer(o.id) for o in stored.overrides)
    store.save(API, RolloutState(answered=said, ticked=NOW), stored.version, [])
    return [a.id for a in said]


def test_gitops_that_applies_its_manifest_again_neither_repeats_nor_undoes_a_word(
    store: KubernetesStore, canary_plane: Bench, admin: Client, informer: Informer
) -> None:
    def kubectl(*how: str, **annotations: str) -> None:
        said = {words.OVERRIDE: annotations["said"]} if annotations else {}
        text = yaml.safe_dump(document("api", annotations={"team": "shop", **said}))
        canary_plane.kubectl("apply", *how, "-f", "-", stdin=text)
        caught_up(informer, admin)

    from_git = '{"action": "pause", "reason": "freeze", "revision": "r2", "id": "git-1"}'
    kubectl(said=from_git)
    assert carry_out(store) == ["git-1"]
    for _ in range(3):
        kubectl(said=from_git)
        assert heard(store) == []
    store.override(API, word("typed"))  # replaces what git says: that was answered
    assert carry_out(store) == ["typed"]
    kubectl(said=from_git)
    assert heard(store) == []
    for n in range(30):  # more than the state itself remembers
        store.override(API, word(f"typed-{n}"))
        assert carry_out(store) == [f"typed-{n}"]
    kubectl(said=from_git)
    assert heard(store) == []
    kubectl()  # without the annotation
    store.override(API, word("last"))
    kubectl()  # does not take away what somebody else has said
    assert heard(store) == ["last"]
    assert carry_out(store) == ["last"]
    kubectl("--server-side", "--force-conflicts", "--field-manager=gitops", said=from_git)
    assert heard(store) == []
    kubectl("--server-side", "--force-conflicts", "--field-manager=gitops")
    assert heard(store) == []
    assert status(admin)["lastOverride"]["id"] == "last"


def test_a_word_that_stands_in_a_manifest_stays_answered_after_any_number_of_others(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    standing = {"action": "pause", "revision": "r2", "id": "standing"}
    annotate(admin, json.dumps(standing))
    caught_up(informer, admin)
    assert carry_out(store) == ["standing"]
    for n in range(words.REMEMBERED + 20):
        annotate(admin, json.dumps([standing, {"action": "pause", "revision": "r2", "id": f"o{n}"}]))
        caught_up(informer, admin)
        assert carry_out(store) == [f"o{n}"]
    annotate(admin, json.dumps(standing))
    caught_up(informer, admin)
    assert heard(store) == []
    assert len(status(admin)["answered"]) <= words.REMEMBERED + words.MOST_WORDS


def test_a_word_typed_with_kubectl_needs_no_id_and_is_answered_with_who_and_why(
    store: KubernetesStore, canary_plane: Bench, admin: Client, informer: Informer
) -> None:
    said = '{"action":"abort","reason":"customers complain","by":"anna"}'
    canary_plane.kubectl("annotate", "canary", "api", "-n", "shop", f"{words.OVERRIDE}={said}")
    caught_up(informer, admin)
    (override,) = store.load(API).overrides
    assert (override.action, override.by, override.reason) == (Action.ABORT, "anna", "customers complain")
    assert store.load(API).overrides == (override,)  # the same id and time at every look
    carry_out(store)
    last = status(admin)["lastOverride"]
    assert (last["id"], last["by"], last["reason"], last["accepted"]) == (override.id, "anna", override.reason, True)
    assert heard(store) == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{", "no JSON"),
        ('"abort"', "expected an object"),
        ('{"action": "explode", "revision": "r2"}', 'action is "explode"'),
        ('{"action": "promote"}', "revision is missing"),
        ('{"action": "abort", "revison": "r2"}', '"revison" is no key'),
        ('{"action": "abort", "at": "yesterday"}', "must be a time"),
        ('{"action": "abort", "by": "a\\u202eb"}', "readable characters"),
        (json.dumps([{"action": "abort", "id": str(n)} for n in range(21)]), "20 are the most"),
        ("x" * 200_000, "200000 bytes"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_a_word_that_nobody_can_carry_out_is_refused_once_with_the_reason(
    store: KubernetesStore, kube: KubeClient, admin: Client, informer: Informer, said: str, why: str
) -> None:
    annotate(admin, said)
    caught_up(informer, admin)
    assert store.load(API).overrides == ()
    (sentence,) = store.reject(API)
    assert why in sentence
    last = status(admin)["lastOverride"]
    assert (last["accepted"], last["message"]) == (False, sentence)
    before = sent(kube)
    assert store.reject(API) == ()
    assert sent(kube) == before
    version = store.save(API, UNDER_WAY, store.load(API).version, [])
    assert version == 1
    assert status(admin)["lastOverride"] == last


def test_a_save_answers_what_nobody_can_carry_out_and_good_words_beside_it_are_heard(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    annotate(admin, '[{"action": "explode"}, {"action": "abort", "id": "good"}]')
    caught_up(informer, admin)
    assert heard(store) == ["good"]
    assert carry_out(store) == ["good"]
    assert status(admin)["lastOverride"]["id"] == "good"
    assert store.reject(API) == ()


def test_a_word_of_the_command_is_not_lost_to_one_that_comes_at_the_same_time(
    client_of: Callable[[str], KubeClient], store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    people = [KubernetesStore(kube, Direct(kube, CANARIES)) for kube in (client_of("admin"), client_of("admin"))]

    def say(me: int) -> None:
        for n in range(8):
            people[me].override(API, word(f"{me}-{n}"))

    with ThreadPoolExecutor(2) as two:
        list(two.map(say, (0, 1)))
    caught_up(informer, admin)
    assert sorted(heard(store)) == sorted(f"{me}-{n}" for me in (0, 1) for n in range(8))
    for n in range(4):
        people[0].override(API, word(f"more-{n}"))
    with pytest.raises(OverrideError, match="20 words wait"):
        people[0].override(API, word("too-many"))


def test_a_word_with_any_characters_comes_back_as_it_was(store: KubernetesStore, admin: Client) -> None:
    said = Override("id-1", Action.PROMOTE, "r2", "änna <a&b>", 'he said "no" \\ ✓ 😀', NOW, full=True)
    store.override(API, said)
    assert store.load(API).overrides == (said,)
    text = admin.get("canaries", "api")["metadata"]["annotations"][words.OVERRIDE]
    assert text.isascii()
    assert not set("<>&") & set(text)


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_old_records_leave_the_status_for_a_companion_that_the_canary_owns_and_none_is_lost(
    store: KubernetesStore, kube: KubeClient, admin: Client
) -> None:
    version = 0
    for n in range(1, 61):
        version = store.save(API, RolloutState(decisions=n), version, [wordy(n)])
        assert len(status(admin)["records"]) <= RECORDS
    assert [r.body["n"] for r in store.records(API, limit=1000)] == list(range(60, 0, -1))
    assert store.records(API, limit=1000)[30] == wordy(30)
    companion = admin.get("configmaps", COMPANION)
    (owner,) = companion["metadata"]["ownerReferences"]
    assert owner["uid"] == admin.get("canaries", "api")["metadata"]["uid"]
    moves = kube.requests["patch", "configmaps"] + kube.requests["create", "configmaps"]
    assert moves <= 60 / 3
    assert kube.requests["get", "configmaps"] <= 4  # once before the first move, and for the two questions above


def test_the_companion_is_bounded_and_forgets_the_oldest(store: KubernetesStore, admin: Client) -> None:
    version = 0
    for n in range(1, 151):
        version = store.save(API, RolloutState(decisions=n), version, [wordy(n, size=3000)])
    held = admin.get("configmaps", COMPANION)["binaryData"]
    assert sum(map(len, held.values())) <= MOST_BYTES
    kept = [r.body["n"] for r in store.records(API, limit=1000)]
    assert kept == list(range(150, 150 - len(kept), -1))
    assert len(kept) >= 60


class Killed(BaseException):
    """The process is gone: nothing in the product may catch this."""


class KilledAfter:
    """A client whose process dies when a write to a resource has been done, or just before it."""

    def __init__(self, kube: KubeClient, plural: str, *, before: bool) -> None:
        self._kube, self._plural, self._before = kube, plural, before
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kube, name)
        if name not in ("create", "patch"):
            return value

        def call(kind: Any, *args: Any, **more: Any) -> Any:
            fatal = self.armed and kind.plural == self._plural
            if fatal and self._before:
                raise Killed
            result = value(kind, *args, **more)
            if fatal:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("plural", ["configmaps", "canaries"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_between_status_and_companion_nothing_is_lost_or_doubled(
    kube: KubeClient, informer: Informer, admin: Client, plural: str, before: bool
) -> None:
    version, n, deaths = 0, 0, 0
    while deaths < 4:
        mortal: Any = KilledAfter(kube, plural, before=before)
        life = KubernetesStore(mortal, informer)  # a new process
        version = life.load(API).version
        n = status(admin).get("version", 0)
        for step in range(12):
            mortal.armed = step >= 8
            n += 1
            try:
                version = life.save(API, RolloutState(decisions=n), version, [wordy(n, tell=n % 5 == 0)])
            except Killed:
                deaths += 1
                break
        caught_up(informer, admin)
    last = status(admin)["version"]
    after = KubernetesStore(kube, informer)
    assert [r.body["n"] for r in after.records(API, limit=1000)] == list(range(last, 0, -1))
    assert [r.body["n"] for r in after.owed()] == [n for n in range(1, last + 1) if n % 5 == 0]
    assert after.save(API, RolloutState(), after.load(API).version, [wordy(last + 1)]) == last + 1


def test_what_is_owed_is_remembered_over_a_new_start_also_when_it_has_left_the_status(
    store: KubernetesStore, kube: KubeClient, informer: Informer
) -> None:
    version = 0
    for n in range(1, 21):
        version = store.save(API, RolloutState(decisions=n), version, [wordy(n, tell=n <= 2)])
    assert [r.id for r in store.owed()] == [f"{API}/1", f"{API}/2"]
    fresh = KubernetesStore(kube, informer)
    assert fresh.owed() == (wordy(1, tell=True), wordy(2, tell=True))
    before = sent(kube)
    for _ in range(10):
        assert len(fresh.owed()) == 2
    assert sent(kube) == before
    fresh.told([f"{API}/1"])
    assert [r.id for r in fresh.owed()] == [f"{API}/2"]
    assert sent(kube) == before
    fresh.save(API, RolloutState(), version, [])
    assert [r.id for r in KubernetesStore(kube, informer).owed()] == [f"{API}/2"]


def test_what_was_told_is_written_down_by_the_next_save_by_pruning_or_at_the_end(
    store: KubernetesStore, kube: KubeClient, informer: Informer
) -> None:
    def owed_after_a_new_start() -> list[str]:
        return [r.id for r in KubernetesStore(kube, informer).owed()]

    version = store.save(API, RolloutState(), 0, [record(n, tell=True) for n in (1, 2, 3)])
    patches = kube.requests["patch", "canaries"]
    store.told([f"{API}/1"])
    assert kube.requests["patch", "canaries"] == patches
    assert len(owed_after_a_new_start()) == 3  # a daemon that dies now tells it again
    version = store.save(API, RolloutState(), version, [])
    assert owed_after_a_new_start() == [f"{API}/2", f"{API}/3"]
    store.told([f"{API}/2"])
    store.prune(NOW, 0)
    assert owed_after_a_new_start() == [f"{API}/3"]
    store.told([f"{API}/3"])
    store.close()
    assert owed_after_a_new_start() == []
    patches = kube.requests["patch", "canaries"]
    store.prune(NOW, 0)
    store.close()
    assert kube.requests["patch", "canaries"] == patches
    assert store.save(API, RolloutState(), version, []) == version + 1  # none of that made a decision stale


def test_what_notifiers_did_costs_one_write_and_is_there_for_the_next_leader(
    store: KubernetesStore, kube: KubeClient, informer: Informer
) -> None:
    store.save(API, RolloutState(), 0, [wordy(n, tell=True) for n in (1, 2)])
    before = sum(kube.requests.values())
    store.told([f"{API}/1"], "slack", ("slack", "log"))
    store.told([f"{API}/1", f"{API}/2"], "log", ("slack", "log"))
    store.remember(API, "slack/api-1", "C1 1.5")
    store.amend(replace(wordy(2), body={"traces": {"note": "none"}}))
    store.write_down(timedelta(minutes=1))
    assert sum(kube.requests.values()) == before
    store.write_down()
    store.write_down()
    assert sum(kube.requests.values()) == before + 1
    fresh = KubernetesStore(kube, informer)
    assert [r.id for r in fresh.owed()] == [f"{API}/2"]
    assert ([r.id for r in fresh.owed(by="slack")], fresh.owed(by="log")) == ([f"{API}/2"], ())
    assert fresh.memo(API) == {"slack/api-1": "C1 1.5"}
    assert fresh.owed()[0].body == {"traces": {"note": "none"}}


def test_a_record_that_has_left_the_status_is_amended_in_the_companion(
    store: KubernetesStore, kube: KubeClient, informer: Informer
) -> None:
    version = store.save(API, RolloutState(), 0, [wordy(1, tell=True)])
    for n in range(2, 40):
        version = store.save(API, RolloutState(), version, [wordy(n)])
    store.owed()
    store.amend(replace(wordy(1), body={"traces": {"note": "late"}}))
    assert store.owed()[0].body == {"traces": {"note": "late"}}
    assert store.records(API, limit=100)[-1].body == {"traces": {"note": "late"}}
    assert KubernetesStore(kube, informer).owed()[0].body == {"traces": {"note": "late"}}


def test_what_is_owed_outlives_a_companion_that_forgets_the_oldest(
    store: KubernetesStore, kube: KubeClient, informer: Informer, admin: Client
) -> None:
    """A chat that is down for a day while the looks go on."""
    version = store.save(API, RolloutState(), 0, [wordy(1, tell=True)])
    last = 1
    while last % 10 or f"{API}/2" in {r.id for r in store.records(API, limit=10_000)}:
        last += 1
        version = store.save(API, RolloutState(), version, [wordy(last, tell=last == 20, size=4000)])
        assert last < 400
    fresh = KubernetesStore(kube, informer)
    assert fresh.owed() == (wordy(1, tell=True), wordy(20, tell=True, size=4000))
    assert sum(map(len, admin.get("configmaps", COMPANION)["binaryData"].values())) < 2 * MOST_BYTES
    fresh.told([f"{API}/1", f"{API}/20"])
    fresh.write_down()
    for n in range(last + 1, last + 9):
        version = fresh.save(API, RolloutState(), version, [wordy(n, size=4000)])
    assert OWED not in admin.get("configmaps", COMPANION)["binaryData"]


def test_without_a_companion_decisions_are_still_saved_and_the_status_stays_bounded(
    canary_plane: Bench, canaries: None, admin: Client
) -> None:
    rules = [
        {"apiGroups": ["canaryd.io"], "resources": ["canaries"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["canaryd.io"], "resources": ["canaries/status"], "verbs": ["patch"]},
    ]
    about = {"name": "no-companion", "namespace": "shop"}
    admin.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": about, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "canaryd", "namespace": "canaryd"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "no-companion"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": about}
    admin.apply({**binding, "subjects": [subject], "roleRef": reference})
    wait_until(lambda: canary_plane.client("canaryd").can("list", "canaries"), "the new binding to be heard of")
    kube = connect(canary_plane, "canaryd")
    try:
        with watching(kube) as informer:
            store, version = KubernetesStore(kube, informer), 0
            for n in range(1, 41):
                version = store.save(API, RolloutState(decisions=n), version, [wordy(n, tell=n == 1)])
                assert len(status(admin)["records"]) <= MOST_RECORDS
            kept = [r.body["n"] for r in store.load(API) and KubernetesStore(kube, informer).records(API, limit=4)]
            assert kept == [40, 39, 38, 37]
            with pytest.raises(StoreError, match="forbidden: get configmaps"):
                store.records(API, limit=1000)
    finally:
        kube.close()
        admin.delete("rolebindings", "no-companion")
        admin.delete("roles", "no-companion")


def test_a_config_map_of_somebody_else_is_never_touched(store: KubernetesStore, admin: Client) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": COMPANION, "namespace": "shop"}}
    made = admin.create({**theirs, "data": {"important": "yes"}})
    version = 0
    for n in range(1, 11):
        version = store.save(API, RolloutState(decisions=n), version, [wordy(n)])
    assert admin.get("configmaps", COMPANION) == made
    assert store.records(API, limit=3) == (wordy(10), wordy(9), wordy(8))


def test_the_history_of_an_earlier_canary_of_the_name_is_not_taken_for_its_own(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    def fill() -> None:
        version = 0
        for n in range(1, 11):
            version = store.save(API, RolloutState(decisions=n), version, [wordy(n)])

    fill()
    first = admin.get("configmaps", COMPANION)
    admin.delete("canaries", "api")
    admin.create(document("api"))
    caught_up(informer, admin)
    assert store.records(API) == ()
    fill()
    assert [r.body["n"] for r in store.records(API)] == list(range(10, 0, -1))
    second = admin.get("configmaps", COMPANION)
    owners = [c["metadata"]["ownerReferences"][0]["uid"] for c in (first, second)]
    assert owners[1] == admin.get("canaries", "api")["metadata"]["uid"] != owners[0]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_api_server_that_is_gone_is_an_error_and_nothing_is_lost(
    canary_plane: Bench, store: KubernetesStore, kube: KubeClient, admin: Client
) -> None:
    version = store.save(API, UNDER_WAY, 0, [record(1, tell=True)])
    canary_plane.plane.kill_apiserver()
    try:
        for _ in range(3):
            with pytest.raises(StoreError, match="not saved"):
                store.save(API, RolloutState(weight=99), version, [record(2)])
        assert store.load(API).version == version  # seen a moment ago
        assert [r.id for r in store.owed()] == [f"{API}/1"]

        def blind() -> bool:
            try:
                store.load(API)
            except StoreError as e:
                return "cannot be seen" in str(e)
            return False

        wait_until(blind, "an old state not to be taken for the present one", 40)
    finally:
        canary_plane.plane.start_apiserver()

    def sees() -> Stored | None:
        try:
            return store.load(API)
        except StoreError:
            return None

    wait_until(lambda: sees() is not None, "the watch to be back", 40)
    stored = sees()
    assert stored is not None
    assert (stored.version, stored.state) == (version, UNDER_WAY)
    assert store.save(API, RolloutState(weight=30), stored.version, [record(2)]) == version + 1
    assert [r.id for r in store.records(API)] == [f"{API}/2", f"{API}/1"]


def test_without_the_right_to_write_the_error_names_the_verb(
    client_of: Callable[[str], KubeClient], informer: Informer
) -> None:
    mine = KubernetesStore(client_of("tenant"), informer)
    with pytest.raises(
        StoreError, match=r"forbidden: patch canaries\.canaryd\.io/status api in shop, as system:service"
    ):
        mine.save(API, UNDER_WAY, 0, [])


def test_a_watch_that_has_not_begun_shows_no_state(kube: KubeClient, canaries: None) -> None:
    store = KubernetesStore(kube, Informer(kube, CANARIES, namespaces=("shop",)))
    with pytest.raises(StoreError, match="cannot be seen"):
        store.load(API)


Damage = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        ("status.state", lambda s: s.update(state=s["state"][:-9])),
        ("status.state", lambda s: s.update(state="hello")),
        ("status.state", lambda s: s.update(state=s["records"])),
        ("status.state", lambda s: s.pop("state")),
        ("status.state", lambda s: s.pop("records")),
        ("status.state", lambda s: s.update(version=7)),
        ("status.state", lambda s: s.update(version=0)),
        ("status.state", lambda s: s.update(state=b64encode(b"x\x9c\xcb\x00\x00").decode())),
        ("status.records", lambda s: s.update(records="AAAA")),
        ("status.records", lambda s: s.update(records=s["state"][:40])),
    ],
)
def test_a_damaged_status_is_named_never_overwritten_and_repaired_by_a_person_alone(
    store: KubernetesStore, canary_plane: Bench, admin: Client, informer: Informer, field: str, damage: Damage
) -> None:
    body = {"kind": "hold"}
    version = store.save(
        API,
        RolloutState(weight=5, latest=body, ticked=NOW),
        0,
        [Record(f"{API}/1", API, NOW, DecisionKind.HOLD, "…", body, tell=True)],
    )
    good = admin.get("canaries", "api")
    bad = json.loads(json.dumps(good["status"]))
    damage(bad)
    admin.patch("canaries", "api", [{"op": "add", "path": "/status", "value": bad}], kind="json", part="status")
    caught_up(informer, admin)
    for use in (
        lambda: store.load(API),
        lambda: store.save(API, RolloutState(), version, []),
        lambda: store.records(API),
        lambda: store.override(API, word("o1")),
    ):
        with pytest.raises(StoreError, match=field) as refused:
            use()
        assert "kubectl patch canaries.canaryd.io api -n shop" in str(refused.value)
    assert store.owed() == ()  # and holds up nobody else
    assert status(admin) == bad
    command = str(refused.value).partition("(kubectl patch ")[2].partition(")")[0]
    first, _, patch = command.partition(" -p ")
    canary_plane.kubectl("patch", *first.split(), "-p", patch.strip("'"))
    caught_up(informer, admin)
    assert store.load(API).state is None
    assert store.save(API, RolloutState(), store.load(API).version, []) == 1


def test_what_a_newer_canaryd_has_written_is_left_alone(
    store: KubernetesStore, admin: Client, informer: Informer
) -> None:
    import zlib

    newer = b64encode(zlib.compress(b'{"form": 99, "version": 1}')).decode()
    value = {"version": 1, "state": newer}
    admin.patch("canaries", "api", [{"op": "add", "path": "/status", "value": value}], kind="json", part="status")
    caught_up(informer, admin)
    with pytest.raises(StoreError, match="newer canaryd"):
        store.load(API)


# ── what people read ─────────────────────────────────────────────────────────────────────────────────────────


def test_kubectl_wait_hears_of_a_promotion_and_never_of_an_earlier_one(
    store: KubernetesStore, canary_plane: Bench, admin: Client, informer: Informer
) -> None:
    def waited(condition: str = "Promoted") -> bool:
        command = ("wait", "canary/api", "-n", "shop", f"--for=condition={condition}", "--timeout=1s")
        return canary_plane.kubectl(*command, check=False).returncode == 0

    def decide(version: int, **changes: Any) -> int:
        return store.save(
            API, RolloutState(number=3, rollout="api-3", revision="r2", ticked=NOW, **changes), version, []
        )

    version = decide(0, phase=Phase.SUCCEEDED, verdict=Verdict.HEALTHY, sentence="api promoted")
    assert waited()
    version = decide(version, phase=Phase.WAITING)
    assert not waited()
    assert not waited("Promoted=false")
    version = decide(version, phase=Phase.ROLLED_BACK, verdict=Verdict.REGRESSED)
    assert waited("Promoted=false")
    assert waited("Healthy=false")
    version = decide(version, phase=Phase.SUCCEEDED, verdict=Verdict.HEALTHY)
    assert waited()
    admin.patch("canaries", "api", {"spec": {"interval": "1m"}})  # a new generation
    assert not waited()
    caught_up(informer, admin)
    store.accept(API)
    assert waited()
    store.accept(API)
    assert status(admin)["observedGeneration"] == admin.get("canaries", "api")["metadata"]["generation"] == 2


def test_the_time_of_a_transition_changes_with_the_status_of_the_condition_alone(
    store: KubernetesStore, admin: Client
) -> None:
    version, seen = 0, []
    story = [
        (Phase.WAITING, None, "WaitingForWorkloads"),
        (Phase.PROGRESSING, Verdict.INCONCLUSIVE, "Analysing"),
        (Phase.PROGRESSING, Verdict.BLIND, "Blind"),
        (Phase.PAUSED, Verdict.HEALTHY, "Paused"),
        (Phase.PROMOTING, Verdict.HEALTHY, "Promoting"),
        (Phase.SUCCEEDED, Verdict.HEALTHY, "Succeeded"),
    ]
    for n, (phase, verdict, reason) in enumerate(story):
        state = RolloutState(number=1, phase=phase, verdict=verdict, ticked=NOW + n * SECOND, sentence=f"s{n}")
        version = store.save(API, state, version, [])
        progressing = conditions(admin)["Progressing"]
        assert (progressing["reason"], progressing["message"]) == (reason, f"s{n}")
        seen.append(progressing["lastTransitionTime"][-3:-1])
    assert seen == ["00", "00", "00", "03", "04", "05"]


def test_the_columns_show_where_it_is(store: KubernetesStore, canary_plane: Bench) -> None:
    latest = {
        "stepWeights": [5, 25, 50], "weight": {"configured": 25, "observed": 0.2478}, "decisive": "errors",
        "evidence": {"towardStep": 0.64, "towardRollback": 0.031}, "next": "2 000 canary requests",
        "nextLook": "2026-03-01T12:00:30+00:00", "kind": "hold",
    }  # fmt: skip
    state = RolloutState(
        rollout="api-3", number=3, revision="r2", stable_revision="r1", phase=Phase.PROGRESSING, weight=25, step=1,
        verdict=Verdict.INCONCLUSIVE, sentence="api stays at 25 %: more requests", latest=latest, ticked=NOW,
        started=NOW,
    )  # fmt: skip
    store.save(API, state, 0, [])
    wide = canary_plane.kubectl("get", "canary", "api", "-n", "shop", "-o", "wide").stdout
    for text in ("Progressing", "2/3", "25", "inconclusive", "r2", "24.8", "errors", "api stays at 25 %"):
        assert text in wide
    shown = canary_plane.kubectl("get", "canary", "api", "-n", "shop", "-o", "json").stdout
    said = json.loads(shown)["status"]
    assert said["weight"] == {"desired": 25, "configured": 25, "observed": 24.8}
    assert (said["progress"], said["next"]) == ("step 64 %, rollback 3 %", "2 000 canary requests")
    assert (said["started"], said["nextLook"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:00:30Z")
    assert store.load(API).state == state


def test_a_wrong_document_is_said_to_be_one_until_it_is_right(
    store: KubernetesStore, kube: KubeClient, admin: Client
) -> None:
    problem = Problem("", 0, "spec.steps[2].weight", "is 101; use 1 to 100")
    store.refuse(API, [problem])
    ready = conditions(admin)["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Invalid")
    assert "spec.steps[2].weight: is 101" in ready["message"]
    patches = kube.requests["patch", "canaries"]
    store.refuse(API, [problem])
    assert kube.requests["patch", "canaries"] == patches
    assert store.load(API).state is None
    store.accept(API)
    assert conditions(admin)["Ready"]["status"] == "True"
    assert store.save(API, UNDER_WAY, store.load(API).version, []) == 1


def test_a_condition_of_others_survives_a_save_and_a_save_survives_a_condition(
    store: KubernetesStore, admin: Client
) -> None:
    version = store.save(API, UNDER_WAY, 0, [])
    store.condition(API, "Ready", "False", "Forbidden", "canaryd may not patch virtualservices in shop")
    store.condition(API, "Contested", "True", "GitOps", "somebody sets the weight again and again")
    version = store.save(API, UNDER_WAY, version, [])
    found = conditions(admin)
    assert (found["Ready"]["reason"], found["Contested"]["reason"]) == ("Forbidden", "GitOps")
    assert store.save(API, UNDER_WAY, version, []) == 3


class TwentyPods(World):
    """Ten pods on each side."""

    def _serve(self, workload: str, n: int) -> None:
        for pod in range(10):
            bad = self.random.binomial(n // 10, self.errors.get(workload, 0.001))
            for code, count in (("200", n // 10 - bad), ("500", bad)):
                if count:
                    name = f"{workload}-7d9f8c6b5-{pod:05d}"
                    ms = self.random.lognormal(np.log(40), 0.5, count)
                    self.metrics.serve(workload, name, code=code, ms=ms)


def test_a_whole_rollout_with_twenty_pods_stays_below_sixteen_kilobytes_and_costs_one_write_a_look(
    store: KubernetesStore, kube: KubeClient, admin: Client, informer: Informer
) -> None:
    steps = [{"weight": w, "bake": "30s"} for w in (5, 10, 25, 50)]
    world = TwentyPods(canary_document(steps=steps, warmUp="30s"), rps=600)
    world.start()
    version, looks, seen, most = 0, 0, 0, 0
    while looks < 60 and (version == 0 or world.state().phase is not Phase.SUCCEEDED):
        world.turn()
        kept = world.store.records("api", limit=10_000)[::-1]
        new = [Record(f"{API}/{r.id.rpartition('/')[2]}", API, r.at, r.kind, r.sentence, r.body, r.tell) for r in kept]
        version = store.save(API, world.state(), version, new[seen:])
        store.told([r.id for r in store.owed()])
        looks, seen = looks + 1, len(new)
        most = max(most, len(json.dumps(status(admin))))
        assert encode_state(store.load(API).state) == encode_state(world.state())
    assert (world.state().phase, looks >= 12) == (Phase.SUCCEEDED, True)
    assert most <= WHOLE
    assert kube.requests["patch", "canaries"] == looks
    assert kube.requests["patch", "configmaps"] + kube.requests["create", "configmaps"] <= looks / 5
    assert [r.body for r in store.records(API, limit=1000)] == [r.body for r in world.store.records("api", limit=1000)]
    fresh = KubernetesStore(kube, informer)
    assert encode_state(fresh.load(API).state) == encode_state(world.state())
