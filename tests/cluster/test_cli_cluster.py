"""The command line as people use it in a cluster: real processes, a real API server, real RBAC."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, tools

from canaryd import crd, permissions
from canaryd.adapters.kubernetes_store import KubernetesStore
from canaryd.cli.exits import Exit
from canaryd.config.objects import canary_of
from canaryd.demo.processes import wait_until
from canaryd.doctor.cluster import CHECKS, Cluster
from canaryd.doctor.findings import examine
from canaryd.errors import ConflictError, StoreError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import CANARIES
from canaryd.model import Answer, DecisionKind, Override, Phase, Record, RolloutState, Verdict
from canaryd.permissions import DAEMON, OPERATOR, VIEWER, Need, Scope
from canaryd.policy import Canary
from canaryd.wiring import direct_workloads

ROOT = Path(__file__).parents[2]
BODIES: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/core/bodies.json").read_text())
CANARYD = [sys.executable, "-m", "canaryd"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("CANARYD", "NO_COLOR", "COLUMNS", "KUBECONFIG"))}
DEADLINE = 20.0  # seconds; only a broken command takes that long
GROUP = "rbac.authorization.k8s.io"
ACCOUNT = "system:serviceaccount:canaryd:canaryd"


def canary(name: str, namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "workloads": {"deployment": {"name": name}},
            "route": {"istio": {"virtualServices": [{"name": name}]}},
            "interval": "10s",
        },
    }


def role(name: str, namespace: str, needs: Iterable[Need]) -> dict[str, Any]:
    rules = [{"apiGroups": [n.group], "resources": [n.resource], "verbs": list(n.verbs)} for n in needs if n.verbs]
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": meta, "rules": rules}


def binding(role_name: str, namespace: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{role_name}-{user.replace(':', '-')}", "namespace": namespace},
        "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": role_name},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}],
    }


class Shop:
    """Canaries in two namespaces, people with Roles, and commands typed by them."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench, self.directory = bench, directory
        self.admin = bench.client()
        self.client = KubeClient.connect(kubeconfig=str(bench.kubeconfig()))
        self.informer = Informer(self.client, CANARIES)
        self.store = KubernetesStore(self.client, self.informer)

    def grant(self, who: str, name: str, namespace: str, needs: Iterable[Need]) -> None:
        self.admin.apply(role(name, namespace, needs))
        self.admin.apply(binding(name, namespace, who))

    def run(
        self, *args: str, who: str = "admin", program: Sequence[str] = CANARYD, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *args],
            cwd=self.directory,
            env=self.env(who) | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    def env(self, who: str) -> dict[str, str]:
        return {
            **CLEAN,
            "PYTHONPATH": str(ROOT),
            "KUBECONFIG": str(self.bench.kubeconfig(who)),
            "CANARYD_CONTEXT": "bench",
        }

    def put(self, key: str, body: dict[str, Any], **changes: Any) -> None:
        """Save a state whose latest decision is `body`, as the daemon would."""
        namespace, _, name = key.partition("/")
        body = {**body, "canary": name, "namespace": namespace}
        wait_until(lambda: self.informer.get(namespace, name) is not None, f"the watch to see {key}")
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                stored = self.store.load(key)
            except StoreError:  # an API server that has just started is not ready for watches at once
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                continue
            verdict = body.get("verdict")
            state = RolloutState(
                phase=Phase(body["phase"]),
                revision=body.get("revision", ""),
                stable_revision=body.get("stableRevision", ""),
                sentence=body.get("sentence", ""),
                verdict=Verdict(verdict) if verdict else None,
                latest=body,
                decisions=(stored.state.decisions if stored.state else 0) + 1,
            )
            at = datetime.fromisoformat(body["at"]) if "at" in body else datetime(2026, 1, 1, tzinfo=UTC)
            kind = DecisionKind(body.get("kind", "idle"))
            record = Record(f"{key}/{state.decisions}", key, at, kind, state.sentence, body)
            with contextlib.suppress(ConflictError):
                self.store.save(key, replace(state, **changes), stored.version, [record])
                return

    def lease(self, ago: float = 0.0, holder: str = "canaryd-7c9") -> None:
        """Somebody leads, and renewed the Lease so many seconds ago."""
        at = (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": holder, "renewTime": at, "acquireTime": at, "leaseDurationSeconds": 10}
        meta = {"name": permissions.LEASE, "namespace": permissions.NAMESPACE}
        self.admin.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec})


