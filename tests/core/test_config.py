"""Files → settings and Canaries: exactly where and how every mistake is said, and what is loaded beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from ruamel.yaml import YAML

from canaryd.config import METRIC_SOURCES, Loaded, Settings, check, load_canaries, load_settings, show
from canaryd.config.load import MAX_BYTES, MAX_FILES
from canaryd.config.yamltext import MAX_NODES, read_documents
from canaryd.errors import ConfigError, Problem
from canaryd.policy import Canary, dump_canary, parse_canary

CONFIG = Path(__file__).parents[2] / "config"

SMALL = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata:
  name: api
spec:
  workloads:
    pools: [api-v1, api-v2]
  route:
    envoyFile: {path: /tmp/api.yaml}
"""


def small(name: str) -> str:
    """Another Canary that gets along with SMALL."""
    return SMALL.replace("api-v", f"{name}-v").replace("name: api", f"name: {name}").replace("/api.", f"/{name}.")


def checked(tmp_path: Path, text: str | bytes, settings: Settings | None = None) -> Loaded:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return check([file], settings)


def places(problems: tuple[Problem, ...] | list[Problem]) -> list[tuple[int, str]]:
    return [(p.line, p.key) for p in problems]


# ── wrong documents ──────────────────────────────────────────────────────────────────────────────────────────

METRIC = "  metrics:\n    - name: errors\n      kind: errors\n"

