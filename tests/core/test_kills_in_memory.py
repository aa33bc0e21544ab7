"""Killed at any write, then started again: no step lost, doubled or undone, everything counted once and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog
from world import World, canary

from canaryd.adapters.memory import MemoryNotifier
from canaryd.model import HookStatus, Phase, Record
from canaryd.policy import Route
from canaryd.ports import Ports
from canaryd.reconcile import Reconciler

STEPS: dict[str, Any] = {"steps": [{"weight": w, "bake": "20s"} for w in (10, 50)]}
ERRORS: dict[str, Any] = {**STEPS, "metrics": [{"name": "errors", "kind": "errors"}]}  # quicker to play
WRITES = ("save", "set_weight", "notify", "told")
NOTING = (*WRITES, "remember")


class Killed(BaseException):
    """The process is gone: nothing in the product may catch this."""


@dataclass
class Fuse:
    """Counts the writes of the daemon and kills it at some of them, before or after they were done."""

    at: frozenset[int] = frozenset()  # numbers of the writes
    after: bool = False
    calls: list[str] = field(default_factory=list)
    first: int = 0  # writes of the first tick, in which the rollout began
    weights: list[int | None] = field(default_factory=lambda: [0])  # what users got of the second pool, changes only

    def burn(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        fatal = len(self.calls) in self.at
        if fatal and not self.after:
            raise Killed(name)
        result = call()
        if fatal:
            raise Killed(name)
        return result


class Wrapped:
    """A port whose writes go through the fuse; everything else is the port's own."""

    def __init__(self, port: Any, fuse: Fuse) -> None:
        self._port, self._fuse = port, fuse

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if name not in NOTING:
            return value
        return lambda *args, **more: self._fuse.burn(name, lambda: value(*args, **more))


class WrappedRouter(Wrapped):
    """Notes the weight that users get after each write, whoever has which role by then."""

    def set_weight(self, *args: Any, **more: Any) -> None:
        self._fuse.burn("set_weight", lambda: self._set(*args, **more))

    def _set(self, canary: str, route: Route, stable: str, other: str, weight: int, *, version: int) -> None:
        self._port.set_weight(canary, route, stable, other, weight, version=version)
        now = self._port.view(canary, route, "api-a", "api-b").weight
        if self._fuse.weights[-1] != now:
            self._fuse.weights.append(now)


def wired(ports: Ports, fuse: Fuse) -> Ports:
    return replace(
        ports,
        store=Wrapped(ports.store, fuse),
        router=WrappedRouter(ports.router, fuse),
        notifiers=tuple(Wrapped(n, fuse) for n in ports.notifiers),
    )


# ── the stories that are killed ──────────────────────────────────────────────────────────────────────────────


def good(remembers: bool) -> World:
    return World(canary(**(STEPS if remembers else ERRORS)), remembers=remembers)


def bad(remembers: bool) -> World:
    world = World(canary(**ERRORS), remembers=remembers)
    world.errors["api-b"] = 0.3
    return world


def hooked(remembers: bool) -> World:
    world = World(canary(**ERRORS, afterPromotion={"command": ["upgrade"]}), remembers=remembers)
    world.hooks.script("api", HookStatus.DONE)
    return world


STORIES = [
    pytest.param(good, True, Phase.SUCCEEDED, id="good-remembers"),
    pytest.param(good, False, Phase.SUCCEEDED, id="good-forgets"),
    pytest.param(bad, True, Phase.ROLLED_BACK, id="bad"),
    pytest.param(hooked, True, Phase.SUCCEEDED, id="hook"),
]


def play(story: Callable[[bool], World], remembers: bool, fuse: Fuse, *, at_once: bool) -> World:
    """A whole rollout; after each kill a fresh daemon ticks at once or only at the next interval."""
    world = story(remembers)
    world.start()
    world.reconciler = Reconciler(wired(world.ports, fuse), workers=1)
    for _ in range(30):
        world.traffic(10)
        for _ in range(len(fuse.at) + 1):
            try:
                world.tick()
                break
            except Killed:
                world.reconciler.close()
                world.reconciler = Reconciler(wired(world.ports, fuse), workers=1)
                if not at_once:
                    break
        fuse.first = fuse.first or len(fuse.calls)
        stored = world.store.load("api").state
        if stored is not None and stored.phase.is_settled and not world.store.owed():
            break
    world.reconciler.close()
    return world


def story_of(world: World) -> list[tuple[Any, ...]]:
    """The record as people read it, with the evidence behind every decision."""
    return [
        (r.id, r.kind, r.sentence, r.at, r.body["evidence"], r.body["harmed"], r.body["history"])
        for r in reversed(world.store.records("api", limit=10_000))
    ]


def told_once_in_order(world: World, kills: int) -> None:
    heard = [r.id for r in world.notifier.told]
    owed = [r.id for r in reversed(world.store.records("api", limit=10_000)) if r.tell]
    assert list(dict.fromkeys(heard)) == owed, "something was not told, or out of order"
    assert len(heard) - len(owed) <= kills, "a kill may repeat what was being told, and nothing else"
    assert world.store.owed() == ()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize(("story", "remembers", "end"), STORIES)
