"""`python -m canaryd` and the command `canaryd`. Never does more than start the command line."""

from __future__ import annotations

import sys

from canaryd.cli.app import run


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
