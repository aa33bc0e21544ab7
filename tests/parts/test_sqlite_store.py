"""The state file when things go wrong for real: killed writers, full disks, damage, rights, other processes.

Faults happen in forked children, so that a kill, a limit or a mount ends with the child.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.errors import ConflictError, StoreError
from canaryd.model import Action, DecisionKind, Evidence, Override, Record, Release, RolloutState

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FORK = multiprocessing.get_context("fork")
DEADLINE_S = 30.0


def state(n: int, size: int = 3000) -> RolloutState:
    """A state of several pages, all of which speak of `n`."""
    rows = np.full(size // 8, float(n))
    return RolloutState(
        weight=n % 100, decisions=n, sentence=f"decision {n}", evidence=Evidence(NOW, arrays={"n": rows})
    )


def record(n: int, *, size: int = 500, tell: bool = False) -> Record:
    return Record(
        f"api/{n}", "api", NOW + timedelta(seconds=n), DecisionKind.HOLD, f"{n}", {"n": n, "fill": "x" * size}, tell
    )


def check_whole(path: Path) -> tuple[int, int]:
    """(version, number of decisions) of a file in which state, records and version agree."""
    with closing(SqliteStore(path, busy_timeout=timedelta(seconds=10))) as store:
        store.verify()
        stored = store.load("api")
        records = store.records("api", limit=100_000)
    n = stored.state.decisions if stored.state else 0
    assert stored.version == n
    assert [r.body["n"] for r in records] == list(range(n, 0, -1))
    if stored.state is not None and stored.state.evidence is not None:
        assert stored.state.sentence == f"decision {n}"
        assert set(stored.state.evidence.arrays["n"]) == {float(n)}
    return stored.version, n


def begun(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """A forked child that works, and the pipe on which it answers."""
    here, there = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            there.send((True, work(*args)))
        except BaseException:  # noqa: BLE001
            there.send((False, traceback.format_exc()))

    child = FORK.Process(target=run)
    child.start()
    there.close()
    return child, here


def finished(child: Any, here: Any) -> Any:
    """What the child returned; its assertions fail the test here."""
    try:
        assert here.poll(DEADLINE_S), "the child does not answer"
        good, result = here.recv()
    finally:
        child.kill()
        child.join()
        child.close()
        here.close()
    assert good, result
    return result


def in_child(work: Callable[..., Any], *args: Any) -> Any:
    return finished(*begun(work, *args))


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────


def save_for_ever(path: Path, acknowledge: Any) -> None:
    store = SqliteStore(path)
    n = store.load("api").version
    while True:
        n += 1
        store.save("api", state(n), n - 1, [record(n)])
        acknowledge.send(n)


def test_a_writer_killed_at_any_moment_leaves_the_old_state_or_the_new_one_sixty_times(tmp_path: Path) -> None:
    path, dice, version = tmp_path / "state.db", random.Random(7), 0
    middle = 0
    for kill in range(60):
        here, there = FORK.Pipe(duplex=False)
        writer = FORK.Process(target=save_for_ever, args=(path, there))
        writer.start()
        there.close()
        acknowledged = version
        if kill % 4:  # most are killed between saves or within one, every fourth while it starts
            assert here.poll(DEADLINE_S)
            acknowledged = here.recv()
            time.sleep(dice.uniform(0, 0.012))
        else:
            time.sleep(dice.uniform(0, 0.006))
        writer.kill()
        writer.join()
        try:
            while True:
                acknowledged = here.recv()
        except EOFError:
            here.close()
        assert writer.exitcode == -signal.SIGKILL
        writer.close()
        version, _ = check_whole(path)
        assert version in (acknowledged, acknowledged + 1)  # what was acknowledged is kept; one more may have been done
        middle += version == acknowledged + 1
    assert version > 60
    print(f"{version} saves, {middle} kills between the commit and its acknowledgement")


def test_a_daemon_killed_while_it_makes_the_file_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    dice = random.Random(11)
    for n in range(25):
        path = tmp_path / f"{n}.db"
        maker = FORK.Process(target=SqliteStore, args=(path,))
        maker.start()
        time.sleep(dice.uniform(0, 0.02))
        maker.kill()
        maker.join()
        maker.close()
        assert check_whole(path) == (0, 0)  # an empty or half-made file would be refused


# ── other processes ──────────────────────────────────────────────────────────────────────────────────────────


def race(path: Path, rounds: int, barrier: Any) -> list[int]:
    won = []
    with closing(SqliteStore(path)) as store:
        for _ in range(rounds):
            version = store.load("api").version
            barrier.wait(DEADLINE_S)
            with suppress(ConflictError):
                won.append(store.save("api", state(version + 1), version, [record(version + 1)]))
            barrier.wait(DEADLINE_S)
    return won


def test_of_two_processes_that_save_at_the_same_version_exactly_one_wins_two_hundred_times(tmp_path: Path) -> None:
    path, rounds, barrier = tmp_path / "state.db", 200, FORK.Barrier(2)
    racers = [begun(race, path, rounds, barrier) for _ in range(2)]
    won = [version for racer in racers for version in finished(*racer)]
    assert sorted(won) == list(range(1, rounds + 1))
    assert check_whole(path) == (rounds, rounds)


def test_eight_processes_that_start_at_once_make_one_file_and_lose_no_word(tmp_path: Path) -> None:
    path = tmp_path / "state.db"

    def say(n: int) -> None:
        with closing(SqliteStore(path, busy_timeout=timedelta(seconds=10))) as store:
            store.override("api", Override(f"o{n}", Action.PAUSE, "r1", "anna", "", NOW))

    children = [FORK.Process(target=say, args=(n,)) for n in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE_S)
        assert child.exitcode == 0
    with closing(SqliteStore(path)) as store:
        assert sorted(o.id for o in store.load("api").overrides) == [f"o{n}" for n in range(8)]
        assert store.load("api").version == 8
    assert os.listdir(tmp_path) == ["state.db"]


def test_the_mark_shows_what_another_process_wrote(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(SqliteStore(path)) as store:
        before = store.mark()
        assert store.mark() == before
        subprocess.run(
            ["python3", "-c", f"import sqlite3; c = sqlite3.connect({str(path)!r});"
             " c.execute(\"INSERT INTO rollouts VALUES ('api', 3, NULL, NULL)\"); c.commit()"],
            check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert store.mark() != before
        assert store.load("api").version == 3


def test_a_file_locked_by_another_process_is_a_store_error_in_time_and_works_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(SqliteStore(path, busy_timeout=timedelta(milliseconds=200))) as store:
        store.save("api", state(1), 0, [record(1)])

        def hold(pipe: Any) -> None:
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            pipe.send("locked")
            pipe.recv()

        here, there = FORK.Pipe()
        holder = FORK.Process(target=hold, args=(there,))
        holder.start()
        assert here.recv() == "locked"
        try:
            started = time.monotonic()
            with pytest.raises(StoreError, match="locked") as caught:
                store.save("api", state(2), 1, [record(2)])
            assert time.monotonic() - started < 10
            assert not isinstance(caught.value, ConflictError)
            assert store.load("api").version == 1  # reading goes on meanwhile
        finally:
            holder.kill()
            holder.join()
            here.close()
            there.close()
        assert store.save("api", state(2), 1, [record(2)]) == 2
    assert check_whole(path) == (2, 2)


# ── full disks ───────────────────────────────────────────────────────────────────────────────────────────────


def fill_until_refused(store: SqliteStore) -> tuple[int, str]:
    """Save until the disk is full; (version of the last good save, what was said)."""
    for n in range(store.load("api").version + 1, 5000):
        try:
            store.save("api", state(n), n - 1, [record(n, size=8000, tell=True)])
        except ConflictError:
            raise
        except StoreError as e:
            return n - 1, str(e)
    raise AssertionError("the disk never filled")


def held_and_healed(path: Path, store: SqliteStore, make_room: Callable[[], Any]) -> str:
    """Full, still readable, other writes refused as well; with room again everything works. Returns what was said."""
    n, said = fill_until_refused(store)
    assert n > 0
    for _ in range(3):
        with pytest.raises(StoreError):
            store.save("api", state(n + 1), n, [record(n + 1, size=500_000)])
    assert store.load("api").version == n
    assert store.load("api").state.decisions == n  # type: ignore[union-attr]
    assert len(store.owed(10_000)) == n
    make_room()
    assert store.save("api", state(n + 1), n, [record(n + 1, size=8000)]) == n + 1
    assert check_whole(path) == (n + 1, n + 1)
    return said


def test_a_full_disk_is_said_the_old_state_stays_readable_and_saving_works_again_with_room(tmp_path: Path) -> None:
    def on_a_tiny_disk() -> str:
        if ctypes.CDLL(None).unshare(0x00020000) != 0:  # CLONE_NEWNS: the mount is gone with this child
            return "no rights"
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
        for command in (["mount", "--make-rprivate", "/"], mount):
            if subprocess.run(command, check=False, capture_output=True, timeout=DEADLINE_S).returncode != 0:
                return "no rights"
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"x" * 400_000)
        with closing(SqliteStore(tmp_path / "state.db")) as store:
            return held_and_healed(tmp_path / "state.db", store, ballast.unlink)

    said = in_child(on_a_tiny_disk)
    if said == "no rights":
        pytest.skip("a tiny disk needs the right to mount: run as root")
    assert "the disk is full" in said


def test_a_limit_on_the_file_size_is_held_and_healed_like_a_full_disk(tmp_path: Path) -> None:
    def limited() -> str:
        path = tmp_path / "state.db"
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with closing(SqliteStore(path)) as store:
            store.save("api", state(1), 0, [record(1, tell=True)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
            return held_and_healed(path, store, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))

    said = in_child(limited)
    assert "nothing was" in said


def test_a_full_disk_at_the_first_start_leaves_nothing_behind(tmp_path: Path) -> None:
    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(StoreError) as caught:
            SqliteStore(tmp_path / "state.db")
        return str(caught.value)

    assert "state.db" in in_child(limited)
    assert os.listdir(tmp_path) == []


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed file with twenty decisions, an override and a release."""
    path = tmp_path / "state.db"
    with closing(SqliteStore(path)) as store:
        for n in range(1, 21):
            store.save("api", state(n), n - 1, [record(n, tell=n > 15)])
        store.override("api", Override("o1", Action.PAUSE, "r1", "anna", "", NOW))
        store.release("api", Release("r2", "anna", NOW))
        store.beat("pid 1", NOW)
    assert not path.with_name("state.db-wal").exists()
    return path


