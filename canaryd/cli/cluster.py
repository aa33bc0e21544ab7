"""The same view as `canaryd.cli.session`, of a cluster: Canaries are resources, and what people say is an annotation.

A command asks the server what it needs and no more; one that keeps looking (-w, wait, the answer to a word) watches, so
that looking again costs no request. Never decides what may be done: RBAC does.
"""

from __future__ import annotations

import getpass
import os
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from canaryd import permissions
from canaryd.cli.app import Options
from canaryd.cli.exits import UsageError
from canaryd.cli.session import INTERVAL, Session, not_found, now, without_prefix
from canaryd.doctor.objects import REVIEWS, leaderless
from canaryd.errors import (
    KubeError,
    KubeForbiddenError,
    KubeNotFoundError,
    OverrideError,
    StoreError,
    WorkloadError,
)
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Direct, Informer
from canaryd.kube.kinds import CANARIES, LEASES
from canaryd.model import Action, Answer, Override
from canaryd.policy import Canary, parse_duration

if TYPE_CHECKING:
    from canaryd.config import Settings
    from canaryd.ports import StateStore

TIMEOUT = timedelta(seconds=10)  # of one request: a person waits
COMPLETION = timedelta(seconds=2)  # of the shell's question for names, as a whole
SYNC, GLANCE = timedelta(seconds=10), timedelta(seconds=0.2)
HOPELESS = ("forbidden", "unauthorized", "not served")  # beginnings of what waiting does not change
LOOK_AT_LEASE = LOOK_AT_TEMPLATE = 5.0  # seconds between two looks


