"""Plays the kubelet and the container runtime for every pod whose image is demo/app:TAG: real addresses, real servers.

A pod that the scheduler has placed gets an address of its own (never given twice), its server is bound, and only then
does its status say Ready; at its end it goes on serving until its clients have gone. What the tag means: behaviour.py.
Run as a script: pod_server.py KUBECONFIG TARGETS; TARGETS is a file of its pods for Prometheus' file discovery
(Debian's Prometheus is built without that of Kubernetes). It never touches other pods, and it keeps what it runs over
restarts of the API server.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import behaviour
from pod_http import METRICS_PORT, Container, Counts, Label, serve_page

IMAGE = "demo/app:"
RETRY = 0.3  # seconds between two tries at a server that is away
FIRST_BACKOFF, LONGEST_BACKOFF = 2.0, 60.0  # of a crash loop; the real kubelet begins with 10 s
DRAIN_AT_LEAST, QUIET = 2.5, 1.0  # seconds: served after the end was asked for, and since the last request
HANG = 20.0
Pod = dict[str, Any]


def log(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S.%f} {text}", flush=True)


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Server:
    """The API server, as far as a kubelet speaks to it. Retries what the server was not there for."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._base = cluster["server"]
        trusted = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted, limit=0),
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        )

    async def pods(self) -> AsyncIterator[tuple[str, Pod]]:
        """(event, pod) for ever; "LISTED" carries {uid: pod} of all that there are and comes first and after gaps."""
        while True:
            try:
                async with self._session.get(f"{self._base}/api/v1/pods") as answer:
                    answer.raise_for_status()
                    listed = await answer.json()
                yield "LISTED", {pod["metadata"]["uid"]: pod for pod in listed["items"]}
                async for event in self._watch(listed["metadata"]["resourceVersion"]):
                    yield event["type"], event["object"]
            except (TimeoutError, aiohttp.ClientError, OSError) as e:
                log(f"watch: {e!r}")
            await asyncio.sleep(RETRY)

    async def _watch(self, version: str) -> AsyncIterator[dict[str, Any]]:
        query = {"watch": "1", "resourceVersion": version}
        async with self._session.get(f"{self._base}/api/v1/pods", params=query) as answer:
            answer.raise_for_status()
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield event

    async def patch_status(self, pod: Pod, status: dict[str, Any]) -> None:
        """Strategic merge. Silent when the pod is gone."""
        uid = pod["metadata"]["uid"]
        body = json.dumps({"metadata": {"uid": uid}, "status": status})  # a pod of the same name is another pod
        await self._send("PATCH", pod, "/status", body, "application/strategic-merge-patch+json")

    async def remove(self, pod: Pod) -> None:
        """The kubelet's last word: the object may go."""
        body = json.dumps({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}})
        await self._send("DELETE", pod, "", body, "application/json")

    async def _send(self, method: str, pod: Pod, part: str, body: str, kind: str) -> None:
        metadata = pod["metadata"]
        url = f"{self._base}/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}{part}"
        while True:
            try:
                async with self._session.request(method, url, data=body, headers={"Content-Type": kind}) as answer:
                    if answer.status < 500 and answer.status != 429:
                        if answer.status >= 400 and answer.status not in (404, 409):
                            log(f"{method} {metadata['name']}: {answer.status} {await answer.text()}")
                        return
            except (TimeoutError, aiohttp.ClientError, OSError) as e:
                log(f"{method} {metadata['name']}: {e!r}")
            await asyncio.sleep(RETRY)


