"""Where further checks plug in: the CHECKS of the modules in FURTHER are made in both modes, after the others.

A module there has `CHECKS: tuple[Check[Site], ...]`; each looks at a Site and yields findings, or nothing where what it
is about is not configured. It is imported when the doctor is asked, so it may be heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from canaryd.doctor.findings import Check
from canaryd.doctor.traffic import Subject

if TYPE_CHECKING:
    from canaryd.config import Settings
    from canaryd.kube.client import KubeClient

FURTHER: tuple[str, ...] = ("canaryd.doctor.notify",)  # module names, in the order of their checks


@dataclass(frozen=True)
class Site:
    """What further checks look at, with a cluster and without one."""

    settings: Settings | None  # of the daemon; None where they are not at hand, as beside a cluster
    subjects: Sequence[Subject]  # the Canaries asked about, with their workloads and sources
    at: datetime
    client: KubeClient | None = None  # None without a cluster


def checks(modules: Sequence[str] = FURTHER) -> list[Check[Site]]:
    """The checks of all modules that are named."""
    return [check for name in modules for check in cast(Sequence[Check[Site]], importlib.import_module(name).CHECKS)]
