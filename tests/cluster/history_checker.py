"""Replays what canaryd wrote, from the API server's audit log, and names every step that should not be there.

Writes are put in the order of etcd's revisions, which one etcd counts for all objects together; so "before" and "after"
hold across kinds. What is legal is written down here from what `canaryd.plan` may decide, apart from its code:

    adopted        Idle, step -1, 0 %
    new revision   from any phase but Promoting: the number rises by one, Waiting, step -1, 0 %
    forward        Waiting → Progressing step 0 → step 1 → … → last → Promoting 100 %, each with the weight of its step
    home           Promoting 100 % → a lower weight → … → 0 % → Succeeded (up again only to 100 %: stable got worse)
    back           Waiting, Progressing, Paused, Promoting → RollingBack 0 % → RolledBack
    wanted back    Waiting, Progressing, Paused, RollingBack → Idle, step -1, 0 %
    pauses         Waiting, Progressing ⇄ Paused, at the same step and weight

A write that the server answered with an error of its own, or that it did not answer because it was killed, may have
been done or not: it counts where a version would be missing without it, and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from bench.audit import Request

from canaryd.adapters.route_stamps import STAMP, Stamp
from canaryd.codec import encode_state
from canaryd.deployments.objects import REVISION
from canaryd.errors import StoreError
from canaryd.kube.status import held
from canaryd.model import Phase, RolloutState

JSON = dict[str, Any]

ACCOUNT = "system:serviceaccount:canaryd:canaryd"
KEPT = 50  # transitions in a state; older ones are dropped
UNDER_WAY = (Phase.WAITING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING)
SETTLED = (Phase.IDLE, Phase.SUCCEEDED, Phase.ROLLED_BACK)


@dataclass(frozen=True)
class Saved:
    """One state as it was saved."""

    revision: int  # etcd's; of a write without an answer the one before the next save's
    version: int
    state: RolloutState
    steps: tuple[int, ...]  # weights of the plan at that time
    at: datetime
    own: bool = True  # seen when it was saved, not only in the answer to a later write that left the state alone

    def __str__(self) -> str:
        state = self.state
        where = f"{state.phase.value} step {state.step} at {state.weight} %"
        return f"version {self.version} ({state.rollout or 'no rollout yet'}, {where})"


@dataclass
class Report:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    saves: int = 0
    moves: int = 0  # saves that changed phase, step or weight
    routes: int = 0  # accepted writes of VirtualServices
    shapes: int = 0  # accepted writes of Deployments
    refused: Counter[str] = field(default_factory=Counter)  # resource → writes that the server refused
    unanswered: int = 0  # writes of which the log does not say whether they were done, and which were
    interrupted: int = 0  # moves whose route was not written by whoever saved them: killed or refused in between
    late: int = 0  # routes written for a state that had been followed by another weight; put right by the next
    phases: Counter[str] = field(default_factory=Counter)  # phases that were entered
    unseen: set[tuple[str, int]] = field(default_factory=set)  # (uid, version) saved while the server was killed

    def __str__(self) -> str:
        counts = f"{self.saves} saves, {self.moves} moves, {self.routes} routes, {self.shapes} writes of Deployments"
        between = f"{self.interrupted} moves ended between save and route"
        odd = f"{dict(self.refused)} refused, {self.unanswered} without an answer, {self.late} late"
        return f"{counts}; {between}; {odd}; {dict(self.phases)}; {len(self.violations)} violations"


def check(requests: Iterable[Request], account: str = ACCOUNT, outages: Sequence[datetime] = ()) -> Report:
    """All Canaries in the log.

    `outages`: when the API server was killed; a save may have been done then without a line in the log, so one version
    may be missing there.
    """
    everything = list(requests)
    report = Report()
    for request in everything:
        if request.user == account and request.is_write and 400 <= request.status < 500:
            report.refused[request.resource] += 1
    found = _saves(everything, account)
    histories = {uid: _history(uid, saves, report, outages) for uid, saves in found.items()}
    _check_objects(everything, account, histories, report)
    return report


# ── states ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Saves:
    """Saves of one Canary, as the log has them."""

    name: str
    done: list[tuple[int, Request]] = field(default_factory=list)  # (etcd's revision, request)
    unsure: list[tuple[JSON, Request]] = field(default_factory=list)  # (status, request)


def _saves(requests: Sequence[Request], account: str) -> dict[str, _Saves]:
    found: dict[str, _Saves] = {}
    for request in requests:
        if request.user != account or request.resource != "canaries/status" or not request.is_write:
            continue
        if 200 <= request.status < 300:
            meta = request.answer["metadata"]
            saves = found.setdefault(meta["uid"], _Saves(f"{meta['namespace']}/{meta['name']}"))
            saves.done.append((int(meta["resourceVersion"]), request))
        elif not 400 <= request.status < 500:
            uid, status = _meant(request.body)
            if uid and status:
                name = f"{request.namespace}/{request.name}"
                found.setdefault(uid, _Saves(name)).unsure.append((status, request))
    return found


def _meant(body: Any) -> tuple[str, JSON]:
    """(uid, whole status) of a patch that replaces it; empty for another."""
    operations = body if isinstance(body, list) else []
    by_path = {(one.get("op"), one.get("path")): one.get("value") for one in operations}
    status = by_path.get(("add", "/status"))
    return str(by_path.get(("test", "/metadata/uid")) or ""), status if isinstance(status, dict) else {}


def _history(uid: str, saves: _Saves, report: Report, outages: Sequence[datetime]) -> list[Saved]:
    """The states of one Canary in their order, each checked against the one before."""
    out: list[Saved] = []
    for saved in _in_order(saves, report):
        before = out[-1] if out else None
        if before is not None and saved.version == before.version:
            if encode_state(saved.state) != encode_state(before.state):
                report.violations.append(f"{saves.name}: {saved} was saved twice, with different states")
            continue
        report.saves += 1
        if before is not None and not saved.own:
            if any(before.at <= outage <= saved.at for outage in outages):
                report.unanswered += 1
                saved = replace(saved, revision=before.revision)  # at some time since then
            else:
                report.violations.append(f"{saves.name}: {saved} is there, but nobody saved it")
        if before is not None and _is_hidden(before, saved, outages):
            report.unanswered += 1
            report.unseen.add((uid, before.version + 1))
        else:
            report.violations += [f"{saves.name}: {wrong}" for wrong in _wrong(before, saved)]
        if before is None or _place(before.state) != _place(saved.state):
            report.moves += before is not None
            report.phases[saved.state.phase.value] += 1
        out.append(saved)
    return out


def _is_hidden(before: Saved, after: Saved, outages: Sequence[datetime]) -> bool:
    """Exactly one version is missing, where the server was killed."""
    missing = after.version - before.version - 1
    forward = after.state.number >= before.state.number
    return missing == 1 and forward and any(before.at <= outage <= after.at for outage in outages)


def _in_order(saves: _Saves, report: Report) -> Iterator[Saved]:
    """Saves with what the log has no answer for put where a version would be missing."""
    last = 0
    unsure = {int(status.get("version", 0)): status for status, _ in saves.unsure}
    seen: set[int] = set()
    for revision, request in sorted(saves.done, key=lambda one: one[0]):
        obj, at = request.answer, request.done
        if revision in seen:  # a patch that changed nothing
            continue
        seen.add(revision)
        steps = _steps(obj)
        version = int((obj.get("status") or {}).get("version", 0))
        for missing in range(last + 1, version):
            if missing in unsure:
                report.unanswered += 1
                yield from _unpacked(saves.name, unsure[missing], (revision - 1, at), steps, report)
        last = max(last, version)
        if version:
            own = _meant(request.body)[1].get("version") == version
            yield from _unpacked(saves.name, obj["status"], (revision, at), steps, report, own=own)


def _unpacked(
    name: str, status: JSON, when: tuple[int, datetime], steps: tuple[int, ...], report: Report, *, own: bool = True
) -> Iterator[Saved]:
    try:
        found = held(status)
    except StoreError as e:
        report.violations.append(f"{name}: a status was saved that cannot be read: {e}")
        return
    if found.state is not None:
        yield Saved(when[0], found.version, found.state, steps, when[1], own)


def _steps(obj: JSON) -> tuple[int, ...]:
    return tuple(int(s["weight"] if isinstance(s, dict) else s) for s in (obj.get("spec") or {}).get("steps") or ())


def _place(state: RolloutState) -> tuple[Any, ...]:
    return state.number, state.phase, state.step, state.weight, state.stable_revision


def _wrong(before: Saved | None, after: Saved) -> Iterator[str]:
    """What is wrong with one save."""
    if before is None:
        if after.version != 1:
            yield f"the first save is {after}"
        if (after.state.phase, after.state.step, after.state.weight) != (Phase.IDLE, -1, 0):
            yield f"the first state is {after}"
        return
    if after.version != before.version + 1:
        yield f"{after} follows {before}: versions must rise by one"
    a, b = before.state, after.state
    if b.number == a.number + 1:
        if a.phase is Phase.PROMOTING or (b.phase, b.step, b.weight) != (Phase.WAITING, -1, 0):
            yield f"{before} → {after}: a new rollout begins Waiting at 0 %, and never during a promotion"
        if len(b.history) != 1:
            yield f"{after}: a new rollout begins with {len(b.history)} transitions in its history"
        return
    if b.number != a.number:
        yield f"{before} → {after}: rollouts must be counted one by one"
        return
    if b.revision != a.revision:
        yield f"{before} → {after}: the revision changed from {a.revision} to {b.revision} within a rollout"
    same = (a.phase, a.step, a.weight) == (b.phase, b.step, b.weight)
    if not same and not _is_legal(a, b, after.steps):
        yield f"{before} → {after}: no such transition"
    yield from _wrong_history(before, after, same)


def _wrong_history(before: Saved, after: Saved, same: bool) -> Iterator[str]:
    """The history in the state grows by exactly the transition that was made."""
    a, b = before.state.history, after.state.history
    grown = len(b) - len(a)
    if len(a) < KEPT and b[: len(a)] != a:
        yield f"{after}: its history is not that of {before} and what came then"
    elif len(a) < KEPT and grown != int(not same) and not (same and grown == 1 and _may_repeat(after.state)):
        yield f"{before} → {after}: {grown} transitions were added to its history"
    elif not same and b:
        last = b[-1]
        if (last.phase, last.step, last.weight) != (after.state.phase, after.state.step, after.state.weight):
            yield f"{after}: the last transition in its history is another"


def _may_repeat(state: RolloutState) -> bool:
    """Stable got worse at once: back to the 100 % at which it is."""
    return state.phase is Phase.PROMOTING and state.weight == 100


def _is_legal(a: RolloutState, b: RolloutState, steps: tuple[int, ...]) -> bool:
    """Within one rollout."""
    stays = (a.step, a.weight) == (b.step, b.weight)
    last = len(steps) - 1
    match a.phase, b.phase:
        case Phase.WAITING, Phase.PROGRESSING:
            return b.step == 0 and b.weight == steps[0]
        case ((Phase.PROGRESSING | Phase.PAUSED), Phase.PROGRESSING) if not stays:
            return b.step == a.step + 1 <= last and b.weight == steps[b.step]
        case ((Phase.PROGRESSING | Phase.PAUSED), Phase.PROMOTING):
            by_hand = len(b.answered) > len(a.answered)  # a person may promote in full
            return b.step == last and b.weight == 100 and (a.step == last or by_hand)
        case Phase.PROMOTING, Phase.PROMOTING:
            return a.step == b.step and (b.weight < a.weight or b.weight == 100)
        case Phase.PROMOTING, Phase.SUCCEEDED:
            return stays and a.weight == 0 and b.stable_revision == b.revision
        case ((Phase.WAITING | Phase.PROGRESSING | Phase.PAUSED | Phase.PROMOTING), Phase.ROLLING_BACK):
            return a.step == b.step and b.weight == 0
        case Phase.ROLLING_BACK, Phase.ROLLED_BACK:
            return stays and b.weight == 0
        case ((Phase.WAITING | Phase.PROGRESSING | Phase.PAUSED | Phase.ROLLING_BACK), Phase.IDLE):
            return (b.step, b.weight) == (-1, 0)
        case ((Phase.WAITING | Phase.PROGRESSING), Phase.PAUSED) | (Phase.PAUSED, (Phase.WAITING | Phase.PROGRESSING)):
            return stays
    return False


# ── what was written for these states ────────────────────────────────────────────────────────────────────────


@dataclass
class _World:
    """What the log says of other objects, as far as it has been replayed."""

    histories: dict[str, list[Saved]]
    report: Report
    stamps: dict[tuple[str, str], Stamp] = field(default_factory=dict)  # (resource, uid of the object) → newest
    weights: dict[str, int] = field(default_factory=dict)  # uid of the Canary → what its route says
    routed: set[tuple[str, int]] = field(default_factory=set)  # (uid of the Canary, version) that a route was given
    specs: dict[str, JSON] = field(default_factory=dict)  # uid of a Deployment → its spec

    def saved(self, stamp: Stamp) -> Saved | None:
        return next((s for s in self.histories.get(stamp.uid, ()) if s.version == stamp.version), None)


def _check_objects(
    requests: Sequence[Request], account: str, histories: dict[str, list[Saved]], report: Report
) -> None:
    """VirtualServices and Deployments, in etcd's order."""
    world, seen = _World(histories, report), set()
    for revision, request in sorted(_changes(requests), key=lambda one: one[0]):
        obj = request.answer
        what = f"{request.resource} {request.namespace}/{obj['metadata']['name']}"
        if (revision, what) in seen:  # a patch that changed nothing
            continue
        seen.add((revision, what))
        stamp = Stamp.parse((obj["metadata"].get("annotations") or {}).get(STAMP))
        if request.user == account and stamp is not None and _is_stamped(request):
            _check_stamp(world, what, obj, stamp, revision)
            if request.resource == "virtualservices":
                _check_route(world, what, obj, stamp)
            else:
                _check_shape(world, what, obj, stamp)
        if request.resource == "deployments":
            world.specs[obj["metadata"]["uid"]] = obj["spec"]
    _check_ends(world)


