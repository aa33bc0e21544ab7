"""What a healthy API server never does: client and informer keep time, bytes and pace, and say why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from api_script import TOKEN, Heard, Said, events, in_turn, refused, scripted

from canaryd.demo.processes import wait_until
from canaryd.errors import KubeBusyError, KubeError, KubeGoneError, KubeUnauthorizedError, KubeUnreachableError
from canaryd.kube.client import JSON, KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import PODS

SECOND = timedelta(seconds=1)
PATIENCE = timedelta(seconds=10)


def pod(name: str, version: int, *, uid: str = "") -> JSON:
    metadata = {"name": name, "namespace": "shop", "uid": uid or name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def listed(version: int, *pods: JSON, more: str = "") -> Said:
    return Said({"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(pods)})


BOOKMARK = {"kind": "Pod", "metadata": {"resourceVersion": "900"}}
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)"}


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(refused(429, "TooManyRequests", Retry_After="1"), id="429"),
        pytest.param(refused(503, "ServiceUnavailable", Retry_After="1"), id="503"),
    ],
)
def test_retry_after_is_obeyed_once_for_a_read_and_for_a_write(tmp_path: Path, busy: Said) -> None:
    with scripted(tmp_path, in_turn(busy, Said(pod("a", 1)), busy, Said(pod("a", 2)))) as (script, client):
        client.get(PODS, "shop", "a")
        client.create(PODS, "shop", {})
    waits = [after.at - before.at for before, after in zip(script.heard[::2], script.heard[1::2], strict=True)]
    assert all(1.0 <= wait < 3.0 for wait in waits), waits


def test_a_server_that_stays_busy_is_told_with_the_time_at_which_to_come_again(tmp_path: Path) -> None:
    with scripted(tmp_path, in_turn(refused(429, "TooManyRequests", "slow down", Retry_After="1"))) as (script, client):
        with pytest.raises(KubeBusyError, match="busy: get pods a in shop: slow down") as caught:
            client.get(PODS, "shop", "a")
        assert (caught.value.retry_after, len(script.heard)) == (1.0, 2)


def test_a_retry_after_beyond_the_timeout_is_not_waited_for(tmp_path: Path) -> None:
    busy = in_turn(refused(429, "TooManyRequests", Retry_After="3600"))
    with scripted(tmp_path, busy) as (script, client):
        began = time.monotonic()
        with pytest.raises(KubeBusyError):
            client.get(PODS, "shop", "a")
        assert time.monotonic() - began < 1
        assert len(script.heard) == 1


def test_a_read_whose_connection_was_cut_is_sent_again_and_a_write_never(tmp_path: Path) -> None:
    with scripted(tmp_path, in_turn(Said(cut=True), Said(pod("a", 1)))) as (script, client):
        assert client.get(PODS, "shop", "a")["metadata"]["name"] == "a"
        assert len(script.heard) == 2
    writes: tuple[Callable[[KubeClient], object], ...] = (
        lambda c: c.create(PODS, "shop", {}),
        lambda c: c.replace(PODS, "shop", "a", {}),
        lambda c: c.patch(PODS, "shop", "a", {}, how="merge"),
        lambda c: c.delete(PODS, "shop", "a"),
    )
    for write in writes:
        with scripted(tmp_path, in_turn(Said(cut=True), Said({}))) as (script, client):
            with pytest.raises(KubeUnreachableError, match="whether it was done is not known"):
                write(client)
            assert len(script.heard) == 1


@pytest.mark.parametrize(
    "slow", [pytest.param(Said(b"{}" * 500, drip=0.2), id="byte-by-byte"), pytest.param(Said(pause=5), id="head-only")]
)
def test_an_answer_that_never_ends_costs_no_more_than_the_timeout(tmp_path: Path, slow: Said) -> None:
    with scripted(tmp_path, in_turn(slow), timeout=SECOND) as (_, client):
        began = time.monotonic()
        with pytest.raises(KubeUnreachableError, match="no complete answer within 1 s"):
            client.list(PODS, "shop")
        assert time.monotonic() - began < 1.5


def test_an_answer_of_more_than_64_megabytes_is_refused(tmp_path: Path) -> None:
    huge = Said(b'{"a": "' + b"x" * (64 << 20) + b'"}')
    with scripted(tmp_path, in_turn(huge), timeout=PATIENCE) as (_, client), pytest.raises(KubeError, match="64 MB"):
        client.get(PODS, "shop", "a")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        pytest.param(Said(b"<html>hello</html>"), "no JSON object", id="html"),
        pytest.param(Said([1]), "no JSON object", id="list"),
        pytest.param(Said(b"oops", status=500), "HTTP 500: get pods a in shop", id="500-without-a-word"),
        pytest.param(Said(status=302, headers={"Location": "http://127.0.0.1:1/"}), "HTTP 302", id="redirect"),
    ],
)
def test_nonsense_is_told_as_such_and_no_redirect_is_followed(tmp_path: Path, said: Said, text: str) -> None:
    with scripted(tmp_path, in_turn(said)) as (script, client):
        with pytest.raises(KubeError, match=text):
            client.get(PODS, "shop", "a")
        assert len(script.heard) == 1


def test_no_error_shows_the_token_and_a_refused_one_is_read_again_once(tmp_path: Path) -> None:
    with scripted(tmp_path, in_turn(refused(401, "Unauthorized", "Unauthorized"))) as (script, client):
        with pytest.raises(KubeUnauthorizedError) as caught:
            client.create(PODS, "shop", {})
        assert [heard.token for heard in script.heard] == [TOKEN, TOKEN]
        assert TOKEN not in f"{caught.value!r}"
    with scripted(tmp_path, lambda heard: Said({}) if heard.token == "new" else refused(401, "Unauthorized")) as (
        script,
        client,
    ):
        (tmp_path / "token").write_text("new")
        client.create(PODS, "shop", {})
        client.create(PODS, "shop", {})
        assert [heard.token for heard in script.heard] == [TOKEN, "new", "new"]


def test_the_server_is_told_to_give_up_on_a_write_when_we_do(tmp_path: Path) -> None:
    with scripted(tmp_path, in_turn(Said({})), timeout=SECOND) as (script, client):
        client.replace(PODS, "shop", "a", {}, subresource="status")
        assert script.heard[0].path == "/api/v1/namespaces/shop/pods/a/status?fieldManager=canaryd&timeout=1000ms"


def test_a_list_whose_pages_are_no_longer_kept_is_begun_anew(tmp_path: Path) -> None:
    expired = refused(410, "Expired", "The provided continue parameter is too old")
    answers = in_turn(
        listed(1, pod("old", 1), more="x"), expired, listed(7, pod("a", 5), more="y"), listed(7, pod("b", 6))
    )
    with scripted(tmp_path, answers) as (_, client):
        items, version = client.list(PODS, "shop")
    assert ([item["metadata"]["name"] for item in items], version) == (["a", "b"], "7")


@pytest.mark.parametrize("name", ["", ".", "..", "a/status", "../secrets/x", "a%2Fstatus"])
def test_what_can_be_no_name_is_refused_before_anything_is_sent(tmp_path: Path, name: str) -> None:
    with scripted(tmp_path, in_turn(Said({}))) as (script, client):
        for call in (client.get, client.delete):
            with pytest.raises(KubeError, match="cannot be the name"):
                call(PODS, "shop", name)
            with pytest.raises(KubeError, match="cannot be the namespace"):
                call(PODS, name, "a")
        assert script.heard == []


def test_an_error_inside_a_watch_is_raised_as_what_it_is(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, in_turn(events(("ADDED", pod("a", 2)), ("ERROR", GONE)))) as (_, client),
        client.watch(PODS, "shop", resource_version="1") as watch,
    ):
        assert next(watch)[0] == "ADDED"
        with pytest.raises(KubeGoneError, match="too old resource version"):
            next(watch)


# ── the informer ─────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Answers lists and watches of pods; what is not said is a list of nothing and a watch that lasts."""

    def __init__(self, lists: list[Said], watches: list[Said]) -> None:
        self.lists, self.watches = lists, watches

    def __call__(self, heard: Heard) -> Said:
        if "watch=true" in heard.path:
            return self.watches.pop(0) if self.watches else events(lasts=5)
        if heard.path.startswith("/api/v1/namespaces/shop/pods"):
            return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return Said({})