class Canaries:
    """Canary objects as the store reads them: each asked for when it is wanted, from a list that was just made, or
    from a watch once there is one."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._direct = Direct(client, CANARIES)
        self._listed: dict[tuple[str, str], JSON] = {}
        self._informer: Informer | None = None

    @property
    def synced(self) -> bool:
        return self._informer is None or self._informer.synced

    @property
    def generation(self) -> int:
        return (self._informer or self._direct).generation

    def changed(self, since: int) -> Collection[tuple[str, str]] | None:
        return (self._informer or self._direct).changed(since)

    @property
    def watching(self) -> bool:
        """A watch tells."""
        return self._informer is not None

    def listed(self, namespace: str) -> bool:
        return self._informer is None or self._informer.listed(namespace)

    @property
    def blind(self) -> str:
        return self._informer.blind if self._informer else ""

    def trouble(self, namespace: str | None = None) -> str:
        return self._informer.trouble(namespace) if self._informer else ""

    def get(self, namespace: str, name: str) -> JSON | None:
        if self._informer:
            return self._informer.get(namespace, name)
        return self._listed.get((namespace, name)) or self._direct.get(namespace, name)

    def items(self, namespace: str | None = None) -> tuple[JSON, ...]:
        if self._informer:
            return self._informer.items(namespace)
        return self._direct.items(namespace)

    def put(self, obj: JSON) -> None:
        if self._informer:
            self._informer.put(obj)

    def keep(self, objects: tuple[JSON, ...]) -> None:
        """What was listed just now serves for reading them one by one."""
        self._listed = {key_of(obj): obj for obj in objects}

    def forget(self) -> None:
        """From now on nothing that was listed before counts."""
        self._listed = {}

    def watch(self, namespace: str | None, name: str) -> None:
        """From now on a watch tells. Raises KubeError when it cannot be had."""
        if self._informer is not None:
            return
        self.forget()
        namespaces = (namespace,) if namespace is not None else ()
        informer = Informer(
            self._client, CANARIES, namespaces=namespaces, fields=f"metadata.name={name}" if name else ""
        )
        informer.start()
        deadline = time.monotonic() + SYNC.total_seconds()
        while not informer.wait_synced(GLANCE):
            trouble = informer.trouble()
            if time.monotonic() > deadline or trouble.startswith(HOPELESS):
                informer.stop()
                self._client.list(CANARIES, namespace)  # raises what is the matter, as an error of its kind
                raise KubeError(trouble or f"the Canaries could not be listed within {SYNC.total_seconds():g} s")
        self._informer = informer

    def close(self) -> None:
        if self._informer:
            self._informer.stop()


class ClusterSession(Session):
    """One command's view of a cluster. Keys are "NAMESPACE/NAME"."""

    clustered = True
    answers_within = 15.0

    def __init__(self, options: Options) -> None:
        """Raises UsageError."""
        super().__init__(options)
        if options.namespace and options.all_namespaces:
            raise UsageError("-n and -A contradict each other; use one of them")
        self.several_namespaces = options.all_namespaces
        self._one = ""  # the key that the command is about
        self._lease: tuple[float, str] | None = None  # when the Lease was looked at, and what it said
        self._wanted: tuple[float, str | None] | None = None  # the same of the pod template

    @cached_property
    def client(self) -> KubeClient:
        """Raises ConfigError."""
        return self._connect(TIMEOUT)

    def _connect(self, timeout: timedelta) -> KubeClient:
        kubeconfig = self._options.kubeconfig
        context = self._options.context or os.environ.get("CANARYD_CONTEXT") or None
        if not kubeconfig and not context and self.installed is not None:
            configured = self.installed.cluster
            assert self.config_path is not None
            kubeconfig = str(self.config_path.parent / configured.kubeconfig) if configured.kubeconfig else None
            context = configured.context
        return KubeClient.connect(kubeconfig=kubeconfig, context=context, timeout=timeout, agent="canaryd-cli")

    @cached_property
    def installed(self) -> Settings | None:
        """The settings of a daemon in a cluster, where they are at hand, as in its own pod. Raises ConfigError."""
        settings = self.settings
        return settings if settings is not None and settings.mode == "cluster" else None

    @cached_property
    def lease(self) -> tuple[str, str]:
        """(namespace, name) of the Lease by which the daemons agree on who leads."""
        lease = self.installed.cluster.lease if self.installed is not None else None
        own = self.client.namespace if self.installed is not None else permissions.NAMESPACE
        place = os.environ.get("CANARYD_NAMESPACE") or (lease.namespace if lease is not None else None) or own
        return place, lease.name if lease is not None else permissions.LEASE

    @property
    def namespace(self) -> str | None:
        """The one that the command is about; None: all."""
        return None if self._options.all_namespaces else self._options.namespace or self.client.namespace

    @property
    def scoped(self) -> bool:
        """It was said which namespaces."""
        return bool(self._options.namespace or self._options.all_namespaces)

    @cached_property
    def canaries(self) -> Canaries:
        return Canaries(self.client)

    @cached_property
    def has_state(self) -> bool:
        return True

    @cached_property
    def store(self) -> StateStore:
        from canaryd.adapters.kubernetes_store import KubernetesStore

        return KubernetesStore(self.client, self.canaries)

    def close(self) -> None:
        if "canaries" in self.__dict__:
            self.canaries.close()
        if "client" in self.__dict__:
            self.client.close()

    # ── canaries ─────────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> tuple[str, ...]:
        objects = self.canaries.items(self.namespace)
        if not self.canaries.watching:
            self.canaries.keep(objects)
        return tuple(sorted("/".join(key_of(obj)) for obj in objects))

    def name(self, given: str) -> str:
        name = without_prefix(given)
        namespace, slash, plain = name.rpartition("/")
        if slash and self._options.namespace not in (None, namespace):
            raise UsageError(f"{given} is in another namespace than -n {self._options.namespace}")
        if not slash:
            if self._options.all_namespaces:
                return self._in_any(plain)
            namespace = self.namespace or ""
        obj = self.canaries.get(namespace, plain)
        if obj is None:
            raise not_found(plain, self._near(namespace))
        self.canaries.keep((obj,))
        self._one = f"{namespace}/{plain}"
        return self._one

    def _near(self, namespace: str) -> list[str]:
        """What else there is in a namespace, for a hint."""
        try:
            return sorted(key_of(obj)[1] for obj in self.canaries.items(namespace))
        except KubeForbiddenError:
            return []

    def _in_any(self, plain: str) -> str:
        """The key of the only canary of that name in all namespaces. Raises NotFoundError, UsageError."""
        names = self.names()
        found = [name for name in names if self.plain(name) == plain]
        if len(found) > 1:
            raise UsageError(f"{plain} is in several namespaces; use one of {', '.join(found)}")
        if not found:
            raise not_found(plain, names)
        self._one = found[0]
        return found[0]

    def plain(self, name: str) -> str:
        return name.rpartition("/")[2]

    def completions(self) -> tuple[str, ...]:
        """In at most two seconds, whatever the server does; those of all namespaces with theirs in front."""
        client = self._connect(COMPLETION)
        namespace = self._options.namespace or (None if self._options.all_namespaces else client.namespace)
        found: list[tuple[str, str]] = []

        def ask() -> None:
            with suppress(KubeError):
                found.extend(key_of(obj) for obj in client.list(CANARIES, namespace, repeat=False)[0])

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(COMPLETION.total_seconds())
        return tuple("/".join(key) if namespace is None else key[1] for key in sorted(found))

    def raw(self, name: str) -> JSON | None:
        """The object; None when it is not there."""
        return self.canaries.get(*split(name))

    def body(self, name: str) -> Mapping[str, Any]:
        namespace, plain = split(name)
        obj = self.raw(name) or {}
        refusal = _refusal(obj)
        trouble = [refusal] if refusal else []
        try:
            found = dict(super().body(name))
        except StoreError as error:
            if isinstance(error.__cause__, KubeError):
                raise
            found, trouble = {"phase": _status(obj).get("phase") or "Idle"}, [*trouble, str(error)]
        if "sentence" not in found or "at" not in found:  # nothing decided: the resource says what there is to say
            told = _status(obj).get("message") or f"{plain}: canaryd has not decided anything yet."
            found["sentence"] = f"{plain} is not looked after: {refusal}" if refusal else told
        if trouble:
            found["trouble"] = [*found.get("trouble", ()), *trouble]
        return {**found, "canary": plain, "namespace": namespace}

    def canary(self, name: str) -> Canary | None:
        from canaryd.config.objects import canary_of

        obj = self.raw(name)
        canary = canary_of(obj) if obj is not None else ()
        return canary if isinstance(canary, Canary) else None

    def wanted(self, name: str) -> str | None:
        """What the pod template asks for now; None where that may not be seen."""
        if self._wanted is None or time.monotonic() - self._wanted[0] > LOOK_AT_TEMPLATE:
            self._wanted = (time.monotonic(), self._asked(name))
        return self._wanted[1]

    def _asked(self, name: str) -> str | None:
        canary = self.canary(name)
        if canary is None or canary.spec.workloads.deployment is None:
            return None
        from canaryd.wiring import direct_workloads

        try:
            release = direct_workloads(self.client).release(canary)
        except (KubeError, WorkloadError):
            return None
        return release.revision if release is not None else None

    def interval(self, name: str) -> timedelta:
        spec = (self.raw(name) or {}).get("spec") or {}
        try:
            return parse_duration(spec.get("interval"))
        except ValueError:
            return INTERVAL

    def mark(self) -> int:
        namespace, plain = split(self._one) if self._one else (self.namespace, "")
        self.canaries.watch(namespace, plain)
        return self.canaries.generation

    # ── what people say ──────────────────────────────────────────────────────────────────────────────────────

    def who(self) -> str:
        """The user that the API server knows; where it does not say, that of this machine."""
        try:
            answer = self.client.create(REVIEWS, "", {"apiVersion": REVIEWS.api_version, "kind": REVIEWS.kind})
            user = str(answer["status"]["userInfo"]["username"])
        except (KubeError, KeyError, TypeError):
            user = ""
        return user or os.environ.get("USER") or getpass.getuser()

    def say(self, name: str, override: Override) -> None:
        self.canaries.forget()
        super().say(name, override)

    def answer(self, name: str, id_: str) -> Answer | None:
        last = _status(self.raw(name) or {}).get("lastOverride")
        if isinstance(last, dict) and last.get("id") == id_ and "accepted" in last:
            at = datetime.fromisoformat(str(last["at"])) if last.get("at") else now()
            action, said = Action(str(last["action"])), str(last.get("message") or "")
            return Answer(id_, action, bool(last["accepted"]), said, at)
        return super().answer(name, id_)  # another word was answered since

    def beginning(self, name: str) -> str:
        namespace, plain = split(name)
        canary = self.canary(name)
        deployment = canary.spec.workloads.deployment if canary is not None else None
        target = deployment.name if deployment is not None else plain
        return f"kubectl -n {namespace} set image deployment/{target} CONTAINER=IMAGE"

    def must_start_by_command(self, name: str) -> None:
        raise OverrideError(
            f"{self.plain(name)}: in a cluster the Deployment's pod template says which revision should run; "
            f"begin a rollout by {self.beginning(name)}"
        )

    # ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────

    def absent(self, at: datetime, name: str | None = None) -> str:
        """Why nobody is at work, by the Lease; "" while somebody leads, or where that cannot be seen."""
        if trouble := self.canaries.trouble():
            return trouble
        if self._lease is None or time.monotonic() - self._lease[0] > LOOK_AT_LEASE:
            self._lease = (time.monotonic(), self._leader(at))
        return self._lease[1]

    def _leader(self, at: datetime) -> str:
        place, name = self.lease
        try:
            lease = self.client.get(LEASES, place, name)
        except KubeNotFoundError:
            return f"canaryd is not running (there is no Lease {name} in {place})"
        except KubeError:
            return ""
        return leaderless(lease, at)


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(obj: JSON) -> tuple[str, str]:
    """(namespace, name)."""
    meta = obj["metadata"]
    return str(meta.get("namespace") or ""), str(meta["name"])


def split(key: str) -> tuple[str, str]:
    """ "shop/api" → (namespace, name)."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def _status(obj: JSON) -> JSON:
    status = obj.get("status")
    return status if isinstance(status, dict) else {}


def _refusal(obj: JSON) -> str:
    """Why the Canary is refused; "" when it is not."""
    conditions = _status(obj).get("conditions") or ()
    ready: JSON = next((c for c in conditions if c.get("type") == "Ready"), {})
    refused = ready.get("status") == "False" and ready.get("reason") == "Invalid"
    return str(ready.get("message") or "it is invalid") if refused else ""
