"""A real etcd and kube-apiserver, with the resource definitions of Istio and the Gateway API, and ways to hurt them.

Must be started inside the bench's network namespace (netns.py): ports and addresses are fixed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from bench import audit, identities, netns
from bench.client import ApiError, Client
from bench.identities import RotatingToken
from canaryd.demo.processes import Child, LabError, Nursery, wait_until

ETCD = "http://127.0.0.1:2379"
PATIENCE = 120.0  # seconds any part may take to become ready on a machine with much else to do
NAMESPACES = ("istio-system", "shop", "canaryd", "monitoring")
ACCOUNTS = (("canaryd", "canaryd"), ("shop", "tenant"))


class ControlPlane:
    """etcd and kube-apiserver; `start` returns when both answer and all definitions are established."""

    def __init__(self, nursery: Nursery, tools: dict[str, Path], directory: Path) -> None:
        self.identities = identities.everybody()
        self.audit = audit.Audit(directory / "audit.log")
        self.directory = directory
        self._nursery = nursery
        self._tools = tools
        self._clients: dict[str, Client] = {}
        self._etcd: Child | None = None
        self._apiserver: Child | None = None

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self._write_files()
        self._etcd = self._nursery.start("etcd", self._etcd_command())
        self.start_apiserver()
        self.install_definitions("istio", "gateway-api")
        admin = self.client()
        for name in NAMESPACES:
            admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for namespace, name in ACCOUNTS:
            metadata = {"name": name, "namespace": namespace}
            admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})

    def close(self) -> None:
        """Close the connections of our clients; the processes end with the nursery."""
        for client in self._clients.values():
            client.close()

    @property
    def etcd(self) -> Child:
        assert self._etcd is not None, "the control plane was not started"
        return self._etcd

    @property
    def apiserver(self) -> Child:
        assert self._apiserver is not None, "the control plane was not started"
        return self._apiserver

    def start_apiserver(self) -> None:
        """Start it, after `kill_apiserver` again with everything etcd holds; returns when it is ready."""
        self._apiserver = self._nursery.start("kube-apiserver", self._apiserver_command())
        self.await_ready()

    def kill_apiserver(self) -> None:
        """kill -9."""
        self.apiserver.kill()

    def await_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until /readyz is 200 with the administrator's token."""

        def ready() -> bool:
            if not self.apiserver.running:
                words = self.apiserver.last_words()
                raise LabError(f"kube-apiserver ended with {self.apiserver.exit_code}:\n{words}")
            try:
                return self.authority.exists() and bool(self.client().request("GET", "/readyz"))
            except (ApiError, requests.RequestException):
                return False

        wait_until(ready, f"kube-apiserver to be ready ({self.apiserver.log})", timeout, every=0.1)

    # ── identities and clients ───────────────────────────────────────────────────────────────────

    @property
    def authority(self) -> Path:
        """The certificate that the server's own is checked against."""
        return self.directory / "certificates" / "apiserver.crt"

    def client(self, identity: str = "admin") -> Client:
        """The shared client of this identity; for another thread use `new_client`."""
        if identity not in self._clients:
            self._clients[identity] = self.new_client(identity)
        return self._clients[identity]

    def new_client(self, identity: str = "admin", timeout: float = 30.0) -> Client:
        """A client of your own, to be closed by you."""
        return self.client_of(self.identities[identity].token, timeout)

    def client_of(self, token: str, timeout: float = 30.0) -> Client:
        """A client with any token, to be closed by you."""
        return Client(identities.SERVER, token, self.authority, timeout)

    def kubeconfig(self, identity: str = "admin") -> Path:
        """A kubeconfig file of this identity."""
        file = self.directory / f"{identity}.kubeconfig"
        if not file.exists():
            file.write_text(identities.kubeconfig(self.authority, token=self.identities[identity].token))
        return file

    def rotating_token(self, namespace: str = "canaryd", name: str = "canaryd") -> RotatingToken:
        """A real ServiceAccount token in a file; `.kubeconfig` names the file, `.rotate()` changes and revokes."""
        return RotatingToken(self.client(), namespace, name, self.directory, self.authority)

    def kubectl(
        self, *arguments: str, identity: str = "admin", stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl. With `check`, a failure is an AssertionError with what kubectl said."""
        argv = [str(self._tools["kubernetes"] / "kubectl"), "--kubeconfig", str(self.kubeconfig(identity)), *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    # ── what tests do to it ──────────────────────────────────────────────────────────────────────

    def install_definitions(self, *folders: str) -> None:
        """Install the resource definitions in these folders of the set `crds` ("istio", "cert-manager", …)."""
        names = [f for folder in folders for f in sorted((self._tools["crds"] / folder).glob("*.yaml"))]
        wanted = [d for file in names for d in _documents(file) if d["kind"] == "CustomResourceDefinition"]
        admin = self.client()
        with ThreadPoolExecutor(max_workers=4) as threads:
            list(threads.map(lambda manifest: _create_or_apply(admin, manifest), wanted))
        self.await_definitions({manifest["metadata"]["name"] for manifest in wanted})

    def await_definitions(self, names: set[str]) -> None:
        """Wait until these definitions are established (their resources are served)."""

        pending, admin = set(names), self.client()

        def established() -> bool:
            # one by one: all of them together are megabytes
            pending.difference_update(
                [name for name in pending if _established(admin.get("customresourcedefinitions", name))]
            )
            return not pending

        wait_until(established, f"the definitions {sorted(names)} to be established", PATIENCE, every=0.2)

    @contextmanager
    def etcd_frozen(self) -> Iterator[None]:
        """etcd answers nobody inside this block (SIGSTOP)."""
        self.etcd.freeze()
        try:
            yield
        finally:
            self.etcd.thaw()

    def pause_etcd(self, seconds: float) -> None:
        """Freeze etcd for so long; returns when it runs again."""
        with self.etcd_frozen():
            time.sleep(seconds)

    def compact(self) -> int:
        """Drop etcd's history before its present revision, which is returned."""
        header = _etcd("kv/range", {"key": "AA==", "count_only": True})["header"]
        revision = int(header["revision"])
        _etcd("kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def expire_watches(self) -> None:
        """Make every version handed out so far too old to watch from (410): compact, and restart with empty caches."""
        self.kill_apiserver()
        self.compact()
        self.start_apiserver()

    def request_totals(self) -> dict[tuple[str, str], int]:
        """(verb, resource) → requests by everybody since the server's start, from its own /metrics."""
        totals: dict[tuple[str, str], int] = {}
        for line in str(self.client().request("GET", "/metrics")).splitlines():
            if line.startswith("apiserver_request_total{"):
                labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : line.index("}")].split(","))
                key = (labels["verb"].strip('"'), labels["resource"].strip('"'))
                totals[key] = totals.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
        return totals

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        key = self.directory / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        tokens = self.directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(identities.token_file(self.identities))
        (self.directory / "audit-policy.yaml").write_text(json.dumps(audit.policy()))

    def _etcd_command(self) -> list[str]:
        peer = "http://127.0.0.1:2380"
        return [
            str(self._tools["etcd"] / "etcd"),
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing here outlives the bench
            "--log-level=warn",
        ]

    def _apiserver_command(self) -> list[str]:
        key = self.directory / "service-accounts.key"
        return [
            "/usr/bin/env",
            "GOGC=400",  # a fifth less work at its start, for some more memory
            str(self._tools["kubernetes"] / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            "--bind-address=127.0.0.1",
            "--secure-port=6443",
            "--advertise-address=10.244.255.254",  # it must be an address of the machine and not loopback
            f"--cert-dir={self.authority.parent}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC,Node",
            f"--service-cluster-ip-range={netns.SERVICES}",
            "--endpoint-reconciler-type=none",
            "--allow-privileged",
            f"--audit-policy-file={self.directory / 'audit-policy.yaml'}",
            f"--audit-log-path={self.directory / 'audit.log'}",
            "--audit-log-mode=blocking",  # an answered request is in the log
            "--audit-log-maxsize=100000",  # MB: never rotated
        ]


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]  # yaml has no types here
    """Takes `=` for a plain word, as the operator's definitions mean it."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)


def _documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(file.read_text(), _Loader) if document]


def _create_or_apply(admin: Client, manifest: dict[str, Any]) -> None:
    try:
        admin.create(manifest)  # several times cheaper for the server than an apply
    except ApiError as e:
        if e.reason != "AlreadyExists":
            raise
        admin.apply(manifest)


def _established(definition: dict[str, Any]) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _etcd(path: str, body: dict[str, Any]) -> dict[str, Any]:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{ETCD}/v3/{path}", json=body, timeout=30)
    answer.raise_for_status()
    decoded: dict[str, Any] = answer.json()
    return decoded
