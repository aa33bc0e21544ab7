"""One tick for many canaries at once: observe, judge, decide, then save, route and tell, in that order.

Killed at any line, the next tick heals: what was saved is routed, what was routed is recognised by its stamp, what is
owed is told. A save that loses its compare-and-swap moves nothing. Time is passed in.

Where saving is expensive, looks that decided nothing may wait for the next save (`save_every`). Lost with the process,
they are looked at again: the saved watermark says from where, and what was counted comes out the same. Each canary has
its turn for such a save by its key, so that releases which began together are not all saved in the same tick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from canaryd import plan, records
from canaryd.delivery import Delivery
from canaryd.errors import CanarydError, ConflictError, FenceError, RouteError, RouteRefusedError, WorkloadError
from canaryd.measure import Case, Measurer
from canaryd.model import (
    Decision,
    DecisionKind,
    HookState,
    HookStatus,
    Observation,
    Phase,
    Record,
    Release,
    RolloutState,
    RouteView,
    Stored,
)
from canaryd.policy import Canary
from canaryd.ports import Ports
from canaryd.tracer import Tracer

log = structlog.get_logger("canaryd.reconcile")

PASSES = 5  # decisions in one tick, for phases that follow each other at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one tick did for one canary."""

    canary: str
    state: RolloutState | None
    kinds: tuple[DecisionKind, ...] = ()
    sentence: str = ""
    seen: Observation | None = None
    failed: str = ""  # why nothing could be saved or routed
    changed: bool = True  # something was saved, routed or shaped, as far as is known


@dataclass(slots=True, kw_only=True)
class _Case(Case):
    """One canary during one tick."""

    stored: Stored
    hook: HookState | None = None
    release: Release | None = None  # what the canary's own workload asks for


@dataclass(slots=True)
class _Unsaved:
    """Looks that decided nothing, waiting for the next save. Void when anybody else has saved since `version`."""

    version: int
    state: RolloutState
    records: tuple[Record, ...] = ()
    soon: bool = False  # the very next look is saved with them


