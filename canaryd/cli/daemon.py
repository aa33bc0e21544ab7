"""`canaryd run`: hands over to the daemon."""

from __future__ import annotations

import click

from canaryd.cli.app import config_option
from canaryd.cli.session import Session, with_files


@click.command()
@config_option
@with_files
def run(session: Session) -> int:
    """Run the daemon until SIGTERM or Ctrl-C; it finishes what it does and leaves the weights as they are.

    \b
    Example:
      canaryd run --config /etc/canaryd/canaryd.yaml
    """
    path = session.require_config()
    from canaryd.daemon import main

    return main(path)
