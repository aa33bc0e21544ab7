"""`make bench`: every benchmark of this folder, one after the other, so that they do not disturb each other.

Each says itself what it measures and what its limit is. The exit code is 1 when any of them missed its limit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDER = ("help_time", "update", "fleet", "memory", "idle", "decision_to_traffic", "sources", "traces")
HELPERS = ("run", "idle_daemon", "memory_cluster")
BY_HAND = ("cluster_peers", "cluster_scale")  # need the programs of tests/cluster, and many minutes


def names() -> list[str]:
    """The known order first, then whatever else lies here."""
    found = {path.stem for path in HERE.glob("*.py")} - {*HELPERS, *BY_HAND}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def main() -> int:
    missed = []
    for name in names():
        began = time.monotonic()
        print(f"── {name} {'─' * (72 - len(name))}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False)
        if done.returncode:
            missed.append(name)
        print(f"   {'MISSED ITS LIMIT' if done.returncode else 'ok'}, {time.monotonic() - began:.0f} s\n", flush=True)
    print(f"missed: {', '.join(missed)}" if missed else "all benchmarks met their limits")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