@pytest.fixture(scope="module")
def shop(control_plane: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(control_plane, tmp_path_factory.mktemp("shop"))
    shop.admin.apply(crd.definition())
    control_plane.plane.await_definitions({"canaries.canaryd.io"})
    shop.admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bank"}})
    shop.informer.start()
    assert shop.informer.wait_synced(timedelta(seconds=10))
    shop.lease()
    for where in ("shop", "bank", permissions.NAMESPACE):
        shop.grant("anna", "canaryd-operator", where, OPERATOR)
        shop.grant("gitops", "canaryd-viewer", where, VIEWER)
    for key, body in {"shop/api": "api", "shop/cart": "cart", "bank/pay": "pay"}.items():
        shop.admin.apply(canary(key.partition("/")[2], key.partition("/")[0]))
        shop.put(key, BODIES[body])
    anna = control_plane.client("anna")
    wait_until(lambda: anna.can("patch", "canaries"), "the Roles to be heard of")
    yield shop
    shop.informer.stop()
    shop.client.close()


@pytest.fixture
def led(shop: Shop) -> Shop:
    """A leader has just renewed its Lease, and api progresses."""
    shop.lease()
    shop.put("shop/api", BODIES["api"])
    return shop


class Daemon(threading.Thread):
    """Answers what people say by the store, as the daemon would, until it is left."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(daemon=True)
        self._shop, self._over = shop, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for key in self._shop.store.canaries():
                with contextlib.suppress(ConflictError):  # somebody spoke meanwhile: look again
                    self._tick(key)

    def _tick(self, key: str) -> None:
        stored = self._shop.store.load(key)
        if stored.state is None or not stored.overrides:
            return
        said = stored.overrides[0]
        accepted, sentence = _obeys(stored.state, said)
        answer = Answer(said.id, said.action, accepted, sentence, datetime.now(UTC))
        answered = (*stored.state.answered, answer)[-20:]
        self._shop.store.save(key, replace(stored.state, answered=answered), stored.version, [])

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(DEADLINE)


def _obeys(state: RolloutState, said: Override) -> tuple[bool, str]:
    if said.revision != state.revision:
        return False, f"it was said for revision {said.revision}, but {state.revision} is being rolled out"
    return True, f"{said.action} by {said.by}: done"


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_shows_the_namespace_of_the_context_and_all_with_a_column_for_it(led: Shop) -> None:
    here = led.run("status", who="gitops")
    assert (here.returncode, here.stderr) == (Exit.OK, "")
    assert [line.split()[1] for line in here.stdout.splitlines()[1:3]] == ["api", "cart"]
    assert "NAMESPACE" not in here.stdout
    assert led.run("status", "-n", "bank").stdout.splitlines()[1].startswith("✕ pay")
    everywhere = led.run("-A", "status").stdout.splitlines()
    assert everywhere[0].startswith("NAMESPACE  NAME")
    assert [line.split()[:3:2] for line in everywhere[1:4]] == [["bank", "pay"], ["shop", "api"], ["shop", "cart"]]
    short = led.run("get", "-A").stdout.splitlines()
    assert [line.split()[:2] for line in short] == [
        ["NAMESPACE", "NAME"],
        ["bank", "pay"],
        ["shop", "api"],
        ["shop", "cart"],
    ]


def test_one_canary_goes_by_all_of_its_names(led: Shop) -> None:
    names = ("api", "canary/api", "canaries.canaryd.io/api", "shop/api", "canary.canaryd.io/api")
    shown = [json.loads(led.run("get", name, "-o", "json").stdout) for name in names]
    assert all(body == shown[0] for body in shown)
    assert (shown[0]["canary"], shown[0]["namespace"], shown[0]["phase"]) == ("api", "shop", "Progressing")
    assert json.loads(led.run("get", "pay", "-A", "-o", "json").stdout)["namespace"] == "bank"
    assert led.run("get", "bank/pay").returncode == Exit.OK
    assert led.run("get", "bank/pay", "-n", "shop").returncode == Exit.USAGE


def test_names_are_those_that_kubectl_understands(led: Shop) -> None:
    names = led.run("get", "-o", "name").stdout.split()
    assert names == ["canary.canaryd.io/api", "canary.canaryd.io/cart"]
    assert led.bench.kubectl("get", *names, "-n", "shop").stdout.count("\n") == 3


def test_a_missing_canary_is_said_with_the_nearest_name(led: Shop) -> None:
    done = led.run("status", "apo")
    assert done.returncode == Exit.NOT_FOUND
    assert done.stderr == 'canaryd: no canary "apo"; did you mean "api"? There are: api, cart.\n'


def test_a_list_of_canaries_is_one_request(led: Shop) -> None:
    since = datetime.now(UTC)
    assert led.run("status", "-A", who="anna").returncode == Exit.FORBIDDEN  # anna's Roles are in namespaces
    assert led.run("status", who="gitops").returncode == Exit.OK
    counts = led.bench.audit.counts("gitops", since=since)
    assert counts["list", "canaries"] == 1
    assert counts["get", "canaries"] == 0


def test_explain_shows_the_decisions_around_it(led: Shop) -> None:
    done = led.run("explain", "api", who="gitops")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert "decisions around it" in done.stdout


def test_a_canary_that_is_refused_is_shown_with_its_reason(led: Shop) -> None:
    led.admin.apply(canary("wrong"))
    wait_until(lambda: led.informer.get("shop", "wrong") is not None, "the watch to see it")
    led.store.refuse("shop/wrong", ["spec.steps[1]: 150 is not a percentage"])
    tree = led.run("status", "wrong")
    led.admin.delete("canaries", "wrong")
    assert tree.returncode == Exit.OK
    assert "wrong is not looked after" in tree.stdout
    assert "spec.steps[1]: 150 is not a percentage" in tree.stdout


class Typed:
    """A command that goes on, and its lines as they come."""

    def __init__(self, shop: Shop, *args: str, who: str = "admin") -> None:
        self.child = subprocess.Popen(
            [*CANARYD, *args],
            cwd=shop.directory,
            env=shop.env(who) | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self.read = b""

    def until(self, text: str, within: float = DEADLINE) -> str:
        """Everything that came, as soon as `text` is in it."""
        assert self.child.stdout is not None
        deadline = time.monotonic() + within
        while text.encode() not in self.read:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come within {within} s, but {self.read.decode()!r}"
            if select.select([self.child.stdout], [], [], left)[0]:
                part = os.read(self.child.stdout.fileno(), 65536)
                assert part, f"it ended without {text!r}: {self.read.decode()!r}"
                self.read += part
        return self.read.decode()

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()


def test_watching_shows_a_change_within_two_seconds_and_asks_at_most_once_a_second(led: Shop) -> None:
    since = datetime.now(UTC)
    with Typed(led, "status", "-w", who="gitops") as watching:
        watching.until("cart: ")
        began = time.monotonic()
        time.sleep(4)
        led.put("shop/api", BODIES["api"] | {"step": 2, "kind": "advance", "sentence": "api 10 % → 25 %: fine"})
        watching.until("api 10 % → 25 %: fine", within=2.0)
        took = time.monotonic() - began
        led.admin.apply(canary("new"))
        watching.until("new: ", within=2.0)
        led.admin.delete("canaries", "new")
    counts = led.bench.audit.counts("gitops", since=since)
    assert sum(counts.values()) <= took + 6, counts
    assert counts["watch", "canaries"] == 1


def test_wait_sees_the_end_by_watching(led: Shop) -> None:
    with Typed(led, "wait", "api", "--for", "promoted", "--timeout", "1m") as waiting:
        waiting.until("waits for: ")
        led.put("shop/api", BODIES["api"] | {"phase": "Succeeded", "sentence": "api promoted"})
        waiting.until("api promoted", within=2.0)
        assert waiting.child.wait(DEADLINE) == Exit.OK


def test_wait_does_not_take_the_end_of_the_last_rollout_for_that_of_the_image_just_set(led: Shop) -> None:
    led.admin.apply(canary("new-image", "bank"))
    led.admin.apply(deployment("new-image", {"app": "new-image"}))
    led.put("bank/new-image", BODIES["api"] | {"phase": "Succeeded", "revision": "the-last-one"})
    asked = ("wait", "bank/new-image", "--for", "promoted", "--timeout")
    assert led.run(*asked, "500ms").returncode == Exit.UNDECIDED
    (found,) = [obj for obj in led.informer.items("bank") if obj["metadata"]["name"] == "new-image"]
    meant = canary_of(found)
    assert isinstance(meant, Canary)
    release = direct_workloads(led.client).release(meant)
    assert release is not None
    led.put("bank/new-image", BODIES["api"] | {"phase": "Succeeded", "revision": release.revision})
    assert led.run(*asked, "20s").returncode == Exit.OK
    led.admin.delete("canaries", "new-image", "bank")


def test_a_daemon_that_stopped_is_said_beside_its_last_words(led: Shop) -> None:
    led.lease(ago=100)
    done = led.run("status")
    assert done.returncode == Exit.OK
    assert "● api" in done.stdout
    assert re.search(r"canaryd is not running \(canaryd-7c9 led, and was last heard of 1\d\d s ago\)", done.stderr)
    led.lease(ago=1, holder="")
    assert "canaryd is not running (the last leader stopped" in led.run("status").stderr


# ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_word_is_an_annotation_with_the_authenticated_user_and_its_answer_is_printed(led: Shop) -> None:
    with Daemon(led):
        done = led.run("promote", "api", "--full", "--reason", "hotfix", "--yes", who="anna")
    assert (done.returncode, done.stdout, done.stderr) == (Exit.OK, "promote by anna: done\n", "")
    last = led.admin.get("canaries", "api")["status"]["lastOverride"]
    assert (last["action"], last["by"], last["reason"], last["accepted"]) == ("promote", "anna", "hotfix", True)


@pytest.mark.parametrize("action", ["abort", "pause", "resume", "retry", "skip"])
def test_every_word_goes_the_same_way(led: Shop, action: str) -> None:
    with Daemon(led):
        done = led.run(action, "shop/api", "--reason", "it is time", "-o", "json", who="anna")
    assert done.returncode == Exit.OK, done.stderr
    said = json.loads(done.stdout)
    assert (said["canary"], said["action"], said["answer"], said["by"]) == ("api", action, "accepted", "anna")


def test_a_stale_word_is_refused_by_the_answer_of_the_daemon(led: Shop) -> None:
    with Daemon(led):
        done = led.run("abort", "api", "--reason", "x", "--revision", "old", who="anna")
    assert (done.returncode, done.stdout) == (Exit.REFUSED, "")
    assert done.stderr == "canaryd: it was said for revision old, but 7f3c is being rolled out\n"


def test_a_word_without_a_daemon_is_kept_and_not_waited_for(led: Shop) -> None:
    led.lease(ago=1000)
    began = time.monotonic()
    done = led.run("pause", "api", "--reason", "nobody there", "--answer-within", "600", who="anna")
    assert time.monotonic() - began < DEADLINE
    assert done.returncode == Exit.UNAVAILABLE
    assert "pause of api is recorded; canaryd is not running" in done.stderr
    assert "nobody there" in led.admin.get("canaries", "api")["metadata"]["annotations"]["canaryd.io/override"]
    with Daemon(led):
        wait_until(lambda: not led.store.load("shop/api").overrides, "the word to be heard after all")


def test_start_says_what_begins_a_rollout_in_a_cluster(led: Shop) -> None:
    done = led.run("start", "api", "--revision", "7f3c")
    assert done.returncode == Exit.REFUSED
    assert "kubectl -n shop set image deployment/api CONTAINER=IMAGE" in done.stderr


# ── who may ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("who", "args", "sentence"),
    [
        pytest.param(
            "gitops",
            ("abort", "api", "--reason", "x", "--yes"),
            "gitops may not patch canaries in shop: ask for the Role canaryd-operator",
            id="viewer-aborts",
        ),
        pytest.param(
            "tenant",
            ("status",),
            "system:serviceaccount:shop:tenant may not list canaries in shop: ask for the Role canaryd-viewer",
            id="stranger-looks",
        ),
        pytest.param(
            "tenant",
            ("pause", "api", "--reason", "x"),
            "system:serviceaccount:shop:tenant may not get canaries in shop: ask for the Role canaryd-viewer",
            id="stranger-says",
        ),
        pytest.param(
            "anna",
            ("status", "-A", "-w"),
            "anna may not list canaries in all namespaces: ask for the Role canaryd-viewer",
            id="everywhere",
        ),
        pytest.param(
            "anna",
            ("delete", "api", "--yes"),
            "anna may not delete canaries in shop: ask for a Role with the verb delete on canaries.canaryd.io",
            id="delete",
        ),
    ],
)
def test_who_may_not_is_told_the_verb_and_what_to_ask_for(
    led: Shop, who: str, args: tuple[str, ...], sentence: str
) -> None:
    done = led.run(*args, who=who)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.FORBIDDEN, "", f"canaryd: {sentence}\n")


# ── the plugin, completion ───────────────────────────────────────────────────────────────────────────────────


def test_kubectl_canary_is_the_same_command(led: Shop) -> None:
    script = led.directory / "bin" / "kubectl-canary"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!{sys.executable}\nfrom canaryd.__main__ import plugin\nplugin()\n")
    script.chmod(0o755)
    kubectl = tools.find()["kubernetes"] / "kubectl"
    env = {"PATH": f"{script.parent}:{CLEAN['PATH']}", "CANARYD_CONTEXT": ""}
    done = led.run("canary", "status", "-n", "bank", program=[str(kubectl)], env=env)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout.splitlines()[1].startswith("✕ pay")
    wrong = led.run("canary", "status", "--bogus", program=[str(kubectl)], env=env)
    assert "Usage: kubectl canary status" in wrong.stderr


def completions(shop: Shop, line: str, env: Mapping[str, str] | None = None) -> tuple[list[str], str]:
    asked = {"_CANARYD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()))}
    done = shop.run(env={**asked, **(env or {})})
    return [part.partition(",")[2] for part in done.stdout.split()], done.stderr


def test_completion_completes_names_of_the_cluster(led: Shop) -> None:
    assert completions(led, "canaryd status ") == (["api", "cart"], "")
    assert completions(led, "canaryd -n bank status ") == (["pay"], "")
    assert completions(led, "canaryd -A status ") == (["bank/pay", "shop/api", "shop/cart"], "")


def test_completion_is_silent_and_soon_over_when_the_names_cannot_be_had(led: Shop) -> None:
    nowhere = led.directory / "nowhere.yaml"
    text = led.bench.kubeconfig("admin").read_text()
    nowhere.write_text(text.replace("127.0.0.1:6443", "127.0.0.1:1"))
    assert completions(led, "canaryd status ", {"KUBECONFIG": str(nowhere)}) == ([], "")
    assert completions(led, "canaryd status ", {"KUBECONFIG": str(led.bench.kubeconfig("tenant"))}) == ([], "")
    began = time.monotonic()
    completions(led, "canaryd status ")
    usual = time.monotonic() - began
    led.bench.plane.apiserver.freeze()
    try:
        began = time.monotonic()
        assert completions(led, "canaryd status ") == ([], "")
        took = time.monotonic() - began
        assert took < 2 * usual + 2.0 + 1.0  # two seconds for the answer, the rest for a busy machine
    finally:
        led.bench.plane.apiserver.thaw()


# ── deleting ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_delete_waits_for_the_finalizer_and_says_so(led: Shop) -> None:
    doomed = canary("doomed")
    doomed["metadata"]["finalizers"] = ["canaryd.io/restore"]
    led.admin.apply(doomed)
    asked = led.run("delete", "doomed")
    assert asked.returncode == Exit.USAGE
    late = led.run("delete", "doomed", "--yes", "--timeout", "300ms")
    assert late.returncode == Exit.TRY_AGAIN
    assert "doomed: waits for canaryd.io/restore" in late.stderr
    with Typed(led, "delete", "doomed", "--yes", "--orphan") as deleting:
        deleting.until("waits for canaryd.io/restore")
        there = led.admin.get("canaries", "doomed")
        assert there["metadata"]["annotations"]["canaryd.io/on-delete"] == "orphan"
        led.admin.patch("canaries", "doomed", {"metadata": {"finalizers": None}})
        deleting.until("doomed is deleted", within=2.0)
        assert deleting.child.wait(DEADLINE) == Exit.OK
    assert led.run("delete", "doomed", "--yes").returncode == Exit.NOT_FOUND


# ── the doctor ───────────────────────────────────────────────────────────────────────────────────────────────

VERBS = [pytest.param(need, verb, id=f"{verb}-{need.qualified}") for need, verb in permissions.each(DAEMON)]


@pytest.fixture(scope="module")
def account(shop: Shop) -> Callable[[Need | None, str], None]:
    """Grants the daemon's ServiceAccount everything but one verb."""

    def grant(without: Need | None, verb: str = "") -> None:
        needs = [
            dataclasses.replace(n, verbs=tuple(v for v in n.verbs if v != verb)) if n == without else n for n in DAEMON
        ]
        shop.grant(ACCOUNT, "canaryd", "shop", [n for n in needs if n.scope is Scope.WATCHED])
        shop.grant(ACCOUNT, "canaryd", permissions.NAMESPACE, [n for n in needs if n.scope is Scope.OWN])
        may = permissions.allowed_to(shop.client, "canaryd", "canaryd")
        place = "shop" if without is None or without.scope is Scope.WATCHED else permissions.NAMESPACE

        def heard() -> bool:
            if without is not None and may(verb, without.kind, place, without.subresource):
                return False
            return all(
                may(v, n.kind, "shop" if n.scope is Scope.WATCHED else "canaryd", n.subresource) for n, v in last
            )

        last = [(n, v) for n, v in before if (n.resource, v) != (without and without.resource, verb)]
        wait_until(heard, "the Role to be heard of")
        before[:] = [(without, verb)] if without is not None else []

    before = [(DAEMON[-1], DAEMON[-1].verbs[-1])]  # what the Roles lacked until now, and have now

    return grant


@pytest.mark.parametrize(("need", "verb"), VERBS)
def test_doctor_names_each_verb_that_is_missing(
    led: Shop, account: Callable[[Need | None, str], None], need: Need, verb: str
) -> None:
    account(need, verb)
    checks = [check for check in CHECKS if check.name == "permissions"]
    subject = Cluster(led.client, ("shop",), "", datetime.now(UTC), lambda _: None)
    (found,) = [finding for _, finding in examine(checks, subject, str)]
    place = "shop" if need.scope is Scope.WATCHED else permissions.NAMESPACE
    assert found.severity == "error"
    assert found.what == f"the ServiceAccount canaryd/canaryd may not {verb} {need.qualified} in {place}"
    assert need.why in found.why


def test_the_daemon_itself_finds_the_same_by_asking_about_itself(
    led: Shop, account: Callable[[Need | None, str], None]
) -> None:
    client = KubeClient.connect(kubeconfig=str(led.bench.kubeconfig("canaryd")))
    account(None, "")
    assert permissions.missing_permissions(client, ["shop"]) == []
    account(DAEMON[1], "patch")
    assert permissions.missing_permissions(client, ["shop"]) == ["patch canaries.canaryd.io/status in shop"]
    done = led.run("doctor", "-n", "shop", "-o", "json", who="canaryd")
    errors = [f["what"] for f in json.loads(done.stdout) if f["check"] == "permissions"]
    assert errors == ["the ServiceAccount canaryd/canaryd may not patch canaries.canaryd.io/status in shop"]
    client.close()


def test_doctor_run_by_somebody_without_the_right_to_ask_says_how_to_ask(led: Shop) -> None:
    done = led.run("doctor", "-o", "json", who="anna")
    (told,) = [f for f in json.loads(done.stdout) if f["check"] == "permissions"]
    assert told["severity"] == "warning"
    assert "kubectl -n canaryd exec deploy/canaryd -- canaryd doctor" in told["remedy"]


def deployment(name: str, labels: dict[str, str], probe: bool = True) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "app", "image": "demo/app:v1"}
    if probe:
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "bank"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def service(name: str, selector: dict[str, str]) -> dict[str, Any]:
    spec = {"selector": selector, "ports": [{"name": "http", "port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "bank"}, "spec": spec}


def test_doctor_says_what_is_missing_around_a_canary_and_is_content_once_it_is_there(led: Shop) -> None:
    admin = led.admin
    admin.apply(canary("ledger", "bank"))
    led.put("bank/ledger", BODIES["pay"])

    def told() -> dict[str, list[tuple[str, str]]]:
        found = json.loads(led.run("doctor", "ledger", "-n", "bank", "-o", "json").stdout)
        by_check: dict[str, list[tuple[str, str]]] = {}
        for f in found:
            by_check.setdefault(f["check"], []).append((f["severity"], f["what"]))
        return by_check

    assert told()["Deployments"] == [("error", "Deployment ledger does not exist")]
    admin.apply(deployment("ledger", {"app": "ledger"}, probe=False))
    before = told()
    assert ("warning", "no container of ledger has a readinessProbe") in before["Deployments"]
    assert ("error", "Deployment ledger-stable does not exist") in before["Deployments"]
    assert ("error", "Service ledger-canary does not exist") in before["Services"]
    admin.apply(deployment("ledger-stable", {"app": "ledger", "canaryd.io/role": "stable"}))
    admin.apply(service("ledger-stable", {"app": "ledger", "canaryd.io/role": "stable"}))
    admin.apply(service("ledger-canary", {"app": "other"}))
    after = told()
    assert ("error", "Deployment ledger-stable has 0 of 1 pods available") in after["Deployments"]
    assert ("fine", "ledger-stable selects ledger-stable") in after["Services"]
    assert ("error", "Service ledger-canary does not select the pods of ledger") in after["Services"]


def test_doctor_finds_a_host_that_two_kinds_of_route_claim(led: Shop) -> None:
    both = {"name": "pay", "namespace": "bank"}
    route = [{"route": [{"destination": {"host": "pay-stable"}}]}]
    led.admin.apply(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": both,
            "spec": {"hosts": ["pay"], "http": route},
        }
    )
    clean = led.run("doctor", "pay", "-n", "bank", "-o", "json").stdout
    assert not [f for f in json.loads(clean) if f["check"] == "conflicts"]
    parents = [{"group": "", "kind": "Service", "name": "pay"}]
    led.admin.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": both,
            "spec": {"parentRefs": parents},
        }
    )
    done = led.run("doctor", "pay", "-n", "bank", "-o", "json")
    (told,) = [f for f in json.loads(done.stdout) if f["check"] == "conflicts"]
    assert (told["severity"], told["about"]) == ("error", "bank/pay")
    assert "HTTPRoute" in told["what"]
    assert "pay.bank.svc.cluster.local" in told["what"]


