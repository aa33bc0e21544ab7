"""Weights in an Envoy RDS file: read, checked against the fence, replaced by an atomic rename.

It changes the weights of two clusters and `version_info`, and nothing else; what it makes of the text is in
`envoy_rds`. It never creates a route, and never asks Envoy whether it took the file: traffic tells.

A symbolic link stays and the file behind it is replaced; Envoy then has to watch the directory of that file.
Between processes an flock on the directory of the file makes "read, check, write" one step and leaves no file behind.
The new text is written beside the file as `.NAME.canaryd`, which Envoy does not look at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from canaryd.adapters.envoy_rds import Layout, Stamp, Wanted, read, rewrite
from canaryd.errors import FenceError, RouteError
from canaryd.model import RouteView
from canaryd.policy import EnvoyFile, Route

MAX_BYTES = 4 * 1024 * 1024
_REMEMBERED = 256  # layouts kept, one per file and canary


class EnvoyFileRouter:
    """ports.TrafficRouter for `route.envoyFile`.

    `patience`: how long to wait for another process that is writing in the same directory.
    """

    def __init__(self, *, patience: timedelta = timedelta(seconds=2)) -> None:
        self._patience = patience
        self._layouts: dict[tuple[str, Wanted], tuple[bytes, Layout]] = {}  # with the digest of the text they are of

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        """The split and the stamp. Where several routes disagree: the largest weight that is not the stamped one.

        A split that is not a whole percentage is rounded up, and never to the stamped weight.
        A stamp that is not of `canary` counts as none.
        """
        path, file = _target(route)
        text, status = _read(path)
        with _about(path):
            layout = self._layout(path, text, _wanted(file, stable, canary_workload))
            stamp = _own(layout, canary)
            if stamp is None:
                return RouteView(weight=layout.weight(None), version=0, stamped_weight=None)
            # the stamp speaks of the workload that held the canary role then
            expected = stamp.weight if stamp.workload == canary_workload else 100 - stamp.weight
            weight = layout.weight(expected)
        return RouteView(
            weight=weight,
            version=stamp.version,
            stamped_weight=stamp.weight,
            stamped_canary=stamp.workload,
            editor=_editor(status) if weight != expected else "",
        )

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        """See ports.TrafficRouter. The file keeps its mode and, as far as permitted, its owner and group."""
        if not 0 <= weight <= 100:
            raise RouteError(f"{weight} is not a percentage")
        path, file = _target(route)
        with self._locked(path.parent) as directory:
            text, status = _read(path)
            with _about(path):
                layout = self._layout(path, text, _wanted(file, stable, canary_workload))
                stamp = _own(layout, canary)
                if stamp is not None and stamp.version > version:
                    raise FenceError(
                        f"state version {stamp.version} has already routed ({stamp.weight} % to {stamp.workload}); "
                        f"version {version} comes too late"
                    )
                written = rewrite(text, layout, weight, Stamp(canary, version, weight, canary_workload))
            if written != text:
                _replace(path, written, status, directory)

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        """A file that does not split yet is its owner's to change."""
        raise RouteError("an Envoy route file is not adopted; write both clusters into it")

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        """Nothing was adopted."""
        return False

    def _layout(self, path: Path, text: str, wanted: Wanted) -> Layout:
        """Parsing takes about 1 ms for each virtual host, so that a text seen before is not parsed again."""
        key, digest = (str(path), wanted), hashlib.sha256(text.encode()).digest()
        known = self._layouts.get(key)
        if known is not None and known[0] == digest:
            return known[1]
        layout = read(text, wanted)
        if len(self._layouts) >= _REMEMBERED:
            self._layouts.clear()
        self._layouts[key] = (digest, layout)
        return layout

    @contextlib.contextmanager
    def _locked(self, directory: Path) -> Iterator[int]:
        """The open directory, locked. Raises RouteError when it cannot be, or not in time."""
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise RouteError(f"{directory}: {e.strerror}") from e
        try:
            self._lock(handle, directory)
            yield handle
        finally:
            os.close(handle)  # also gives the lock back

    def _lock(self, handle: int, directory: Path) -> None:
        deadline = time.monotonic() + self._patience.total_seconds()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RouteError(f"{directory}: another process holds the lock on it") from None
                time.sleep(0.005)
            except OSError as e:
                raise RouteError(f"{directory}: cannot be locked: {e.strerror}") from e
            else:
                return


