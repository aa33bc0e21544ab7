"""Looking back on a real Prometheus that holds raw per-pod counters of made-up services: analyze, replay, placebo."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backfill import HISTORY, STEPS, Story, document, scenario

from canaryd.adapters.memory import MemoryHooks, MemoryRouter, MemoryWorkloads
from canaryd.adapters.prometheus import PrometheusSource
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.cli.app import run
from canaryd.demo.processes import Nursery, free_port
from canaryd.demo.prometheus import Prometheus
from canaryd.model import Release
from canaryd.policy import parse_canary
from canaryd.ports import Ports
from canaryd.reconcile import Reconciler
from canaryd.simulation.traffic import Interval

pytestmark = pytest.mark.prometheus

COLD = {"cold_slowdown": 1.0, "cold_failures": 0.01}
OUTAGE = ((905, 990), (1310, 1375))


def burst(second: int, counts: Interval) -> Interval:
    """In one step of five seconds 150 requests of the first canary pod fail; never before and never again."""
    x = np.zeros_like(counts.x_c)
    x[0, 0] = min(150.0, counts.n_c[0, 0]) if second == 1600 else 0.0
    return replace(counts, x_c=x)


def sick(second: int, counts: Interval) -> Interval:
    """A twentieth of what the first stable pod answers fails."""
    x = counts.x_s.copy()
    x[0, 0] = np.ceil(counts.n_s[0, 0] / 20)
    return replace(counts, x_s=x)


def shrinking(arm: str, pod: int, second: int) -> bool:
    """The last stable pod and the first canary pod are gone in the middle of a step."""
    return not ((arm, pod) in (("stable", 4), ("canary", 0)) and second > 1650)


def outside(begin: int, end: int) -> Any:
    return lambda arm, pod, second: not begin < second <= end


LATE = {1500: {"canary_failures": 0.01}}
BUSY = scenario(rps=3000.0)
STORIES = (
    Story(name="healthy", scenario=scenario()),
    Story(name="errors", scenario=scenario(canary_failures=0.01)),
    Story(name="slow", scenario=scenario(canary_slowdown=1.3)),
    Story(name="outage", scenario=scenario(outage_failures=0.3), outages=OUTAGE),
    Story(
        name="skewed", scenario=scenario(outage_failures=0.3), outages=OUTAGE, phase={"stable": 0, "canary": 1}, seed=2
    ),
    Story(name="ahead", scenario=scenario(outage_failures=0.3), outages=OUTAGE, phase={"stable": 1, "canary": 0}),
    Story(name="reset-stable", scenario=scenario(), resets={("stable", 0): 1000, ("stable", 1): 1610}),
    Story(name="reset-canary", scenario=scenario(), resets={("canary", 0): 1000, ("canary", 1): 1610}),
    Story(name="vanishing", scenario=scenario(), sampled=shrinking),
    Story(name="newborn", scenario=scenario(failures=1e-9), tweak=burst),
    Story(name="doubled", scenario=scenario(), replicas=({"prometheus_replica": "0"}, {"prometheus_replica": "1"})),
    Story(name="no-buckets", scenario=scenario(), edges={"canary": ()}),
    Story(name="other-buckets", scenario=scenario(), edges={"canary": (3, 4, 5, 6, 8, 9, 10, 11)}),
    Story(name="gap", scenario=scenario(), sampled=outside(1000, 1600), seconds=2400),
    Story(name="no-canary", scenario=scenario(), served=((0, 0),), weights=((600, 10),), seconds=1200),
    Story(name="no-stable", scenario=scenario(), served=((600, 100),), weights=((600, 10),), seconds=1200),
    Story(name="cold", scenario=scenario(**COLD)),
    Story(name="late", scenario=scenario(), changes=LATE),
    Story(name="tail", scenario=scenario(canary_tail=0.002)),
    Story(name="sick", scenario=scenario(), tweak=sick),
    Story(name="clustered", scenario=scenario(cluster=5.0), seed=3),
    Story(name="simpson", scenario=scenario(failures=0.0005), changes={1200: {"failures": 0.01}}),
    Story(name="twice", scenario=scenario(rps=3000.0, failures=0.0005, canary_failures=0.001)),
    Story(name="falling", scenario=scenario(), falling=(1000, 1250, 1400, 1700)),
    Story(name="told", scenario=scenario(), tells_weight=True, seed=5),
    Story(name="slower-p99", scenario=replace(BUSY, canary_tail_slowdown=1.2)),
)
BY_NAME = {story.name: story for story in STORIES}


@dataclass(frozen=True)
class Lines:
    """What one analysis wrote."""

    code: int
    looks: list[dict[str, Any]]
    summary: dict[str, Any]

    def finding(self, metric: str, look: int = -1) -> dict[str, Any]:
        return next(f for f in self.looks[look]["findings"] if f["metric"] == metric)

    @property
    def decisions(self) -> list[str]:
        return [look["decision"] for look in self.looks]


@dataclass(frozen=True)
class Past:
    """A Prometheus with all stories in it, the same window for each."""

    url: str
    start: datetime
    directory: Path
    capture: pytest.CaptureFixture[str] | None = None

    def at(self, second: float) -> str:
        return (self.start + timedelta(seconds=second)).isoformat()

    def canary(self, name: str, **spec: Any) -> str:
        body = {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": name},
            "spec": {
                "workloads": {"pools": [f"{name}-a", f"{name}-b"]},
                "route": {"envoyFile": {"path": "/etc/envoy/route.yaml"}},
                **spec,
            },
        }
        file = self.directory / f"{name}.yaml"
        file.write_text(json.dumps(body))
        return str(file)

    def schedule(self, name: str, rows: Any) -> str:
        file = self.directory / f"{name}.csv"
        file.write_text("time,weight\n" + "".join(f"{self.at(second)},{weight}\n" for second, weight in rows))
        return str(file)

    def arguments(self, story: Story, spec: Mapping[str, Any] | None = None) -> list[str]:
        return [
            "analyze",
            self.canary(story.name, **(spec or {})),
            *("--prometheus", self.url, "--start", self.at(0), "--end", self.at(story.seconds)),
            *("--schedule", self.schedule(story.name, story.weights)),
        ]

    def analyze(self, name: str, *more: str, spec: Mapping[str, Any] | None = None) -> Lines:
        assert self.capture is not None
        code = run([*self.arguments(BY_NAME[name], spec), *more])
        written = self.capture.readouterr()
        assert written.err == "", written.err
        lines = [json.loads(line, parse_constant=refuse) for line in written.out.splitlines()]
        assert [line["type"] for line in lines] == ["interval"] * (len(lines) - 1) + ["summary"]
        return Lines(code, lines[:-1], lines[-1])


def refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool not found: apt-get install prometheus")
    directory = tmp_path_factory.mktemp("past")
    start = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 60 * 60 - 3 * 3600, UTC)
    with (directory / "history.om").open("w") as file:
        file.writelines(document(STORIES, start))
    argv = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "prometheus/data"]
    subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=120)
    (directory / "history.om").unlink()
    with Nursery(directory / "log") as nursery:
        prometheus = Prometheus(nursery, directory / "prometheus", "http://127.0.0.1:9/metrics", "1m")
        prometheus.start()
        yield Past(prometheus.url, start, directory)


@pytest.fixture
def past(filled: Past, capsys: pytest.CaptureFixture[str]) -> Past:
    return replace(filled, capture=capsys)


# ── good canaries ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    [
        *("healthy", "outage", "skewed", "ahead", "reset-stable", "reset-canary", "vanishing", "doubled"),
        *("other-buckets", "gap", "cold", "clustered", "simpson"),
    ],
)
def test_a_canary_that_is_as_good_as_stable_is_never_called_worse_and_takes_its_steps(past: Past, name: str) -> None:
    found = past.analyze(name)
    assert found.summary["first_rollback_index"] is None
    assert "rollback" not in found.decisions
    assert found.summary["verdict"] in ("healthy", "inconclusive")
    assert found.code == {"healthy": 0, "inconclusive": 2}[found.summary["verdict"]]
    assert "advance" in found.decisions


def test_copies_from_two_replicas_change_nothing(past: Past) -> None:
    once, twice = past.analyze("healthy"), past.analyze("doubled")
    assert [look["logE"] for look in twice.looks] == [look["logE"] for look in once.looks]
    assert twice.finding("errors")["canaryN"] == once.finding("errors")["canaryN"] > 50_000


def test_a_gap_in_the_samples_is_blind_while_it_lasts_and_counted_afterwards(past: Past) -> None:
    found = past.analyze("gap")
    blind = [look["index"] for look in found.looks if look["verdict"] == "blind"]
    assert blind == list(range(blind[0], blind[-1] + 1))
    assert 16 <= len(blind) <= 21
    assert {look["decision"] for look in found.looks if look["verdict"] == "blind"} == {"hold"}
    assert found.looks[-1]["verdict"] == "healthy"


def test_a_cold_start_is_excused_by_the_warm_up_and_not_without_it(past: Past) -> None:
    assert past.analyze("cold").summary["first_rollback_index"] is None
    assert past.analyze("cold", spec={"warmUp": "0s"}).summary["first_rollback_index"] is not None


def test_a_sick_stable_pod_is_not_held_against_the_canary(past: Past) -> None:
    found = past.analyze("sick")
    assert found.summary["first_rollback_index"] is None
    assert found.finding("errors")["difference"] < 0


def test_rates_that_rise_with_the_weight_in_both_arms_are_no_difference(past: Past) -> None:
    """Simpson's paradox: over all, the canary fails far more than stable, and at no moment does it."""
    found = past.analyze("simpson")
    errors = found.finding("errors")
    assert found.summary["first_rollback_index"] is None
    assert abs(errors["difference"]) < 0.001
    assert errors["canary"] > 0.006