def use_everything(path: Path) -> None:
    """Every call; raises what the first one raises that cannot be answered."""
    with closing(SqliteStore(path)) as store:
        store.verify()
        version = store.load("api").version
        store.records("api", limit=1000), store.owed(), store.audit("api"), store.canaries(), store.heartbeat()
        store.mark()
        store.save("api", state(99), version, [record(99)])
        store.override("api", Override("o2", Action.PAUSE, "r1", "anna", "", NOW))
        store.release("api", Release("r3"))
        store.told(["api/20"])
        store.beat("pid 2", NOW)
        store.prune(NOW + timedelta(days=1), 1)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda p: cut(p, p.stat().st_size // 2), "damaged", id="cut-in-half"),
        pytest.param(lambda p: cut(p, p.stat().st_size - 4096), "damaged", id="last-page-missing"),
        pytest.param(lambda p: cut(p, 4096 + 1000), "damaged", id="cut-within-a-page"),
        pytest.param(lambda p: cut(p, 60), "damaged", id="cut-within-the-header"),
        pytest.param(lambda p: cut(p, 0), "empty", id="cut-to-nothing"),
        pytest.param(lambda p: overwrite(p, 0, b"\x00" * 100), "damaged", id="header-of-zeros"),
        pytest.param(lambda p: overwrite(p, 4096, b"\xa5" * 4096), "damaged", id="page-of-garbage"),
        pytest.param(lambda p: p.write_text("weights: 5\n" * 400), "damaged or no state file", id="text-file"),
    ],
)
def test_a_damaged_file_is_a_store_error_that_says_what_to_do(
    filled: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(filled)
    before = filled.stat().st_size
    with pytest.raises(StoreError, match=said) as caught:
        use_everything(filled)
    assert str(filled) in str(caught.value)
    assert any(advice in str(caught.value) for advice in ("put back a copy", "remove it to start"))
    assert filled.stat().st_size == before  # never started afresh by itself


def test_whatever_bytes_are_flipped_nothing_but_a_store_error_comes_out(filled: Path) -> None:
    good, dice = filled.read_bytes(), random.Random(3)
    noticed = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(dice.choice([1, 3, 30, 300])):
            bad[dice.randrange(len(bad))] = dice.randrange(256)
        for suffix in ("-wal", "-shm"):
            filled.with_name(filled.name + suffix).unlink(missing_ok=True)
        filled.write_bytes(bad)
        try:
            use_everything(filled)
        except StoreError:
            noticed += 1
    assert noticed > 75


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param("UPDATE rollouts SET state = substr(state, 1, 20)", "state of api is damaged", id="torn-json"),
        pytest.param("UPDATE rollouts SET state = '{\"weight\":5.5}'", "weight: expected a whole", id="wrong-type"),
        pytest.param("UPDATE rollouts SET release = '[]'", "the release of api", id="wrong-release"),
        pytest.param("UPDATE overrides SET body = '{}'", "an override of api", id="wrong-override"),
        pytest.param("UPDATE records SET body = '{}'", "a record of api", id="wrong-record"),
        pytest.param("UPDATE meta SET value = '{}'", "heartbeat", id="wrong-heartbeat"),
        pytest.param(f"UPDATE rollouts SET state = '{'[' * 100_000}'", "state of api is damaged", id="endless-depth"),
    ],
)  # fmt: skip
def test_contents_that_make_no_sense_are_named(filled: Path, statement: str, said: str) -> None:
    with closing(sqlite3.connect(filled, isolation_level=None)) as db:
        db.execute(statement)
    with pytest.raises(StoreError, match=said):
        use_everything(filled)


