"""Memory of `canaryd run` with 3 and with 100 idle canaries, and what its imports cost.

Reads VmRSS and VmHWM of a real daemon (Linux). Exits with 1 when it needs more than 120 MB, or when a library is
loaded that must not be: scipy.stats alone costs about 0.7 s and 107 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys

from idle_daemon import idle, memory_mb

LIMIT_MB = 120.0
UNWANTED = ("scipy", "pandas", "matplotlib")
IMPORTS = {
    "an empty Python": "pass",
    "numpy": "import numpy",
    "everything that `canaryd run` imports": "import canaryd.daemon, canaryd.adapters.{}".format(
        ", canaryd.adapters.".join(("prometheus", "scrape", "envoy_file", "sqlite_store", "pools", "hooks", "log"))
    ),
}
PROBE = """\
import json, sys, time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([took, kb / 1024, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def imported(statement: str) -> tuple[float, float, list[str]]:
    """Best of three: seconds, MB, top-level modules."""
    runs: list[tuple[float, float, list[str]]] = []
    for _ in range(3):
        argv = [sys.executable, "-c", PROBE.format(statement=statement)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
        runs.append(json.loads(done.stdout))
    return min(runs)


def main() -> int:
    print(f"{'imports':<40} {'time':>9} {'memory':>9}")
    modules: list[str] = []
    for name, statement in IMPORTS.items():
        took, megabytes, modules = imported(statement)
        print(f"{name:<40} {took * 1e3:>6.0f} ms {megabytes:>6.0f} MB")
    found = [name for name in UNWANTED if name in modules]
    print(f"must not be loaded ({', '.join(UNWANTED)}): {', '.join(found) or 'none is'}")
    print(f"\n{'canaryd run':<40} {'now':>9} {'most':>9}")
    worst = 0.0
    for count in (3, 100):
        with idle(count, interval="2s", settle=6.0) as daemon:
            now, most = memory_mb(daemon.pid)
        worst = max(worst, most)
        print(f"{f'{count} idle canaries':<40} {now:>6.0f} MB {most:>6.0f} MB")
    print(f"limit {LIMIT_MB:g} MB")
    return 0 if worst <= LIMIT_MB and not found else 1


if __name__ == "__main__":
    sys.exit(main())
