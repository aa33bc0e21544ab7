"""Traces on their way to people: kept in the record once, after a kill again, shown by commands, and asked live."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jaeger_server import JaegerLike, otlp_span

from canaryd.adapters.memory import MemoryNotifier, MemoryStore, MemoryTraces
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.cli.app import run
from canaryd.cli.exits import Exit
from canaryd.delivery import Delivery
from canaryd.model import DecisionKind, Phase, Record, RolloutState, Verdict
from canaryd.policy import Canary, parse_canary
from canaryd.spans import nanoseconds
from canaryd.traces.evidence import TraceGatherer
from canaryd.traces.telling import EvidenceKeeper, with_traces

AT = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
BODY: dict[str, Any] = {
    "canary": "api",
    "namespace": "default",
    "rollout": "api-3",
    "revision": "v2",
    "stableRevision": "v1",
    "at": AT.isoformat(),
    "since": (AT - timedelta(minutes=5)).isoformat(),
    "kind": "rollback",
    "phase": "RolledBack",
    "verdict": "regressed",
    "sentence": "errors are worse",
    "workloads": {"stable": "api-a", "canary": "api-b"},
    "findings": [{"metric": "errors", "verdict": "regressed"}],
}
DOCUMENT: dict[str, Any] = {
    "apiVersion": "canaryd.io/v1alpha1",
    "kind": "Canary",
    "metadata": {"name": "api"},
    "spec": {"workloads": {"pools": ["api-a", "api-b"]}, "route": {"envoyFile": {"path": "/none.yaml"}}},
}


def record(id_: str = "api/1", **body: Any) -> Record:
    return Record(id_, "api", AT, DecisionKind.ROLLBACK, "errors are worse", {**BODY, **body}, tell=True)


def canaries() -> tuple[Canary, ...]:
    return (parse_canary(DOCUMENT),)


class Eager(MemoryNotifier):
    """One that shows traces."""

    wants_evidence = True


def delivery(store: MemoryStore, source: MemoryTraces, *more: MemoryNotifier) -> Delivery:
    return Delivery((*more, EvidenceKeeper(store)), store, prepare=with_traces(TraceGatherer(source), canaries))


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.save("api", RolloutState(), 0, [record()])
    return store


def kept(store: MemoryStore) -> Mapping[str, Any]:
    return store.records("api")[0].body


def test_traces_are_gathered_once_kept_and_told_with_the_record(store: MemoryStore) -> None:
    source, people = MemoryTraces(), Eager()
    delivery(store, source, people).tell()
    assert kept(store)["traces"]["note"] == "no traces of the service api"
    assert people.told[0].body == kept(store)
    assert len(source.asked) == 1
    assert store.owed() == ()


def test_after_a_kill_the_next_daemon_gathers_what_was_owed_and_not_what_was_kept(store: MemoryStore) -> None:
    first, second = MemoryTraces(), MemoryTraces()
    store.told(["api/1"], "memory", ("memory", "traces"))  # killed: people were told, and nothing was kept yet
    delivery(store, first, Eager()).tell()
    assert "traces" in kept(store)
    delivery(store, second, Eager()).tell()
    assert second.asked == []


def test_a_store_that_cannot_be_written_gets_the_traces_later(store: MemoryStore) -> None:
    post = delivery(store, MemoryTraces())
    keeper = post.couriers[0].notifier
    store.fail("the disk is full")
    with pytest.raises(Exception, match="the disk is full"):
        keeper.notify(replace(record(), body={**BODY, "traces": {"note": "x"}}))
    store.heal()
    post.tell()
    assert "traces" in kept(store)


def test_a_dead_source_is_a_note_in_what_people_are_told(store: MemoryStore) -> None:
    source, people = MemoryTraces(), Eager()
    source.fail("http://jaeger: connection refused")
    delivery(store, source, people).tell()
    assert people.told[0].body["traces"] == {"note": "no traces: http://jaeger: connection refused"}


def test_a_canary_that_is_gone_has_no_traces_and_is_told_all_the_same(store: MemoryStore) -> None:
    people = Eager()
    source = MemoryTraces()
    post = Delivery((people, EvidenceKeeper(store)), store, prepare=with_traces(TraceGatherer(source), tuple))
    post.tell()
    assert (len(people.told), source.asked, store.owed()) == (1, [], ())


def test_what_needs_no_traces_is_not_asked_for(store: MemoryStore) -> None:
    source = MemoryTraces()
    store.save("api", RolloutState(), 1, [replace(record("api/2"), kind=DecisionKind.ADVANCE)])
    delivery(store, source).tell()
    assert len(source.asked) == 1
    assert "traces" not in store.records("api")[0].body


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def jaeger() -> Iterator[JaegerLike]:
    """Canary requests that all fail in their ledger, stable ones that do not call one."""
    with JaegerLike("2.13").serving() as server:
        for i in range(1, 61):
            version, bad = ("v2", True) if i % 3 == 0 else ("v1", False)
            at = nanoseconds(AT) - (100 - i) * 10**9
            server.put("api", otlp_span(f"{i:x}", "1", start=at, ms=20, error=bad), service_version=version)
            if bad:
                server.put(
                    "ledger", otlp_span(f"{i:x}", "2", parent="1", start=at, ms=9, error=True, name="POST /book")
                )
        yield server


@pytest.fixture
def place(tmp_path: Path, jaeger: JaegerLike, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with that Jaeger, and a rollout that was rolled back."""
    (tmp_path / "canaries").mkdir()
    (tmp_path / "canaries" / "api.yaml").write_text(json.dumps(DOCUMENT))
    settings = {
        "state": {"path": "state.db"},
        "traces": {"jaeger": {"url": jaeger.url, "externalURL": "https://jaeger.example.com"}},
    }
    (tmp_path / "canaryd.yaml").write_text(json.dumps(settings))
    monkeypatch.setenv("CANARYD_CONFIG", str(tmp_path / "canaryd.yaml"))
    monkeypatch.setenv("COLUMNS", "200")
    save(tmp_path, BODY)
    return tmp_path