def test_a_torn_journal_costs_at_most_the_saves_that_were_torn(tmp_path: Path) -> None:
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    with closing(SqliteStore(path)) as store:
        for n in range(1, 11):
            store.save("api", state(n), n - 1, [record(n)])
        journal = path.with_name("state.db-wal").read_bytes()
        versions = []
        for size in range(len(journal), 0, -len(journal) // 12):
            shutil.copy(path, copy)
            copy.with_name("copy.db-wal").write_bytes(journal[:size])
            copy.with_name("copy.db-shm").unlink(missing_ok=True)
            versions.append(check_whole(copy)[0])
    assert versions[0] == 10
    assert versions == sorted(versions, reverse=True)
    assert versions[-1] < 10


def test_a_file_that_is_removed_or_replaced_under_a_running_daemon_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(SqliteStore(path)) as store:
        store.save("api", state(1), 0, [])
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreError, match="removed or replaced"):
            store.save("api", state(2), 1, [])
        with pytest.raises(StoreError, match="removed or replaced"):
            store.load("api")
        (tmp_path / "moved.db").rename(path)
        assert store.save("api", state(2), 1, []) == 2


# ── whose file ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_and_its_journal_are_for_their_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with closing(SqliteStore(tmp_path / "state.db")) as store:
            store.save("api", state(1), 0, [])
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"directory .*nowhere does not exist"):
        SqliteStore(tmp_path / "nowhere" / "state.db")
    with pytest.raises(StoreError, match="not a file"):
        SqliteStore(tmp_path)


