"""The bench's own promises about traffic: weights reach the gateway, nothing is lost, and every request is counted."""

from __future__ import annotations

import time

from bench import Bench

from canaryd.demo.processes import wait_until

HOST = "split.shop.svc.cluster.local"


def test_new_weights_reach_every_request_soon_and_none_is_lost(mesh: Bench) -> None:
    old, new = mesh.app("split", replicas=2), mesh.app("split-b", "demo/app:v2", replicas=2)
    load = mesh.load(150, HOST)
    wait_until(lambda: load.between().by_workload["split"], "the first answers", timeout=60)
    for target, other in (("split-b", "split"), ("split", "split-b")) * 3:
        patched = time.time()
        path = "/spec/http/0/route/0/destination/host"
        body = [{"op": "test", "path": path, "value": other}, {"op": "replace", "path": path, "value": target}]
        mesh.client().patch("virtualservices", "split", body, kind="json")
        wait_until(lambda w=target: load.await_requests(150).share(workload=w) == 1.0, f"all requests on {target}", 30)
        print(f"all on {target} within {time.time() - patched:.1f} s (whole seconds are counted)")
    totals = load.stop()
    assert not totals.failures
    assert totals.requests > 1000
    old.delete()
    new.delete()
