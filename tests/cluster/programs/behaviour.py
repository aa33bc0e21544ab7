"""What an image's tag says about how its pods behave: "v2-err5-slow30" fails 5 % of requests and takes 30 ms longer.

Pure: a tag in, numbers out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WORD = re.compile(r"(err|slow|tail|start|crash|oom|hang|mem|neverready)(\d+(?:\.\d+)?)?")


@dataclass(frozen=True)
class Behaviour:
    """The words of a tag, read. Words it does not know (v2, blue, …) only tell versions apart."""

    errors: float = 0.0  # share of requests answered 500, 0..1 (err5 = 5 %)
    slower_ms: float = 0.0  # added to each answer (slow30)
    tail: float = 0.0  # share of requests that take 2 s longer, 0..1 (tail1 = 1 %)
    start_s: float = 0.2  # seconds from the container's start to its first readiness (start8)
    never_ready: bool = False
    lives_s: float | None = None  # it ends by itself so long after each start (crash20: ready, dies after 20 s)
    crash_reason: str = ""  # "Error" (crash, crashN) or "OOMKilled" (oom, oomN; without a number after 3 s)
    exit_code: int = 0
    hangs: bool = False  # keeps running for 20 s after it was asked to end, or for its grace period when shorter
    memory_mib: float = 64.0  # working set that it reports (mem512)


def read(tag: str) -> Behaviour:
    """`crash` without a number dies at once and is never ready."""
    given: dict[str, float | bool | str | None] = {}
    for word in tag.split("-"):
        found = WORD.fullmatch(word)
        if found is None:
            continue
        name, number = found[1], float(found[2]) if found[2] else None
        match name:
            case "err":
                given["errors"] = (number or 0.0) / 100
            case "slow":
                given["slower_ms"] = number or 0.0
            case "tail":
                given["tail"] = (number or 0.0) / 100
            case "start":
                given["start_s"] = number or 0.0
            case "mem":
                given["memory_mib"] = number or 0.0
            case "neverready":
                given["never_ready"] = True
            case "hang":
                given["hangs"] = True
            case "crash":
                given |= {"lives_s": number or 0.5, "crash_reason": "Error", "exit_code": 1}
                given["never_ready"] = number is None
            case "oom":
                given |= {"lives_s": number or 3.0, "crash_reason": "OOMKilled", "exit_code": 137}
    return Behaviour(**given)  # type: ignore[arg-type]