def test_a_kill_at_any_write_changes_nothing_when_the_daemon_is_back_at_once(
    story: Callable[[bool], World], remembers: bool, end: Phase
) -> None:
    whole = Fuse()
    calm = play(story, remembers, whole, at_once=True)
    assert calm.state().phase is end
    assert set(whole.calls) == set(WRITES)
    told_once_in_order(calm, 0)
    for k in range(1, len(whole.calls) + 1):
        for after in (False, True) if story is good and remembers else (k % 2 == 0,):
            fuse = Fuse(frozenset({k}), after)
            world = play(story, remembers, fuse, at_once=True)
            where = f"killed {'after' if after else 'before'} write {k}, {fuse.calls[k - 1]}"
            assert fuse.weights == whole.weights, where
            told_once_in_order(world, 1)
            check_totals(world)
            if k <= whole.first:  # the next daemon finds the rollout begun and may look earlier than this one did
                assert world.state().phase is end
                continue
            assert story_of(world) == story_of(calm), where
            mine, theirs = world.state(), calm.state()
            assert replace(mine, evidence=None, latest={}) == replace(theirs, evidence=None, latest={}), where
            assert mine.evidence is None or theirs.evidence is None or _same(mine.evidence, theirs.evidence), where
            assert (world.served, world.failed) == (calm.served, calm.failed), where


def _same(mine: Any, theirs: Any) -> bool:
    return mine.through == theirs.through and all((mine.arrays[k] == theirs.arrays[k]).all() for k in theirs.arrays)


@pytest.mark.parametrize(("story", "remembers", "end"), STORIES)
def test_a_kill_at_any_write_ends_the_same_when_the_daemon_is_back_later(
    story: Callable[[bool], World], remembers: bool, end: Phase
) -> None:
    whole = Fuse()
    calm = play(story, remembers, whole, at_once=True)
    for k in range(1, len(whole.calls) + 1, 5):
        fuse = Fuse(frozenset({k}), after=k % 4 == 1)
        world = play(story, remembers, fuse, at_once=False)
        state = world.state()
        assert (state.phase, state.stable, state.weight) == (end, calm.state().stable, 0), fuse.calls[k - 1]
        assert fuse.weights == whole.weights
        check_totals(world)
        told_once_in_order(world, 1)


def check_totals(world: World) -> None:
    """Every request of the canary up to the last look is counted exactly once, and record ids have no gaps."""
    kept = list(reversed(world.store.records("api", limit=10_000)))
    assert [r.id for r in kept] == [f"api/{i + 1}" for i in range(len(kept))]
    last = next(r for r in reversed(kept) if r.kind in ("promote", "rollback"))
    if last.body["evidence"]["through"] == last.at.isoformat() and world.canaries[0].spec.after_promotion is None:
        served = world.served_at[last.at]["api-b"]
        assert last.body["harmed"]["requests"] == served


def test_two_notifiers_are_each_told_once_and_in_order_whichever_write_was_the_last() -> None:
    """The second one notes something in the store for each record, as Slack's notifier does for its threads."""

    def played(fuse: Fuse) -> tuple[World, Noting]:
        chat: list[Noting] = []

        def story(remembers: bool) -> World:
            world = bad(remembers)
            chat.append(Noting(Wrapped(world.ports.store, fuse)))
            world.ports = replace(world.ports, notifiers=(world.notifier, chat[0]))
            return world

        return play(story, True, fuse, at_once=True), chat[0]

    whole = Fuse()
    calm, _ = played(whole)
    assert whole.calls.count("told") == whole.calls.count("notify") == 2 * len(calm.notifier.told)
    for k in range(1, len(whole.calls) + 1):
        world, chat = played(Fuse(frozenset({k}), after=k % 2 == 0))
        where = f"killed at write {k}, {whole.calls[k - 1]}"
        told_once_in_order(world, 1)
        heard = [r.id for r in chat.told]
        assert list(dict.fromkeys(heard)) == list(dict.fromkeys(r.id for r in world.notifier.told)), where
        assert len(heard) - len(set(heard)) <= 1, where
        assert world.store.memo("api") == {"chat/api-1": "thread"}, where


class Noting(MemoryNotifier):
    """Keeps a note in the store, once for each rollout, before it tells."""

    def __init__(self, store: Any) -> None:
        super().__init__("chat")
        self._store = store

    def notify(self, record: Record) -> None:
        self._store.remember(record.canary, f"chat/{record.body['rollout']}", "thread")
        super().notify(record)


def test_many_kills_in_one_rollout_end_the_same() -> None:
    whole = Fuse()
    calm = play(good, True, whole, at_once=True)
    for seed in range(6):
        fatal = frozenset(range(whole.first + 1 + seed, 200, 3 + seed))  # every third write, every fourth, ...
        fuse = Fuse(fatal, after=bool(seed % 2))
        world = play(good, True, fuse, at_once=True)
        assert fuse.weights == whole.weights
        assert story_of(world) == story_of(calm)
        told_once_in_order(world, len(fatal))