@dataclass(frozen=True)
class Ran:
    """What an informer did in a while."""

    held: dict[str, str]  # name → resourceVersion
    told: list[tuple[str | None, str | None]]  # resourceVersion before and after
    lists: list[Heard]
    watches: list[Heard]
    trouble: str


def run_informer(
    tmp_path: Path, server: Server, seconds: float = 15.0, until: Callable[[Informer], object] = lambda _: False
) -> Ran:
    """Runs an informer for so many seconds, or until something is true of it."""
    told: list[tuple[str | None, str | None]] = []

    def on_change(old: JSON | None, new: JSON | None) -> None:
        told.append((old and old["metadata"]["resourceVersion"], new and new["metadata"]["resourceVersion"]))

    with scripted(tmp_path, server) as (script, client):
        informer = Informer(client, PODS, namespaces=["shop"], on_change=on_change)
        informer.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until(informer):
            time.sleep(0.01)
        trouble = informer.trouble()
        held = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in informer.items()}
        informer.stop()
        asked = [heard for heard in script.heard if "/pods" in heard.path]
        watches = [heard for heard in asked if "watch=true" in heard.path]
        return Ran(held, told, [heard for heard in asked if heard not in watches], watches, trouble)


def test_what_vanished_while_nobody_watched_is_told_as_deleted(tmp_path: Path) -> None:
    server = Server(
        [listed(4, pod("a", 1), pod("b", 2), pod("c", 3)), listed(9, pod("a", 1), pod("b", 7), pod("d", 8))],
        [events(("ERROR", GONE))],
    )
    ran = run_informer(tmp_path, server, until=lambda i: i.get("shop", "d") and not i.trouble())
    assert ran.told == [(None, "1"), (None, "2"), (None, "3"), ("3", None), ("2", "7"), (None, "8")]
    assert ran.held == {"a": "1", "b": "7", "d": "8"}
    assert (len(ran.lists), len(ran.watches), ran.trouble) == (2, 2, "")


