"""State in the status of the Canary objects themselves, with compare-and-swap, and what people say in an annotation.

Everything is read from a watched copy, so that a look costs no request; a save is one PATCH of the status, and now and
then one of the companion ConfigMap in which old records are kept. The PATCH tests the Canary's uid, canaryd's own
version, and the annotation as it was when the decision was made: whatever else others write on the object at the same
time (labels, other annotations, the document) costs no conflict. It never writes a document, and never to an object
that was made anew under the same name. A status that cannot be read is said to be so and never started afresh: only a
person does that.

Words that were answered are kept in mind, so that a manifest that brings an old word again neither repeats nor undoes
anything. A word without an id is known by what it says: to say the very same again, give it an id or use the command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import itemgetter
from threading import Lock, RLock
from typing import Any

import structlog

from canaryd.errors import ConflictError, KubeError, OverrideError, StoreError
from canaryd.kube import status as statuses
from canaryd.kube import words
from canaryd.kube.canaries import Canaries, annotation_of, fields, generation_of, key_of, replaced, status_of
from canaryd.kube.client import KubeClient
from canaryd.kube.companion import Companion
from canaryd.kube.informer import Reader
from canaryd.kube.packed import Chest, pack_chest, pack_state
from canaryd.kube.unpacked import Unpacked
from canaryd.model import Answer, Override, Record, Release, RolloutState, Stored
from canaryd.ports import check_note, noted

JSON = dict[str, Any]

RECORDS = 6 * 1024  # bytes of packed records that stay in a status
WHOLE = 16 * 1024  # bytes of a status, records and all
UNKEPT = timedelta(minutes=1)  # between two tries where a status is not kept
MOST_RECORDS = 24 * 1024  # bytes of them where the companion cannot be written

log = structlog.get_logger("canaryd.store")


class _Version(int):
    """A version that remembers of which object it is and what people had said on it when it was read."""

    uid: str
    word: str | None

    @classmethod
    def of(cls, number: int, canary: JSON) -> _Version:
        made = cls(number)
        made.uid, made.word = str(canary["metadata"]["uid"]), annotation_of(canary)
        return made


@dataclass(slots=True)
class _Pending:
    """What notifiers have done since the last write of a status."""

    since: datetime
    told: set[str] = field(default_factory=set)  # ids that nobody need tell any more
    heard: dict[str, set[str]] = field(default_factory=dict)  # id → notifiers that have told it
    bodies: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # id → body of an amended record
    notes: dict[str, str] = field(default_factory=dict)

    def copy(self) -> _Pending:
        heard = {id_: set(names) for id_, names in self.heard.items()}
        return _Pending(self.since, set(self.told), heard, dict(self.bodies), dict(self.notes))

    def put(self, chest: Chest) -> Chest:
        """The chest with all of it."""
        notes = chest.notes
        for key, value in self.notes.items():
            notes = noted(notes, key, value)
        return replace(chest.amended(self.bodies).told_by(self.heard).told(self.told), notes=notes)

    def without(self, written: _Pending, now: datetime) -> _Pending:
        """What came after the copy that was written."""
        heard = {id_: names - written.heard.get(id_, set()) for id_, names in self.heard.items()}
        return _Pending(
            now,
            self.told - written.told,
            {id_: names for id_, names in heard.items() if names},
            {id_: body for id_, body in self.bodies.items() if written.bodies.get(id_) is not body},
            {key: value for key, value in self.notes.items() if written.notes.get(key) != value},
        )

    def __bool__(self) -> bool:
        return bool(self.told or self.heard or self.bodies or self.notes)


class KubernetesStore:
    """The port StateStore, keyed "NAMESPACE/NAME". Safe to use from several threads.

    `canaries` are the Canary objects; where they cannot be seen for longer than ten seconds, everything raises
    StoreError. `heartbeat` says who leads and when that was last renewed. `clock` is asked only for when a word that
    does not say was heard, and for the times of conditions that no decision has set.
    """

    def __init__(
        self,
        client: KubeClient,
        canaries: Reader,
        *,
        heartbeat: Callable[[], tuple[str, datetime] | None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._objects = Canaries(client, canaries)
        self._heartbeat = heartbeat
        self._clock = clock
        self._read = Unpacked(clock)
        self._companion = Companion(client)
        self._lock = RLock()  # of what is kept in memory below
        self._writers: dict[str, Lock] = {}  # one at a time for each Canary
        self._pending: dict[str, _Pending] = {}  # uid → what the next write of its status carries along
        self._unkept: dict[str, datetime] = {}  # uid → when its status was saved and not kept
        self._moved: dict[str, dict[str, Record]] = {}  # canary → owed records that its companion holds
        self._nothing: dict[str, object] = {}  # uid → the text of records of which all that is owed has been told

    # ── the port ─────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, canary: str) -> Stored:
        """See ports.StateStore. `release` is None: in a cluster the pod template says it. Raises StoreError, too,
        where there is no such Canary.
        """
        found = self._objects.find(canary)
        self._check_keeps(found)
        held = self._read.held(found)
        pending = self._read.heard(found).without(held.answered)
        return Stored(held.state, _Version.of(held.version, found), None, pending.overrides)

    def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
        """See ports.StateStore. The version knows which words had been heard; without that (a plain number) all are
        taken as heard that can be seen now. Records that leave the status are in the companion before that.
        """
        believed = version if isinstance(version, _Version) else _Version.of(version, self._objects.find(canary))

        def attempt(found: JSON) -> tuple[JSON, _Pending]:
            held = self._read.held(found)
            _check(found, held, believed, records)
            status, told = self._decided(found, held, state, records)
            return self._objects.patch_status(found, replaced(status), hearing=True), told

        with self._writing(canary):
            answer, told = self._objects.write(canary, attempt)
        self._written(answer, told)
        self._check_saved(answer, version + 1)
        return _Version.of(version + 1, answer)

    def release(self, canary: str, release: Release) -> int:
        """Raises OverrideError: what should run is said by the pod template."""
        raise OverrideError(
            f"{canary}: in a cluster the pod template of its Deployment says which revision should run;"
            f" change that (kubectl set image, kubectl apply) to release {release.revision}"
        )

    def override(self, canary: str, override: Override) -> int:
        """Writes the word into the annotation, behind those that wait for an answer; the version does not rise, but a
        save that has not heard the word is refused all the same. Raises OverrideError where too many wait.
        """

        def attempt(found: JSON) -> JSON:
            held, text, now = self._read.held(found), annotation_of(found), self._clock()
            waiting = words.heard(text, now).without(held.answered)
            if override.id in waiting.ids or words.mark(override.id) in held.answered:
                return found
            return self._objects.annotate(found, words.added(text, override, held.answered, now))

        found = self._objects.write(canary, attempt)
        return _Version.of(self._read.held(found).version, found)

    def mark(self) -> int:
        """Changes with every change of any Canary object, whoever made it."""
        return self._objects.generation

    def records(
        self, canary: str, *, limit: int = 50, before: datetime | None = None, kinds: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        """See ports.StateStore; one GET when more is wanted than the status holds. The oldest are dropped by size."""
        found = self._objects.find(canary)
        wanted = frozenset(str(kind) for kind in kinds)

        bodies = self._pending_of(found).bodies

        def chosen(records: Iterable[Record]) -> list[Record]:
            records = (replace(r, body=bodies[r.id]) if r.id in bodies else r for r in records)
            return [r for r in records if (before is None or r.at <= before) and (not wanted or r.kind in wanted)]

        recent = self._read.held(found).chest.records
        latest = chosen(reversed(recent))
        if len(latest) < limit:
            known = {(r.id, r.at) for r in recent}
            try:
                older = self._companion.read(found)
            except KubeError as e:
                raise StoreError(f"{canary}: older decisions cannot be read: {e}") from e
            latest += chosen(r for r in reversed(older) if (r.id, r.at) not in known)
        return tuple(latest[: max(limit, 0)])

    def owed(self, limit: int = 100, by: str = "") -> tuple[Record, ...]:
        """See ports.StateStore. A Canary whose records cannot be read holds up nobody else's."""
        owed: list[tuple[datetime, Record]] = []
        for found in self._owing():
            uid, text = str(found["metadata"]["uid"]), status_of(found).get("records")
            if self._nothing.get(uid) == text:
                continue
            records = self._owed_by(found, by)
            if not by and records is not None and not records:
                self._nothing[uid] = text
            if not records:
                continue
            times = accumulate((r.at for r in records), max)  # keeps their order where the clock was set back
            owed += zip(times, records, strict=True)
        return tuple(record for _, record in sorted(owed, key=itemgetter(0))[: max(limit, 0)])

    def told(self, ids: Sequence[str], by: str = "", expected: Sequence[str] = ()) -> None:
        """Costs no write of its own: it is kept in memory until the next save, `write_down` or `close` carries it
        along. A daemon that dies before tells those again; KubernetesEvents recognises them.
        """
        wanted = set(ids)
        for found in self._owing() if wanted else ():
            try:
                chest = self._read.held(found).chest
            except StoreError:
                continue  # whoever loads it says why
            if not (known := wanted.intersection(chest.owed)):
                continue
            with self._lock:
                pending = self._to_write(found)
                for id_ in known if by else ():
                    pending.heard.setdefault(id_, set()).add(by)
                heard = {i: {*chest.heard.get(i, ()), *pending.heard.get(i, ())} for i in known}
                pending.told |= {i for i in known if not by or heard[i].issuperset(expected)}

    def amend(self, record: Record) -> None:
        """See ports.StateStore. Carried along by the next write; two requests where the record has left the status."""
        with self._writing(record.canary):
            found = self._objects.find(record.canary)
            if any(r.id == record.id for r in self._read.held(found).chest.records):
                with self._lock:
                    self._to_write(found).bodies[record.id] = record.body
                return
            try:
                self._companion.amend(found, record)
            except KubeError as e:
                raise StoreError(f"{record.canary}: {record.id} is not amended: {e}") from e
            with self._lock:
                moved = self._moved.get(str(found["metadata"]["uid"]), {})
                if record.id in moved:
                    moved[record.id] = replace(moved[record.id], body=record.body)

    def memo(self, canary: str) -> Mapping[str, str]:
        """See ports.StateStore; no request."""
        found = self._objects.find(canary)
        return dict(self._pending_of(found).put(self._read.held(found).chest).notes)

    def remember(self, canary: str, key: str, value: str) -> None:
        """See ports.StateStore. Carried along by the next write."""
        check_note(key, value)
        found = self._objects.find(canary)
        if self.memo(canary).get(key, "") != value:
            with self._lock:
                pending = self._to_write(found)
                pending.notes.pop(key, None)
                pending.notes[key] = value

    def write_down(self, after: timedelta = timedelta(0)) -> None:
        """Writes what notifiers have done where no save has carried it along for so long: one PATCH for each Canary."""
        now = self._clock()
        for found in self._objects.all():
            pending = self._pending_of(found)
            if not pending or now - pending.since < after:
                continue
            try:
                self._write_down_pending(key_of(found))
            except StoreError as e:
                log.info("what was told is written down later", canary=key_of(found), error=str(e))

    def prune(self, keep_after: datetime, keep_at_least: int) -> int:
        """Forgets nothing (what is kept is bounded by its size); writes down what was told since the last saves."""
        self.write_down()
        there = {str(found["metadata"]["uid"]) for found in self._objects.all()}
        with self._lock:
            for gone in self._pending.keys() - there:
                del self._pending[gone]
        return 0

    # ── for the commands of people ───────────────────────────────────────────────────────────────────────────

    def audit(self, canary: str, limit: int = 50) -> tuple[tuple[Override, Answer | None], ...]:
        """The latest that people said, newest first, each with its answer; None while it waits for one."""
        found = self._objects.find(canary)
        held = self._read.held(found)
        waiting = self._read.heard(found).without(held.answered).overrides
        said: list[tuple[Override, Answer | None]] = [*held.chest.said, *((word, None) for word in waiting)]
        return tuple(reversed(said))[: max(limit, 0)]

    def canaries(self) -> tuple[str, ...]:
        """Keys of the Canaries about which a state or a word of a person is held, sorted."""
        return tuple(sorted(key_of(c) for c in self._objects.all() if status_of(c).get("version") or annotation_of(c)))

    def beat(self, holder: str, at: datetime) -> None:
        """Nothing: the Lease says who leads."""

    def heartbeat(self) -> tuple[str, datetime] | None:
        """Who leads and when that was last renewed; None when nobody ever did."""
        return self._heartbeat()

    def close(self) -> None:
        """Writes down what was told, as far as that is possible now."""
        with self._lock:
            if not any(self._pending.values()):
                return
        try:
            self.prune(self._clock(), 0)
        except StoreError as e:
            log.warning("what was told is not written down and may be told again", error=str(e))

    # ── what a status says besides the state ─────────────────────────────────────────────────────────────────

    def refuse(self, canary: str, problems: Sequence[object]) -> None:
        """The document of this generation is wrong: Ready=False with what is wrong. No write when it says so already.

        Raises StoreError.
        """
        self._set(canary, statuses.invalid(problems))

    def accept(self, canary: str) -> None:
        """The document of this generation is valid, nothing holds it up, and every condition speaks of it. No write
        when that is so, nor before the first decision. Raises StoreError.
        """
        found = self._objects.find(canary)
        status = status_of(found)
        if (
            statuses.is_refused(status)
            or statuses.is_held_up(status)
            or (status.get("version") and status.get("observedGeneration") != generation_of(found))
        ):
            self._set(canary, statuses.valid(), all_of_them=True)

    def hold(self, canary: str, why: str) -> None:
        """Ready=False with what keeps the Canary from being looked after; "" takes that back. No write when so already.

        Raises StoreError.
        """
        self._set(canary, statuses.held_up(why) if why else statuses.valid())

    def condition(self, canary: str, type_: str, status: str, reason: str, message: str) -> None:
        """Sets one condition; no write when it is so already. `status` is True, False or Unknown, `reason` CamelCase.

        Raises StoreError.
        """
        self._set(canary, statuses.Condition(type_, status, reason, message))

    def reject(self, canary: str) -> tuple[str, ...]:
        """Answers the words that nobody can carry out, in status.lastOverride: their sentences.

        To be called with every look; without such words it costs nothing. Raises StoreError.
        """

        def attempt(found: JSON) -> tuple[str, ...]:
            held, heard = self._read.held(found), self._read.heard(found)
            refused = heard.without(held.answered).refusals
            if not refused:
                return ()
            last = statuses.last_override(refused[-1], None, self._clock())
            answered = words.remembered(held.answered, [r.id for r in refused], heard.ids)
            change = fields(found, lastOverride=last, answered=list(answered))
            self._objects.patch_status(found, change, hearing=True)
            return tuple(r.sentence for r in refused)

        if annotation_of(self._objects.find(canary)) is None:  # nearly always
            return ()
        with self._writing(canary):
            return self._objects.write(canary, attempt)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────

    def _owing(self) -> tuple[JSON, ...]:
        """Told from a plain field, so that looking through ten thousand idle Canaries unpacks none of them."""
        return tuple(found for found in self._objects.all() if status_of(found).get("owed"))

    def _owed_by(self, found: JSON, by: str) -> list[Record] | None:
        """None where it cannot be read now."""
        pending = self._pending_of(found)
        try:
            chest = pending.put(self._read.held(found).chest)
            ids = [id_ for id_ in chest.owed if not by or by not in chest.heard.get(id_, ())]
            here: Mapping[str, Record] = {r.id: r for r in chest.records}
            if any(id_ not in here for id_ in ids):
                here = {**self._in_companion(found, chest.owed), **here}
        except (StoreError, KubeError) as e:
            log.warning("what is owed cannot be read", canary=key_of(found), error=str(e))
            return None
        if lost := {id_ for id_ in ids if id_ not in here}:  # somebody removed the companion
            log.error("never told", canary=key_of(found), records=sorted(lost), error="their records are gone")
            with self._lock:
                self._to_write(found).told |= lost
        return [here[id_] for id_ in ids if id_ in here]

    def _pending_of(self, found: JSON) -> _Pending:
        """A copy."""
        with self._lock:
            held = self._pending.get(str(found["metadata"]["uid"]))
            return held.copy() if held is not None else _Pending(self._clock())

    def _to_write(self, found: JSON) -> _Pending:
        """The thing itself, with the lock held."""
        return self._pending.setdefault(str(found["metadata"]["uid"]), _Pending(self._clock()))

    def _written(self, answer: JSON, written: _Pending) -> None:
        uid = str(answer["metadata"]["uid"])
        with self._lock:
            if uid in self._pending:
                left = self._pending[uid].without(written, self._clock())
                self._pending.pop(uid) if not left else self._pending.update({uid: left})

    def _in_companion(self, found: JSON, ids: Sequence[str]) -> Mapping[str, Record]:
        """Owed records that have left the status: from memory, after a new start from the companion, once."""
        uid = str(found["metadata"]["uid"])
        with self._lock:
            if uid in self._moved:
                return dict(self._moved[uid])
        older = {r.id: r for r in self._companion.read(found) if r.id in ids}
        with self._lock:
            return dict(self._moved.setdefault(uid, older))

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────

    def _check_saved(self, answer: JSON, version: int) -> None:
        """Raises StoreError where the server took the status and did not keep it: nothing may follow from that."""
        if status_of(answer).get("version") == version and "state" in status_of(answer):
            return
        self._read.check_kept(answer)
        with self._lock:
            self._unkept[str(answer["metadata"]["uid"])] = self._clock()
        self._check_keeps(answer)

    def _check_keeps(self, found: JSON) -> None:
        """Raises StoreError for a while after a server kept nothing at all of a status; then it is tried once more."""
        uid = str(found["metadata"]["uid"])
        with self._lock:
            since = self._unkept.get(uid)
            if since is None:
                return
            if status_of(found).get("version") or self._clock() - since >= UNKEPT:
                del self._unkept[uid]
                return
        raise StoreError(
            f"{key_of(found)}: the API server did not keep status.version and status.state: the definition of the"
            " Canary resource (CRD) is not that of this canaryd. Nothing is decided until that is put right"
            " (canaryd manifests crd | kubectl apply --server-side --force-conflicts -f -)"
        )

    @contextmanager
    def _writing(self, canary: str) -> Iterator[None]:
        """Only writer of this Canary in this process."""
        with self._lock:
            mine = self._writers.setdefault(canary, Lock())
        with mine:
            yield

    def _decided(
        self, found: JSON, held: statuses.Held, state: RolloutState, records: Sequence[Record]
    ) -> tuple[JSON, _Pending]:
        """The whole status after a decision, and what notifiers have done that is written down in it."""
        at = state.ticked or self._clock()
        heard = self._read.heard(found)
        new = heard.without(held.answered)
        status = statuses.rendered(status_of(found), state, generation_of(found), at)
        status["version"] = held.version + 1
        status["state"] = pack_state(state, held.version + 1, records[-1] if records else None)
        answers = {a.id: a for a in state.answered}
        said = [w for w in new.overrides if w.id in answers]
        answered = [*(w.id for w in said), *(r.id for r in new.refusals)]
        status["answered"] = list(words.remembered(held.answered, answered, heard.ids))
        if said:
            status["lastOverride"] = statuses.last_override(answers[said[-1].id], said[-1], at)
        elif new.refusals:
            status["lastOverride"] = statuses.last_override(new.refusals[-1], None, at)
        pending = self._pending_of(found)
        chest = pending.put(held.chest).answered(said, state.answered)
        self._put_records(found, status, chest, records)
        return status, pending

    def _put_records(self, found: JSON, status: JSON, chest: Chest, records: Sequence[Record]) -> None:
        """Adds the records to the status; where there is no room, the older ones go to the companion first."""
        full = chest.plus(records)
        status["owed"], status["records"] = len(full.owed), ""
        text = pack_chest(full)
        if len(text) > min(RECORDS, WHOLE - len(json.dumps(status))) and chest.records:
            # However large they are, two looks in a row do not each write the companion.
            newest = pack_chest(replace(full, records=tuple(records[-1:])))
            if len(text) > 2 * len(newest) and self._move(found, chest, len(text)):
                text = pack_chest(replace(full, records=tuple(records)))
        status["records"] = text

    def _move(self, found: JSON, chest: Chest, size: int) -> bool:
        """Whether older records may leave the status: they are in the companion, or there is no other way."""
        canary, uid = key_of(found), str(found["metadata"]["uid"])
        owed = {r.id: r for r in chest.records if r.id in chest.owed}
        try:
            if len(owed) < len(chest.owed):
                owed = {**self._in_companion(found, chest.owed), **owed}
            owed = {id_: r for id_, r in owed.items() if id_ in chest.owed}
            self._companion.move(found, chest.records, tuple(owed.values()))
        except (KubeError, StoreError) as e:
            log.warning("older decisions stay in the status", canary=canary, error=str(e))
            if size <= MOST_RECORDS:
                return False
            log.error("older decisions are lost", canary=canary, records=len(chest.records))  # noqa: TRY400
        with self._lock:
            if owed:
                self._moved[uid] = owed
            else:
                self._moved.pop(uid, None)
        return True

    def _set(self, canary: str, condition: statuses.Condition, *, all_of_them: bool = False) -> None:
        """One condition; `all_of_them`: the others then speak of the present generation, too."""

        def attempt(found: JSON) -> None:
            self._read.check_kept(found)
            generation, status = generation_of(found), status_of(found)
            before = status.get("conditions")
            new = statuses.with_condition(before, condition, generation, self._clock())
            if all_of_them:
                new = [{**c, "observedGeneration": generation} for c in new]
            if new != before or status.get("observedGeneration") != generation:
                change = fields(found, conditions=new, observedGeneration=generation)
                self._objects.patch_status(found, change, hearing=False)

        with self._writing(canary):
            self._objects.write(canary, attempt)

    def _write_down_pending(self, canary: str) -> None:
        """Puts into the status what was told since its last save; a failure leaves it for the next time."""

        def attempt(found: JSON) -> tuple[JSON, _Pending]:
            pending, held = self._pending_of(found), self._read.held(found)
            chest = pending.put(held.chest)
            if not held.version or chest == held.chest:  # a status without a state is the next save's to write
                return found, pending if held.version else _Pending(pending.since)
            change = fields(found, records=pack_chest(chest), owed=len(chest.owed))
            return self._objects.patch_status(found, change, hearing=False), pending

        with self._writing(canary):
            answer, written = self._objects.write(canary, attempt)
        self._written(answer, written)


def _check(found: JSON, held: statuses.Held, believed: _Version, records: Sequence[Record]) -> None:
    """Raises ConflictError where the decision was made on something else than what is there."""
    canary = key_of(found)
    if str(found["metadata"]["uid"]) != believed.uid:
        raise ConflictError(f"{canary}: it was deleted and made anew; nothing was saved to the new one")
    if held.version != believed:
        raise ConflictError(f"{canary}: saved at version {believed}, but it is at {held.version} now")
    if annotation_of(found) != believed.word:
        raise ConflictError(f"{canary}: somebody said something after the decision was made")
    ids = [r.id for r in records]
    known = {r.id for r in held.chest.records}
    for id_ in ids:
        if id_ in known or ids.count(id_) > 1:
            raise ConflictError(f"{canary}: there is a record {id_} already")
