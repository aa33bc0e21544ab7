"""State in one SQLite file: for a daemon without a cluster, and for the commands that people type beside it.

Several processes use the file at once; whoever saves with a stale version has changed nothing. When `save` has returned
it is on the disk. A file that is damaged, empty, removed or somebody else's is said to be so and never started afresh:
only a person does that. The time of day always comes from the caller.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import RLock
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import quote

from canaryd.codec import decode, encode
from canaryd.errors import ConflictError, StoreError
from canaryd.model import Answer, Override, Record, Release, RolloutState, Stored
from canaryd.ports import MOST_NOTES, check_note

T = TypeVar("T")

APPLICATION_ID = 0x636E7279  # "cnry", in the header of the file: tells our files from others'

# Each entry leads from the version of its index to the next one; entries are never changed, only added.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE rollouts (
            canary TEXT PRIMARY KEY, version INTEGER NOT NULL, state TEXT, release TEXT
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE overrides (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, canary TEXT NOT NULL, body TEXT NOT NULL,
            answer TEXT
        ) STRICT""",
        "CREATE INDEX overrides_pending ON overrides (canary, seq) WHERE answer IS NULL",
        """CREATE TABLE records (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, canary TEXT NOT NULL, at TEXT NOT NULL,
            kind TEXT NOT NULL, owed INTEGER NOT NULL, body TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX records_of_canary ON records (canary, seq)",
        "CREATE INDEX records_owed ON records (seq) WHERE owed",
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    ),
    (
        """CREATE TABLE heard (
            record TEXT NOT NULL, notifier TEXT NOT NULL, PRIMARY KEY (record, notifier)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE notes (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, canary TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
            UNIQUE (canary, key)
        ) STRICT""",
    ),
)

_RECOVER = (
    "stop canaryd, move the file with its -wal and -shm away, put back a copy or start without one"
    " (the weights in the routes stay as they are)"
)
_SENTENCES = {
    sqlite3.SQLITE_FULL: "the disk is full; nothing was saved, and saving works again when there is room",
    sqlite3.SQLITE_CORRUPT: f"the file is damaged; {_RECOVER}",
    sqlite3.SQLITE_NOTADB: f"the file is damaged or no state file at all; {_RECOVER}",
    sqlite3.SQLITE_BUSY: "another process has kept the file locked for too long; nothing was changed",
    sqlite3.SQLITE_READONLY: "the file may only be read; canaryd's user must be able to write it and its directory",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; canaryd's user must be able to write it and its directory",
    sqlite3.SQLITE_IOERR: "the disk failed while the file was read or written; nothing was changed",
    sqlite3.SQLITE_TOOBIG: "a value is too big to be saved; nothing was changed",
}


class SqliteStore:
    """The port StateStore on a SQLite file (WAL, synchronous=FULL). Safe to use from several threads.

    One connection behind a lock: saves are rare and short, and `mark` needs one connection to be comparable.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy_timeout: timedelta = timedelta(seconds=2), create: bool = True
    ) -> None:
        """Opens the file; makes it, readable by its owner only, when it does not exist and `create` is true.

        `busy_timeout`: how long to wait for another process. Raises StoreError when the directory does not exist, the
        file cannot be used, is damaged, empty, not canaryd's or of a newer canaryd.
        """
        self._path = Path(path).resolve()
        self._lock = RLock()
        self._changes = 0  # own commits, which PRAGMA data_version does not show
        self._busy_timeout = busy_timeout
        if not _exists(self._path):
            if not create:
                raise StoreError(f"{self._path}: there is no state file; canaryd makes it when it runs")
            self._make()
        self._db = self._connect(self._path)
        try:
            self._identity = _identity(self._path)
            with self._explained():
                self._check_header()
                _migrate(self._db)
        except BaseException:
            self._db.close()
            raise

    @property
    def path(self) -> Path:
        """Absolute path of the file."""
        return self._path

    # ── the port ─────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, canary: str) -> Stored:
        with self._reading() as db:
            row = db.execute("SELECT version, state, release FROM rollouts WHERE canary = ?", (canary,)).fetchone()
            inbox = db.execute(
                "SELECT body FROM overrides WHERE canary = ? AND answer IS NULL ORDER BY seq", (canary,)
            ).fetchall()
        version, state, release = row or (0, None, None)
        return Stored(
            state=None if state is None else self._decoded(RolloutState, state, f"the state of {canary}"),
            version=version,
            release=None if release is None else self._decoded(Release, release, f"the release of {canary}"),
            overrides=tuple(self._decoded(Override, body, f"an override of {canary}") for (body,) in inbox),
        )

    def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
        text = _encoded(state)
        rows = [(r.id, r.canary, _sortable(r.at), str(r.kind), int(r.tell), _encoded(r)) for r in records]
        answers = {a.id: a for a in state.answered}
        with self._writing() as db:
            current = self._version(canary)
            if current != version:
                raise ConflictError(f"{canary}: saved at version {version}, but it is at {current} now")
            self._put(canary, "state", text, current + 1)
            try:
                db.executemany("INSERT INTO records (id, canary, at, kind, owed, body) VALUES (?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError as e:
                raise ConflictError(f"{canary}: there is a record with one of these ids already ({e})") from e
            pending = db.execute("SELECT id FROM overrides WHERE canary = ? AND answer IS NULL", (canary,)).fetchall()
            db.executemany(
                "UPDATE overrides SET answer = ? WHERE id = ?",
                [(_encoded(answers[id_]), id_) for (id_,) in pending if id_ in answers],
            )
        return version + 1

    def release(self, canary: str, release: Release) -> int:
        text = _encoded(release)
        with self._writing():
            version = self._version(canary) + 1
            self._put(canary, "release", text, version)
        return version

    def override(self, canary: str, override: Override) -> int:
        body = _encoded(override)
        with self._writing() as db:
            version = self._version(canary)
            if not db.execute("SELECT 1 FROM overrides WHERE id = ?", (override.id,)).fetchone():
                db.execute("INSERT INTO overrides (id, canary, body) VALUES (?, ?, ?)", (override.id, canary, body))
                version += 1
                db.execute(
                    "INSERT INTO rollouts (canary, version) VALUES (?1, ?2)"
                    " ON CONFLICT (canary) DO UPDATE SET version = ?2",
                    (canary, version),
                )
        return version

    def mark(self) -> int:
        with self._lock, self._explained():
            (foreign,) = self._db.execute("PRAGMA data_version").fetchone()
            return (int(foreign) << 32) + self._changes  # one number for each pair, so no two writes cancel out

    def records(
        self, canary: str, *, limit: int = 50, before: datetime | None = None, kinds: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        wanted = json.dumps([str(k) for k in kinds])
        with self._reading() as db:
            rows = db.execute(
                "SELECT body FROM records WHERE canary = ?1 AND (?2 IS NULL OR at <= ?2)"
                " AND (?3 = '[]' OR kind IN (SELECT value FROM json_each(?3))) ORDER BY seq DESC LIMIT ?4",
                (canary, None if before is None else _sortable(before), wanted, max(limit, 0)),
            ).fetchall()
        return tuple(self._decoded(Record, body, f"a record of {canary}") for (body,) in rows)

    def owed(self, limit: int = 100, by: str = "") -> tuple[Record, ...]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT body FROM records WHERE owed AND (?1 = '' OR NOT EXISTS"
                " (SELECT 1 FROM heard WHERE record = records.id AND notifier = ?1)) ORDER BY seq LIMIT ?2",
                (by, max(limit, 0)),
            ).fetchall()
        return tuple(self._decoded(Record, body, "an owed record") for (body,) in rows)

    def told(self, ids: Sequence[str], by: str = "", expected: Sequence[str] = ()) -> None:
        wanted, names = [(id_,) for id_ in ids], json.dumps(list(expected))
        with self._writing() as db:
            if by:
                db.executemany(
                    "INSERT OR IGNORE INTO heard SELECT id, ?2 FROM records WHERE id = ?1 AND owed",
                    [(id_, by) for (id_,) in wanted],
                )
                owing = "SELECT 1 FROM json_each(?1) WHERE value NOT IN (SELECT notifier FROM heard WHERE record = ?2)"
                wanted = [(id_,) for (id_,) in wanted if not db.execute(owing, (names, id_)).fetchone()]
            db.executemany("UPDATE records SET owed = 0 WHERE id = ? AND owed", wanted)
            db.executemany("DELETE FROM heard WHERE record = ?", wanted)

    def amend(self, record: Record) -> None:
        with self._writing() as db:
            row = db.execute("SELECT body FROM records WHERE id = ?", (record.id,)).fetchone()
            if row is None:
                return
            kept = self._decoded(Record, row[0], f"a record of {record.canary}")
            text = _encoded(replace(kept, body=record.body))
            if text != row[0]:
                db.execute("UPDATE records SET body = ? WHERE id = ?", (text, record.id))

    def memo(self, canary: str) -> Mapping[str, str]:
        with self._reading() as db:
            return dict(db.execute("SELECT key, value FROM notes WHERE canary = ? ORDER BY seq", (canary,)).fetchall())

    def remember(self, canary: str, key: str, value: str) -> None:
        check_note(key, value)
        with self._writing() as db:
            if db.execute(
                "SELECT 1 FROM notes WHERE canary = ? AND key = ? AND value = ?", (canary, key, value)
            ).fetchone():
                return
            db.execute("DELETE FROM notes WHERE canary = ? AND key = ?", (canary, key))
            if value:
                db.execute("INSERT INTO notes (canary, key, value) VALUES (?, ?, ?)", (canary, key, value))
            db.execute(
                "DELETE FROM notes WHERE canary = ?1 AND seq NOT IN"
                " (SELECT seq FROM notes WHERE canary = ?1 ORDER BY seq DESC LIMIT ?2)",
                (canary, MOST_NOTES),
            )

    def prune(self, keep_after: datetime, keep_at_least: int) -> int:
        with self._writing() as db:
            return db.execute(
                "DELETE FROM records WHERE seq IN (SELECT seq FROM (SELECT seq, at, owed,"
                " row_number() OVER (PARTITION BY canary ORDER BY seq DESC) AS place FROM records)"
                " WHERE place > ? AND at < ? AND NOT owed)",
                (max(keep_at_least, 0), _sortable(keep_after)),
            ).rowcount

    # ── for the commands of people ───────────────────────────────────────────────────────────────────────────

    def audit(self, canary: str, limit: int = 50) -> tuple[tuple[Override, Answer | None], ...]:
        """What people said, newest first, each with its answer; None while it waits for one."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT body, answer FROM overrides WHERE canary = ? ORDER BY seq DESC LIMIT ?", (canary, max(limit, 0))
            ).fetchall()
        what = f"an override of {canary}"
        return tuple(
            (self._decoded(Override, body, what), answer and self._decoded(Answer, answer, what))
            for body, answer in rows
        )

    def canaries(self) -> tuple[str, ...]:
        """Names about which anything is held, sorted."""
        with self._reading() as db:
            return tuple(name for (name,) in db.execute("SELECT canary FROM rollouts ORDER BY canary"))

    def beat(self, holder: str, at: datetime) -> None:
        """Somebody runs the daemon and has just ticked."""
        value = json.dumps({"holder": holder, "at": encode(at)})
        with self._writing() as db:
            db.execute("INSERT INTO meta VALUES ('beat', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1", (value,))

    def heartbeat(self) -> tuple[str, datetime] | None:
        """Who ran the daemon and when it last ticked; None when nobody ever did."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM meta WHERE name = 'beat'").fetchone()
        if row is None:
            return None
        value = self._parsed(row[0], "the heartbeat")
        try:
            return str(value["holder"]), decode(datetime, value["at"])
        except (TypeError, KeyError) as e:
            raise StoreError(f"{self._path}: the heartbeat cannot be read: {e!r}") from e

    def verify(self) -> None:
        """Look through the whole file for damage (seconds for a gigabyte). Raises StoreError that says what it is."""
        with self._reading() as db:
            found = [text for (text,) in db.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise StoreError(f"{self._path}: {_SENTENCES[sqlite3.SQLITE_CORRUPT]} ({'; '.join(map(str, found))})")

    def close(self) -> None:
        """Let go of the file. Nothing is lost without it."""
        with self._lock, self._explained():
            self._db.close()

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _version(self, canary: str) -> int:
        row = self._db.execute("SELECT version FROM rollouts WHERE canary = ?", (canary,)).fetchone()
        return int(row[0]) if row else 0

    def _put(self, canary: str, column: str, text: str, version: int) -> None:
        assert column in ("state", "release")
        self._db.execute(
            f"INSERT INTO rollouts (canary, version, {column}) VALUES (?1, ?2, ?3)"  # noqa: S608 (one of two words)
            f" ON CONFLICT (canary) DO UPDATE SET version = ?2, {column} = ?3",
            (canary, version, text),
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One snapshot for all reads within."""
        with self._transaction("BEGIN") as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The only writer, from the first statement on; everything or nothing is kept."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            before = db.total_changes
            yield db
            changed = db.total_changes != before
        if changed:
            with self._lock:
                self._changes += 1

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), _atomically(self._db, begin):
            if _identity(self._path) != self._identity:
                raise StoreError(
                    f"{self._path}: the file was removed or replaced while it was in use; start canaryd again"
                )
            yield self._db

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever SQLite raises becomes a StoreError with a sentence for the person on call."""
        try:
            yield
        except sqlite3.Error as e:
            code = getattr(e, "sqlite_errorcode", 0)
            name = getattr(e, "sqlite_errorname", type(e).__name__)
            sentence = _SENTENCES.get(code & 0xFF, "the state could not be read or written")
            raise StoreError(f"{self._path}: {sentence} ({name}: {e})") from e
        except (UnicodeError, OverflowError) as e:
            raise StoreError(f"{self._path}: a value cannot be written: {e}") from e

    def _decoded(self, kind: type[T], text: str, what: str) -> T:
        try:
            return decode(kind, self._parsed(text, what))
        except StoreError as e:
            raise StoreError(f"{self._path}: {what}: {e}") from e

    def _parsed(self, text: str, what: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise StoreError(f"{self._path}: {what} is damaged: {e}") from e

    def _connect(self, path: Path) -> sqlite3.Connection:
        with self._explained():
            db = sqlite3.connect(
                f"file:{quote(str(path))}?mode=rw",  # never made here: see _make
                uri=True,
                timeout=self._busy_timeout.total_seconds(),
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA trusted_schema = OFF")
                db.execute("PRAGMA cell_size_check = ON")
                self._ensure_wal(db)
            except BaseException:
                db.close()
                raise
            return db

    def _ensure_wal(self, db: sqlite3.Connection) -> None:
        """SQLite does not wait for others while it changes or first opens the journal, so the waiting is done here."""
        end = monotonic() + self._busy_timeout.total_seconds()
        while True:
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as e:
                if getattr(e, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > end:
                    raise
                sleep(0.01)
        if mode != "wal":
            raise StoreError(f"{self._path}: the file system does not allow SQLite's WAL (the journal mode is {mode})")

    def _make(self) -> None:
        """The new file appears under its name only when it is whole, so that an empty one is known to be damage."""
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old for the state; 3.37 or newer is needed")
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".new", dir=self._path.parent)
        except FileNotFoundError as e:
            raise StoreError(f"{self._path}: the directory {self._path.parent} does not exist; make it first") from e
        except OSError as e:
            raise StoreError(f"{self._path}: cannot be made: {e.strerror}") from e
        os.close(descriptor)  # before SQLite opens it: closing it later would drop SQLite's locks
        try:
            with self._explained(), closing(self._connect(Path(name))) as db:
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                _migrate(db)
            with suppress(FileExistsError):  # somebody else made it meanwhile: theirs it is
                os.link(name, self._path)
            _sync_directory(self._path.parent)
        except OSError as e:
            raise StoreError(f"{self._path}: cannot be made: {e.strerror}") from e
        finally:
            for suffix in ("", "-wal", "-shm"):
                Path(name + suffix).unlink(missing_ok=True)

    def _check_header(self) -> None:
        (owner,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if owner != APPLICATION_ID:
            raise StoreError(f"{self._path}: this SQLite file is not canaryd's state; name another file")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self._path}: written by a newer canaryd (layout {version}, this one knows up to {len(MIGRATIONS)});"
                " run that version"
            )


def _exists(path: Path) -> bool:
    """Raises StoreError for what cannot be a state file. Never opens it: closing it would drop SQLite's locks."""
    try:
        if not path.exists():
            return False
        if not path.is_file():
            raise StoreError(f"{path}: is not a file")
        if path.stat().st_size == 0:
            raise StoreError(f"{path}: the file is empty, so its contents were lost; remove it to start without state")
    except OSError as e:
        raise StoreError(f"{path}: cannot be used: {e.strerror}") from e
    return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None when there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _atomically(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Everything within is kept, or nothing."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


def _migrate(db: sqlite3.Connection) -> None:
    """Bring the tables up to date, step by step, all or nothing."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == len(MIGRATIONS):
        return
    with _atomically(db, "BEGIN IMMEDIATE"):
        (version,) = db.execute("PRAGMA user_version").fetchone()  # somebody may have been quicker
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _encoded(value: Any) -> str:
    return json.dumps(encode(value), separators=(",", ":"), allow_nan=False)


def _sortable(time: datetime) -> str:
    """Text that sorts as the times do."""
    if time.tzinfo is None:
        raise StoreError(f"{time.isoformat()} is a time without a zone")
    return time.astimezone(UTC).isoformat(timespec="microseconds")
