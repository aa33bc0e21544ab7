"""What all Workloads promise, over Deployments on the real controllers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

pytest.register_assert_rewrite("workload_promises")
from bench import Bench  # noqa: E402
from bench.apps import deployment  # noqa: E402
from deployments_rig import NAMESPACE, Made, Rig, with_deployment  # noqa: E402
from workload_promises import *  # noqa: E402, F403
from workload_promises import BLUE, GREEN, Scene  # noqa: E402

from canaryd.demo.processes import wait_until  # noqa: E402
from canaryd.deployments import pods  # noqa: E402
from canaryd.model import Phase, RolloutState, WorkloadView  # noqa: E402


class InDeployments:
    """workload_promises.Scene."""

    def __init__(self, one: Rig) -> None:
        self._one = one
        self.workloads, self.canary = one.workloads, one.canary
        state = replace(one.state, number=1, rollout="shop-1", revision=one.revision(), weight=5, step=0)
        progressing = replace(state, phase=Phase.PROGRESSING, started=datetime.now(UTC))
        self.states = (progressing, replace(progressing, phase=Phase.PAUSED, resume_to=Phase.PROGRESSING))

    def view(self, state: RolloutState) -> WorkloadView:
        self._one.caught_up()
        return self.workloads.view(self.canary, state)

    def disturb(self) -> str:
        self._one.app.scale(0)
        self._one.caught_up()
        wait_until(lambda: not pods.of(GREEN, self._one.eyes.pods.items(NAMESPACE)), "its pods to be seen to go", 30)
        return GREEN


@pytest.fixture
def scene(rig: Made, cluster: Bench) -> Iterator[Scene]:
    one = rig(GREEN)
    one.canary = with_deployment(one, stable=BLUE)
    one.state = replace(one.state, stable=BLUE)
    one.admin.create(deployment(BLUE, "demo/app:v1", 2))
    one.settle(lambda: one.view().ready, "both")
    yield InDeployments(one)
    one.admin.delete("deployments", BLUE)
