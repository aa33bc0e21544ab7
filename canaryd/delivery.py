"""Telling people what was decided: at least once, in order for each canary, and never in the way of a rollout.

The outbox is what the store says is owed. Each notifier has a courier with a thread of its own, so that a chat that is
down holds up neither the log nor another chat; what one courier has delivered is marked as told by it alone. Killed at
any line, the next one goes on where the marks end: what was being delivered may come twice, nothing is left out.

A failure is tried again, later and later, or when the other side said; after a deadline it is given up, with a line in
the log and a count. Nothing that an adapter raises by accident is printed with its text, which might hold a secret.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from traceback import extract_tb
from typing import Any

import structlog

from canaryd.errors import CanarydError, NotifyError
from canaryd.model import Record
from canaryd.ports import Notifier, StateStore

log = structlog.get_logger("canaryd.delivery")

GIVE_UP = timedelta(hours=24)
POLL_S = 0.25  # how soon something new is noticed
AT_ONCE = 500  # owed records that are looked at in one round
IN_A_ROW = 3  # canaries that could not be told of: then it is not they who are the trouble
SHORTEST_S, LONGEST_S = 1.0, 300.0  # between two tries
COMPLAIN = timedelta(minutes=10)  # between two lines of the same words
REMEMBERED = 2000  # records that were delivered, and prepared

Report = Callable[[str, str], None]  # (notifier, outcome: sent, skipped, failed, given_up, refused)


@dataclass(slots=True)
class _Trouble:
    """One canary, or all, that could not be told of."""

    failures: int
    due: datetime | None  # not before; None: at once
    text: str
    since: datetime | None


@dataclass(slots=True)
class Courier:
    """One notifier and what it owes. Used by one thread at a time; `status` and `troubles` by any."""

    notifier: Notifier
    store: StateStore
    expected: Sequence[str]  # names of all notifiers
    prepare: Callable[[Record], Record]
    report: Report
    give_up: timedelta
    extras: deque[Record] = field(default_factory=lambda: deque(maxlen=100))  # to be told, but in no store
    left: bool = True  # something is owed that was not delivered the last time, or nobody has looked yet
    troubles: dict[str, _Trouble] = field(default_factory=dict)  # canary → why it could not be told of
    paused: _Trouble | None = None  # the notifier as a whole
    wake: threading.Event = field(default_factory=threading.Event)
    _delivered: OrderedDict[str, None] = field(default_factory=OrderedDict)  # whose mark could not be written
    _complained: dict[str, datetime | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.notifier.name

    def tell(self, now: datetime | None, may: Callable[[], bool] = lambda: True) -> int:
        """One round: how many records were delivered. Without `now` nothing is waited for and nothing given up."""
        if self.paused is not None and not _is_due(self.paused, now):
            return 0
        told, stuck, row, self.left = 0, set(), 0, False
        for record, kept in self._owed():
            trouble = self.troubles.get(record.canary)
            if record.canary in stuck or (trouble is not None and not _is_due(trouble, now)):
                stuck.add(record.canary)
                self.left = True
                continue
            if not may():
                self.left = True
                return told
            why = self._deliver(record)
            if why is None:
                told, row = told + 1, 0
                self.paused = None
                self.troubles.pop(record.canary, None)
                self._mark(record, kept)
                continue
            if why.final or (now is not None and now - record.at > self.give_up):
                self._let_go(record, kept, why)
                continue
            stuck.add(record.canary)
            self.left = True
            row += 1
            self._note(record, why, now)
            if why.retry_after is not None or row >= IN_A_ROW:
                self.paused = _again(self.paused, why, now)
                return told
        return told

    def _owed(self) -> Iterator[tuple[Record, bool]]:
        """What is to be told, and whether the store keeps it: oldest first, but whose canary has failed less often goes
        first, so that some that always fail do not use up every round.
        """
        owed = self.store.owed(AT_ONCE, self.name)
        self.left = len(owed) == AT_ONCE
        found = [*((r, False) for r in tuple(self.extras)), *((r, True) for r in owed)]
        failures = {canary: trouble.failures for canary, trouble in self.troubles.items()}
        yield from sorted(found, key=lambda one: failures.get(one[0].canary, 0))

    def _deliver(self, record: Record) -> NotifyError | None:
        """Why it was not; None when it was, now or before."""
        if record.id in self._delivered:
            return None
        try:
            sent = self.notifier.notify(self.prepare(record))
        except NotifyError as e:
            return e
        except CanarydError as e:
            return NotifyError(str(e))
        except Exception as e:  # noqa: BLE001 - a defect of one notifier must not silence the others
            return _defect(e)
        self.report(self.name, "skipped" if sent is False else "sent")
        _keep(self._delivered, record.id, None)
        return None

    def _mark(self, record: Record, kept: bool) -> None:
        """One by one: a kill then repeats one of them at most."""
        if kept:
            self.store.told([record.id], self.name, self.expected)
        else:
            self.extras.remove(record)
        self._delivered.pop(record.id, None)

    def _let_go(self, record: Record, kept: bool, why: NotifyError) -> None:
        outcome = "refused" if why.final else "given_up"
        self._mark(record, kept)
        self.troubles.pop(record.canary, None)
        self.report(self.name, outcome)
        log.error("never told", notifier=self.name, record=record.id, at=record.at.isoformat(), error=str(why))

    def _note(self, record: Record, why: NotifyError, now: datetime | None) -> None:
        self.report(self.name, "failed")
        self.troubles[record.canary] = _again(self.troubles.get(record.canary), why, now)
        text = str(why)
        last = self._complained.get(text)
        if text not in self._complained or now is None or last is None or now - last >= COMPLAIN:
            log.warning("not told", notifier=self.name, record=record.id, error=text)
            self._complained = {t: at for t, at in self._complained.items() if now and at and now - at < COMPLAIN}
            self._complained[text] = now

    def waits(self, now: datetime) -> bool:
        """Nothing of what is left may be tried yet."""
        if self.paused is not None:
            return not _is_due(self.paused, now)
        return bool(self.troubles) and not any(_is_due(t, now) for t in tuple(self.troubles.values()))

    @property
    def failing(self) -> str:
        """Why people are not told; "" when they are."""
        if self.paused is not None:
            return self.paused.text
        return next((t.text for t in tuple(self.troubles.values())), "")


class Delivery:
    """All couriers: one after the other by `tell`, or each in its own thread from `start` to `stop`."""

    def __init__(
        self,
        notifiers: Sequence[Notifier],
        store: StateStore,
        *,
        prepare: Callable[[Record], Record] = lambda record: record,
        give_up: timedelta = GIVE_UP,
        report: Report = lambda _notifier, _outcome: None,
    ) -> None:
        """`prepare` adds to a record what people should see and the decision did not wait for; called once for each
        record, before a notifier that `wants_evidence` tells it, and never raises.
        """
        names = [n.name for n in notifiers]
        if len(set(names)) < len(names):
            raise ValueError(f"two notifiers of one name: {', '.join(names)}")
        self._store, self._prepare, self._names = store, prepare, names
        self._prepared: OrderedDict[str, Record] = OrderedDict()
        self._preparing = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.couriers = [
            Courier(n, store, names, self._once if getattr(n, "wants_evidence", False) else _as_it_is, report, give_up)
            for n in notifiers
        ]

    def tell(self, now: datetime | None = None) -> int:
        """One round of each, in this thread: how many deliveries were made. What fails stays owed, in order."""
        return sum(courier.tell(now) for courier in self.couriers)

    def say(self, record: Record) -> None:
        """Tell something that no store keeps, as long as this process lives."""
        for courier in self.couriers:
            courier.extras.append(record)
            courier.wake.set()

    def start(self, clock: Callable[[], datetime], may: Callable[[], bool]) -> None:
        """Begin to tell, while `may` says so, from where anybody stopped."""
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._run, args=(courier, clock, may), name=f"tell-{courier.name}", daemon=True)
            for courier in self.couriers
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """No delivery begins any more; one under way is waited for so long. What it then still does, it may."""
        self._stopping.set()
        for courier in self.couriers:
            courier.wake.set()
        for thread in self._threads:
            thread.join(timeout)
        self._threads = []

    def _run(self, courier: Courier, clock: Callable[[], datetime], may: Callable[[], bool]) -> None:
        seen: int | None = None
        said = ""
        self._settle(courier)

        def mine() -> bool:
            return may() and not self._stopping.is_set()

        while not self._stopping.is_set():
            try:
                mark = self._store.mark()
                news = mark != seen or courier.left or bool(courier.extras)
                if mine() and news and not courier.waits(clock()):
                    courier.tell(clock(), mine)
                    seen, said = mark, ""
            except CanarydError as e:
                if str(e) != said:
                    log.warning("not told", notifier=courier.name, error=str(e))
                    said = str(e)
            except Exception as e:  # noqa: BLE001 - the thread must not end
                log.error("defect", notifier=courier.name, error=str(_defect(e)))  # noqa: TRY400
            courier.wake.wait(POLL_S)
            courier.wake.clear()

    def _settle(self, courier: Courier) -> None:
        """What all present notifiers have told is not owed for the sake of one that is gone. Once, by the first."""
        if courier is not self.couriers[0]:
            return
        try:
            owed = {r.id for r in self._store.owed(AT_ONCE)}
            for name in self._names:
                owed -= {r.id for r in self._store.owed(AT_ONCE, name)}
            if owed:
                self._store.told(sorted(owed))
        except CanarydError as e:
            log.info("what is owed is looked at later", error=str(e))

    def _once(self, record: Record) -> Record:
        with self._preparing:
            if record.id not in self._prepared:
                _keep(self._prepared, record.id, self._prepare(record))
            return self._prepared[record.id]

    # ── what can be seen of it ───────────────────────────────────────────────────────────────────────────────

    def status(self, now: datetime) -> list[dict[str, Any]]:
        """Of each notifier: how much it owes, how old the oldest is (seconds), and why. Raises StoreError."""
        out: list[dict[str, Any]] = []
        for courier in self.couriers:
            owed = self._store.owed(AT_ONCE, courier.name)
            oldest = max(0.0, (now - min(r.at for r in owed)).total_seconds()) if owed else 0.0
            out.append({"name": courier.name, "owed": len(owed), "oldestSeconds": oldest, "failing": courier.failing})
        return out

    @property
    def untold(self) -> dict[str, str]:
        """Canary → why somebody could not be told of it."""
        return {canary: t.text for courier in self.couriers for canary, t in tuple(courier.troubles.items())}

    def doubt_nothing(self) -> None:
        """What was in the way is put right: everything may be tried at once."""
        for courier in self.couriers:
            for trouble in (courier.paused, *tuple(courier.troubles.values())):
                if trouble is not None:
                    trouble.due = None
            courier.wake.set()


def pause(failures: int) -> float:
    """Seconds before the next try after so many failures in a row: doubling, with jitter of a quarter."""
    base = min(LONGEST_S, SHORTEST_S * 2.0 ** min(failures - 1, 20))
    return base * random.uniform(0.75, 1.25)  # noqa: S311 - it only spreads them


def _again(before: _Trouble | None, why: NotifyError, now: datetime | None) -> _Trouble:
    failures = before.failures + 1 if before is not None else 1
    wait = pause(failures) if why.retry_after is None else max(why.retry_after, 0.0) + random.uniform(0.0, 0.5)  # noqa: S311
    due = now + timedelta(seconds=min(wait, 24 * 3600.0)) if now is not None else None
    return _Trouble(failures, due, str(why), before.since if before is not None else now)


def _is_due(trouble: _Trouble, now: datetime | None) -> bool:
    return now is None or trouble.due is None or now >= trouble.due


def _as_it_is(record: Record) -> Record:
    return record


def _keep(held: OrderedDict[str, Record] | OrderedDict[str, None], key: str, value: object) -> None:
    held[key] = value  # type: ignore[assignment]
    if len(held) > REMEMBERED:
        held.popitem(last=False)


def _defect(error: Exception) -> NotifyError:
    """Where it happened, and not its text."""
    frames = extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return NotifyError(f"defect: {type(error).__name__}{place}")