# ── bad canaries ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "metric", "least", "most"),
    [
        pytest.param("errors", "errors", 4, 10, id="errors"),
        pytest.param("slow", "latency", 4, 14, id="slow"),
        pytest.param("late", "errors", 31, 35, id="late-onset-at-the-last-step"),
        pytest.param("tail", "latency", 4, 32, id="tail-at-p99.9"),
        pytest.param("newborn", "errors", 33, 36, id="series-born-with-the-failures"),
        pytest.param("twice", "errors", 4, 40, id="twice-stables-0.05-percent"),
        pytest.param("slower-p99", "latency", 4, 40, id="p99-a-fifth-slower"),
    ],
)
def test_a_canary_that_is_worse_is_rolled_back_in_time_and_for_the_right_reason(
    past: Past, name: str, metric: str, least: int, most: int
) -> None:
    found = past.analyze(name)
    assert (found.code, found.summary["verdict"], found.summary["decision"]) == (1, "regressed", "rollback")
    first = found.summary["first_rollback_index"]
    assert least <= first <= most
    look = found.looks[first]
    assert (look["index"], look["decision"], look["reason"]) == (first, "rollback", "regressed")
    assert found.summary["sentence"] == look["sentence"]
    assert metric in [f["metric"] for f in look["findings"] if f["verdict"] == "regressed"]
    assert found.decisions[:first].count("rollback") == 0