def test_doctor_is_read_by_people_with_why_and_what_to_do(led: Shop) -> None:
    led.lease(ago=500)
    done = led.run("doctor", "-n", "bank")
    assert done.returncode == Exit.AMISS
    assert re.search(r"(?m)^✕ leader +canaryd is not running \(canaryd-7c9 led, and was last heard", done.stdout)
    assert re.search(r"(?m)^ +why nobody looks after the Canaries$", done.stdout)
    assert re.search(r"(?m)^ +do  kubectl -n canaryd get pods", done.stdout)
    assert re.search(r"(?m)^✓ definition +canaries.canaryd.io is served as v1alpha1$", done.stdout)


# ── when the cluster is not there (last: the API server is killed) ───────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "code"),
    [
        pytest.param(("status",), Exit.UNREACHABLE, id="status"),
        pytest.param(("abort", "api", "--reason", "x", "--yes"), Exit.UNREACHABLE, id="abort"),
        pytest.param(("doctor",), Exit.AMISS, id="doctor"),
    ],
)
def test_an_api_server_that_is_away_is_one_sentence_and_a_code_of_its_own(
    led: Shop, args: tuple[str, ...], code: Exit
) -> None:
    led.bench.plane.kill_apiserver()
    try:
        done = led.run(*args)
    finally:
        led.bench.plane.start_apiserver()
    assert done.returncode == code
    said = done.stderr or done.stdout
    assert "connection refused" in said
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_a_watch_goes_on_after_the_api_server_came_back_and_says_meanwhile_that_it_cannot_see(led: Shop) -> None:
    with Typed(led, "status", "-w") as watching:
        watching.until("cart: ")
        led.bench.plane.kill_apiserver()
        watching.until("has not answered for")
        led.bench.plane.start_apiserver()
        led.put("shop/api", BODIES["api"] | {"step": 2, "kind": "advance", "sentence": "api goes on"})
        watching.until("api goes on")


def test_what_contradicts_itself_or_names_no_cluster_is_said_before_anything_is_asked(led: Shop) -> None:
    assert led.run("status", "-n", "shop", "-A").returncode == Exit.USAGE
    assert led.run("--state", "x.db", "status", "-n", "shop").returncode == Exit.USAGE
    context = led.run("status", "--context", "nowhere")
    assert context.returncode == Exit.DOCUMENT
    assert "there is no context 'nowhere'" in context.stderr
    nofile = led.run("status", "--kubeconfig", "missing.yaml")
    assert nofile.returncode == Exit.DOCUMENT
