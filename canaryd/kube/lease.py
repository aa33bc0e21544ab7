"""Who of several replicas leads: a Lease object that the leader renews and the others watch for going stale.

Whether another's lease has run out is judged by our own monotonic clock since we last saw its record change, and
whether ours still holds by the same clock since we sent the last renewal that succeeded: clocks of different machines
are never compared, and a process that was frozen finds that it leads no more at its first look. The lease spares work;
what makes a stalled leader harmless is the version on each write, not the lease.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from canaryd.errors import KubeConflictError, KubeError, KubeExistsError, KubeNotFoundError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import LEASES

_SHARE = 0.8  # of the duration: a leader lets go before anybody else may take over
_LOOK = 0.7  # of `renew`: how often the others look
_RELEASED_S = 1  # leaseDurationSeconds of a lease that was given back

log = structlog.get_logger(__name__)


def clock() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """One candidate. Needs get, create and update on this one Lease. Its thread and its client are its own."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        holder: str,
        *,
        duration: timedelta = timedelta(seconds=10),
        renew: timedelta = timedelta(seconds=2),
    ) -> None:
        """`holder` names this process, best with something of its own in it: pod name and a random part.

        A lease held under the same name but taken by another process counts as another's. `renew` must be less than
        half of `duration`, which is a whole number of seconds. Raises ValueError.
        """
        if duration.total_seconds() % 1 or not timedelta(0) < renew < duration / 2:
            raise ValueError(f"a lease of {duration} cannot be renewed every {renew}")
        self._client = client
        self._namespace, self._name = namespace, name
        self._me = holder
        self._duration = duration.total_seconds()
        self._renew = renew.total_seconds()
        self._lock = threading.Lock()
        self._until = float("-inf")  # on clock(): we lead before it
        self._seen: JSON | None = None  # the object as it last was
        self._seen_spec: JSON = {}
        self._changed_at = clock()  # when its record was last seen to be another
        self._taken = ""  # acquireTime of the lease that this object took; "" when it holds none
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = False  # on_gain was called, on_loss not yet
        self._telling = threading.Lock()
        self._on_gain: Callable[[], None] | None = None
        self._on_loss: Callable[[], None] | None = None

    def start(self, on_gain: Callable[[], None] | None = None, on_loss: Callable[[], None] | None = None) -> None:
        """Becomes a candidate. The calls come from the lease's own thread: they must be short."""
        self._on_gain, self._on_loss = on_gain, on_loss
        self._thread = threading.Thread(target=self._run, name=f"lease-{self._name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leads no more from here on, and gives the lease back so that another may have it at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._renew + 1.0)
        with self._lock:
            held, self._until = bool(self._taken), float("-inf")
        self._tell()
        if held:
            self._release()

    @property
    def leading(self) -> bool:
        """Whether this process leads, by the clock alone: no request, true for less than `duration` after one."""
        with self._lock:
            return clock() < self._until

    def holder(self) -> str:
        """Who leads as far as is known; "" when nobody does."""
        with self._lock:
            if clock() < self._until:
                return self._me
            if self._is_mine() or clock() >= self._runs_out():
                return ""
            return str(self._seen_spec.get("holderIdentity") or "")

    # ── the thread ───────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        said = ""
        while not self._stopping.is_set():
            began = clock()
            try:
                self._round()
                said = ""
            except KubeConflictError:
                pass  # another was quicker; the next round sees who
            except KubeError as e:
                if str(e) != said:  # once, not at every try
                    log.warning("lease", name=self._name, leading=self.leading, error=str(e))
                said = str(e)
            except Exception:  # a record of a shape nobody thought of must not end the candidacy unseen
                log.exception("lease", name=self._name)
            self._tell()
            self._stopping.wait(self._rest(began))

    def _rest(self, began: float) -> float:
        """Seconds until the next round: at the latest when a lease runs out, ours or another's."""
        now = clock()
        with self._lock:
            mine, others = self._until, self._runs_out()
        if mine > now:
            return max(0.05, min(began + self._renew, mine) - now)
        pause = self._renew * _LOOK * random.uniform(0.9, 1.0)  # noqa: S311  # not all candidates at once
        return max(0.05, min(pause, others - now)) if others > now else pause

    def _tell(self) -> None:
        with self._telling:
            leads = self.leading
            if leads == self._told:
                return
            self._told = leads
            log.info("leading" if leads else "not leading", lease=self._name, holder=self._me)
            call = self._on_gain if leads else self._on_loss
            if call is not None:
                call()

    def _round(self) -> None:
        """Renew what we hold; else look, and take what is free."""
        if self._taken and self._seen is not None:
            try:
                self._write(self._seen, taken=self._taken)
            except KubeConflictError:
                pass  # somebody else's, or our own whose answer was lost: look
            except KubeNotFoundError:
                self._seen = None
            else:
                return
        self._look()
        if self._seen is None:
            self._make()
        elif self._is_mine():
            self._write(self._seen, taken=self._taken)
        elif not self._seen_spec.get("holderIdentity") or clock() >= self._runs_out():
            self._write(self._seen, taken=_now())

    def _look(self) -> None:
        try:
            self._see(self._client.get(LEASES, self._namespace, self._name, timeout=self._patience()))
        except KubeNotFoundError:
            with self._lock:
                self._seen = None

    def _see(self, lease: JSON) -> None:
        """Notes the record, and when it was last another one."""
        spec = lease.get("spec") or {}
        with self._lock:
            if spec != self._seen_spec:
                self._seen_spec, self._changed_at = spec, clock()
            self._seen = lease
            if not self._is_mine():
                # Somebody has it: what is left of our own time does not count.
                self._taken, self._until = "", float("-inf")

    def _is_mine(self) -> bool:
        return bool(self._taken) and (self._seen_spec.get("holderIdentity"), self._seen_spec.get("acquireTime")) == (
            self._me,
            self._taken,
        )

    def _runs_out(self) -> float:
        """On clock(): when the record that was last seen counts no more."""
        seconds = self._seen_spec.get("leaseDurationSeconds")
        lasts = float(seconds) if isinstance(seconds, int) and 0 < seconds <= 3600 else self._duration
        return self._changed_at + lasts if self._seen_spec.get("holderIdentity") else float("-inf")

    def _make(self) -> None:
        """There is no lease. Whoever held the one that was there is left its time, unless that is us."""
        leads = self._taken and self.leading
        if not leads and clock() < self._runs_out():
            return
        taken = self._taken if leads else _now()
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(taken, int(self._seen_spec.get("leaseTransitions") or 0)),
        }
        self._taken, sent = taken, clock()
        try:
            made = self._client.create(LEASES, self._namespace, body, timeout=self._patience())
        except KubeExistsError:
            return  # another was quicker: the next round looks
        self._won(made, sent)

    def _write(self, lease: JSON, *, taken: str) -> None:
        """Renew or take. Raises KubeConflictError when somebody else wrote first."""
        spec = lease.get("spec") or {}
        moves = int(spec.get("leaseTransitions") or 0) + (taken != spec.get("acquireTime"))
        body = {**lease, "spec": {**spec, **self._spec(taken, moves)}}
        self._taken, sent = taken, clock()
        answer = self._client.replace(LEASES, self._namespace, self._name, body, timeout=self._patience())
        self._won(answer, sent)

    def _spec(self, taken: str, moves: int) -> JSON:
        return {
            "holderIdentity": self._me,
            "leaseDurationSeconds": int(self._duration),
            "acquireTime": taken,
            "renewTime": _now(),
            "leaseTransitions": moves,
        }

    def _won(self, lease: JSON, sent: float) -> None:
        with self._lock:
            self._seen, self._seen_spec, self._changed_at = lease, lease.get("spec") or {}, clock()
            if not self._stopping.is_set():
                self._until = sent + self._duration * _SHARE

    def _patience(self) -> float:
        """Seconds for one request: a leader's must end when its time does, so that the loss is told at once."""
        with self._lock:
            left = self._until - clock()
        return max(0.1, min(self._renew, left)) if left > 0 else self._renew

    def _release(self) -> None:
        try:
            lease = self._client.get(LEASES, self._namespace, self._name, timeout=self._renew)
            self._see(lease)
            if self._is_mine():
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": _RELEASED_S, "renewTime": _now()}
                body = {**lease, "spec": spec}
                self._see(self._client.replace(LEASES, self._namespace, self._name, body, timeout=self._renew))
        except KubeError as e:
            log.warning("the lease was not given back; it runs out", name=self._name, error=str(e))
        self._taken = ""


def _now() -> str:
    """As Kubernetes writes a MicroTime. For people: nothing is decided from it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
