"""`canaryd completion`: the script that a shell sources."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from canaryd.cli.app import app
from canaryd.cli.exits import Exit


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that completes commands, options and canary names.

    \b
    Examples:
      source <(canaryd completion bash)
      canaryd completion zsh > ~/.zfunc/_canaryd
      canaryd completion fish > ~/.config/fish/completions/canaryd.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the three are click's own
    made = kind(app, {}, "canaryd", "_CANARYD_COMPLETE")
    click.echo(kind.source_template % made.source_vars())
    return Exit.OK
