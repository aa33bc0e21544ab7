"""Informers against a real API server that is killed, frozen, compacted and strict: nothing lost, nothing hidden."""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from bench import Bench

from canaryd.demo.processes import wait_until
from canaryd.errors import KubeForbiddenError, KubeNotFoundError
from canaryd.kube.client import JSON, KubeClient
from canaryd.kube.informer import Direct, Informer
from canaryd.kube.kinds import CONFIG_MAPS, NAMESPACES, PODS, Kind

PATIENCE = timedelta(seconds=20)
OURS = "suite=informer"


@pytest.fixture
def client(control_plane: Bench) -> Iterator[KubeClient]:
    made = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig()))
    yield made
    for namespace in ("shop", "monitoring"):
        for left in made.list(CONFIG_MAPS, namespace, labels=OURS)[0]:
            made.delete(CONFIG_MAPS, namespace, left["metadata"]["name"])
    made.close()


class Told:
    """What on_change was called with, as (name, before, after); it can be made to wait."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str | None, str | None]] = []
        self.uids: list[str] = []
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, old: JSON | None, new: JSON | None) -> None:
        some = new or old
        assert some is not None
        self.changes.append((some["metadata"]["name"], old and old["data"]["x"], new and new["data"]["x"]))
        self.uids.append(some["metadata"]["uid"])
        if some["metadata"]["name"] == "marker":
            self.entered.set()
            self.let_go.wait(60)


def config_map(name: str, value: str = "1") -> JSON:
    metadata = {"name": name, "labels": {"suite": "informer"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": value}}


def change(client: KubeClient, name: str, value: str, namespace: str = "shop") -> JSON:
    return client.patch(CONFIG_MAPS, namespace, name, {"data": {"x": value}}, how="merge")


@contextmanager
def watching(
    control_plane: Bench,
    *,
    namespaces: tuple[str, ...] = ("shop",),
    identity: str = "admin",
    synced: bool = True,
    on_change: Callable[[JSON | None, JSON | None], None] | None = None,
) -> Iterator[tuple[Informer, KubeClient]]:
    """An informer on our ConfigMaps, and the client that is its alone."""
    client = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig(identity)))
    informer = Informer(client, CONFIG_MAPS, namespaces=namespaces, labels=OURS, on_change=on_change)
    informer.start()
    try:
        if synced:
            assert informer.wait_synced(PATIENCE), informer.trouble()
            assert informer.trouble() == ""
        yield informer, client
    finally:
        informer.stop()
        client.close()


def value(informer: Informer, name: str, namespace: str = "shop") -> str | None:
    held = informer.get(namespace, name)
    return None if held is None else str(held["data"]["x"])


def test_the_cache_follows_every_change_and_tells_before_and_after(control_plane: Bench, client: KubeClient) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("early"))
    told = Told()
    with watching(control_plane, on_change=told) as (informer, _):
        assert value(informer, "early") == "1"
        generation = informer.generation
        client.create(CONFIG_MAPS, "shop", config_map("late"))
        change(client, "late", "2")
        client.delete(CONFIG_MAPS, "shop", "early")
        wait_until(lambda: len(told.changes) == 4, "four changes")
        assert told.changes == [("early", None, "1"), ("late", None, "1"), ("late", "1", "2"), ("early", "1", None)]
        assert informer.generation == generation + 3
        (late,) = informer.items()
        assert informer.items("shop") == (late,)
        assert informer.items("monitoring") == ()
        assert (late["kind"], late["data"]["x"]) == ("ConfigMap", "2")
        assert "managedFields" not in late["metadata"]
        assert informer.trouble() == ""


def test_an_object_made_anew_under_its_name_is_one_that_went_and_one_that_came(
    control_plane: Bench, client: KubeClient
) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("twice", "old"))
    told = Told()
    with watching(control_plane, on_change=told) as (informer, _):
        client.delete(CONFIG_MAPS, "shop", "twice")
        client.create(CONFIG_MAPS, "shop", config_map("twice", "new"))
        wait_until(lambda: value(informer, "twice") == "new", "the new object")
        assert told.changes == [("twice", None, "old"), ("twice", "old", None), ("twice", None, "new")]
        assert len(set(told.uids)) == 2


def test_after_a_compaction_it_lists_anew_and_tells_everything_that_happened_meanwhile(
    control_plane: Bench, client: KubeClient
) -> None:
    for name in ("goes", "changes", "stays", "returns"):
        client.create(CONFIG_MAPS, "shop", config_map(name))
    told = Told()
    with watching(control_plane, on_change=told) as (informer, own):
        client.create(CONFIG_MAPS, "shop", config_map("marker"))
        assert told.entered.wait(20)  # its thread hangs in our callback and hears nothing of what follows
        del told.changes[:], told.uids[:]
        control_plane.plane.kill_apiserver()
        control_plane.plane.start_apiserver()
        client.delete(CONFIG_MAPS, "shop", "goes")
        change(client, "changes", "2")
        client.delete(CONFIG_MAPS, "shop", "returns")
        client.create(CONFIG_MAPS, "shop", config_map("returns", "anew"))
        client.create(CONFIG_MAPS, "shop", config_map("comes"))
        control_plane.plane.expire_watches()
        own.requests.clear()
        told.let_go.set()
        wait_until(lambda: len(told.changes) == 5, "what happened meanwhile", timeout=30)
        assert set(told.changes) == {
            ("goes", "1", None),
            ("changes", "1", "2"),
            ("returns", "1", None),
            ("returns", None, "anew"),
            ("comes", None, "1"),
        }
        assert told.changes.index(("returns", "1", None)) < told.changes.index(("returns", None, "anew"))
        there = {
            item["metadata"]["name"]: item["data"]["x"] for item in client.list(CONFIG_MAPS, "shop", labels=OURS)[0]
        }
        assert {item["metadata"]["name"]: item["data"]["x"] for item in informer.items()} == there
        wait_until(lambda: informer.trouble() == "", "the new watch")
        assert own.requests["list", "configmaps"] == 1
        assert own.requests["watch", "configmaps"] == 2  # refused as gone, and the new one


def test_a_server_that_was_away_for_five_seconds_is_asked_rarely_and_found_again(
    control_plane: Bench, client: KubeClient
) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("outage"))
    with watching(control_plane) as (informer, own):
        own.requests.clear()
        cpu, began = time.process_time(), time.monotonic()
        control_plane.plane.kill_apiserver()
        try:
            wait_until(lambda: informer.trouble() != "", "the outage to be told", timeout=3)
            time.sleep(4)
            used = (time.process_time() - cpu) / (time.monotonic() - began)
            assert informer.trouble().startswith("the API server has not answered for ")
            assert informer.trouble().endswith(" s: connection refused")
            assert value(informer, "outage") == "1"  # still readable
        finally:
            control_plane.plane.start_apiserver()
        change(client, "outage", "2")
        wait_until(lambda: value(informer, "outage") == "2", "the change", timeout=20)
        assert informer.trouble() == ""
        assert own.requests.total() < 20, own.requests
        assert used < 0.05


def test_a_server_that_hangs_is_told_and_the_same_watch_goes_on_afterwards(
    control_plane: Bench, client: KubeClient
) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("hang"))
    with watching(control_plane) as (informer, own):
        watches = own.requests["watch", "configmaps"]
        began = time.monotonic()
        control_plane.plane.apiserver.freeze()
        try:
            wait_until(lambda: informer.trouble() != "", "the hang to be told", timeout=9.5)
            time.sleep(10 - (time.monotonic() - began))
            assert "the API server has not answered for" in informer.trouble()
            assert "no complete answer within 4 s" in informer.trouble()
        finally:
            control_plane.plane.apiserver.thaw()
        change(client, "hang", "2")
        wait_until(lambda: value(informer, "hang") == "2", "the change", timeout=15)
        wait_until(lambda: informer.trouble() == "", "the trouble to end", timeout=15)
        assert own.requests["watch", "configmaps"] == watches


def test_a_forbidden_namespace_is_told_by_name_and_seen_when_the_role_appears(
    control_plane: Bench, client: KubeClient
) -> None:
    for namespace in ("shop", "monitoring"):
        client.create(CONFIG_MAPS, namespace, config_map("guarded"))
    rules = ("create", "role", "informer", "--verb=list,watch", "--resource=configmaps")
    binding = ("create", "rolebinding", "informer", "--role=informer", "--user=gitops")
    for command in (rules, binding):
        control_plane.kubectl(*command, "-n", "shop")
    gitops = control_plane.client("gitops")
    wait_until(lambda: gitops.can("list", "configmaps"), "the binding to be heard of")
    with watching(control_plane, namespaces=("shop", "monitoring"), identity="gitops", synced=False) as (informer, own):
        expected = "forbidden: list configmaps in monitoring, as gitops"
        wait_until(lambda: informer.trouble() == expected and informer.items("shop"), expected)
        assert not informer.synced
        time.sleep(5)
        assert own.requests["list", "configmaps"] <= 8  # of which one for the namespace that is seen
        for command in (rules, binding):
            control_plane.kubectl(*command, "-n", "monitoring")
        wait_until(lambda: informer.synced and informer.trouble() == "", "the role to be noticed", timeout=30)
        assert value(informer, "guarded", "monitoring") == "1"
        control_plane.kubectl("delete", "rolebinding", "informer", "-n", "monitoring")


def test_what_we_wrote_is_read_at_once_and_never_an_older_version(control_plane: Bench, client: KubeClient) -> None:
    first = client.create(CONFIG_MAPS, "shop", config_map("own"))
    told = Told()
    with watching(control_plane, on_change=told) as (informer, _):
        latest, went_back, over = 0, [], threading.Event()

        def look() -> None:
            nonlocal latest
            while not over.is_set():
                held = informer.get("shop", "own")
                assert held is not None
                seen = int(held["metadata"]["resourceVersion"])
                if seen < latest:
                    went_back.append((latest, seen))
                latest = seen
                time.sleep(0)

        with ThreadPoolExecutor(max_workers=1) as thread:
            looking = thread.submit(look)
            for number in range(100):
                before = informer.generation
                informer.put(change(client, "own", f"n{number}"))
                assert value(informer, "own") == f"n{number}"
                assert informer.generation > before
                informer.put(first)  # an answer that comes late
                assert value(informer, "own") == f"n{number}"
            over.set()
            looking.result()
        assert went_back == []


def test_an_object_that_was_seen_deleted_is_not_brought_back_by_a_late_answer(
    control_plane: Bench, client: KubeClient
) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("ghost"))
    told = Told()
    with watching(control_plane, on_change=told) as (informer, _):
        late = change(client, "ghost", "2")
        client.delete(CONFIG_MAPS, "shop", "ghost")
        wait_until(lambda: ("ghost", "2", None) in told.changes, "the deletion")
        informer.put(late)
        assert informer.get("shop", "ghost") is None
        new = client.create(CONFIG_MAPS, "shop", config_map("ghost", "3"))
        informer.put(new)  # this one is newer than the deletion
        assert value(informer, "ghost") == "3"
        elsewhere = copy.deepcopy(new)
        elsewhere["metadata"]["namespace"] = "monitoring"
        informer.put(elsewhere)  # not watched here
        assert informer.get("monitoring", "ghost") is None


def test_while_nothing_changes_no_object_is_asked_for(control_plane: Bench, client: KubeClient) -> None:
    client.create(CONFIG_MAPS, "shop", config_map("idle"))
    with watching(control_plane) as (informer, own):
        own.requests.clear()
        for _ in range(1000):
            informer.get("shop", "idle")
            informer.items()
            informer.trouble()
        time.sleep(6)
        assert set(own.requests) <= {("get", "version")}  # is the server there?
        assert own.requests.total() <= 2


def test_stop_ends_the_thread_within_a_second_even_while_the_server_hangs(control_plane: Bench) -> None:
    with watching(control_plane) as (informer, _):
        control_plane.plane.apiserver.freeze()
        try:
            began = time.monotonic()
            informer.stop()
            assert time.monotonic() - began < 1.0
            assert not [thread for thread in threading.enumerate() if thread.name == "watch-configmaps-shop"]
            assert "no longer watched" in informer.trouble()
        finally:
            control_plane.plane.apiserver.thaw()


def test_without_a_cache_the_same_questions_go_to_the_server(control_plane: Bench, client: KubeClient) -> None:
    made = client.create(CONFIG_MAPS, "shop", config_map("direct"))
    client.create(CONFIG_MAPS, "monitoring", config_map("direct"))
    direct = Direct(client, CONFIG_MAPS)
    held = direct.get("shop", "direct")
    assert held is not None
    assert held["metadata"]["uid"] == made["metadata"]["uid"]
    assert direct.get("shop", "nobody") is None
    found = [
        [o["metadata"]["namespace"] for o in direct.items(n) if o["metadata"]["name"] == "direct"]
        for n in (None, "shop")
    ]
    assert [sorted(namespaces) for namespaces in found] == [["monitoring", "shop"], ["shop"]]
    assert (direct.synced, direct.trouble()) == (True, "")
    change(client, "direct", "2")
    again = direct.get("shop", "direct")
    assert again is not None
    assert again["data"]["x"] == "2"
    anna = KubeClient.connect(kubeconfig=str(control_plane.kubeconfig("anna")))
    with pytest.raises(KubeForbiddenError):
        Direct(anna, CONFIG_MAPS).items("shop")
    anna.close()


MEASURE = """
import json, sys
from datetime import timedelta
from pathlib import Path
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import PODS

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

