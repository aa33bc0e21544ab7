"""One daemon for each state file, whatever happened to the one before."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from canaryd.errors import LeaderError, StoreError
from canaryd.leader import StateLock

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FORK = multiprocessing.get_context("fork")
DEADLINE_S = 20.0


def hold(path: Path, pipe: Any) -> None:
    StateLock(path).acquire(NOW)
    pipe.send("held")
    pipe.recv()


@contextmanager
def another_daemon(path: Path) -> Iterator[Any]:
    """A process that holds the lock; killed without warning at the end."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(path, there))
    process.start()
    try:
        assert here.poll(DEADLINE_S)
        assert here.recv() == "held"
        yield process
    finally:
        process.kill()
        process.join()
        here.close()
        there.close()


def test_the_second_daemon_is_refused_and_hears_who_is_there_since_when(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    with another_daemon(state) as process:
        mine = StateLock(state)
        with pytest.raises(LeaderError) as caught:
            mine.acquire(NOW + timedelta(hours=1))
        who = f"pid {process.pid} on {socket.gethostname()} since 2026-03-01T12:00:00+00:00"
        assert who in str(caught.value)
        assert str(state) in str(caught.value)
        assert mine.holder() == who


def test_a_daemon_killed_with_kill_9_holds_nothing_and_is_no_holder(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    with another_daemon(state):
        pass
    lock = StateLock(state)
    assert (tmp_path / "state.db.lock").read_text().startswith("pid ")  # the stale text is still there
    assert lock.holder() == ""
    lock.acquire(NOW)
    assert lock.holder().startswith(f"pid {os.getpid()} ")
    lock.release()


def test_released_means_free_at_once_for_anybody(tmp_path: Path) -> None:
    one, two = StateLock(tmp_path / "state.db"), StateLock(tmp_path / "state.db")
    assert one.holder() == ""
    assert os.listdir(tmp_path) == []  # asking makes nothing
    for _ in range(3):
        one.acquire(NOW)
        one.acquire(NOW)  # twice is once
        with pytest.raises(LeaderError, match=f"pid {os.getpid()}"):
            two.acquire(NOW)
        one.release()
        one.release()
        assert two.holder() == ""
        two.acquire(NOW)
        two.release()


def test_the_same_file_by_another_name_is_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    (tmp_path / "link.db").symlink_to("state.db")
    one, two = StateLock(tmp_path / "state.db"), StateLock(tmp_path / "link.db")
    one.acquire(NOW)
    with pytest.raises(LeaderError):
        two.acquire(NOW)
    one.release()


def test_two_states_have_two_locks(tmp_path: Path) -> None:
    one, two = StateLock(tmp_path / "a.db"), StateLock(tmp_path / "b.db")
    one.acquire(NOW)
    two.acquire(NOW)
    one.release()
    two.release()


def test_somebody_who_just_asks_for_the_holder_does_not_stop_a_daemon_from_starting(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / "state.db")
    lock.acquire(NOW)
    lock.release()
    asking = os.open(tmp_path / "state.db.lock", os.O_RDWR)
    fcntl.flock(asking, fcntl.LOCK_SH)  # what `holder` does, caught in the middle
    done = Timer(0.08, os.close, (asking,))
    done.start()
    lock.acquire(NOW)
    done.join()
    assert StateLock(tmp_path / "state.db").holder() == lock.holder()
    lock.release()


def test_a_full_line_of_control_characters_reaches_no_terminal(tmp_path: Path) -> None:
    with another_daemon(tmp_path / "state.db"):
        (tmp_path / "state.db.lock").write_bytes(b"\x1b[31mpid 1\x07\n\xff" + b"x" * 10_000)
        holder = StateLock(tmp_path / "state.db").holder()
    assert holder.isprintable()
    assert len(holder) <= 200


def test_times_are_written_in_utc(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / "state.db")
    lock.acquire(NOW.astimezone(timezone(timedelta(hours=9))))
    assert lock.holder().endswith("since 2026-03-01T12:00:00+00:00")
    lock.release()


def test_a_lock_file_is_for_its_owner_only_and_follows_no_link(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / "state.db")
    lock.acquire(NOW)
    lock.release()
    assert (tmp_path / "state.db.lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other.db.lock").symlink_to("victim")
    with pytest.raises(StoreError, match="lock file cannot be used"):
        StateLock(tmp_path / "other.db").acquire(NOW)
    assert not (tmp_path / "victim").exists()


def test_a_directory_that_does_not_exist_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        StateLock(tmp_path / "nowhere" / "state.db").acquire(NOW)
    assert StateLock(tmp_path / "nowhere" / "state.db").holder() == ""


def test_children_of_the_daemon_do_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = StateLock(tmp_path / "state.db")
    lock.acquire(NOW)
    inherited = [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, "state.db.lock")]
    assert [os.get_inheritable(int(fd)) for fd in inherited] == [False]
    lock.release()


def _leads_to(descriptor: str, name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(name)
    except OSError:
        return False