def _changes(requests: Sequence[Request]) -> Iterator[tuple[int, Request]]:
    """Accepted writes of whole objects, by anybody."""
    for request in requests:
        wanted = request.resource in ("virtualservices", "deployments") and request.verb in (
            "create",
            "update",
            "patch",
        )
        if wanted and 200 <= request.status < 300 and isinstance(request.answer, dict):
            version = (request.answer.get("metadata") or {}).get("resourceVersion")
            if version:
                yield int(version), request


def _is_stamped(request: Request) -> bool:
    """It wrote the stamp itself; a removal of canaryd's marks does not."""
    if request.verb == "create":
        return True
    operations = request.body if isinstance(request.body, list) else []
    return any(one.get("op") in ("add", "replace") and STAMP in str(one.get("value")) for one in operations) or any(
        str(one.get("path", "")).endswith(STAMP.replace("/", "~1")) and one.get("op") in ("add", "replace")
        for one in operations
    )


def _check_stamp(world: _World, what: str, obj: JSON, stamp: Stamp, revision: int) -> None:
    """It speaks of a state that had been saved, and is not older than the one before."""
    wrong = world.report.violations
    saved = world.saved(stamp)
    if (stamp.uid, stamp.version) in world.report.unseen:
        pass
    elif saved is None:
        wrong.append(f"{what}: written for version {stamp.version}, which was never saved")
    elif saved.revision >= revision:
        wrong.append(f"{what}: written for {saved} before that was saved")
    elif saved.state.weight != stamp.weight:
        wrong.append(f"{what}: written with {stamp.weight} %, but {saved} was saved")
    place = what.split(" ", 1)[0], obj["metadata"]["uid"]
    before = world.stamps.get(place)
    if before is not None and before.uid == stamp.uid and before.version > stamp.version:
        wrong.append(f"{what}: written for version {stamp.version} after it had been for version {before.version}")
    world.stamps[place] = stamp


