"""The command line as people and scripts use it: real processes on a real state file."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.cli.app import COMMANDS, app
from canaryd.cli.exits import MEANINGS, Exit
from canaryd.cli.help import reference
from canaryd.errors import ConflictError
from canaryd.model import Answer, DecisionKind, Override, Phase, Record, Release, RolloutState, Verdict

ROOT = Path(__file__).parents[2]
BODIES: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/core/bodies.json").read_text())
CANARYD = [sys.executable, "-m", "canaryd"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("CANARYD", "NO_COLOR", "COLUMNS", "SUDO_"))}
DEADLINE = 20.0  # seconds; only a broken command takes that long


@dataclass
class Place:
    """A directory with a state file, and commands run in it."""

    directory: Path
    store: SqliteStore

    def run(
        self, *args: str, state: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = ["--state", "state.db"] if state else []
        return subprocess.run(
            [*CANARYD, *given, *args],
            cwd=self.directory,
            env={**CLEAN, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    def put(self, name: str, body: dict[str, Any], **changes: Any) -> RolloutState:
        """Save a state whose latest decision is `body`, with a record of it."""
        stored = self.store.load(name)
        verdict = body.get("verdict")
        state = RolloutState(
            phase=Phase(body["phase"]),
            revision=body.get("revision", ""),
            stable_revision=body.get("stableRevision", ""),
            sentence=body.get("sentence", ""),
            verdict=Verdict(verdict) if verdict else None,
            latest=body,
        )
        state = replace(state, decisions=(stored.state.decisions if stored.state else 0) + 1, **changes)
        at = datetime.fromisoformat(body["at"]) if "at" in body else datetime(2026, 1, 1, tzinfo=UTC)
        kind = DecisionKind(body.get("kind", "idle"))
        record = Record(
            id=f"{name}/{state.decisions}", canary=name, at=at, kind=kind, sentence=state.sentence, body=body
        )
        self.store.save(name, state, stored.version, [record])
        return state

    def beat(self, ago: float = 0.0) -> None:
        self.store.beat("pid 7 on box", datetime.now(UTC) - timedelta(seconds=ago))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Four canaries in four situations, and a daemon that has just ticked."""
    place = Place(tmp_path, SqliteStore(tmp_path / "state.db"))
    for name, body in BODIES.items():
        place.put(name, body)
    place.beat()
    yield place
    place.store.close()


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    """A directory with a configuration and one document, before canaryd ever ran."""
    (tmp_path / "config/canaries").mkdir(parents=True)
    (tmp_path / "config/canaryd.yaml").write_text("state: {path: ../state.db}\ncanaries: [canaries]\n")
    document = (ROOT / "config/canaries/api.yaml").read_text()
    (tmp_path / "config/canaries/api.yaml").write_text(document)
    return Place(tmp_path, None)  # type: ignore[arg-type]


class Daemon(threading.Thread):
    """Answers what people say, as a daemon would, until it is left."""

    def __init__(self, place: Place, answer: Callable[[RolloutState, Override], tuple[bool, str]]) -> None:
        super().__init__(daemon=True)
        self._path, self._answer, self._over = place.directory / "state.db", answer, threading.Event()

    def run(self) -> None:
        store = SqliteStore(self._path)
        while not self._over.wait(0.02):
            for name in store.canaries():
                with contextlib.suppress(ConflictError):  # somebody spoke meanwhile: look again
                    self._tick(store, name)
        store.close()

    def _tick(self, store: SqliteStore, name: str) -> None:
        stored = store.load(name)
        state = stored.state
        if state is None:
            return
        if stored.release and stored.release.revision not in (state.revision, state.stable_revision):
            said = f"{name}: rollout of revision {stored.release.revision} begins"
            state = replace(state, revision=stored.release.revision, phase=Phase.WAITING, sentence=said)
            store.save(name, state, stored.version, [])
        elif stored.overrides:
            override = stored.overrides[0]
            accepted, sentence = self._answer(state, override)
            answer = Answer(override.id, override.action, accepted, sentence, datetime.now(UTC))
            store.save(name, replace(state, answered=(answer,)), stored.version, [])

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(DEADLINE)


def obeys(state: RolloutState, said: Override) -> tuple[bool, str]:
    if said.revision != state.revision:
        return False, f"it was said for revision {said.revision}, but {state.revision} is being rolled out"
    return True, f"{said.action} by {said.by}: done"


