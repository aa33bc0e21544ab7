"""Many services at once that canaryd looks after, and what people and tools do to them while it does."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import Bench
from bench.apps import virtual_service
from bench.load import Load
from release_scenes import NAMESPACE, Service, eventually, manifest

from canaryd.demo.processes import wait_until

STANDSTILL = 5  # services without an answer in the same second
LONG = os.environ.get("CANARYD_LONG") == "1"
STAYS = [{"weight": 20, "bake": "30m"}, {"weight": 50, "bake": "8s"}]  # a rollout that stays where it is
GOES = [{"weight": 20, "bake": "4s"}, {"weight": 50, "bake": "4s"}]
HOLDING: dict[str, Any] = {"steps": STAYS, "budget": {"share": "5%"}, "blindDeadline": "20m"}
# Errors alone decide here, and a few requests are enough: how sure to be on a busy machine is another test's subject.
ERRORS = {"name": "errors", "kind": "errors", "tolerance": "10pp", "margin": "40pp"}
GOING: dict[str, Any] = {**HOLDING, "steps": GOES, "budget": {"share": "50%"}, "metrics": [ERRORS]}


@dataclass
class Stage:
    """Services under one load."""

    bench: Bench
    services: dict[str, Service] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def put(self, *wanted: str, replicas: int = 2) -> None:
        """Services that run."""
        for name in wanted:
            self.services[name] = Service(self.bench, name, self.bench.start_app(name, replicas=replicas))
        for name in wanted:
            self[name].app.await_available()

    def gone(self, name: str, patience: float = 60) -> None:
        """Its Canary is there no more."""
        find = self.bench.client().find
        eventually(lambda: find("canaries", name, NAMESPACE) is None, f"canary {name} is gone", patience)

    def care_for(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Their Canaries; returns when all are in canaryd's care."""
        for name, spec in wanted.items():
            self.bench.client().apply(manifest(name, **spec))
        for name in wanted:
            self[name].adopted()

    def override(self, name: str, **word: Any) -> None:
        """What a person says with kubectl annotate."""
        text = f"canaryd.io/override={json.dumps(word)}"
        self.bench.kubectl("annotate", "canary", name, "-n", NAMESPACE, "--overwrite", text)

    def answered(self, name: str, action: str) -> dict[str, Any]:
        """status.lastOverride, when it is about this action."""

        def look() -> dict[str, Any]:
            last = dict(self[name].status().get("lastOverride") or {})
            return last if last.get("action") == action else {}

        return wait_until(look, f"{action} of {name} is answered", 15, every=0.2)

    def load(self, rps: float, *names: str) -> None:
        """So many requests a second for each of them."""
        load = self.bench.load(rps * len(names), *(f"{name}.{NAMESPACE}.svc.cluster.local" for name in names))
        load.await_requests(len(names))
        self.loads.append(load)

    def release(self, tag: str, *names: str, phase: str = "Progressing") -> None:
        """A new image for each of them at once; returns when all have come so far."""
        for name in names:
            self[name].app.set_image(f"demo/app:{tag}")
        for name in names:
            self[name].until(phase)

    def failures(self, name: str) -> list[Any]:
        """Requests of this service that were not answered with 200.

        Seconds in which requests to many services at once came back too late, because this machine stood still, tell
        nothing about one of them and do not count.
        """
        host = name if "." in name else f"{name}.{NAMESPACE}.svc.cluster.local"
        found = [f for load in self.loads for f in load.between().failures]
        late: dict[int, set[str]] = {}
        for failure in found:
            if failure.status == 0:
                late.setdefault(int(failure.at), set()).add(failure.authority)
        return [f for f in found if f.authority == host and (f.status or len(late[int(f.at)]) < STANDSTILL)]

    def tags(self, name: str) -> Counter[str]:
        """Answers by the image tag of the pod that gave them."""
        found: Counter[str] = Counter()
        for load in self.loads:
            for second in load.between().by_second.values():
                for (workload, tag, _), count in second.items():
                    if workload in (name, f"{name}-stable"):
                        found[tag] += count
        return found


@contextlib.contextmanager
def applied_again(bench: Bench, body: dict[str, Any], manager: str, every: float = 3.0) -> Iterator[list[int]]:
    """A tool that applies this manifest again and again; yields a list that holds how often so far."""
    over, count, client = threading.Event(), [0], bench.plane.new_client("admin")

    def work() -> None:
        while not over.is_set():
            client.apply(body, manager=manager)
            count[0] += 1
            over.wait(every)

    thread = threading.Thread(target=work, name=manager)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()
        client.close()


def plain_route(name: str) -> dict[str, Any]:
    return virtual_service(name, NAMESPACE)


def split_route(name: str, weight: int) -> dict[str, Any]:
    return virtual_service(name, NAMESPACE, {f"{name}-stable": 100 - weight, f"{name}-canary": weight})


def weights(bench: Bench, name: str) -> dict[str, int]:
    """Destination → weight, as the VirtualService has it now."""
    found = bench.client().get("virtualservices", name, NAMESPACE)
    return {to["destination"]["host"]: to.get("weight", 100) for to in found["spec"]["http"][0]["route"]}


def set_weight(bench: Bench, name: str, weight: int) -> None:
    """As somebody with kubectl patch would."""
    ops = [
        {"op": "replace", "path": "/spec/http/0/route/0/weight", "value": 100 - weight},
        {"op": "replace", "path": "/spec/http/0/route/1/weight", "value": weight},
    ]
    bench.kubectl("patch", "virtualservice", name, "-n", NAMESPACE, "--type=json", f"-p={json.dumps(ops)}")


def has_weight(bench: Bench, name: str, weight: int, patience: float = 5.0) -> None:
    wanted = {f"{name}-stable": 100 - weight, f"{name}-canary": weight}
    eventually(lambda: weights(bench, name) == wanted, f"{name} to have {wanted}", patience)