class Reconciler:
    """Keeps nothing that matters between ticks."""

    def __init__(
        self,
        ports: Ports,
        *,
        workers: int = 8,
        tell_again: timedelta = timedelta(minutes=30),
        save_every: int = 1,
        writers: int = 1,
        delivery: Delivery | None = None,
    ) -> None:
        """`save_every`: how many looks that decided nothing share one save.

        `writers`: how many canaries are saved and routed at once, where each write waits for a server.
        """
        self.ports, self.tell_again, self.save_every = ports, tell_again, save_every
        self.delivery = delivery or Delivery(ports.notifiers, ports.store)
        self._unsaved: dict[str, _Unsaved] = {}
        self._looks: dict[str, int] = {}  # key -> looks at its counters, from a number that the key gives
        self._refused: set[str] = set()  # keys whose last save was refused: each look tries again, and says why
        self._unrouted: dict[str, str] = {}  # key -> why its route could not be written the last time
        self._unshaped: dict[str, str] = {}  # the same of its workloads
        self._emptied: dict[str, datetime] = {}  # deleted canaries -> when the last share was taken from them
        self._restored: dict[str, datetime] = {}  # deleted canaries -> when their route was given back
        self.tracer = Tracer(ports.traces) if ports.traces is not None else None
        self._measurer = Measurer(ports.metrics, tracer=self.tracer)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="observe")
        self._writers = ThreadPoolExecutor(max_workers=writers, thread_name_prefix="settle") if writers > 1 else None

    def close(self) -> None:
        for pool in filter(None, (self._pool, self._writers)):
            pool.shutdown(wait=False, cancel_futures=True)
        if self.tracer is not None:
            self.tracer.close()

    def tick(self, canaries: Sequence[Canary], now: datetime, *, measure: bool = True) -> list[Outcome]:
        """One tick. Without `measure` no counters are read: somebody said something and wants an answer at once."""
        cases, outcomes = [], []
        for canary in canaries:
            try:
                stored = self._load(canary)
                state = stored.state or plan.initial(canary)
                cases.append(_Case(canary=canary, stored=stored, state=state))
            except CanarydError as e:
                outcomes.append(self._failed(canary, str(e)))
        list(self._pool.map(self._look_guarded, cases))
        if measure:
            self._measurer.measure([c for c in cases if c.state.phase.is_active], now)
        settle = partial(self._guarded, now=now)
        return [*outcomes, *(self._writers.map(settle, cases) if self._writers else map(settle, cases))]

    def tell(self) -> int:
        """Deliver what is owed, in this thread: how many deliveries were made. A daemon has threads for it instead."""
        return self.delivery.tell()

    def flush(self) -> None:
        """Save what waits for it, before the process ends. What cannot be saved now is looked at again later."""
        for key, held in list(self._unsaved.items()):
            try:
                self.ports.store.save(key, held.state, held.version, held.records)
            except CanarydError as e:
                log.info("looks not saved", canary=key, reason=str(e))
            self._unsaved.pop(key, None)

    def forget(self) -> None:
        """Drop what waits for a save: somebody else leads now."""
        self._unsaved.clear()
        self._looks.clear()

    def remove(self, canary: Canary, now: datetime) -> str:
        """Bring back the plain service of a deleted Canary: what is waited for, "" when nothing is left of canaryd.

        Raises CanarydError when it cannot go on now; to be called again.
        """
        stored = self._load(canary)
        state, ports = stored.state or plan.initial(canary), self.ports
        left = self._restored.get(canary.key)
        if left is None and (waits := self._emptied_canary(canary, state, stored.version, now)):
            return waits
        if left is None:
            waits = ports.workloads.restore(canary, state, version=stored.version, now=now)
            if waits:
                return waits
            given_back = self._given_back(canary, state, stored.version)
            if not given_back and self._still_split(canary, state):
                log.warning("left as it is", canary=canary.key, reason="the route names both workloads, by its owner")
                return ""
            left = self._restored[canary.key] = now
        if now - left < plan.SETTLE:
            return f"the last requests leave {state.stable}"
        waits = ports.workloads.restore(canary, state, version=stored.version, now=now, rerouted=True)
        if not waits:
            del self._restored[canary.key]
            self._emptied.pop(canary.key, None)
            self._unsaved.pop(canary.key, None)
            self._looks.pop(canary.key, None)
        return waits

    def _given_back(self, canary: Canary, state: RolloutState, version: int) -> bool:
        """Whether the plain route is there again; one that the document itself rules out was never taken."""
        router, route = self.ports.router, canary.spec.route
        try:
            return router.restore(canary.key, route, state.stable, state.canary, version=version)
        except RouteRefusedError:
            if state.routed is not None or state.stable_revision:  # by an earlier form of the document
                raise
            return True

    def _still_split(self, canary: Canary, state: RolloutState) -> bool:
        """The route was not adopted, and sends requests to workloads that must therefore stay."""
        try:
            view = self.ports.router.view(canary.key, canary.spec.route, state.stable, state.canary)
        except RouteError:
            return False  # there is no such route any more
        return view.weight is not None

    def _emptied_canary(self, canary: Canary, state: RolloutState, version: int, now: datetime) -> str:
        """What is waited for until the canary's pods, which will be replaced, get no request; "" when they get none."""
        ports, router, route = self.ports, self.ports.router, canary.spec.route
        try:
            weight = router.view(canary.key, route, state.stable, state.canary).weight
        except RouteError:  # it is gone, or says something else by now
            return ""
        pods = ports.workloads.view(canary, state).stable
        if weight and (pods is None or pods.ready):  # without stable the canary is all that serves
            router.set_weight(canary.key, route, state.stable, state.canary, 0, version=version)
            self._emptied[canary.key] = now
        since = self._emptied.get(canary.key)
        return f"the last requests leave {state.canary}" if since is not None and now - since < plan.SETTLE else ""

    # ── observe ──────────────────────────────────────────────────────────────────────────────────────────────

    def _look_guarded(self, case: _Case) -> None:
        """A defect while looking at one canary is that canary's trouble; what was not seen by then stays unseen."""
        try:
            self._look(case)
        except Exception as e:  # like the one in _guarded: the others must not be stopped
            log.exception("defect", canary=case.canary.key)
            case.trouble.append(f"defect: {type(e).__name__}: {e}")

    def _look(self, case: _Case) -> None:
        """Everything but the counters; what cannot be seen becomes trouble, never an exception."""
        state, ports = case.state, self.ports
        case.route = self._view_route(case, state)
        case.workloads = None
        try:
            case.release = ports.workloads.release(case.canary)
        except WorkloadError as e:
            case.trouble.append(str(e))
        if state.phase is Phase.WAITING or case.canary.spec.workloads.deployment is not None:
            try:
                case.workloads = ports.workloads.view(case.canary, state)
            except WorkloadError as e:
                if str(e) not in case.trouble:
                    case.trouble.append(str(e))
        hook = case.canary.spec.after_promotion
        wanted = state.phase is Phase.PROMOTING and not case.stored.overrides  # an abort must not find it started
        owed = wanted and state.hook is not None and state.hook.status is HookStatus.OWED
        if owed and state.hook is not None and hook is None:
            case.hook = self._upgrade(case, state, state.hook)
        elif owed and state.hook is not None and hook is not None:
            facts = {
                "ROLLOUT": state.rollout,
                "REVISION": state.revision,
                "STABLE_POOL": state.stable,
                "CANARY_POOL": state.canary,
            }
            case.hook = ports.hooks.advance(case.canary, hook, state.hook, facts)

    def _upgrade(self, case: _Case, state: RolloutState, hook: HookState) -> HookState:
        try:
            return self.ports.workloads.upgrade(case.canary, state, hook, version=case.stored.version)
        except WorkloadError as e:
            case.trouble.append(str(e))
            return hook

    def _load(self, canary: Canary) -> Stored:
        """What is stored, and the looks since the last save unless somebody else has saved or spoken."""
        stored, held = self.ports.store.load(canary.key), self._unsaved.get(canary.key)
        if held is None:
            return stored
        if held.version != stored.version:
            del self._unsaved[canary.key]
            return stored
        return replace(stored, state=held.state)

    def _view_route(self, case: _Case, state: RolloutState) -> RouteView | None:
        try:
            return self.ports.router.view(case.canary.key, case.canary.spec.route, state.stable, state.canary)
        except RouteError as e:
            case.trouble.append(str(e))
            return None

    # ── decide, save, route ──────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, case: _Case, now: datetime) -> Outcome:
        """One canary's trouble is its own: neither a refused save nor a defect stops the others."""
        try:
            return self._settle(case, now)
        except ConflictError as e:
            self._unsaved.pop(case.canary.key, None)
            log.info("somebody saved first", canary=case.canary.key, error=str(e))
            return Outcome(case.canary.key, case.state, failed=str(e))
        except CanarydError as e:
            return self._failed(case.canary, str(e), case.state)
        except Exception as e:  # a defect in one rollout must not stop the others
            log.exception("defect", canary=case.canary.key)
            return self._failed(case.canary, f"defect: {type(e).__name__}: {e}", case.state)

    def _failed(self, canary: Canary, why: str, state: RolloutState | None = None) -> Outcome:
        log.error("held", canary=canary.key, reason=why)
        return Outcome(canary.key, state, failed=why)

    def _settle(self, case: _Case, now: datetime) -> Outcome:
        """Decide until nothing follows at once; each decision is saved before it is routed."""
        stored, kinds = case.stored, []
        key = case.canary.key
        case.trouble += [why for why in (self._unrouted.get(key), self._unshaped.get(key)) if why]
        seen = _observation(case, stored, now, self.tell_again)
        changed = False
        for _ in range(PASSES):
            before = stored.state
            decision = plan.decide(case.canary, before, seen)
            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
            shaped = self._shape(case, stored, now)
            changed = changed or wrote or shaped or stored.state is not before
            assert stored.state is not None
            pending = len(seen.overrides) > len({o.id for o in seen.overrides} & {a.id for a in stored.state.answered})
            moved = before is None or before.phase is not stored.state.phase
            if not (wrote or pending or moved):
                break
            if moved:
                self._look(_again(case, stored))
            case.route = self._view_route(case, stored.state)
            seen = _observation(case, stored, now, self.tell_again, again=True)
        assert stored.state is not None
        return Outcome(case.canary.key, stored.state, tuple(kinds), stored.state.sentence, seen, changed=changed)

    def _save(self, case: _Case, stored: Stored, decision: Decision, seen: Observation) -> Stored:
        new = records.records(case.canary, stored.state, decision, seen)
        before = stored.state
        if not new and before is not None and not before.phase.is_active and _same(before, decision.state):
            return stored
        state = replace(
            decision.state,
            decisions=decision.state.decisions + len(new),
            latest=records.latest(case.canary, before, decision, seen, new),
        )
        held = self._unsaved.pop(case.canary.key, None)
        if held is None or held.state is not before:  # a look at the same time has counted on by itself: not ours
            held = _Unsaved(stored.version, state)
        due = seen.judgement is not None and (self._is_turn(case.canary.key) or held.soon)
        # From when evidence counts is saved with the very next look.
        soon = held.soon or (before is not None and before.routed is None and state.routed is not None)
        held = _Unsaved(stored.version, state, (*held.records, *new), soon)
        due = due or case.canary.key in self._refused
        if not due and self.save_every > 1 and before is not None and _may_wait(before, state, new):
            self._unsaved[case.canary.key] = held
            return replace(stored, state=state)
        self._refused.add(case.canary.key)
        version = self.ports.store.save(case.canary.key, state, stored.version, held.records)
        self._refused.discard(case.canary.key)
        for record in held.records:
            if not record.tell:  # the notifiers say the others, the log among them
                self._say(record, state)
        return replace(stored, state=state, version=version)

    def _is_turn(self, key: str) -> bool:
        """Counts one look; true for one of every `save_every`, whichever look of other canaries that is."""
        looks = self._looks.get(key)
        if looks is None:
            looks = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        self._looks[key] = (looks + 1) % self.save_every
        return self._looks[key] == 0

    def _say(self, record: Record, state: RolloutState) -> None:
        log.info(
            "look",
            canary=record.canary,
            id=record.id,
            kind=str(record.kind),
            phase=str(state.phase),
            weight=state.weight,
            reason=record.sentence,
        )

    def _route(
        self, case: _Case, stored: Stored, decision: Decision, before: RolloutState | None, seen: Observation
    ) -> bool:
        """Make the split match the saved state. A transition is always written: its stamp shuts out the stale."""
        state = stored.state
        assert state is not None
        if state.number == 0 and not state.stable_revision:
            return self._adopt_route(case, stored, state, seen)
        moved = before is None or (before.weight, before.step, before.phase, before.stable) != (
            state.weight,
            state.step,
            state.phase,
            state.stable,
        )
        there = seen.route is not None and seen.route.weight == state.weight
        left_alone = state.contested is not None and seen.at < state.contested and plan.may_stay(state, seen)
        if there:
            self._unrouted.pop(case.canary.key, None)
        if not moved and (there or left_alone):
            return False
        return self._write(case, stored, state, adopt=seen.route is not None and seen.route.adoptable)

    def _adopt_route(self, case: _Case, stored: Stored, state: RolloutState, seen: Observation) -> bool:
        """Never rolled out: the route is not canaryd's, unless it is being adopted and stable can take everything."""
        route, view = seen.route, seen.workloads
        if case.canary.spec.workloads.deployment is None or route is None or view is None or not view.ready:
            return False
        if route.weight == state.weight:
            return False
        return self._write(case, stored, state, adopt=route.adoptable)

    def _write(self, case: _Case, stored: Stored, state: RolloutState, *, adopt: bool = False) -> bool:
        key, route, router = case.canary.key, case.canary.spec.route, self.ports.router
        try:
            if adopt:  # for the first time, or again where somebody has put the plain route back
                router.adopt(key, route, state.stable, state.canary, version=stored.version)
                if not state.weight:
                    return True
            router.set_weight(key, route, state.stable, state.canary, state.weight, version=stored.version)
        except FenceError as e:
            log.warning("stale", canary=key, error=str(e))
            raise
        except RouteError as e:
            log.warning("not routed", canary=key, weight=state.weight, error=str(e))
            self._unrouted[key] = str(e)
            return False
        self._unrouted.pop(key, None)
        return True

    def _shape(self, case: _Case, stored: Stored, now: datetime) -> bool:
        """Make the workloads match the saved state; what cannot be done now is tried again at the next tick.

        Whether anything was done, or was to be done.
        """
        if case.canary.spec.workloads.deployment is None or stored.state is None:
            return False
        try:
            done = self.ports.workloads.shape(case.canary, stored.state, version=stored.version, now=now)
        except FenceError as e:
            log.warning("stale", canary=case.canary.key, error=str(e))
            raise
        except WorkloadError as e:
            log.warning("not shaped", canary=case.canary.key, error=str(e))
            self._unshaped[case.canary.key] = str(e)
            return True
        self._unshaped.pop(case.canary.key, None)
        for text in done:
            log.info("shaped", canary=case.canary.key, did=text)
        return bool(done)