def test_failures_that_were_born_with_their_series_are_all_counted(past: Past) -> None:
    found = past.analyze("newborn")
    errors = found.finding("errors")
    assert errors["canary"] * errors["canaryN"] == pytest.approx(150)


def test_the_analysis_goes_on_to_the_end_unless_told_to_stop(past: Past) -> None:
    whole, short = past.analyze("errors"), past.analyze("errors", "--stop-at-decision")
    first = whole.summary["first_rollback_index"]
    assert whole.summary["intervals"] == len(whole.looks) == 40
    assert short.looks == whole.looks[: first + 1]
    assert short.summary == {**whole.summary, "intervals": first + 1}


# ── what cannot be seen ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["no-canary", "no-stable", "no-buckets"])
def test_what_cannot_be_compared_is_blind_and_holds(past: Past, name: str) -> None:
    found = past.analyze(name)
    assert (found.code, found.summary["verdict"]) == (3, "blind")
    assert set(found.decisions) == {"hold"}


def test_a_window_without_data_is_blind(past: Past) -> None:
    story = replace(BY_NAME["healthy"], name="nothing")
    code = run(past.arguments(story))
    assert past.capture is not None
    lines = [json.loads(line) for line in past.capture.readouterr().out.splitlines()]
    assert code == 3
    assert {line["verdict"] for line in lines} == {"blind"}
    assert "no counters" in lines[0]["sentence"]


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, without CANARYD_DEBUG."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CANARYD")}
    return subprocess.run(
        [sys.executable, "-m", "canaryd", *argv], env=clean, capture_output=True, encoding="utf-8", timeout=60
    )