WRONG: list[Any] = [
    # name, text, line, key, words that must be said
    (
        "weight-too-high",
        SMALL + "  steps:\n    - 5\n    - weight: 150\n",
        12,
        "spec.steps[1].weight",
        ["150", "1 to 100"],
    ),
    ("weight-as-text", SMALL + "  steps: [5, ten]\n", 10, "spec.steps[1]", ['"ten" is not a whole number']),
    ("weight-with-fraction", SMALL + "  steps: [5.5]\n", 10, "spec.steps[0]", ["5.5 is not a whole number"]),
    ("weights-fall", SMALL + "  steps:\n    - 10\n    - 5\n", 12, "spec.steps[1]", ["5 after 10", "must rise"]),
    (
        "linear-typo",
        SMALL + "  steps: {form: 1, from: 1, to: 9, by: 1}\n",
        10,
        "spec.steps.form",
        ["unknown key", "from"],
    ),
    ("linear-lacks", SMALL + "  steps: {from: 1, to: 9}\n", 10, "spec.steps.by", ["missing", "{from: 10, to: 100"]),
    (
        "linear-timeout",
        SMALL + "  steps:\n    from: 10\n    to: 90\n    by: 10\n    bake: 1h\n    timeout: 5m\n",
        15,
        "spec.steps.timeout",
        ["5m is shorter than the bake 1h"],
    ),
    ("steps-no-list", SMALL + "  steps: 5\n", 10, "spec.steps", ["5 is not a list", "[a, b]"]),
    ("typo", SMALL + METRIC + "      tolerence: 5%\n", 13, "spec.metrics[0].tolerence", ['did you mean "tolerance"?']),
    ("snake-case", SMALL + "  warm_up: 2m\n", 10, "spec.warm_up", ['unknown key; did you mean "warmUp"?']),
    ("strange-key", SMALL + "  zzz: 1\n", 10, "spec.zzz", ["unknown key; known here:", "interval"]),
    (
        "no-unit",
        SMALL + METRIC + "      tolerance: 5\n",
        13,
        "spec.metrics[0].tolerance",
        ["5 has no unit", '"0.02pp"'],
    ),
    ("bare-share", SMALL + "  alpha: 0.05\n", 10, "spec.alpha", ["0.05 has no unit", '"5%"']),
    ("bare-duration", SMALL + "  interval: 30\n", 10, "spec.interval", ["30 is not a duration", '"30s"']),
    ("impossible-chance", SMALL + "  alpha: 80%\n", 10, "spec.alpha", ["80%", "0.0001% to 50%"]),
    ("choice", SMALL + "  onBlind: rolback\n", 10, "spec.onBlind", ['"rolback"', 'did you mean "rollback"?', '"hold"']),
    (
        "choice-number",
        SMALL + "  onInconclusive: 5\n",
        10,
        "spec.onInconclusive",
        ["5", '"hold", "rollback" or "promote"'],
    ),
    (
        "kind-of-metric",
        SMALL + METRIC.replace("kind: errors", "kind: error"),
        12,
        "spec.metrics[0].kind",
        ['"error"', "gauge"],
    ),
    ("metric-without-kind", SMALL + "  metrics:\n    - name: x\n", 11, "spec.metrics[0].kind", ["missing", "errors"]),
    ("metric-as-text", SMALL + "  metrics: [errors]\n", 10, "spec.metrics[0]", ['"errors" is not a mapping']),
    (
        "metric-twice",
        SMALL + METRIC + "    - name: errors\n      kind: latency\n",
        13,
        "spec.metrics[1].name",
        ['"errors"', "unique"],
    ),
    (
        "unquoted-code",
        SMALL + METRIC + "      failures: [503]\n",
        13,
        "spec.metrics[0].failures[0]",
        ["quotes", '"503"'],
    ),
    (
        "label-true",
        SMALL.replace("name: api\n", "name: api\n  labels: {a: true}\n"),
        5,
        "metadata.labels.a",
        ['"true"'],
    ),
    ("deep-typo", SMALL + "  budget:\n    perHours: 5\n", 11, "spec.budget.perHours", ['did you mean "perHour"?']),
    (
        "too-many",
        SMALL + "  budget: {perHour: 99999999}\n",
        10,
        "spec.budget.perHour",
        ["too large", "10000000 or less"],
    ),
    ("negative", SMALL + "  budget: {perHour: -1}\n", 10, "spec.budget.perHour", ["-1 is too small", "0 or more"]),
    ("value-below-its-key", SMALL + "  interval:\n\n    30\n", 12, "spec.interval", ["30 is not a duration"]),
    ("shouted-key", SMALL + "  WARMUP: 2m\n", 10, "spec.WARMUP", ['did you mean "warmUp"?']),
    ("empty-section", SMALL + "  budget:\n  interval: 30s\n", 10, "spec.budget", ["is empty"]),
    ("one-pool", SMALL.replace("[api-v1, api-v2]", "[api-v1]"), 7, "spec.workloads.pools", ["1 pool", "exactly two"]),
    ("same-pools", SMALL.replace("api-v2", "api-v1"), 7, "spec.workloads.pools[1]", ['"api-v1"', "two workloads"]),
    ("pool-number", SMALL.replace("api-v2", "2"), 7, "spec.workloads.pools[1]", ["2 is a number", '"2"']),
    ("bad-name", SMALL.replace("name: api", "name: API"), 4, "metadata.name", ['"API"', "lower-case"]),
    ("no-route", SMALL.split("  route")[0], 5, "spec.route", ["this key is missing"]),
    ("no-path", SMALL.replace("path: /tmp/api.yaml", "route: x"), 9, "spec.route.envoyFile.path", ["missing"]),
    ("empty-path", SMALL.replace("/tmp/api.yaml", '""'), 9, "spec.route.envoyFile.path", ["empty"]),
    ("api-version", SMALL.replace("v1alpha1", "v2"), 1, "apiVersion", ['"canaryd.io/v2"', '"canaryd.io/v1alpha1"']),
    ("kind", SMALL.replace("kind: Canary", "kind: Deployment"), 2, "kind", ['"Deployment"', '"Canary"']),
    ("deadline", SMALL + "  interval: 10m\n  blindDeadline: 1m\n", 11, "spec.blindDeadline", ["1m is shorter", "10m"]),
    ("deadline-not-written", SMALL + "  interval: 10m\n", 5, "spec.blindDeadline", ["5m is shorter", "10m"]),
    ("hook", SMALL + "  afterPromotion: {command: [x], webhook: http://x}\n", 10, "spec.afterPromotion", ["both are"]),
    (
        "hook-text",
        SMALL + "  afterPromotion: {command: ls -l}\n",
        10,
        "spec.afterPromotion.command",
        ['"ls -l" is not a list'],
    ),
    ("a-list", "- a\n- b\n", 1, "", ["a list is not a mapping"]),
    ("a-word", "# hello\ncanary\n", 2, "", ['"canary" is not a mapping']),
    ("key-twice", SMALL + "  alpha: 1%\n  beta: 5%\n  alpha: 2%\n", 12, "spec.alpha", ["given before", "line 10"]),
    ("tab", SMALL + "\tinterval: 30s\n", 10, "", ["tab"]),
    ("colon", SMALL + "  interval: a: b\n", 10, "", ['":"', "quotes"]),
    ("indentation", SMALL + "   interval: 30s\n", 10, "", ["indentation"]),
    ("quote", SMALL + '  interval: "30s\n', 10, "", ["not closed"]),
    ("bracket", SMALL + "  steps: [5, 10\n  interval: 30s\n", 10, "", ["[ ] is not closed"]),
    ("brace", SMALL + "  budget: {perHour: 5\n  interval: 30s\n", 10, "", ["{ } is not closed"]),
    ("braces-unquoted", SMALL + "  interval: {{interval}}\n", 10, "", ["quotes"]),
    ("alias", SMALL + "  interval: *often\n", 10, "", ["*often", "&often"]),
    ("own-anchor", SMALL + "  steps: &s [*s]\n", 10, "", ["inside its own anchor"]),
    ("merge", SMALL + "  <<: {alpha: 1%}\n", 10, "", ["merge keys"]),
    ("tag", SMALL + "  interval: !!python/object/apply:os.system [ls]\n", 10, "spec.interval", ["tag", "not allowed"]),
    ("tag-on-text", SMALL + "  interval: !env INTERVAL\n", 10, "spec.interval", ['"!env"', "plain value"]),
    ("control", SMALL + "  interval: 30\x07s\n", 10, "", ["U+0007"]),
    ("escaped-nul", SMALL.replace("/tmp/api.yaml", '"/tmp/\\0"'), 9, "spec.route.envoyFile.path", ["U+0000"]),
    ("escape", SMALL + '  interval: "\\q"\n', 10, "", ["backslash"]),
    ("escape-beyond-unicode", SMALL + '  interval: "\\U00ffffff"\n', 1, "", ["cannot be understood"]),
    ("document-end", SMALL + "...\na: 1\n", 11, "", ["another document", '"---"']),
    ("anchored-key", SMALL + "  &a interval: 30s\n", 10, "", ['"interval" must be plain text']),
    ("key-empty", SMALL + "  : 30s\n", 10, "", ["a key is empty"]),
    ("anchor-unnamed", SMALL + "  interval: & 30s\n", 10, "", ["without a name"]),
    ("bad-start", SMALL + "  interval: @30s\n", 10, "", ["cannot begin", "quotes"]),
    ("list-where-none", SMALL + "  interval: - 30s\n", 10, "", ["no list can begin"]),
    ("bracket-last", SMALL + "  steps: [5, 10", 10, "", ["not closed"]),
    (
        "long-path",
        SMALL.replace("/tmp/api.yaml", "x" * 5000),
        9,
        "spec.route.envoyFile.path",
        ["at most 4096 characters"],
    ),
    (
        "many-labels",
        SMALL.replace("name: api\n", f"name: api\n  labels: {{{', '.join(f'k{i}: v' for i in range(70))}}}\n"),
        5,
        "metadata.labels",
        ["at most 64 entries"],
    ),
    ("latin-1", SMALL.encode() + b"  # caf\xe9\n", 10, "", ["0xe9", "UTF-8"]),
    ("deep", SMALL + "  steps: " + "[" * 100 + "\n", 10, "", ["levels deep"]),
    (
        "settings-source",
        "# a\nmetrics:\n  source: prometeus\n",
        3,
        "metrics.source",
        ['"prometeus"', 'mean "prometheus"?'],
    ),
    ("settings-typo", "web: {listn: 'x'}\n", 1, "web.listn", ['did you mean "listen"?']),
    ("settings-listen", "web:\n  listen: 9095\n", 2, "web.listen", ["9095 is a number", "quotes"]),
    ("settings-listen-host", "web: {listen: localhost}\n", 1, "web.listen", ['"localhost" is not host:port']),
    ("settings-listen-port", "web: {listen: 'x:70000'}\n", 1, "web.listen", ['"x:70000"', '"127.0.0.1:9095"']),
    ("settings-lag", "metrics: {prometheus: {lag: 5}}\n", 1, "metrics.prometheus.lag", ["5 is not a duration"]),
    ("settings-lag-long", "metrics: {prometheus: {lag: 2h}}\n", 1, "metrics.prometheus.lag", ["2h", "0s to 1h"]),
    ("settings-timeout", "metrics: {scrape: {timeout: 0s}}\n", 1, "metrics.scrape.timeout", ["0s", "100ms to 5m"]),
    ("settings-url", "metrics: {prometheus: {url: prom:9090}}\n", 1, "metrics.prometheus.url", ["http://"]),
    ("settings-urls", "metrics: {scrape: {urls: []}}\n", 1, "metrics.scrape.urls", ["0 URLs"]),
    (
        "settings-url-twice",
        "metrics: {scrape: {urls: ['http://a', 'http://a']}}\n",
        1,
        "metrics.scrape.urls[1]",
        ["before"],
    ),
    ("settings-log", "log: {level: INFO}\n", 1, "log.level", ['"INFO"', 'did you mean "info"?']),
    ("settings-log-format", "log: {format: xml}\n", 1, "log.format", ['"xml"', "json, console, auto"]),
    ("settings-days", "retention: {days: 0}\n", 1, "retention.days", ["0 is too small", "1 or more"]),
    ("settings-canaries", "canaries: x\n", 1, "canaries", ['"x" is not a list']),
    ("settings-often", "tellAgain: 1ms\n", 1, "tellAgain", ["1ms is out of range", "1s to 30d"]),
    ("settings-many", f"canaries: {['x'] * 101}\n", 1, "canaries", ["101 places"]),
]


