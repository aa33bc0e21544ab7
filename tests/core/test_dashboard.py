"""What the dashboard says of a body, who gets which news, and which settings are refused; without a port."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from canaryd.config import Settings, load_settings
from canaryd.config.dashboard import Dashboard
from canaryd.dashboard import view
from canaryd.dashboard.auth import MOST_ADDRESSES, Limit
from canaryd.dashboard.live import Topic
from canaryd.errors import ConfigError
from canaryd.model import Action

BODIES: dict[str, Any] = json.loads((Path(__file__).parent / "bodies.json").read_text())


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────


def dashboard(**section: Any) -> Dashboard:
    """As it is read from a file. Raises ConfigError."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "canaryd.yaml"
        file.write_text(json.dumps({"dashboard": section}))
        return load_settings(file).dashboard.model_copy()


def test_it_is_off_unless_configured() -> None:
    assert dashboard().address is None
    assert Settings().dashboard.address is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        pytest.param({"listen": "127.0.0.1:9096"}, "auth is empty", id="no-auth"),
        pytest.param({"listen": "0.0.0.0:9096", "auth": {"tokensFile": "t"}}, "in the clear", id="in-the-clear"),
        pytest.param({"listen": "0.0.0.0:9096", "auth": {"anonymous": "viewer"}}, "it is for loopback", id="everybody"),
        pytest.param({"listen": "dash:9096", "auth": {"anonymous": "viewer"}}, "it is for loopback", id="a-name"),
        pytest.param({"auth": {"anonymous": "root"}}, "is no role; use viewer or operator", id="role"),
        pytest.param({"auth": {"proxy": {"trusted": ["0.0.0.0/0"]}}}, "is everybody; name the proxy", id="all-proxies"),
        pytest.param({"auth": {"proxy": {"trusted": ["proxy"]}}}, "is no address and no network", id="proxy-name"),
        pytest.param({"auth": {"session": "10s"}}, "10s is out of range", id="short-session"),
        pytest.param({"tls": {"certFile": "c.pem"}}, "needs both certFile and keyFile", id="half-tls"),
        pytest.param({"externalURL": "ops.example.com"}, "is no plain address", id="no-scheme"),
        pytest.param({"externalURL": "https://a:b@ops.example.com"}, "is no plain address", id="credentials"),
        pytest.param({"listen": "9096"}, "is not host:port", id="port-alone"),
    ],
)
def test_what_would_be_unsafe_is_refused_with_what_would_be_right(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        dashboard(**section)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "section",
    [
        {"listen": "127.0.0.1:9096", "auth": {"anonymous": "operator"}},
        {"listen": "[::1]:9096", "auth": {"tokensFile": "t"}},
        {"listen": "0.0.0.0:9096", "auth": {"tokensFile": "t"}, "tls": {"certFile": "c", "keyFile": "k"}},
        {
            "listen": "0.0.0.0:9096",
            "auth": {"proxy": {"trusted": ["10.0.0.0/8"]}},
            "externalURL": "https://x.example/c/",
        },
    ],
)
def test_what_is_safe_is_taken(section: dict[str, Any]) -> None:
    assert dashboard(**section).address is not None


def test_files_are_found_beside_the_configuration_and_the_path_is_that_of_the_address() -> None:
    found = dashboard(
        listen="127.0.0.1:1",
        externalURL="https://ops.example.com/canaryd/",
        auth={"tokensFile": "/run/tokens", "sessionKeyFile": "/etc/key", "session": "1h"},
        tls={"certFile": "c.pem", "keyFile": "k.pem"},
    )
    assert (found.auth.tokens_file, found.auth.session_key_file) == ("/run/tokens", "/etc/key")
    there = Path(str(found.tls.cert_file)).parent
    assert there.is_absolute()
    assert (found.tls.cert_file, found.tls.key_file) == (str(there / "c.pem"), str(there / "k.pem"))
    assert (found.external_url, found.prefix) == ("https://ops.example.com/canaryd", "/canaryd")
    assert found.auth.session == timedelta(hours=1)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_says_what_the_table_in_the_terminal_says() -> None:
    row = view.row("shop/api", BODIES["api"])
    assert (row.name, row.namespace, row.path) == ("api", "shop", "/canaries/shop/api")
    assert (row.phase, row.step, row.weight, row.verdict) == ("Progressing", "2/5", "10 / 10 / 9.7 %", "healthy")
    assert row.decided == "errors −0.02 pt (−0.09..+0.05)"
    assert [s.state for s in row.steps] == ["done", "now", "next", "next", "next"]
    assert row.steps[1].filled == 6  # 63 % of the evidence for the next step


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({}, "rolling"),
        ({"verdict": "blind"}, "attention"),
        ({"verdict": "regressed"}, "attention"),
        ({"phase": "Paused"}, "attention"),
        ({"next": "a person, because of errors"}, "attention"),
        ({"severity": "critical"}, "attention"),
        ({"trouble": ["the route cannot be read"]}, "attention"),
        ({"phase": "RolledBack", "verdict": "regressed"}, "back"),
        ({"phase": "Succeeded"}, "rest"),
        ({"phase": "Idle"}, "rest"),
        ({"phase": "Idle", "trouble": ["no such Deployment"]}, "attention"),
    ],
)
def test_what_needs_a_person_comes_first(changes: dict[str, Any], group: str) -> None:
    assert view.row("api", {**BODIES["api"], **changes}).group == group


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stepWeights": "abc", "weight": [], "findings": 7, "evidence": None, "step": "x", "trouble": "no list"},
        {"step": float("nan"), "stepWeights": [None, {}, 5], "weight": {"desired": True, "observed": float("inf")}},
        {"step": 10**400, "stepWeights": [10**400], "phase": 5, "verdict": {}, "since": 3},
    ],
)
def test_a_body_may_be_anything_at_all(body: dict[str, Any]) -> None:
    row = view.row("x", body)
    assert row.path == "/canaries/x"
    assert view.actions(body) == ()


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//evil", "https://a b", "https://a\n", None, 5]
)
def test_only_a_plain_web_address_becomes_a_link(url: object) -> None:
    assert view.link(url) == ""
    assert view.link("https://jaeger.example.com/trace/1") == "https://jaeger.example.com/trace/1"