def refused(past: Past, argv: list[str], code: int, *words: str) -> None:
    """The exit code, a sentence on stderr with these words, nothing on stdout, no traceback."""
    found = run(argv)
    assert past.capture is not None
    written = past.capture.readouterr()
    assert found == code, written
    assert written.out == ""
    assert all(word in written.err for word in words), written.err
    assert "Traceback" not in written.err
    assert "internal error" not in written.err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param("{1},10\n{0},5\n", ("row 3", "ascending"), id="out-of-order"),
        pytest.param("{0},10\n{0},5\n", ("row 3", "ascending"), id="the-same-time-twice"),
        pytest.param("{0},101\n", ("row 2", "0 to 100"), id="too-much"),
        pytest.param("{0},-1\n", ("row 2", "0 to 100"), id="below-zero"),
        pytest.param("{0},0.05\n", ("row 2", "whole percentage"), id="a-share"),
        pytest.param("{0},nan\n", ("row 2",), id="nan"),
        pytest.param("{0},\n", ("row 2",), id="no-weight"),
        pytest.param("{0}\n", ("row 2", "columns"), id="one-column"),
        pytest.param("yesterday1,5\n", ("row 2", "RFC 3339"), id="no-time"),
        pytest.param("2026-01-01T00:00:00,5\n", ("row 2", "zone"), id="no-zone"),
        pytest.param("999999999999,5\n", ("row 2",), id="year-33658"),
        pytest.param("", ("empty",), id="empty"),
        pytest.param("{0},0\n", ("no weight above 0",), id="never-any-weight"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_with_its_row(
    past: Past, rows: str, words: tuple[str, ...]
) -> None:
    story = BY_NAME["healthy"]
    argv = past.arguments(story)
    Path(argv[-1]).write_text("time,weight\n" + rows.format(past.at(600), past.at(700)))
    refused(past, argv, 64, *words)


def test_a_schedule_may_be_in_unix_time_and_without_a_header(past: Past) -> None:
    argv = past.arguments(BY_NAME["healthy"])
    began = past.start.timestamp()
    Path(argv[-1]).write_text("".join(f"{began + second:.0f}, {weight}\r\n" for second, weight in STEPS))
    assert run(argv) == 0
    assert past.capture is not None
    first = json.loads(past.capture.readouterr().out.splitlines()[0])
    assert (first["index"], first["weight"]) == (0, STEPS[0][1])
    assert datetime.fromisoformat(first["time"]) == past.start + timedelta(seconds=HISTORY + 30)


def changed(argv: list[str], **options: str) -> list[str]:
    out = list(argv)
    for name, value in options.items():
        out[out.index(f"--{name}") + 1] = value
    return out


def test_a_wrong_command_line_is_usage_and_says_what_would_be_right(past: Past) -> None:
    argv = past.arguments(BY_NAME["healthy"])
    refused(past, changed(argv, start=past.at(1800), end=past.at(0)), 64, "--start must come before --end")
    refused(past, changed(argv, start=past.at(0), end=past.at(0)), 64, "--start must come before --end")
    refused(past, changed(argv, start="noon"), 64, "noon", "is not a time")
    refused(past, changed(argv, end="99999999999999999999"), 64, "is not a time")
    refused(past, changed(argv, prometheus="localhost"), 64, "--prometheus")
    refused(past, [*argv, "--interval", "0s"], 64, "--interval")
    refused(past, [*argv, "--interval", "30"], 64, "--interval")
    refused(past, [*argv, "--weight", "5"], 64, "exclude each other")
    refused(past, changed(argv, schedule="/nowhere.csv"), 64, "cannot be read")
    refused(past, argv[:-2], 64, "canaryd_weight", "--schedule")
    refused(past, changed([*argv, "--interval", "500ms"], start="1d"), 64, "more than 20000 intervals")


def test_a_document_that_is_wrong_is_said_to_be_so(past: Past) -> None:
    argv = past.arguments(BY_NAME["healthy"])
    strange = past.canary("strange", metrics=[{"name": "x", "kind": "saturation"}])
    refused(past, [argv[0], strange, *argv[2:]], 65, "saturation", "strange.yaml")
    refused(past, [argv[0], "/nowhere.yaml", *argv[2:]], 65, "/nowhere.yaml")


def test_a_prometheus_that_does_not_answer_is_unavailable(past: Past) -> None:
    argv = past.arguments(BY_NAME["healthy"])
    done = command(*changed(argv, prometheus=f"http://127.0.0.1:{free_port()}"))
    assert done.returncode == 69
    assert (done.stdout, "refused" in done.stderr, "Traceback" in done.stderr) == ("", True, False)


def test_the_same_window_as_one_document_and_as_a_table(past: Past) -> None:
    assert past.capture is not None
    story = BY_NAME["errors"]
    lines = past.analyze("errors")
    assert run([*past.arguments(story), "-o", "json"]) == 1
    whole = json.loads(past.capture.readouterr().out, parse_constant=refuse)
    assert whole == {"intervals": lines.looks, "summary": lines.summary}
    assert run([*past.arguments(story), "-o", "table"]) == 1
    table = past.capture.readouterr().out
    assert lines.summary["sentence"] in table
    assert "rollback" in table


def test_a_constant_weight_is_in_force_from_the_beginning(past: Past) -> None:
    assert past.capture is not None
    argv = changed(past.arguments(BY_NAME["healthy"])[:-2], start=past.at(1500))
    code = run([*argv, "--weight", "50"])
    looks = [json.loads(line) for line in past.capture.readouterr().out.splitlines()][:-1]
    assert code in (0, 2)
    assert {look["weight"] for look in looks} == {50}
    assert datetime.fromisoformat(looks[0]["time"]) == past.start + timedelta(seconds=1530)


def test_histograms_that_fall_without_a_reset_never_give_a_verdict_from_nothing(past: Past) -> None:
    found = past.analyze("falling")
    assert found.summary["first_rollback_index"] is None
    assert all(0 <= f["canary"] <= 1 for look in found.looks for f in look["findings"] if f["canary"] is not None)


def test_what_canaryd_told_prometheus_of_its_weight_is_taken_when_there_is_no_schedule(past: Past) -> None:
    argv = past.arguments(BY_NAME["told"])
    assert run(argv) == 0
    assert past.capture is not None
    scheduled = [json.loads(line) for line in past.capture.readouterr().out.splitlines()]
    assert run(argv[:-2]) == 0
    told = [json.loads(line) for line in past.capture.readouterr().out.splitlines()]
    assert [line.get("weight") for line in told] == [line.get("weight") for line in scheduled]
    assert told[-1]["verdict"] == "healthy"


# ── a stored rollout ─────────────────────────────────────────────────────────────────────────────────────────


def rolled_out(past: Past, name: str, directory: Path) -> None:
    """A rollout of a story's canary, ticked through its window; the state and the configuration are written."""
    document = json.loads(Path(past.canary(name)).read_text())
    canary = parse_canary(document)
    (directory / "canaries").mkdir()
    (directory / "canaries" / "one.yaml").write_text(json.dumps(document))
    settings = {"state": {"path": "state.db"}, "metrics": {"source": "prometheus", "prometheus": {"url": past.url}}}
    (directory / "canaryd.yaml").write_text(json.dumps(settings))
    store = SqliteStore(directory / "state.db")
    router = MemoryRouter({name: {f"{name}-a": 100, f"{name}-b": 0}})
    source = PrometheusSource(past.url, timeout=timedelta(seconds=30), settle=timedelta(seconds=15))
    ports = Ports(metrics=source, router=router, workloads=MemoryWorkloads(), store=store, hooks=MemoryHooks())
    reconciler = Reconciler(ports)
    store.release(name, Release(revision="r1", by="anna", at=past.start))
    for second in range(HISTORY - 90, BY_NAME[name].seconds, 30):
        reconciler.tick([canary], past.start + timedelta(seconds=second) + source.lag)
    reconciler.close()
    store.close()
    assert past.capture is not None
    past.capture.readouterr()  # what the ticks logged


@pytest.mark.parametrize(("name", "end"), [("healthy", "advance"), ("errors", "rollback")])
def test_a_stored_rollout_comes_out_again_and_a_changed_record_does_not(
    past: Past, name: str, end: str, tmp_path: Path
) -> None:
    assert past.capture is not None
    rolled_out(past, name, tmp_path)
    argv = ["replay", "--config", str(tmp_path / "canaryd.yaml")]
    assert run([*argv, name, "-o", "json"]) == 0
    found = json.loads(past.capture.readouterr().out, parse_constant=refuse)
    assert (found["rollout"], found["agrees"]) == (f"{name}-1", True)
    assert end in {look["kind"] for look in found["looks"]}
    assert run([*argv, f"{name}-1"]) == 0
    assert f"all {len(found['looks'])} looks" in past.capture.readouterr().out
    forged = found["looks"][-1]["record"]
    with sqlite3.connect(tmp_path / "state.db") as db:
        (text,) = db.execute("SELECT body FROM records WHERE id = ?", (forged,)).fetchone()
        record = json.loads(text)
        record["body"]["evidence"]["logE"] += 1e-6
        db.execute("UPDATE records SET body = ? WHERE id = ?", (json.dumps(record), forged))
    assert run([*argv, name]) == 1
    said = past.capture.readouterr().out
    assert forged in said
    assert "log e-value" in said


def test_a_replay_that_cannot_be_made_says_why(past: Past, tmp_path: Path) -> None:
    rolled_out(past, "errors", tmp_path)
    config = tmp_path / "canaryd.yaml"
    argv = ["replay", "--config", str(config)]
    refused(past, [*argv, "errors-7"], 66, "no records of errors-7")
    refused(past, [*argv, "other"], 66, "other")
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "metrics": {"source": "scrape"}}))
    refused(past, [*argv, "errors"], 64, "does not remember")
    away = {"source": "prometheus", "prometheus": {"url": f"http://127.0.0.1:{free_port()}"}}
    config.write_text(json.dumps({**settings, "metrics": away}))
    refused(past, [*argv, "errors"], 69, "refused")
    refused(past, ["replay", "--state", str(tmp_path / "state.db"), "errors"], 64, "no configuration")


