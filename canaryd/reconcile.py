"""One tick for many canaries at once: observe, judge, decide, then save, route and tell, in that order.

Killed at any line, the next tick heals: what was saved is routed, what was routed is recognised by its stamp, what is
owed is told. A save that loses its compare-and-swap moves nothing. Time is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from canaryd import plan, records
from canaryd.errors import CanarydError, ConflictError, FenceError, NotifyError, RouteError, WorkloadError
from canaryd.measure import Case, Measurer
from canaryd.model import (
    Decision,
    DecisionKind,
    HookState,
    HookStatus,
    Observation,
    Phase,
    RolloutState,
    RouteView,
    Stored,
)
from canaryd.policy import Canary
from canaryd.ports import Ports

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


@dataclass(slots=True, kw_only=True)
class _Case(Case):
    """One canary during one tick."""

    stored: Stored
    hook: HookState | None = None


class Reconciler:
    """Keeps nothing that matters between ticks."""

    def __init__(self, ports: Ports, *, workers: int = 8, tell_again: timedelta = timedelta(minutes=30)) -> None:
        self.ports, self.tell_again = ports, tell_again
        self._measurer = Measurer(ports.metrics)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="observe")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def tick(self, canaries: Sequence[Canary], now: datetime, *, measure: bool = True) -> list[Outcome]:
        """One tick. Without `measure` no counters are read: somebody said something and wants an answer at once."""
        cases, outcomes = [], []
        for canary in canaries:
            try:
                stored = self.ports.store.load(canary.name)
                state = stored.state or plan.initial(canary)
                cases.append(_Case(canary=canary, stored=stored, state=state))
            except CanarydError as e:
                outcomes.append(self._failed(canary, str(e)))
        list(self._pool.map(self._look_guarded, cases))
        if measure:
            self._measurer.measure([c for c in cases if c.state.phase.is_active], now)
        return [*outcomes, *(self._guarded(case, now) for case in cases)]

    def tell(self) -> int:
        """Deliver what is owed; returns how many records were delivered. What fails stays owed, in order per canary."""
        told, stuck = 0, set()
        for record in self.ports.store.owed():
            if record.canary in stuck:
                continue
            try:
                for notifier in self.ports.notifiers:
                    notifier.notify(record)
            except NotifyError as e:
                stuck.add(record.canary)
                log.warning("not told", record=record.id, error=str(e))
                continue
            self.ports.store.told([record.id])  # one by one: a kill then repeats one of them at most
            told += 1
        return told

    # ── observe ──────────────────────────────────────────────────────────────────────────────────────────────

    def _look_guarded(self, case: _Case) -> None:
        """A defect while looking at one canary is that canary's trouble; what was not seen by then stays unseen."""
        try:
            self._look(case)
        except Exception as e:  # like the one in _guarded: the others must not be stopped
            log.exception("defect", canary=case.canary.name)
            case.trouble.append(f"defect: {type(e).__name__}: {e}")

    def _look(self, case: _Case) -> None:
        """Everything but the counters; what cannot be seen becomes trouble, never an exception."""
        state, ports = case.state, self.ports
        case.route = self._view_route(case, state)
        if state.phase is Phase.WAITING:
            try:
                case.workloads = ports.workloads.view(case.canary, state)
            except WorkloadError as e:
                case.trouble.append(str(e))
        hook = case.canary.spec.after_promotion
        wanted = state.phase is Phase.PROMOTING and not case.stored.overrides  # an abort must not find it started
        if wanted and hook is not None and state.hook is not None and state.hook.status is HookStatus.OWED:
            facts = {
                "ROLLOUT": state.rollout,
                "REVISION": state.revision,
                "STABLE_POOL": state.stable,
                "CANARY_POOL": state.canary,
            }
            case.hook = ports.hooks.advance(case.canary, hook, state.hook, facts)

    def _view_route(self, case: _Case, state: RolloutState) -> RouteView | None:
        try:
            return self.ports.router.view(case.canary.name, case.canary.spec.route, state.stable, state.canary)
        except RouteError as e:
            case.trouble.append(str(e))
            return None

    # ── decide, save, route ──────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, case: _Case, now: datetime) -> Outcome:
        """One canary's trouble is its own: neither a refused save nor a defect stops the others."""
        try:
            return self._settle(case, now)
        except ConflictError as e:
            log.info("somebody saved first", canary=case.canary.name, error=str(e))
            return Outcome(case.canary.name, case.state, failed=str(e))
        except CanarydError as e:
            return self._failed(case.canary, str(e), case.state)
        except Exception as e:  # a defect in one rollout must not stop the others
            log.exception("defect", canary=case.canary.name)
            return self._failed(case.canary, f"defect: {type(e).__name__}: {e}", case.state)

    def _failed(self, canary: Canary, why: str, state: RolloutState | None = None) -> Outcome:
        log.error("held", canary=canary.name, reason=why)
        return Outcome(canary.name, state, failed=why)

    def _settle(self, case: _Case, now: datetime) -> Outcome:
        """Decide until nothing follows at once; each decision is saved before it is routed."""
        stored, kinds = case.stored, []
        seen = _observation(case, stored, now, self.tell_again)
        for _ in range(PASSES):
            before = stored.state
            decision = plan.decide(case.canary, before, seen)
            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
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
        return Outcome(case.canary.name, stored.state, tuple(kinds), stored.state.sentence, seen)

    def _save(self, case: _Case, stored: Stored, decision: Decision, seen: Observation) -> Stored:
        new = records.records(case.canary, stored.state, decision, seen)
        before = stored.state
        if not new and before is not None and not before.phase.is_active and _same(before, decision.state):
            return stored
        state = replace(
            decision.state,
            decisions=decision.state.decisions + len(new),
            latest=records.body(case.canary, before, decision, seen),
        )
        version = self.ports.store.save(case.canary.name, state, stored.version, new)
        for record in new:
            if record.tell:
                continue  # the notifiers say these, the log among them
            log.info(
                "look",
                canary=record.canary,
                id=record.id,
                kind=str(record.kind),
                phase=str(state.phase),
                weight=state.weight,
                reason=record.sentence,
            )
        return replace(stored, state=state, version=version)

    def _route(
        self, case: _Case, stored: Stored, decision: Decision, before: RolloutState | None, seen: Observation
    ) -> bool:
        """Make the split match the saved state. A transition is always written: its stamp shuts out the stale."""
        state = stored.state
        assert state is not None
        if state.number == 0:
            return False  # never rolled out: the route is not canaryd's yet
        moved = before is None or (before.weight, before.step, before.phase, before.stable) != (
            state.weight,
            state.step,
            state.phase,
            state.stable,
        )
        there = seen.route is not None and seen.route.weight == state.weight
        if there and not moved:
            return False
        try:
            self.ports.router.set_weight(
                case.canary.name,
                case.canary.spec.route,
                state.stable,
                state.canary,
                state.weight,
                version=stored.version,
            )
        except FenceError as e:
            log.warning("stale", canary=case.canary.name, error=str(e))
            raise
        except RouteError as e:
            log.warning("not routed", canary=case.canary.name, weight=state.weight, error=str(e))
            return False
        return True


# ── small pieces ─────────────────────────────────────────────────────────────────────────────────────────────


def _observation(
    case: _Case, stored: Stored, now: datetime, tell_again: timedelta, *, again: bool = False
) -> Observation:
    """Everything seen, for `decide`; in a further pass of the same tick nothing new has been counted."""
    return Observation(
        at=now,
        release=stored.release,
        route=case.route,
        workloads=case.workloads,
        judgement=None if again else case.judgement,
        evidence=None if again else case.evidence,
        scored=timedelta(0) if again else case.scored,
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


def _same(before: RolloutState, after: RolloutState) -> bool:
    """Nothing changed but the time of the tick."""
    return replace(before, ticked=None) == replace(after, ticked=None)
