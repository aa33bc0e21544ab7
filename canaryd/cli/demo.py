"""`canaryd demo`: hands over to the show."""

from __future__ import annotations

import importlib
from pathlib import Path

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running afterwards, to play with.")
@click.option(
    "--rate", type=click.IntRange(10, 5000), default=300, show_default=True, help="Requests/s to each service."
)
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True, help="Where it writes."
)
def demo(keep: bool, rate: int, directory: Path) -> int:
    """Three releases on real traffic, side by side, in two minutes.

    A good release reaches 100 %; one with errors and one that is only slow are rolled back. Everything runs on
    this machine: Envoy, Prometheus when it is installed, small services, and canaryd. 0 only if all three end as
    they should.

    \b
    Examples:
      canaryd demo
      canaryd demo --keep       then, elsewhere: canaryd status -w --config .demo/canaryd.yaml
    """
    code: int = importlib.import_module("canaryd.demo.show").main(keep=keep, rate=rate, directory=directory)
    return code