# ── small pieces ─────────────────────────────────────────────────────────────────────────────────────────────


def _observation(
    case: _Case, stored: Stored, now: datetime, tell_again: timedelta, *, again: bool = False
) -> Observation:
    """Everything seen, for `decide`; in a further pass of the same tick nothing new has been counted."""
    release = case.release or stored.release
    if release is None and case.canary.spec.workloads.deployment is not None and stored.state and stored.state.revision:
        release = Release(stored.state.revision)  # its workload cannot be seen, or is gone: nobody asked for another
    return Observation(
        at=now,
        release=release,
        route=case.route,
        workloads=case.workloads,
        judgement=None if again else case.judgement,
        evidence=None if again else case.evidence,
        scored=timedelta(0) if again else case.scored,
        spans=() if again else case.spans_taken,
        overrides=stored.overrides,
        hook=case.hook,
        trouble=tuple(case.trouble),
        tell_again=tell_again,
    )


def _again(case: _Case, stored: Stored) -> _Case:
    """The same case as it stands after a save."""
    assert stored.state is not None
    case.stored, case.state, case.trouble, case.hook = stored, stored.state, [], None
    return case


def _may_wait(before: RolloutState, after: RolloutState, new: Sequence[Record]) -> bool:
    """Nothing was decided, said or moved: only time passed and evidence grew."""
    if any(record.tell for record in new):
        return False
    grown = ("ticked", "evidence", "baked", "held", "blind", "sentence", "latest", "decisions", "routed")
    if before.routed is not None and after.routed is None:  # the weight has to be written again
        return False
    if _is_progress(before.hook, after.hook):  # of a Deployment; it shows there how far it is
        after = replace(after, hook=before.hook)
    return replace(after, **{name: getattr(before, name) for name in grown}) == before


def _is_progress(before: HookState | None, after: HookState | None) -> bool:
    """The same upgrade, still under way, has something else to say."""
    if before is None or after is None:
        return False
    return (before.id, before.status, after.status) == (after.id, HookStatus.OWED, HookStatus.OWED)


def _same(before: RolloutState, after: RolloutState) -> bool:
    """Nothing changed but the time of the tick."""
    return replace(before, ticked=None) == replace(after, ticked=None)
