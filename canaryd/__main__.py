"""`python -m canaryd`, the command `canaryd`, and `kubectl canary`. Never does more than start the command line."""

from __future__ import annotations

import sys

from canaryd.cli.app import run


def main() -> None:
    sys.exit(run())


def plugin() -> None:
    """`kubectl-canary`, which kubectl runs for `kubectl canary …`."""
    sys.exit(run(plugin=True))


if __name__ == "__main__":
    main()