PATIENT = ("--answer-within", str(DEADLINE))


def on_a_terminal(
    place: Place, *args: str, answer: str = "", env: Mapping[str, str] | None = None, until: str = ""
) -> tuple[int, str]:
    """Exit code and everything that a terminal of 80 columns got; types `answer`; ends at `until` with Ctrl-C."""
    main, other = pty.openpty()
    child = subprocess.Popen(
        [*CANARYD, "--state", "state.db", *args],
        cwd=place.directory,
        env={**CLEAN, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40", **(env or {})},
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    if answer:
        os.write(main, answer.encode())
    got, deadline = b"", time.monotonic() + DEADLINE
    try:
        while time.monotonic() < deadline:
            if select.select([main], [], [], 0.1)[0]:
                try:
                    got += os.read(main, 65536)
                except OSError:  # the other end is closed
                    break
            if until and until.encode() in got:
                child.send_signal(signal.SIGINT)
                until = ""
        return child.wait(DEADLINE), got.decode("utf-8", "replace")
    finally:
        child.kill()
        child.wait()
        os.close(main)


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────


def test_status_is_a_table_with_a_line_for_each_canary(place: Place) -> None:
    done = place.run("status")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(BODIES)
    assert lines[1].startswith("● api     Progressing  2/5")
    assert "+1.8 pt (+1.1..+2.6)" in lines[3]
    assert "\x1b" not in done.stdout


def test_status_of_one_canary_is_its_tree(place: Place) -> None:
    done = place.run("status", "canary/api")
    assert done.returncode == Exit.OK
    assert "├── traffic   want 10 %   set 10 %   seen 9.7 % of 3 211 requests ✓ confirmed" in done.stdout


@pytest.mark.parametrize("command", ["status", "get", "explain"])
def test_json_is_exactly_the_decision_record(place: Place, command: str) -> None:
    assert json.loads(place.run(command, "pay", "-o", "json").stdout) == BODIES["pay"]


def test_json_of_all_is_a_list_and_yaml_says_the_same(place: Place) -> None:
    assert json.loads(place.run("get", "-o", "json").stdout) == list(BODIES.values())
    assert YAML(typ="safe").load(place.run("status", "-o", "yaml").stdout) == list(BODIES.values())


def test_names_come_one_in_each_line_and_are_understood_again(place: Place) -> None:
    names = place.run("get", "-o", "name").stdout.split()
    assert names == [f"canary.canaryd.io/{name}" for name in BODIES]
    assert place.run("get", names[0]).returncode == Exit.OK


def test_80_columns_suffice(place: Place) -> None:
    lines = place.run("status", env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 1 + len(BODIES)


def test_a_terminal_gets_colour_unless_no_color_is_set(place: Place) -> None:
    code, coloured = on_a_terminal(place, "status")
    assert code == Exit.OK
    assert re.search(r"\x1b\[[0-9;]*m", coloured)
    code, plain = on_a_terminal(place, "status", env={"NO_COLOR": "1"})
    assert code == Exit.OK
    assert "● api" in plain
    assert "\x1b" not in plain


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_few_characters_never_loses_a_minus_sign(place: Place, encoding: str) -> None:
    out = place.run("status", env={"PYTHONIOENCODING": encoding}).stdout
    assert "-0.02 pt (-0.09..+0.05)" in out
    assert "?" not in out


def test_a_daemon_that_stopped_is_said_beside_its_last_words(place: Place) -> None:
    place.beat(ago=100)
    done = place.run("status")
    assert done.returncode == Exit.OK
    assert "● api" in done.stdout
    assert "canaryd is not running (last seen" in done.stderr
    assert "pid 7 on box" in done.stderr


def test_text_from_outside_cannot_touch_the_terminal(place: Place) -> None:
    place.put("evil", BODIES["api"] | {"canary": "[red]x[/]\x1b[31m", "sentence": "\x1b]0;t\x07\u202e", "next": "[b]"})
    for args in (["status"], ["status", "evil"], ["get"], ["explain", "evil", "-v"], ["status", "-o", "json"]):
        out = place.run(*args).stdout
        assert "[red]x[/]" in out or args[0] == "explain"
        assert not set(out) & set("\x1b\x07\u202e")


def test_watching_without_a_terminal_prints_a_line_when_something_changes(place: Place) -> None:
    child = subprocess.Popen(
        [*CANARYD, "--state", "state.db", "status", "-w"],
        cwd=place.directory,
        env=CLEAN,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert child.stdout is not None
        first = [child.stdout.readline() for _ in BODIES]
        assert first[0].startswith("api: Progressing, step 2 of 5, weight wanted 10 % set 10 % seen 9.7 %, healthy")
        place.put("api", BODIES["api"])  # a tick that changes nothing worth a line
        place.put("api", BODIES["api"] | {"step": 2, "kind": "advance", "sentence": "api 10 % → 25 %: fine"})
        assert child.stdout.readline().endswith("| api 10 % → 25 %: fine\n")
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE) == Exit.OK
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


def test_watching_on_a_terminal_ends_with_ctrl_c_and_shows_the_cursor_again(place: Place) -> None:
    code, got = on_a_terminal(place, "status", "-w", until="search")
    assert code == Exit.OK
    assert got.rfind("\x1b[?25h") > got.rfind("\x1b[?25l")


def test_a_reader_that_has_read_enough_is_no_error(place: Place) -> None:
    child = subprocess.Popen(
        [*CANARYD, "--state", "state.db", "status", "-w", "-o", "json"],
        cwd=place.directory,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    deadline = time.monotonic() + DEADLINE
    step = 0
    while child.poll() is None and time.monotonic() < deadline:
        step += 1
        place.put("api", BODIES["api"] | {"at": (datetime.now(UTC) + timedelta(seconds=step)).isoformat()})
        time.sleep(0.1)
    try:
        assert child.poll() in (Exit.OK, 1)
        assert b"Traceback" not in child.stderr.read()
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_explain_shows_the_findings_and_the_arithmetic_on_request(place: Place) -> None:
    brief, verbose = place.run("explain", "pay").stdout, place.run("explain", "pay", "-v").stdout
    assert "tolerated" in brief
    assert "✕ regressed" in brief
    assert "decisions around it" in brief
    assert "e-value" not in brief
    assert "ln(e-value) 0.40" in verbose


def test_explain_finds_the_decision_that_was_in_force(place: Place) -> None:
    for minute, sentence in ((10, "api: early"), (20, "api: middle"), (30, "api: late")):
        place.put("api", BODIES["api"] | {"at": f"2026-01-05T15:{minute}:00+00:00", "sentence": sentence})
    out = place.run("explain", "api", "--at", "2026-01-05T15:25:00Z").stdout
    assert out.startswith("api: middle\n")
    assert re.search(r"» .* api: middle\n  .* api: late", out)
    before = place.run("explain", "api", "--at", "2020-01-01T00:00:00Z")
    assert before.returncode == Exit.NOT_FOUND
    wrong = place.run("explain", "api", "--at", "tomorrow")
    assert wrong.returncode == Exit.USAGE
    assert '"tomorrow" is not a time; use' in wrong.stderr


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_word_is_kept_with_who_why_and_for_which_revision_and_its_answer_is_printed(place: Place) -> None:
    with Daemon(place, obeys):
        done = place.run("promote", "api", "--full", "--reason", "hotfix", "--by", "anna", *PATIENT)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, "promote by anna: done\n", "")
    ((said, answer),) = place.store.audit("api")
    assert (said.by, said.reason, said.revision, said.full) == ("anna", "hotfix", "7f3c", True)
    assert answer is not None
    assert answer.accepted


def test_a_stale_word_is_refused_with_the_reason(place: Place) -> None:
    with Daemon(place, obeys):
        done = place.run("abort", "api", "--reason", "x", "--revision", "old", *PATIENT)
        as_json = place.run("pause", "api", "--reason", "x", "--revision", "old", "-o", "json", *PATIENT)
    assert (done.returncode, done.stdout) == (Exit.REFUSED, "")
    assert done.stderr == "canaryd: it was said for revision old, but 7f3c is being rolled out\n"
    assert as_json.returncode == Exit.REFUSED
    said = json.loads(as_json.stdout)
    assert (said["action"], said["answer"], said["revision"]) == ("pause", "refused", "old")


@pytest.mark.parametrize("action", ["promote", "abort", "pause", "resume", "retry", "skip"])
def test_every_word_reaches_the_state_even_when_nobody_is_there_to_hear_it(place: Place, action: str) -> None:
    place.beat(ago=3600)
    done = place.run(action, "api", "--reason", "it is time", "--answer-within", "3600")  # not waited for
    assert done.returncode == Exit.UNAVAILABLE
    assert f"{action} of api is recorded; canaryd is not running (last seen" in done.stderr
    (said,) = place.store.load("api").overrides
    assert (said.action, said.reason, said.revision) == (action, "it is time", "7f3c")
    assert re.fullmatch(r"\S+@\S+", said.by)


def test_a_daemon_that_does_not_answer_in_time_is_said(place: Place) -> None:
    done = place.run("pause", "api", "--reason", "x", "--answer-within", "0.1")
    assert done.returncode == Exit.TRY_AGAIN
    assert "recorded but not answered within 0.1 s" in done.stderr


def test_a_word_without_a_reason_or_with_an_unreadable_one_is_not_written(place: Place) -> None:
    for args in ([], ["--reason", " "], ["--reason", "a\x1b[2Jb"], ["--reason", "x" * 501], ["--reason", "a\nb"]):
        assert place.run("abort", "api", *args).returncode == Exit.USAGE
    assert place.run("abort", "api", "--reason", "x", "--revision", "a b").returncode == Exit.USAGE
    assert not place.store.audit("api")


def test_a_canary_without_a_rollout_has_nothing_to_promote(place: Place) -> None:
    done = place.run("promote", "search", "--reason", "x")
    assert done.returncode == Exit.REFUSED
    assert "canaryd start search --revision R begins one" in done.stderr


def test_on_a_terminal_what_changes_much_is_asked_and_no_means_no(place: Place) -> None:
    code, got = on_a_terminal(place, "abort", "api", "--reason", "x", answer="n\n")
    assert code == Exit.INTERRUPTED
    assert "Progressing at 10 %, healthy" in got
    assert "Roll back now?" in got
    assert not place.store.audit("api")
    with Daemon(place, obeys):
        code, got = on_a_terminal(place, "abort", "api", "--reason", "x", "--yes", *PATIENT)
    assert code == Exit.OK
    assert "?" not in got


def test_on_a_terminal_a_missing_reason_is_asked_for(place: Place) -> None:
    with Daemon(place, obeys):
        code, _ = on_a_terminal(place, "pause", "api", *PATIENT, answer="because\n")
    assert code == Exit.OK
    assert [said.reason for said, _ in place.store.audit("api")] == ["because"]


def test_start_says_the_revision_and_waits_until_it_is_under_way(place: Place) -> None:
    with Daemon(place, obeys):
        done = place.run("start", "api", "--revision", "9e1", "--by", "anna", *PATIENT)
    assert (done.returncode, done.stdout) == (Exit.OK, "api: rollout of revision 9e1 begins\n")
    release = place.store.load("api").release
    assert release is not None
    assert (release.revision, release.by) == ("9e1", "anna")


@pytest.mark.parametrize(
    ("name", "revision", "code", "words"),
    [
        pytest.param("pay", "7f3c", Exit.REFUSED, "was rolled back; canaryd retry pay", id="rolled-back-before"),
        pytest.param("api", "7f3c", Exit.OK, "is Progressing already", id="under-way"),
        pytest.param("pay", "6a1b", Exit.OK, "is stable already", id="stable"),
        pytest.param("api", "a b", Exit.USAGE, "is not a revision", id="not-a-revision"),
    ],
)
def test_start_of_a_known_revision_says_what_is(place: Place, name: str, revision: str, code: Exit, words: str) -> None:
    done = place.run("start", name, "--revision", revision)
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_start_during_a_promotion_says_that_it_comes_next(place: Place) -> None:
    place.put("api", BODIES["api"] | {"phase": "Promoting"})
    done = place.run("start", "api", "--revision", "next", *PATIENT)
    assert done.returncode == Exit.OK
    assert "the promotion of 7f3c is finished first" in done.stdout


def test_start_without_a_daemon_is_recorded(place: Place) -> None:
    place.beat(ago=3600)
    done = place.run("start", "search", "--revision", "1", *PATIENT)
    assert done.returncode == Exit.UNAVAILABLE
    assert place.store.load("search").release is not None


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("phase", "goal", "code"),
    [
        ("Succeeded", "promoted", Exit.OK),
        ("Succeeded", "settled", Exit.OK),
        ("Succeeded", "rolledback", Exit.OTHERWISE),
        ("RolledBack", "rolledback", Exit.OK),
        ("RolledBack", "promoted", Exit.ROLLED_BACK),
        ("RolledBack", "settled", Exit.ROLLED_BACK),
        ("Idle", "promoted", Exit.OTHERWISE),
        ("Progressing", "settled", Exit.UNDECIDED),
    ],
)
def test_wait_says_by_its_exit_code_how_it_ended(place: Place, phase: str, goal: str, code: Exit) -> None:
    place.put("api", BODIES["api"] | {"phase": phase})
    done = place.run("wait", "api", "--for", goal, "--timeout", "300ms")
    assert done.returncode == code


def test_wait_tells_a_blind_end_of_time_and_a_missing_daemon_apart(place: Place) -> None:
    place.put("api", BODIES["api"] | {"verdict": "blind"})
    assert place.run("wait", "api", "--timeout", "300ms").returncode == Exit.BLIND
    place.beat(ago=3600)
    done = place.run("wait", "api", "--timeout", "300ms")
    assert done.returncode == Exit.UNAVAILABLE
    assert "canaryd is not running" in done.stderr


def test_wait_does_not_take_the_end_of_the_last_rollout_for_that_of_the_next(place: Place) -> None:
    place.put("api", BODIES["api"] | {"phase": "Succeeded"}, stable_revision="7f3c")
    place.store.release("api", Release(revision="new", by="anna", at=datetime.now(UTC)))
    assert place.run("wait", "api", "--for", "promoted", "--timeout", "300ms").returncode == Exit.UNDECIDED


def test_wait_sees_the_end_and_shows_what_it_waits_for_on_the_way(place: Place) -> None:
    child = subprocess.Popen(
        [*CANARYD, "--state", "state.db", "wait", "api", "--for=promoted", "--timeout", "1m"],
        cwd=place.directory,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert child.stderr is not None
    try:
        assert "waits for: 2 more checks" in child.stderr.readline()
        place.put("api", BODIES["api"] | {"phase": "Succeeded", "sentence": "api promoted"})
        out, _ = child.communicate(timeout=DEADLINE)
        assert (child.returncode, out) == (Exit.OK, "api promoted\n")
    finally:
        child.kill()
        child.wait()


# ── documents, health ────────────────────────────────────────────────────────────────────────────────────────


def test_validate_takes_good_documents_and_shows_every_default(empty: Place) -> None:
    done = empty.run("validate", state=False)
    assert (done.returncode, done.stdout) == (Exit.OK, "1 canary, no errors: api.\n")
    shown = empty.run("validate", "--show", state=False).stdout
    (empty.directory / "again.yaml").write_text(shown)
    assert "alpha" in shown
    assert empty.run("validate", "again.yaml", state=False).returncode == Exit.OK


def test_validate_lists_every_problem_with_its_place(empty: Place) -> None:
    (empty.directory / "bad.yaml").write_text(
        "apiVersion: canaryd.io/v1alpha1\nkind: Canary\nmetadata: {name: bad}\n"
        "spec:\n  workloads: {pools: [a, b]}\n  route: {envoyFile: {path: /x}}\n  steps: [5, 150]\n  alhpa: 1%\n"
    )
    done = empty.run("validate", "bad.yaml", state=False)
    assert done.returncode == Exit.DOCUMENT
    assert "bad.yaml:7: spec.steps[1]" in done.stderr
    assert 'bad.yaml:8: spec.alhpa: unknown key; did you mean "alpha"?' in done.stderr
    assert done.stderr.endswith("2 errors, nothing changed.\n")
    result = json.loads(empty.run("validate", "bad.yaml", "-o", "json", state=False).stdout)
    assert result["valid"] is False
    assert [(p["line"], p["file"]) for p in result["problems"]] == [(7, "bad.yaml"), (8, "bad.yaml")]


def test_a_broken_configuration_is_reported_by_every_command(empty: Place) -> None:
    (empty.directory / "config/canaryd.yaml").write_text("stat: {}\n")
    for args in (
        ["status"],
        ["validate"],
        ["validate", "config/canaries/api.yaml"],
        ["promote", "api", "--reason", "x"],
    ):
        done = empty.run(*args, state=False)
        assert done.returncode == Exit.DOCUMENT
        assert 'stat: unknown key; did you mean "state"?' in done.stderr


def test_before_canaryd_ever_ran_its_documents_are_shown_and_no_state_file_appears(empty: Place) -> None:
    done = empty.run("status", state=False)
    assert done.returncode == Exit.OK
    assert "◌ api" in done.stdout
    assert "canaryd is not running (it never ran on this state)" in done.stderr
    assert not (empty.directory / "state.db").exists()


def test_the_patience_with_a_silent_daemon_follows_the_interval_of_the_document(empty: Place) -> None:
    document = empty.directory / "config/canaries/api.yaml"
    document.write_text(re.sub(r"(?m)^spec:", "spec:\n  interval: 2s", document.read_text()))
    store = SqliteStore(empty.directory / "state.db")
    store.beat("pid 7 on box", datetime.now(UTC) - timedelta(seconds=30))
    store.close()
    assert "canaryd is not running (last seen" in empty.run("status", state=False).stderr


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"ok" if self.path == "/healthz" else b"not ready: the state is locked")

    def log_message(self, *_: Any) -> None:
        pass


def test_health_tells_well_from_ill_and_from_gone(place: Place) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    well = place.run("health", "--url", f"{url}/healthz", state=False)
    ill = place.run("health", "--url", f"{url}/readyz", state=False)
    server.shutdown()
    server.server_close()
    thread.join()
    gone = place.run("health", "--url", f"{url}/healthz", state=False)
    assert (well.returncode, well.stdout) == (Exit.OK, "ok\n")
    assert (ill.returncode, ill.stderr) == (Exit.UNAVAILABLE, "not ready: the state is locked\n")
    assert gone.returncode == Exit.UNAVAILABLE
    assert "does not answer" in gone.stderr
    assert place.run("health", "--url", "file:///etc/passwd", state=False).returncode == Exit.USAGE


# ── the doctor ───────────────────────────────────────────────────────────────────────────────────────────────


class _Counters(http.server.BaseHTTPRequestHandler):
    """One Envoy that has sent requests to the stable pool only."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        labels = 'reporter="destination",destination_workload="api-v1",response_code="200"'
        self.wfile.write(f"# TYPE istio_requests_total counter\nistio_requests_total{{{labels}}} 5\n".encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_the_doctor_says_what_is_missing_why_it_matters_and_what_to_do(empty: Place) -> None:
    done = empty.run("doctor", "-o", "json", state=False)
    assert done.returncode == Exit.AMISS
    found = {f["check"]: f for f in json.loads(done.stdout)}
    assert list(found) == ["documents", "state", "daemon", "routes", "metrics"]
    assert found["documents"]["severity"] == "fine"
    assert found["state"]["severity"] == "warning"
    assert found["daemon"] == {
        "check": "daemon",
        "severity": "error",
        "what": "canaryd is not running (it never ran on this state)",
        "why": "nobody looks after the Canaries",
        "remedy": "canaryd run",
        "about": "",
    }
    assert "/var/lib/canaryd/envoy/api.yaml" in found["routes"]["what"]
    assert (found["routes"]["severity"], found["routes"]["about"]) == ("error", "api")
    assert found["metrics"]["severity"] == "error"


def test_the_doctor_is_content_with_a_daemon_a_route_and_counters_of_stable(empty: Place) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Counters)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    config = empty.directory / "config/canaryd.yaml"
    config.write_text(config.read_text() + f"metrics: {{source: scrape, scrape: {{urls: ['{url}'], prefix: ''}}}}\n")
    route = empty.directory / "route.json"
    clusters = [{"name": "api-v1", "weight": 100}, {"name": "api-v2", "weight": 0}]
    rule = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters}}}
    rds = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    hosts = [{"name": "api", "domains": ["*"], "routes": [rule]}]
    route.write_text(
        json.dumps({"version_info": "1", "resources": [{"@type": rds, "name": "api", "virtual_hosts": hosts}]})
    )
    document = empty.directory / "config/canaries/api.yaml"
    document.write_text(document.read_text().replace("/var/lib/canaryd/envoy/api.yaml", str(route)))
    store = SqliteStore(empty.directory / "state.db")
    store.beat("pid 7 on box", datetime.now(UTC))
    store.close()
    done = empty.run("doctor", "api", state=False)
    server.shutdown()
    server.server_close()
    lines = done.stdout.splitlines()
    assert "✓ daemon     it is running" in lines
    assert "✓ routes     api: the route sends 0 % to api-v2" in lines
    assert "✓ metrics    api: api-v2 has no counters: no release is under way" in lines
    assert "▲ metrics    api: api-v1 has counters of requests but no buckets of durations" in lines
    assert lines[-1] == "1 warning."
    assert done.returncode == Exit.DOUBTFUL


# ── errors and help ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_canary_lists_the_known_ones(place: Place) -> None:
    for args in (["status", "apo"], ["explain", "apo"], ["abort", "apo", "--reason", "x"], ["wait", "apo"]):
        done = place.run(*args)
        assert done.returncode == Exit.NOT_FOUND
        assert done.stderr == 'canaryd: no canary "apo"; did you mean "api"? There are: api, cart, pay, search.\n'


def test_no_configuration_says_where_it_was_looked_for(tmp_path: Path) -> None:
    done = Place(tmp_path, None).run("status", state=False)  # type: ignore[arg-type]
    assert done.returncode == Exit.USAGE
    assert "config/canaryd.yaml, /etc/canaryd/canaryd.yaml; use --config FILE" in done.stderr


def test_a_state_file_that_is_missing_or_damaged_is_one_sentence(place: Place) -> None:
    missing = place.run("--state", "nowhere.db", "status", state=False)
    assert missing.returncode == Exit.STATE
    assert not (place.directory / "nowhere.db").exists()
    (place.directory / "broken.db").write_bytes(b"x" * 5000)
    broken = place.run("--state", "broken.db", "status", state=False)
    assert broken.returncode == Exit.STATE
    for done in (missing, broken):
        assert done.stderr.startswith("canaryd: ")
        assert "Traceback" not in done.stderr


def test_a_traceback_is_there_for_those_who_ask(place: Place) -> None:
    assert "Traceback" in place.run("status", "apo", env={"CANARYD_DEBUG": "1"}).stderr


@pytest.mark.parametrize(
    "args", [["statsu"], ["status", "--bogus"], ["promote"], [], ["wait", "api", "--timeout", "ten"]]
)
def test_what_is_typed_wrongly_ends_with_64(place: Place, args: list[str]) -> None:
    done = place.run(*args)
    assert done.returncode == Exit.USAGE
    assert done.stderr
    assert not done.stdout


def test_options_are_understood_before_and_after_the_command(place: Place) -> None:
    assert place.run("get", "--state", "state.db", state=False).stdout == place.run("get").stdout


def test_exit_codes_are_distinct_and_documented(place: Place) -> None:
    assert set(MEANINGS) == set(Exit)
    assert len(set(MEANINGS.values())) == len(Exit)
    shown = place.run("help", "exit-codes", state=False).stdout
    assert [int(line.split()[0]) for line in shown.splitlines()] == [int(code) for code in Exit]
    assert place.run("help", "nothing", state=False).returncode == Exit.NOT_FOUND


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_the_line_that_is_listed(name: str) -> None:
    context = app.make_context("canaryd", ["help"])
    command = app.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert f"canaryd {name}" in (command.help or "")
    if name not in ("validate", "help", "run"):  # their own first line says more
        assert (command.help or "").replace("\n", " ").startswith(COMMANDS[name][2].rstrip("."))


def test_the_reference_in_docs_is_the_one_the_program_prints() -> None:
    assert (ROOT / "docs/cli.md").read_text() == reference()


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv[1:] = ['--help']\nfrom canaryd.cli.app import run\nassert run() == 0\n"
        "heavy = {'numpy', 'pydantic', 'structlog', 'rich', 'requests', 'sqlite3', 'ruamel', 'apscheduler', 'scipy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", env=CLEAN, timeout=60)
    assert done.stdout.endswith("heavy: []\n")


# ── the shell ────────────────────────────────────────────────────────────────────────────────────────────────


def complete(place: Place, line: str) -> list[str]:
    words = line.split(" ")
    env = {"_CANARYD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = place.run(env=env, state=False)
    assert done.stderr == ""
    return [text.partition(",")[2] for text in done.stdout.split()]


def test_the_shell_completes_commands_and_canary_names(place: Place) -> None:
    assert complete(place, "canaryd prom") == ["promote"]
    assert complete(place, "canaryd --state state.db status a") == ["api"]
    assert complete(place, "canaryd --state state.db promote ") == list(BODIES)


def test_completion_is_silent_when_the_names_cannot_be_had(place: Place) -> None:
    assert complete(place, "canaryd --state nowhere.db status a") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(place: Place, shell: str) -> None:
    done = place.run("completion", shell, state=False)
    assert done.returncode == Exit.OK
    assert "_CANARYD_COMPLETE" in done.stdout