def _target(route: Route) -> tuple[Path, EnvoyFile]:
    if route.envoy_file is None:
        raise RouteError("the route is no Envoy file")
    return _resolved(route.envoy_file.path), route.envoy_file


def _wanted(file: EnvoyFile, stable: str, canary: str) -> Wanted:
    wanted = Wanted(file.route, file.clusters.get(stable, stable), file.clusters.get(canary, canary))
    if wanted.stable == wanted.canary:
        raise RouteError(f"{stable!r} and {canary!r} are both the cluster {wanted.stable!r}; nothing can be split")
    return wanted


def _own(layout: Layout, canary: str) -> Stamp | None:
    stamp = layout.stamp
    return stamp if stamp is not None and stamp.canary == canary else None


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Errors say which file they are about."""
    try:
        yield
    except RouteError as e:
        raise type(e)(f"{path}: {e}") from e


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))  # a rename must replace the file, not a link to it


def _read(path: Path) -> tuple[str, os.stat_result]:
    """Text and status of a regular file of bounded size. Raises RouteError with the path and the reason."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise RouteError(f"{path}: not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise RouteError(f"{path}: {e.strerror}") from e
    if len(data) > MAX_BYTES:
        raise RouteError(f"{path}: larger than {MAX_BYTES // 1024 // 1024} MB; use one file for each service")
    try:
        return data.decode(), status
    except UnicodeDecodeError as e:
        raise RouteError(f"{path}: not UTF-8 at byte {e.start}") from e


def _editor(status: os.stat_result) -> str:
    """Who owns the file, and when it was changed: "anna, 14:02:11 UTC"."""
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = f"uid {status.st_uid}"
    return f"{name}, {datetime.fromtimestamp(status.st_mtime, UTC):%H:%M:%S} UTC"


def _replace(path: Path, text: str, old: os.stat_result, directory: int) -> None:
    """Write beside, make durable, rename. Nothing has changed when it raises RouteError. The lock must be held."""
    beside = f".{path.name}.canaryd"
    try:
        _unlink(beside, directory)  # left by a process that died here
        handle = os.open(
            beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        with open(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            _take_over(handle, path, old)
            os.fsync(handle)
        _unchanged(path, old, directory)
        os.rename(beside, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as e:
        _unlink(beside, directory)
        raise RouteError(f"{path}: cannot be replaced: {e.strerror}") from e
    except RouteError:
        _unlink(beside, directory)
        raise
    with contextlib.suppress(OSError):  # the new route is in force; a power cut could at worst bring back the old one
        os.fsync(directory)


def _unchanged(path: Path, old: os.stat_result, directory: int) -> None:
    """A person's editor knows no lock: what it saved since we read is not overwritten."""
    now = os.stat(path.name, dir_fd=directory)
    if (now.st_ino, now.st_mtime_ns, now.st_size) != (old.st_ino, old.st_mtime_ns, old.st_size):
        raise RouteError(f"{path}: changed by somebody else in this very moment")


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _take_over(handle: int, path: Path, old: os.stat_result) -> None:
    """Owner, group and mode of the old file. Only root may keep the owner; without the group Envoy may not read it."""
    mode = stat.S_IMODE(old.st_mode)
    mine = os.fstat(handle)
    if (mine.st_uid, mine.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except PermissionError:
            try:
                os.fchown(handle, -1, old.st_gid)
            except PermissionError as e:
                if not mode & stat.S_IROTH:
                    raise RouteError(
                        f"{path}: its group {old.st_gid} cannot be kept, and others may not read it"
                    ) from e
    os.fchmod(handle, mode)
