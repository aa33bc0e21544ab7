"""The bench by hand: brings it up, says how to get in, and ends it all at Ctrl-C.

From the clone's root: PYTHONPATH=tests/cluster:. python -m bench [control-plane|cluster|mesh|prometheus]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import Bench, netns
from bench.bench import obstacle


def main() -> int:
    """Exit status: 2 when there can be no bench here."""
    layers: dict[str, Callable[[Bench], object]] = {
        "control-plane": Bench.start_control_plane,
        "cluster": Bench.start_cluster,
        "mesh": Bench.start_mesh,
        "prometheus": Bench.start_prometheus,
    }
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("layer", nargs="?", default="prometheus", choices=layers)
    parser.add_argument("--directory", type=Path, help="for logs and kubeconfigs (default: a temporary one)")
    options = parser.parse_args()
    if reason := obstacle():
        print(reason, file=sys.stderr)
        return 2
    if netns.needs_new_process():
        argv = netns.command([sys.executable, "-m", "bench", *sys.argv[1:]])
        os.execvp(argv[0], argv)
    netns.enter()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    directory = options.directory or Path(tempfile.mkdtemp(prefix="bench-"))
    started = time.monotonic()
    with Bench(directory) as bench:
        layers[options.layer](bench)
        print(f"{options.layer} is up after {time.monotonic() - started:.1f} s; Ctrl-C ends it")
        print(f"  enter:      nsenter --target {os.getpid()} --net --user --preserve-credentials bash")
        print(f"  kubeconfig: export KUBECONFIG={bench.kubeconfig()}")
        print(f"  logs:       {directory / 'logs'}", flush=True)
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
