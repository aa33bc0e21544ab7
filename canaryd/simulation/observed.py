"""What a real service's past says of its traffic: readings in, `power.Traffic` out. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from canaryd import counts
from canaryd.errors import SourceError
from canaryd.model import Reading
from canaryd.policy import Spec
from canaryd.simulation.power import Traffic
from canaryd.stats import evidence
from canaryd.stats.evidence import MOST_PODS, Batch, Item, Rules, noise

LEAST = 10  # intervals


def learn(spec: Spec, readings: Sequence[Reading], canary_pods: int | None = None) -> Traffic:
    """Rate, pods, failures, durations and dispersion of stable over the readings, learnt as the daemon learns them.

    Raises SourceError when there are fewer than ten intervals with requests.
    """
    classes = counts.Classes.of(spec)
    stretches = [counts.stretch(a, b, classes) for a, b in pairwise(readings) if b.at > a.at]
    served = [s for s in stretches if s.stable.requests > 0]
    if len(served) < LEAST:
        raise SourceError(f"{len(served)} intervals with requests to stable in the past; {LEAST} are needed")
    edges = next((s.edges for s in served if len(s.edges)), np.zeros(0))
    latest = {pod: n for s in stretches[-LEAST:] for pod, n in zip(s.stable.pods, s.stable.pod_requests, strict=True)}
    names = tuple(sorted({pod for s in stretches for pod in s.stable.pods}))[:MOST_PODS]
    arrays, rules = evidence.empty(edges, len(spec.steps), len(names)), Rules.of(spec)
    for s in stretches:
        item = Item(arrays, edges, rules, s, weight=0.0, scored=False, stable_pods=names)
        (arrays,) = evidence.update([item])
    batch = Batch([arrays], [edges], [rules])
    phi0, tau2, _ = noise(batch)
    seconds = sum(s.seconds for s in stretches)
    pods = max(sum(bool(n > 0) for n in latest.values()), 1)
    long = arrays["long"]
    rates = (long[0] + 0.5) / (long[1] + 1)
    return Traffic(
        rps=sum(s.stable.requests for s in stretches) / seconds,
        stable_pods=min(pods, MOST_PODS),
        canary_pods=min(canary_pods or pods, MOST_PODS),
        edges=edges,
        rates=np.clip(rates, 1e-9, 1 - 1e-9),
        clustering=phi0[0],
        between_pods=tau2[0],
        source=f"the last {seconds / 60:.0f} min",
    )