def _check_route(world: _World, what: str, obj: JSON, stamp: Stamp) -> None:
    world.report.routes += 1
    weight = canary_weight(obj, stamp.workload)
    if weight != stamp.weight:
        world.report.violations.append(f"{what}: gives {weight} % where the stamp says {stamp.weight} %")
    world.weights[stamp.uid] = stamp.weight
    world.routed.add((stamp.uid, stamp.version))
    revision = int(obj["metadata"]["resourceVersion"])
    known = [s for s in world.histories.get(stamp.uid, ()) if s.revision < revision]
    world.report.late += bool(known and known[-1].state.weight != stamp.weight)


def canary_weight(obj: JSON, workload: str) -> int | None:
    """What a VirtualService gives to the canary's Service; None where it does not name it."""
    found = {
        int(to.get("weight", 100))
        for route in (obj.get("spec") or {}).get("http") or ()
        for to in route.get("route") or ()
        if to["destination"]["host"].split(".")[0] == f"{workload}-canary"
    }
    return found.pop() if len(found) == 1 else None


def _check_shape(world: _World, what: str, obj: JSON, stamp: Stamp) -> None:
    """Deployments are changed only in the phases in which that belongs, and pods go only when traffic has gone."""
    world.report.shapes += 1
    saved, before, spec = world.saved(stamp), world.specs.get(obj["metadata"]["uid"]), obj["spec"]
    if saved is None:
        return
    runs = (obj["metadata"].get("annotations") or {}).get(REVISION, "")
    back = bool(runs) and runs == saved.state.stable_revision and saved.state.phase is not Phase.PROMOTING
    if back and before is not None:  # stable gets its own template back after an upgrade that was not finished
        before = {**before, "template": spec["template"]}
    for wrong in _misfits(saved.state, obj["metadata"]["name"], before, spec, world.weights.get(stamp.uid, 0)):
        world.report.violations.append(f"{what}: {wrong}, for {saved}")