# ── placebo ──────────────────────────────────────────────────────────────────────────────────────────────────


def placebo(past: Past, *more: str) -> list[str]:
    return ["placebo", "--prometheus", past.url, "--start", past.at(0), "--end", past.at(1800), *more]


def test_stable_pods_in_the_canarys_place_are_false_alarms_only_when_one_of_them_is_sick(past: Past) -> None:
    assert past.capture is not None
    assert run(placebo(past, "--workload", "healthy-a", "--draws", "15", "-o", "json")) == 0
    found = json.loads(past.capture.readouterr().out, parse_constant=refuse)
    assert (found["draws"], found["rollbacks"], found["alarms"]) == (15, 0, [])
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 15))
    document = past.canary("sick")
    assert run(placebo(past, "--canary", document, "--draws", "10")) == 1
    said = past.capture.readouterr().out
    assert "2 of 10 pretended canaries of sick-a" in said
    assert "sick-a-0 at look" in said


def test_a_placebo_that_cannot_be_drawn_says_why(past: Past) -> None:
    refused(past, placebo(past, "--workload", "healthy-a", "--pods", "5"), 64, "5 pods of healthy-a", "at least 6")
    refused(past, placebo(past, "--workload", "nobody"), 64, "0 pods of nobody", "at least 2")
    refused(past, placebo(past), 64, "--workload")
    refused(past, placebo(past, "--workload", "no such thing"), 64, "no such thing")
    refused(past, changed(placebo(past, "--workload", "healthy-a"), end=past.at(300)), 64, "too short")
    away = changed(placebo(past, "--workload", "healthy-a"), prometheus=f"http://127.0.0.1:{free_port()}")
    refused(past, away, 69, "refused")