@pytest.mark.parametrize(("text", "line", "key", "words"), [pytest.param(*c[1:], id=c[0]) for c in WRONG])
def test_a_mistake_is_said_once_at_its_line_and_key_with_what_would_be_right(
    tmp_path: Path, text: str | bytes, line: int, key: str, words: list[str]
) -> None:
    loaded = checked(tmp_path, text)
    assert places(loaded.problems) == [(line, key)]
    (problem,) = loaded.problems
    assert problem.file == str(tmp_path / "c.yaml")
    for word in words:
        assert word in problem.message
    assert not re.search(r"pydantic|Input should|Field required|_type|https://errors|<block|'[a-z]+'", problem.message)
    assert loaded.canaries == ()


def test_all_mistakes_of_a_document_are_said_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = SMALL.replace("kind: Canary", "kind: Canari") + "  interval: 30\n  alfa: 1%\n  steps: [5, ten, 200]\n"
    text += "  onBlind: x\n  interval: 5s\n"
    assert places(checked(tmp_path, text).problems) == [
        (2, "kind"),
        (10, "spec.interval"),
        (11, "spec.alfa"),
        (12, "spec.steps[1]"),
        (12, "spec.steps[2]"),
        (13, "spec.onBlind"),
        (14, "spec.interval"),
    ]