def test_a_command_that_only_asks_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no state file"):
        SqliteStore(tmp_path / "state.db", create=False)
    assert os.listdir(tmp_path) == []


def test_odd_names_of_files_are_only_names(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=ro&x=%41#.db"
    with closing(SqliteStore(path)) as store:
        store.save("api", state(1), 0, [])
    assert os.listdir(tmp_path) == [path.name]


def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="not canaryd's state"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as db:
        assert [name for (name,) in db.execute("SELECT name FROM sqlite_master")] == ["t"]


def test_state_of_a_newer_canaryd_is_refused_and_left_alone(filled: Path) -> None:
    with closing(sqlite3.connect(filled, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer canaryd"):
        SqliteStore(filled)


def test_a_file_of_the_first_layout_is_brought_up_to_date_with_all_that_was_owed(filled: Path) -> None:
    with closing(SqliteStore(filled)) as store:
        state, owed, version = store.load("api").state, store.owed(), store.load("api").version
        assert owed
    with closing(sqlite3.connect(filled, isolation_level=None)) as db:  # as the canaryd before notes had left it
        db.execute("DROP TABLE heard")
        db.execute("DROP TABLE notes")
        db.execute("PRAGMA user_version = 1")
    with closing(SqliteStore(filled)) as store:
        assert (store.owed(), store.owed(by="slack"), store.load("api").version) == (owed, owed, version)
        assert store.load("api").state is not None
        assert store.load("api").state.weight == state.weight
        store.remember("api", "slack/api-1", "C1 1.5")
        assert store.memo("api") == {"slack/api-1": "C1 1.5"}
        store.verify()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter."""
    directory = Path(tempfile.mkdtemp(prefix="canaryd-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


def test_a_file_that_may_only_be_read_is_a_store_error_that_speaks_of_rights(open_directory: Path) -> None:
    path = open_directory / "state.db"
    with closing(SqliteStore(path)) as store:
        store.save("api", state(1), 0, [])

    def as_somebody_else(mode: int) -> str:
        path.chmod(mode)
        open_directory.chmod(0o555)
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(StoreError) as caught, closing(SqliteStore(path)) as store:
            store.save("api", state(2), 1, [])
        return str(caught.value)

    for mode in (0o444, 0o000):
        assert "must be able to write it" in in_child(as_somebody_else, mode)
