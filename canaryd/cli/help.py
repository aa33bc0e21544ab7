"""`canaryd help`: what --help says, topics, and the whole reference as docs/cli.md has it."""

from __future__ import annotations

import click

from canaryd.cli.app import COMMANDS, app
from canaryd.cli.exits import Exit, NotFoundError

TOPICS = ("exit-codes", "reference")


@click.command(name="help")
@click.argument("topic", required=False)
@click.pass_context
def show_help(ctx: click.Context, topic: str | None) -> int:
    """Help on a command or a topic: exit-codes, or reference (everything, as Markdown).

    \b
    Examples:
      canaryd help exit-codes
      canaryd help promote
    """
    click.echo(_text(ctx.find_root(), topic))
    return Exit.OK


def _text(root: click.Context, topic: str | None) -> str:
    if topic is None:
        return app.get_help(root)
    if topic == "exit-codes":
        return "\n".join(f"{code:>4}  {code.meaning}" for code in Exit)
    if topic == "reference":
        return reference().rstrip("\n")
    if topic in COMMANDS:
        return _command(root, topic)
    raise NotFoundError(f'no help on "{topic[:60]}"; there is: {", ".join((*TOPICS, *COMMANDS))}')


def _command(root: click.Context, name: str) -> str:
    command = app.get_command(root, name)
    assert command is not None
    context = click.Context(command, parent=root, info_name=name, terminal_width=100, max_content_width=100)
    return command.get_help(context)


def reference() -> str:
    """docs/cli.md: every command with its help, and the exit codes."""
    root = click.Context(
        app, info_name="canaryd", terminal_width=100, max_content_width=100, help_option_names=["-h", "--help"]
    )
    parts = ["# The command line", "Written by `canaryd help reference`; a test compares.", _block(app.get_help(root))]
    for name in COMMANDS:
        parts += [f"## canaryd {name}", _block(_command(root, name))]
    codes = "\n".join(f"| {code.value} | {code.meaning} |" for code in Exit)
    parts += ["## Exit codes", f"| code | meaning |\n|---|---|\n{codes}"]
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```\n{text}\n```"