def test_a_document_with_thousands_of_mistakes_gives_the_first_and_their_number(tmp_path: Path) -> None:
    text = SMALL + "".join(f"  key{i}: 1\n" for i in range(3000))
    problems = checked(tmp_path, text).problems
    assert 50 <= len(problems) <= 52
    assert any("more problems" in p.message for p in problems)


def test_lines_are_right_in_every_document_of_a_file_and_with_windows_line_ends(tmp_path: Path) -> None:
    text = (
        "# a comment\n---\n"
        + SMALL
        + "---\n"
        + small("b")
        + "  alpha: 5\n---\n# nothing\n---\n"
        + small("c")
        + "  x: 1\n"
    )
    for ends in ("\n", "\r\n", "\r"):
        loaded = checked(tmp_path, text.replace("\n", ends))
        assert places(loaded.problems) == [(22, "spec.alpha"), (35, "spec.x")]
        assert [c.name for c in loaded.canaries] == ["api"]


# ── valid beside broken ──────────────────────────────────────────────────────────────────────────────────────


def test_valid_documents_are_loaded_beside_broken_ones_of_the_same_file_and_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{small('a')}---\nb: [\n---\n{small('c')}---\n{small('d')}  x: 1\n")
    (tmp_path / "b.yml").write_text("\tbroken")
    (tmp_path / "e.yaml").write_text(small("e"))
    (tmp_path / ".hidden.yaml").write_text("broken: [")
    (tmp_path / "notes.txt").write_text("no document")
    loaded = load_canaries(Settings(canaries=(".",)), tmp_path)
    assert [c.name for c in loaded.canaries] == ["a", "c", "e"]
    assert {name: Path(file).name for name, file in loaded.sources.items()} == {
        "a": "a.yaml",
        "c": "a.yaml",
        "e": "e.yaml",
    }
    assert [Path(p.file).name for p in loaded.problems] == ["a.yaml", "a.yaml", "b.yml"]
    assert loaded.refused == {"d"}


def test_a_file_named_by_several_patterns_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text(SMALL)
    (tmp_path / "again.yaml").symlink_to("api.yaml")
    loaded = load_canaries(Settings(canaries=(".", "*.yaml", "api.yaml", str(tmp_path / "api.yaml"))), tmp_path)
    assert not loaded.problems
    assert len(loaded.canaries) == len(loaded.files) == 1


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        pytest.param(lambda p: None, "no such file", id="missing"),
        pytest.param(lambda p: p.mkdir(), "no .yaml", id="empty-directory"),
        pytest.param(lambda p: p.write_text(""), "empty", id="empty"),
        pytest.param(lambda p: p.write_text("# only\n---\n"), "empty", id="comments"),
        pytest.param(lambda p: p.write_text("a" * (MAX_BYTES + 1)), "1 MB", id="huge"),
        pytest.param(lambda p: os.mkfifo(p), "plain file", id="pipe"),
        pytest.param(lambda p: p.symlink_to(p), "cannot be read", id="loop"),
        pytest.param(lambda p: p.write_text(SMALL.encode().decode(), "utf-16"), "UTF-8", id="utf-16"),
        pytest.param(lambda p: p.write_text("---\n".join(["a: 1\n"] * 200)), "100 documents", id="many-documents"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, prepare: Any, words: str) -> None:
    file = tmp_path / "x.yaml"
    prepare(file)
    for loaded in (check([file]), load_canaries(Settings(canaries=("x.yaml",)), tmp_path)):
        assert any(words in p.message for p in (*loaded.problems, *loaded.notes))
        assert loaded.canaries == ()
    with pytest.raises(ConfigError):
        load_settings(file)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; for a moment this process is somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(SMALL)
    file.chmod(0)
    with as_nobody():
        loaded = check([file])
    assert [p.message for p in loaded.problems] == ["this user may not read it"]


def test_a_directory_without_permission_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    tmp_path.chmod(0o755)
    with as_nobody():
        loaded = load_canaries(Settings(canaries=("closed",)), tmp_path)
    assert [p.message for p in loaded.problems] == ["this user may not read it"]


def test_more_files_than_anybody_has_are_not_read(tmp_path: Path) -> None:
    for i in range(MAX_FILES + 2):
        (tmp_path / f"{i:05}.yaml").touch()
    loaded = check([tmp_path])
    assert len(loaded.files) == MAX_FILES
    assert sum("more than 2000 files" in p.message for p in loaded.problems) == 1


def test_a_directory_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load_settings(tmp_path)


def test_a_pattern_without_files_is_noted(tmp_path: Path) -> None:
    loaded = load_canaries(Settings(canaries=("*.yaml",)), tmp_path)
    assert [n.message for n in loaded.notes] == ["no file matches"]
    assert not loaded.problems


def test_an_alias_bomb_is_refused_and_a_plain_alias_is_not(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (problem,) = checked(tmp_path, bomb).problems
    assert f"more than {MAX_NODES}" in problem.message
    text = SMALL + "  interval: &often 20s\n  warmUp: *often\n  steps:\n    - &s {weight: 5, bake: *often}\n"
    assert checked(tmp_path, text).canaries[0].spec.warm_up == timedelta(seconds=20)


def test_what_other_yaml_readers_would_guess_stays_text() -> None:
    (document,) = read_documents(
        "a: yes\nb: 010\nc: 1_000\nd: 12:30\ne: 2026-01-01\nf: 0x1F\ng: ~\nh: !!str 5\ni: 1e3\n"
    )
    assert document.root is not None
    values = document.root.value
    assert [values[k] for k in "abcdef"] == ["yes", "010", "1_000", "12:30", "2026-01-01", "0x1F"]
    assert [values[k] for k in "ghi"] == [None, "5", 1000.0]


# ── Canaries that fight ──────────────────────────────────────────────────────────────────────────────────────


def conflict(tmp_path: Path, first: str, second: str) -> tuple[Loaded, list[str]]:
    (tmp_path / "a.yaml").write_text(first)
    (tmp_path / "b.yaml").write_text(second)
    (tmp_path / "other.yaml").write_text(small("other"))
    loaded = load_canaries(Settings(canaries=(".",)), tmp_path)
    assert [c.name for c in loaded.canaries] == ["other"]
    return loaded, [f"{Path(p.file).name}:{p.line}: {p.key}: {p.message}" for p in loaded.problems]


def test_two_canaries_of_one_name_are_both_refused_and_each_place_names_the_other(tmp_path: Path) -> None:
    loaded, told = conflict(tmp_path, SMALL, small("b").replace("name: b", "name: api\n  namespace: shop"))
    assert loaded.refused == {"api"}
    assert len(told) == 2
    assert told[0].startswith('a.yaml:4: metadata.name: the name "api" is also used in')
    assert "b.yaml:4; names must be unique" in told[0]
    assert told[1].startswith("b.yaml:4: metadata.name:")
    assert "a.yaml:4;" in told[1]


def test_two_canaries_cannot_share_a_workload(tmp_path: Path) -> None:
    second = small("b").replace("b-v2", "api-v2")
    loaded, told = conflict(tmp_path, SMALL, second)
    assert loaded.refused == {"api", "b"}
    assert len(told) == 2
    assert all("7: spec.workloads.pools[" in line and '"api-v2"' in line for line in told)
    (tmp_path / "b.yaml").write_text(second.replace("name: b", "name: b\n  namespace: shop"))
    assert len(load_canaries(Settings(canaries=(".",)), tmp_path).canaries) == 3  # another namespace's workload


def test_two_canaries_cannot_turn_the_same_clusters_of_one_route_file(tmp_path: Path) -> None:
    second = small("b").replace("path: /tmp/b.yaml", "path: /tmp/../tmp/api.yaml, clusters: {b-v1: api-v1}")
    _, told = conflict(tmp_path, SMALL, second)
    assert len(told) == 2
    assert 'b.yaml:9: spec.route.envoyFile.clusters.b-v1: the cluster "api-v1" of the same route file' in told[1]


def test_two_canaries_may_share_a_route_file_when_their_clusters_differ(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text(small("b").replace("/tmp/b.yaml", "/tmp/api.yaml"))
    assert len(load_canaries(Settings(canaries=(".",)), tmp_path).canaries) == 2


@pytest.mark.parametrize("written", [True, False])
def test_an_interval_below_two_scrapes_of_prometheus_is_refused(tmp_path: Path, written: bool) -> None:
    settings = Settings.model_validate_json(
        '{"metrics": {"source": "prometheus", "prometheus": {"scrapeInterval": "20s"}}}'
    )
    loaded = checked(tmp_path, SMALL + ("  interval: 39s\n" if written else ""), settings)
    assert places(loaded.problems) == [(10 if written else 5, "spec.interval")]
    assert "use at least 40s" in loaded.problems[0].message
    assert not checked(tmp_path, SMALL + "  interval: 40s\n", settings).problems
    assert not checked(
        tmp_path, SMALL + "  interval: 1s\n", Settings()
    ).problems  # a direct scrape is as quick as asked


CLUSTERED = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata: {name: api}
spec:
  workloads:
    deployment: {name: api}
  route:
    istio:
      virtualServices: [api]
  prometheus: {url: http://prometheus.shop:9090}
"""


def test_a_canary_of_the_cluster_is_valid_by_itself_and_refused_by_a_daemon_of_files(tmp_path: Path) -> None:
    assert not checked(tmp_path, CLUSTERED).problems
    assert not checked(tmp_path, CLUSTERED, Settings(mode="cluster")).problems
    found = checked(tmp_path, CLUSTERED, Settings()).problems
    assert places(found) == [(6, "spec.workloads.deployment"), (10, "spec.prometheus")]
    assert all('canaryd.yaml says "mode: embedded"' in problem.message for problem in found)


def test_what_a_gauge_can_and_cannot_do_is_noted(tmp_path: Path) -> None:
    text = SMALL + METRIC + "    - name: memory\n      kind: gauge\n      query: {stable: a, canary: b}\n"
    text += "    - name: own\n      kind: query\n      failures: {stable: a, canary: b}\n"
    text += "      total: {stable: a, canary: b}\n"
    loaded = checked(tmp_path, text)
    assert not loaded.problems
    assert places(loaded.notes) == [(14, "spec.metrics[1].kind")]
    assert "can hold a rollout, not roll it back" in loaded.notes[0].message


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("{name: q, kind: query, query: x, failures: {stable: a, canary: b}}", "spec.metrics[0].total"),
        (
            "{name: q, kind: query, total: {stable: a, canary: b}, failures: {stable: 5}}",
            "spec.metrics[0].failures.canary",
        ),
        ("{name: q, kind: gauge, query: {stable: '', canary: b}}", "spec.metrics[0].query.stable"),
    ],
)
def test_keys_of_a_metric_that_are_named_like_its_kind_are_found(tmp_path: Path, metric: str, key: str) -> None:
    assert key in [p.key for p in checked(tmp_path, SMALL + f"  metrics: [{metric}]\n").problems]


# ── settings, check, show ────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_settings_are_the_defaults_and_name_and_explain_every_key() -> None:
    file = CONFIG / "canaryd.yaml"
    assert load_settings(file) == Settings()
    shipped = YAML(typ="safe", pure=True).load(file.read_text())
    assert _keys(shipped) == _keys(Settings().model_dump(mode="json", by_alias=True))
    lines = file.read_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r" *[a-zA-Z]+:", line) and not re.match(r" *(prometheus|scrape):$", line):
            assert above.lstrip().startswith("#"), line


def _keys(value: Any) -> set[str]:
    return {f"{k}.{r}" for k, v in value.items() for r in _keys(v) or {""}} if isinstance(value, dict) else set()


def test_the_shipped_examples_are_valid_and_the_small_one_has_only_defaults() -> None:
    loaded = check([CONFIG])
    assert not loaded.problems
    assert not loaded.notes
    assert sorted(loaded.sources) == ["api", "checkout"]
    assert loaded.settings == Settings()
    by_name = {c.name: c for c in loaded.canaries}
    default = parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "api"},
            "spec": {
                "workloads": {"pools": ["api-v1", "api-v2"]},
                "route": {"envoyFile": {"path": "/var/lib/canaryd/envoy/api.yaml"}},
            },
        }
    )
    assert by_name["api"] == default
    assert load_canaries(Settings(), CONFIG).canaries == loaded.canaries


def test_the_settings_have_two_sources_and_say_where_and_how_late_to_look() -> None:
    assert METRIC_SOURCES == ("prometheus", "scrape")
    settings = Settings()
    assert settings.metrics.prometheus.effective_lag == timedelta(seconds=20)
    assert settings.metrics.shortest_interval == timedelta(0)
    assert settings.web.address == ("127.0.0.1", 9095)
    other = Settings.model_validate_json(
        '{"web": {"listen": "[::1]:0"}, "metrics": {"source": "prometheus", "prometheus": {"lag": "3s"}}}'
    )
    assert other.web.address == ("::1", 0)
    assert other.metrics.prometheus.effective_lag == timedelta(seconds=3)
    assert other.metrics.shortest_interval == timedelta(seconds=30)
    assert Settings.model_validate_json('{"web": {"listen": ""}}').web.address is None


def test_all_mistakes_of_the_settings_are_raised_at_once(tmp_path: Path) -> None:
    file = tmp_path / "canaryd.yaml"
    file.write_text("web: {listen: x}\nlogs: {}\n---\nlog: {}\n")
    with pytest.raises(ConfigError) as e:
        load_settings(file)
    assert sorted(places(e.value.problems)) == [(1, "web.listen"), (2, "logs"), (4, "")]


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (problem,) = checked(tmp_path, "metrics: {prometheus: {url: 'http://me:hunter2@prometheus:9090'}}\n").problems
    assert "hunter2" not in str(problem)


def test_checking_the_settings_checks_the_canaries_they_name_once(tmp_path: Path) -> None:
    (tmp_path / "canaries").mkdir()
    (tmp_path / "canaryd.yaml").write_text("metrics: {source: prometheus}\n")
    (tmp_path / "canaries" / "api.yaml").write_text(SMALL + "  interval: 20s\n")
    (tmp_path / "canaries" / "b.yaml").write_text(small("b"))
    for paths in ([tmp_path / "canaryd.yaml"], [tmp_path], [tmp_path / "canaries", tmp_path / "canaryd.yaml"]):
        loaded = check(paths)
        assert [p.key for p in loaded.problems] == ["spec.interval"]
        assert [c.name for c in loaded.canaries] == ["b"]
        assert loaded.settings is not None
    (tmp_path / "second.yaml").write_text("log: {level: info}\n")
    assert [p.message for p in check([tmp_path]).problems if "second" in p.file] == [
        "a second canaryd.yaml; a daemon has one"
    ]


def test_a_canary_that_lacks_its_kind_is_not_taken_for_settings(tmp_path: Path) -> None:
    assert places(checked(tmp_path, SMALL.replace("kind: Canary\n", "")).problems) == [(1, "kind")]


@pytest.mark.parametrize("name", ["api", "checkout"])
def test_what_is_shown_is_read_back_as_the_same_canary(tmp_path: Path, name: str) -> None:
    canary = {c.name: c for c in check([CONFIG]).canaries}[name]
    text = show(canary)
    assert checked(tmp_path, text).canaries == (canary,)
    for key in ("interval", "warmUp", "alpha", "grpcFailures", "perHour", "blindDeadline", "maxHold"):
        assert f"{key}:" in text
    assert "# a step without bake bakes for 4 intervals: 2m" in text


def test_the_settings_are_shown_so_that_they_are_read_back(tmp_path: Path) -> None:
    settings = Settings.model_validate_json('{"web": {"listen": ""}, "canaries": ["*.yaml", "on", "5"]}')
    file = tmp_path / "x.yaml"
    file.write_text(show(settings))
    assert load_settings(file) == settings


def test_files_of_the_settings_are_relative_to_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "canaryd.yaml"
    file.parent.mkdir()
    file.write_text("metrics: {prometheus: {bearerTokenFile: secrets/token, caFile: /etc/ssl/ca.pem}}\n")
    prometheus = load_settings(file).metrics.prometheus
    assert prometheus.bearer_token_file == str(tmp_path / "etc" / "secrets" / "token")
    assert prometheus.ca_file == "/etc/ssl/ca.pem"


def test_words_that_kubectl_would_read_as_yes_or_no_are_shown_in_quotes() -> None:
    document = dump_canary(_canary())
    document["metadata"]["labels"] = {"y": "on", "a": "No", "b": "null", "c": "1e3", "d": "plain"}
    text = show(parse_canary(document))
    for line in ('"y": "on"', 'a: "No"', 'b: "null"', 'c: "1e3"', "d: plain"):
        assert f"    {line}\n" in text


READABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@effort(max_examples=12, deadline=None)
@given(labels=st.dictionaries(READABLE.filter(bool), READABLE, max_size=5))
def test_any_label_survives_being_shown(labels: dict[str, str]) -> None:
    document = dump_canary(_canary())
    document["metadata"]["labels"] = {k: v for k, v in labels.items() if k != "<<"}
    canary = parse_canary(document)
    (read,) = read_documents(show(canary))
    assert not read.mistakes
    assert read.root is not None
    assert parse_canary(read.root.value) == canary
    for version in ((1, 1), (1, 2)):  # kubectl reads 1.1
        yaml = YAML(typ="safe", pure=True)
        yaml.version = version
        assert parse_canary(yaml.load(show(canary))) == canary


def _canary() -> Canary:
    (document,) = read_documents(SMALL)
    assert document.root is not None
    return parse_canary(document.root.value)
