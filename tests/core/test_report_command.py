"""`canaryd report` and `canaryd explain --verbose` on the records of a real rollout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_story import regressing
from world import World

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.cli.app import run
from canaryd.cli.exits import Exit


@pytest.fixture(scope="module")
def world() -> World:
    world = regressing()
    world.errors.clear()
    world.start("r3")
    world.turn(3)
    return world


@pytest.fixture
def state(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A state file with two rollouts: api-1 was rolled back, api-2 is under way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CANARYD_CONFIG", raising=False)
    store = SqliteStore(tmp_path / "state.db")
    records = tuple(reversed(world.store.records("api", limit=10_000)))
    store.save("api", world.state("default/api" if "/" in world.canaries[0].key else "api"), 0, records)
    store.close()
    return "state.db"


def test_the_latest_rollout_is_written_as_a_page(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state", state, "report", "api"]) == Exit.OK
    assert capsys.readouterr().out.startswith("api-2.html: api r3 is under way at ")
    assert "<!doctype html>" in Path("api-2.html").read_text()
    assert [p.name for p in Path().iterdir() if p.name.startswith(".api")] == []


def test_an_earlier_rollout_goes_by_its_name(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state", state, "report", "api-1", "-o", "json"]) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["rollout"], told["outcome"], told["format"]) == ("api-1", "rolled back", "canaryd.io/report/v1")


def test_the_ending_of_the_file_says_what_is_written(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state", state, "report", "api-1", "-o", "ticket.md"]) == Exit.OK
    assert Path("ticket.md").read_text().startswith("# ▼ api: rolled back\n")
    assert run(["--state", state, "report", "api-1", "-o", "x.pdf"]) == Exit.USAGE
    assert "use .html, .json or .md" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_one_sentence(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state", state, "report", "api-1", "-o", "nowhere/x.html"]) == Exit.USAGE
    assert "nowhere/x.html: it cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "words"), [("api-9", "no records of api-9"), ("web", "no canary")])
def test_what_is_not_there_is_said(state: str, capsys: pytest.CaptureFixture[str], name: str, words: str) -> None:
    assert run(["--state", state, "report", name]) == Exit.NOT_FOUND
    assert words in capsys.readouterr().err


def test_explain_is_short_first_and_shows_the_arithmetic_when_asked(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--state", state, "explain", "api", "--at", "2026-03-01T12:02:40Z"]) == Exit.OK
    assert "the arithmetic" not in capsys.readouterr().out
    at = "2026-03-01T12:02:35Z"  # the look before the rollback
    assert run(["--state", state, "explain", "api", "--at", at, "--verbose"]) == Exit.OK
    out = capsys.readouterr().out
    assert "the arithmetic of errors" in out
    assert "rollback at:   ln(1/alpha) = ln(1/0.01) = +4.6052" in out
    assert "agrees" in out
    assert "DOES NOT" not in out