def test_a_name_is_safe_in_an_address() -> None:
    assert view.path_of("shop/a b", "x/../y?#") == "/canaries/shop/a%20b/rollouts/x%2F..%2Fy%3F%23"


def test_what_is_offered_is_what_the_phase_allows() -> None:
    assert view.actions({"phase": "Progressing"}) == (Action.PROMOTE, Action.PAUSE, Action.ABORT)
    assert view.actions({"phase": "RolledBack"}) == (Action.RETRY,)
    assert view.actions({"phase": "Idle"}) == ()
    assert view.phases_of(Action.RESUME) == ("Paused",)


def test_only_what_matters_is_read_aloud() -> None:
    before = view.row("api", BODIES["api"])
    assert view.change(None, before) == ""
    assert view.change(before, view.row("api", {**BODIES["api"], "nextLook": None})) == ""
    assert view.change(before, view.row("api", {**BODIES["api"], "phase": "RolledBack"})) == "api: rolled back"
    moved = {**BODIES["api"], "weight": {**BODIES["api"]["weight"], "desired": 25}}
    assert view.change(before, view.row("api", moved)) == "api: 10 to 25 %"
    assert view.change(before, view.row("api", {**BODIES["api"], "verdict": "blind"})) == "api: blind"
    assert view.change(before, view.row("api", {**BODIES["api"], "verdict": "inconclusive"})) == ""


# ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────


def news(topic: Topic, mark: str) -> Any:
    data, _ = topic.since(mark)
    return json.loads(data) if data else None


def test_a_mark_leads_to_what_is_new_since_and_to_nothing_else() -> None:
    topic = Topic()
    topic.put({"a": "1", "b": "1"})
    mark = topic.mark
    assert news(topic, mark) is None
    assert not topic.put({"a": "1"})
    topic.put({"a": "2"}, says=["a is two"])
    topic.put({"c": "1"}, gone=["b"])
    assert news(topic, mark) == {"parts": {"a": "2", "c": "1"}, "gone": ["b"], "says": ["a is two"]}
    assert news(topic, topic.since(mark)[1]) is None
    topic.put({"b": "3"})
    assert "gone" not in news(topic, mark)


@pytest.mark.parametrize(
    "mark", ["", "x", "0badboot-5", "{boot}-999999", "{boot}--1", "{boot}-1e3", "{boot}-" + "9" * 30]
)
def test_a_mark_that_means_nothing_leads_to_everything(mark: str) -> None:
    topic = Topic()
    topic.put({"a": "1"}, says=["hello"])
    found = news(topic, mark.replace("{boot}", topic.mark.partition("-")[0]))
    assert found == {"parts": {"a": "1"}, "all": True}


def test_many_changes_at_once_are_read_aloud_as_a_number() -> None:
    topic = Topic()
    topic.put({"a": "1"})
    mark = topic.mark
    topic.put({"a": "2"}, says=[f"change {i}" for i in range(9)])
    assert news(topic, mark)["says"] == ["change 0", "change 1", "change 2", "and 6 more changes"]


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_lets_a_few_through_and_then_one_after_the_other() -> None:
    limit = Limit(burst=3, every=10.0)
    assert [limit.spend("a", 0.0) for _ in range(3)] == [0.0] * 3
    assert limit.wait("a", 0.0) == limit.spend("a", 0.0) == 10.0
    assert limit.spend("b", 0.0) == 0.0  # somebody else
    assert limit.spend("a", 9.0) == pytest.approx(1.0)
    assert limit.spend("a", 10.0) == 0.0
    assert limit.spend("a", 10.0) > 0


def test_a_limit_remembers_so_many_names_and_no_more() -> None:
    limit = Limit(burst=1, every=1e9)
    for i in range(MOST_ADDRESSES + 10):
        limit.spend(str(i), 0.0)
    assert limit.spend("0", 0.0) == 0.0  # forgotten
    assert limit.spend(str(MOST_ADDRESSES + 9), 0.0) > 0
