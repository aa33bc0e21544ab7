"""How long a person waits for `canaryd --help`, in milliseconds and as a multiple of an empty Python.

Prints one JSON object; exits with 1 when the best run is above the limit: the best is what the program costs, the
median also holds what else the machine did. The multiple compares machines of different speed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

LIMIT_MS = 150.0
RUNS = 15

COMMANDS = {
    "empty": [sys.executable, "-c", "pass"],
    "help": [sys.executable, "-m", "canaryd", "--help"],
    "version": [sys.executable, "-m", "canaryd", "--version"],
    "status_help": [sys.executable, "-m", "canaryd", "status", "--help"],
}


def once(command: list[str]) -> float:
    """Wall time of one run in milliseconds."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    for command in COMMANDS.values():
        once(command)  # byte code and file cache
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):  # in turns, so that a busy moment hits all of them
        for name, command in COMMANDS.items():
            times[name].append(once(command))
    best = {name: min(values) for name, values in times.items()}
    report = {f"{name}_ms": round(value, 1) for name, value in best.items()}
    report["help_median_ms"] = round(statistics.median(times["help"]), 1)
    report["help_to_empty"] = round(best["help"] / best["empty"], 2)
    ok = best["help"] <= LIMIT_MS
    print(json.dumps({**report, "limit_ms": LIMIT_MS, "runs": RUNS, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