def save(place: Path, body: dict[str, Any]) -> None:
    store = SqliteStore(place / "state.db")
    state = RolloutState(phase=Phase.ROLLED_BACK, verdict=Verdict.REGRESSED, rollout="api-3", latest=BODY, decisions=1)
    store.save(
        "api", state, store.load("api").version, [replace(record(f"api/{store.load('api').version + 1}"), body=body)]
    )
    store.close()


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def say(*words: str) -> tuple[int, str, str]:
        code = run(list(words))
        out, err = capsys.readouterr()
        return code, out, err

    return say


def test_without_a_record_the_command_asks_now(place: Path, said: Said) -> None:
    code, out, _ = said("traces", "api", "-o", "json")
    shown = json.loads(out)
    assert (code, shown["live"], shown["rollout"]) == (Exit.OK, True, "api-3")
    assert shown["traces"]["requests"] == {"stable": 40, "canary": 20}
    assert [c["service"] for c in shown["traces"]["newCalls"]] == ["ledger"]
    code, out, _ = said("traces", "api")
    assert "asked now" in out
    assert "ledger POST /book: 1 for each request, in stable 0 (n 20 / 40)" in out
    assert "api GET /: 20 of 20 failed, in stable 0 of 40" in out
    assert "https://jaeger.example.com/trace/" in out
    assert "because of ledger POST /book" in out


def test_what_was_recorded_is_shown_by_traces_status_and_explain(place: Path, said: Said, jaeger: JaegerLike) -> None:
    entry = {"service": "ledger", "operation": "POST /book", "canaryMs": 310.2, "stableMs": 12.1, "canaryN": 40}
    save(place, {**BODY, "traces": {"note": "seen", "criticalPath": [{**entry, "stableN": 800}]}})
    jaeger.asked.clear()
    line = "ledger POST /book: 310.2 ms, in stable 12.1 ms (n 40 / 800)"
    for words in (("traces", "api"), ("status", "api"), ("explain", "api"), ("traces", "api", "--rollout", "api-3")):
        _, out, _ = said(*words)
        assert line in out, words
    assert json.loads(said("status", "api", "-o", "json")[1])["traces"]["note"] == "seen"
    assert jaeger.asked == []
    assert json.loads(said("traces", "api", "--live", "-o", "json")[1])["live"] is True


def test_what_cannot_be_shown_is_said_in_one_line(place: Path, said: Said, jaeger: JaegerLike) -> None:
    assert said("traces", "api", "--rollout", "api-9")[0] == Exit.NOT_FOUND
    assert said("traces", "api", "--live", "--rollout", "api-3")[0] == Exit.USAGE
    code, _, err = said("traces", "api", "--jaeger", "http://127.0.0.1:1")
    assert (code, "connection refused" in err, err.count("\n")) == (Exit.UNAVAILABLE, True, 1)
    assert said("traces", "api", "--jaeger", "not a url")[0] == Exit.USAGE
    (place / "canaryd.yaml").write_text('{"state": {"path": "state.db"}}')
    code, _, err = said("traces", "api")
    assert (code, "traces.jaeger.url" in err) == (Exit.USAGE, True)


def test_names_and_notes_of_others_cannot_draw_on_the_terminal(place: Path, said: Said) -> None:
    evil = "\x1b[31mred\x1b]8;;http://evil\x07"
    entry = {"service": evil, "operation": evil, "canaryMs": 1, "stableMs": 0, "canaryN": 1, "stableN": 1}
    exemplar = {"trace": evil, "url": evil, "at": evil, "service": evil, "operation": evil, "facts": {"cause": evil}}
    save(place, {**BODY, "traces": {"note": evil, "criticalPath": [entry], "exemplars": [exemplar, 5, None]}})
    assert "\x1b" not in said("traces", "api")[1]