def trim(pod):
    meta, status = pod["metadata"], pod.get("status", {})
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences", "creationTimestamp")
    return {"metadata": {k: meta[k] for k in kept if k in meta}, "status": {"phase": status.get("phase")}}

client = KubeClient.connect(kubeconfig=sys.argv[1])
client.discover(PODS)
before = rss()
informer = Informer(client, PODS, namespaces=("herd",), keep=trim if sys.argv[2] == "trimmed" else None)
informer.start()
assert informer.wait_synced(timedelta(seconds=60)), informer.trouble()
print(json.dumps({"pods": len(informer.items()), "before": before, "after": rss()}), flush=True)
informer.stop()
"""


def pod(name: str) -> JSON:
    ports = [{"name": "http", "containerPort": 8080}]
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5}
    environment = [{"name": f"SETTING_{n}", "value": f"value {n}"} for n in range(20)]
    app = {"name": "app", "image": "demo/app:1", "ports": ports, "env": environment, "readinessProbe": probe}
    proxy = {"name": "istio-proxy", "image": "demo/proxy:1", "env": environment}
    metadata = {"name": name, "labels": {"app": "herd", "pod-template-hash": "5d4f8c7b9"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [app, proxy]}}


@pytest.mark.slow
def test_two_thousand_pods_fit_into_a_few_megabytes_when_they_are_trimmed(
    control_plane: Bench, client: KubeClient
) -> None:
    client.create(NAMESPACES, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "herd"}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    client.create(Kind("", "v1", "serviceaccounts", "ServiceAccount"), "herd", account)
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda n: client.create(PODS, "herd", pod(f"p{n:04}")), range(2000)))
    grown = {}
    for how in ("whole", "trimmed"):
        argv = [sys.executable, "-c", MEASURE, str(control_plane.kubeconfig()), how]
        child = control_plane.nursery.start(f"measure-{how}", argv)
        wait_until(lambda child=child: not child.running, "the measurement", timeout=90)
        told = json.loads(child.log.read_text().splitlines()[-1])
        assert told["pods"] == 2000
        grown[how] = told["after"] - told["before"]
    print(f"2000 pods: {grown['whole']:.0f} MB, trimmed {grown['trimmed']:.0f} MB")
    assert grown["trimmed"] < 20, grown
    with pytest.raises(KubeNotFoundError):
        client.get(PODS, "herd", "nobody")
