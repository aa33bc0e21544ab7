"""CPU of `canaryd run` while nothing is rolled out, in percent of one core.

Counts the process's own CPU time over 20 s, ticks, inbox, heartbeat and documents included, with 3 canaries and with
100, at the default interval of 30 s, so the window holds at most one tick. Exits with 1 when 3 canaries cost more
than 1 %.
"""

from __future__ import annotations

import argparse
import sys
import time

from idle_daemon import cpu_seconds, idle

LIMIT = 1.0  # percent of one core, with 3 canaries


def share(canaries: int, seconds: float) -> float:
    """Percent of one core."""
    with idle(canaries) as daemon:
        began, before = time.monotonic(), cpu_seconds(daemon.pid)
        time.sleep(seconds)
        return 100 * (cpu_seconds(daemon.pid) - before) / (time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    print(f"{'canaries':>8} {'CPU':>8}   over {seconds:g} s")
    few = share(3, seconds)
    print(f"{3:>8} {few:>6.2f} %")
    print(f"{100:>8} {share(100, seconds):>6.2f} %")
    print(f"limit {LIMIT:g} % with 3 canaries")
    return 0 if few <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