def test_a_store_that_was_put_back_to_an_earlier_time_is_believed(tmp_path: Path) -> None:
    server = Server([listed(100, pod("a", 50), pod("b", 60)), listed(10, pod("a", 5))], [events(("ERROR", GONE))])
    ran = run_informer(tmp_path, server, until=lambda i: i.synced and not i.get("shop", "b"))
    assert ran.held == {"a": "5"}
    assert ran.told[2:] == [("50", None), ("60", None), (None, "5")]


def test_a_watch_goes_on_where_the_last_bookmark_was_without_a_list(tmp_path: Path) -> None:
    ran = run_informer(tmp_path, Server([listed(4)], [events(("ADDED", pod("a", 5)), ("BOOKMARK", BOOKMARK))]), 1.5)
    assert len(ran.lists) == 1
    versions = [parse_qs(urlsplit(heard.path).query)["resourceVersion"] for heard in ran.watches]
    assert versions == [["4"], ["900"]]
    assert ran.held == {"a": "5"}


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(Server([listed(4)], [events()] * 99), id="watches-that-end-at-once"),
        pytest.param(Server([listed(4)], [events(("ERROR", GONE))] * 99), id="watches-that-are-gone-at-once"),
        pytest.param(Server([refused(500, "InternalError", "etcd is ill")], []), id="lists-that-fail"),
        pytest.param(Server([Said(cut=True)], []), id="connections-that-are-cut"),
        pytest.param(Server([Said(b"<html>")], []), id="nonsense"),
    ],
)
def test_a_server_in_trouble_is_asked_ever_more_rarely(tmp_path: Path, server: Server) -> None:
    began = time.process_time()
    ran = run_informer(tmp_path, server, 3)
    asked = max(len(ran.lists), len(ran.watches))
    assert 4 <= asked <= 6
    times = [heard.at for heard in (ran.lists if len(ran.lists) == asked else ran.watches)]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause >= 0.15 * 1.4**n for n, pause in enumerate(pauses)), pauses
    assert time.process_time() - began < 0.5


def test_why_it_cannot_see_is_told_in_words(tmp_path: Path) -> None:

    def told(informer: Informer) -> bool:
        return not informer.trouble().endswith(("listed yet", "being opened"))

    ill = run_informer(tmp_path, Server([refused(500, "InternalError", "etcd is ill")], []), until=told)
    assert ill.trouble == "HTTP 500: list pods in shop: etcd is ill"
    cut = run_informer(tmp_path, Server([Said(cut=True)], []), until=told)
    assert cut.trouble.startswith("the API server has not answered for ")
    message = 'pods is forbidden: User "system:serviceaccount:canaryd:canaryd" cannot watch resource "pods"'
    half = run_informer(
        tmp_path, Server([listed(4, pod("a", 1))], [refused(403, "Forbidden", message)] * 9), until=told
    )
    assert half.trouble == "forbidden: watch pods in shop, as system:serviceaccount:canaryd:canaryd"
    assert half.held == {"a": "1"}  # of before, and readable


def test_a_busy_server_is_not_asked_again_before_the_time_it_said(tmp_path: Path) -> None:
    ran = run_informer(
        tmp_path,
        Server([refused(429, "TooManyRequests", Retry_After="2"), listed(4)], []),
        until=lambda i: not i.trouble(),
    )
    first, second = (heard.at for heard in ran.lists)
    assert second - first >= 2
    assert ran.trouble == ""


def test_an_object_without_the_shape_of_one_does_not_end_the_watch(tmp_path: Path) -> None:
    server = Server([listed(4), listed(9, pod("a", 8))], [events(("ADDED", {"metadata": {}}))])
    ran = run_informer(tmp_path, server, until=lambda i: i.get("shop", "a") and not i.trouble())
    assert (ran.held, ran.trouble) == ({"a": "8"}, "")
    blind = run_informer(
        tmp_path,
        Server([Said({"metadata": {"resourceVersion": "1"}, "items": [{}]})], []),
        until=lambda i: "defect" in i.trouble(),
    )
    assert "defect" in blind.trouble


def test_an_object_that_was_written_by_us_survives_an_older_list_but_not_a_newer_one(tmp_path: Path) -> None:
    gone = events(("ERROR", GONE), lasts=0)
    server = Server([listed(4)], [Said(b"", lasts=1), gone, events(lasts=1), gone])
    with scripted(tmp_path, server) as (_, client):
        informer = Informer(client, PODS, namespaces=["shop"])
        informer.start()
        assert informer.wait_synced(PATIENCE)
        informer.put(pod("made", 6))
        server.lists[:] = [listed(5, pod("listed", 5)), listed(7)]
        wait_until(lambda: informer.get("shop", "listed"), "the list of version 5")
        assert informer.get("shop", "made") is not None
        wait_until(lambda: informer.get("shop", "made") is None, "the list of version 7")
        informer.put(pod("made", 6))  # an answer that comes after the deletion was seen
        assert informer.get("shop", "made") is None
        informer.stop()