def _misfits(state: RolloutState, name: str, before: JSON | None, spec: JSON, weight: int) -> Iterator[str]:
    phase, adopting = state.phase, not state.number and not state.stable_revision
    has, had = int(spec.get("replicas", 1)), int((before or spec).get("replicas", 1))
    template = before is not None and spec["template"] != before["template"]
    if name == state.canary:
        if has > had and phase not in UNDER_WAY:
            yield f"it got pods ({had} → {has})"
        if has < had and (phase not in SETTLED or adopting):
            yield f"it lost pods ({had} → {has})"
        if has < had and weight:
            yield f"it lost pods ({had} → {has}) while the route gave it {weight} %"
        if spec.get("paused") and before is not None and not before.get("paused") and phase not in UNDER_WAY:
            yield "it was paused"
        return
    if before is None and not adopting and phase not in SETTLED and phase not in UNDER_WAY:
        yield "it was made"
    if template and (phase is not Phase.PROMOTING or state.weight != 100 or weight != 100):
        yield f"it got another template while the canary had {weight} %"
    if has < had and phase not in SETTLED:
        yield f"it lost pods ({had} → {has})"


def _check_ends(world: _World) -> None:
    """What was saved last is what the route says, where it had been canaryd's."""
    for uid, history in world.histories.items():
        moved = [b for a, b in pairwise(history) if _place(a.state)[1:4] != _place(b.state)[1:4]]
        world.report.interrupted += sum((uid, saved.version) not in world.routed for saved in moved)
        last, weight = history[-1] if history else None, world.weights.get(uid)
        if last is not None and weight is not None and last.state.weight != weight:
            world.report.violations.append(f"the route says {weight} % at the end, but the last save is {last}")