class Kubelet:
    """One pod, from its placement to its end."""

    def __init__(self, server: Server, pod: Pod, address: str) -> None:
        self._server = server
        self._pod = pod
        self._address = address
        metadata, labels = pod["metadata"], pod["metadata"].get("labels", {})
        tag = _image(pod).removeprefix(IMAGE)
        owner = next((o["name"] for o in metadata.get("ownerReferences", [])), metadata["name"])
        app = labels.get("service.istio.io/canonical-name") or labels.get("app") or owner
        revision = labels.get("service.istio.io/canonical-revision") or labels.get("version") or "latest"
        workload = owner.removesuffix(f"-{labels.get('pod-template-hash', '')}")
        self._label = Label(metadata["namespace"], metadata["name"], workload, app, revision, tag)
        self._behaviour = behaviour.read(tag)
        self._counts = Counts()
        self._container: Container | None = None
        self._pages: asyncio.Server | None = None
        self._restarts = 0
        self._last_state: dict[str, Any] = {}
        self._since: tuple[bool | None, str] = (None, "")  # is it ready, and since when
        self._ending = False
        self._life = asyncio.create_task(self._live())
        self._end: asyncio.Task[None] | None = None

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        self._pages = await serve_page(
            self._address, lambda: self._counts.page(self._label, self._behaviour.memory_mib)
        )
        backoff = FIRST_BACKOFF
        while True:
            started = timestamp()
            await self._run_once(started)
            ended = {"startedAt": started, "finishedAt": timestamp(), "containerID": f"bench://{self._label.pod}"}
            reason, code = self._behaviour.crash_reason, self._behaviour.exit_code
            self._last_state = {"terminated": {"exitCode": code, "reason": reason, **ended}}
            log(f"{self._label.pod} ended: {reason}")
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {backoff:g}s restarting"}}
            await self._say(waiting, ready=False)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            self._restarts += 1

    async def _run_once(self, started: str) -> None:
        """One life of the container; returns when it has ended by itself, which most never do."""
        behaviour, running = self._behaviour, {"running": {"startedAt": started}}
        begun = asyncio.get_running_loop().time()
        if behaviour.never_ready or behaviour.start_s > 1 or self._restarts:
            await self._say(running, ready=False)
        if not behaviour.never_ready:
            await asyncio.sleep(behaviour.start_s)
            self._container = Container(self._address, self._label, behaviour, self._counts)
            await self._container.listen()
            await self._say(running, ready=True)
            log(f"{self._label.pod} {self._address} {self._label.tag} is ready")
        if behaviour.lives_s is None:
            await asyncio.Event().wait()  # until it is asked to end
        else:
            spent = asyncio.get_running_loop().time() - begun
            await asyncio.sleep(max(0.0, behaviour.lives_s - spent))
        if self._container is not None:
            self._container.die()
            self._container = None

    async def _say(self, state: dict[str, Any], *, ready: bool) -> None:
        """Write the pod's status."""
        if self._since[0] != ready:
            self._since = (ready, timestamp())
        now, status = self._since[1], str(ready)
        reason = {} if ready else {"reason": "ContainersNotReady", "message": "containers with unready status"}
        conditions = [{"type": "Initialized", "status": "True", "lastTransitionTime": now}] + [
            {"type": kind, "status": status, "lastTransitionTime": now, **reason}
            for kind in ("ContainersReady", "Ready")
        ]
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "containerID": f"bench://{self._label.pod}",
                "ready": ready,
                "started": "running" in state,
                "restartCount": self._restarts,
                "state": state,
                "lastState": self._last_state,
            }
            for container in self._pod["spec"]["containers"]
        ]
        ip = self._address
        where = {"podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.244.255.254", "startTime": _created(self._pod)}
        said = {"phase": "Running", "conditions": conditions, "containerStatuses": containers, **where}
        await self._server.patch_status(self._pod, said)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────

    def ask_to_end(self, pod: Pod) -> None:
        """The pod has a deletion timestamp."""
        if not self._ending:
            self._ending = True
            self._end = asyncio.create_task(self._stop(float(pod["metadata"].get("deletionGracePeriodSeconds", 30))))

    async def _stop(self, grace: float) -> None:
        """Serve on while the endpoints are taken back and the last requests are answered, then leave."""
        loop = asyncio.get_running_loop()
        asked, last = loop.time(), loop.time() + (min(HANG, grace) if self._behaviour.hangs else max(grace - 2, 0.0))
        if self._container is not None and not self._behaviour.hangs:
            self._container.drain()
        while self._container is not None and loop.time() < last:
            quiet = loop.time() - max(self._container.last_request, asked + DRAIN_AT_LEAST - QUIET)
            if not self._behaviour.hangs and quiet >= QUIET:
                break
            await asyncio.sleep(0.2)
        await self._server.remove(self._pod)
        self.vanish()

    def vanish(self) -> None:
        """Release everything; the pod is no more."""
        self._life.cancel()
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._pages is not None:
            self._pages.close()
        log(f"{self._label.pod} is gone")

    def target(self) -> dict[str, Any]:
        """An entry for file discovery."""
        labels = {"namespace": self._label.namespace, "pod": self._label.pod}
        return {"targets": [f"{self._address}:{METRICS_PORT}"], "labels": labels}

    def is_leaving(self) -> bool:
        return self._ending and self._end is not None and not self._end.done()


def _image(pod: Pod) -> str:
    """The first image of ours in this pod, or ""."""
    images = (container["image"] for container in pod["spec"]["containers"])
    return next((image for image in images if image.startswith(IMAGE)), "")


def _created(pod: Pod) -> str:
    created: str = pod["metadata"]["creationTimestamp"]
    return created


def addresses() -> Iterator[str]:
    """10.244.1.1 … 10.244.127.254, each once; the other half belongs to kwok's pods."""
    return (f"10.244.{high}.{low}" for high in range(1, 128) for low in range(1, 255))


def write_targets(file: Path, kubelets: Iterable[Kubelet]) -> None:
    """Where the pods' metrics are, for Prometheus' file discovery; replaced as a whole."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps([kubelet.target() for kubelet in kubelets]))
    fresh.replace(file)


async def main(kubeconfig: Path, targets: Path) -> None:
    server = Server(kubeconfig)
    free = addresses()
    running: dict[str, Kubelet] = {}
    seen: set[str] = set()  # a pod that has ended stays ended
    removals: set[asyncio.Task[None]] = set()

    def handle(kind: str, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            if (kubelet := running.pop(uid, None)) is not None and not kubelet.is_leaving():
                kubelet.vanish()
        elif not _image(pod) or "nodeName" not in pod["spec"]:
            return
        elif uid in running:
            if "deletionTimestamp" in pod["metadata"]:
                running[uid].ask_to_end(pod)
        elif "deletionTimestamp" in pod["metadata"]:
            if uid not in seen:  # deleted before it ran
                seen.add(uid)
                removals.add(removal := asyncio.create_task(server.remove(pod)))
                removal.add_done_callback(removals.discard)
        elif uid not in seen:
            seen.add(uid)
            running[uid] = Kubelet(server, pod, next(free))

    write_targets(targets, ())
    async for kind, found in server.pods():
        before = set(running)
        if kind == "LISTED":
            for uid in set(running) - set(found):
                handle("DELETED", {"metadata": {"uid": uid}})
            for pod in found.values():
                handle("ADDED", pod)
        elif kind in ("ADDED", "MODIFIED", "DELETED"):
            handle(kind, found)
        if set(running) != before:
            write_targets(targets, running.values())


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two listeners and some connections for each pod
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
