"""`canaryd help`: what --help says, topics, and the whole reference as docs/cli.md has it."""

from __future__ import annotations

import click

from canaryd.cli.app import COMMANDS, app
from canaryd.cli.exits import Exit, NotFoundError

TOPICS = ("exit-codes", "kubernetes", "reference")

KUBERNETES = """\
Which cluster. A command speaks with a cluster when --context, --kubeconfig, -n or -A is given, when $CANARYD_CONTEXT
names a context, when it is typed as `kubectl canary …`, or when the configuration says `mode: cluster`; --config and
--state on the command line go before $CANARYD_CONTEXT. Where and who we are is read as kubectl does: --kubeconfig,
$KUBECONFIG, ~/.kube/config, the ServiceAccount of the pod. Put the command kubectl-canary on the PATH, and kubectl
knows it; flags come behind its name: kubectl canary status -n shop --context prod.

Names. api, canary/api, canary.canaryd.io/api, or shop/api with the namespace; -n is that of the context by default, -A
are all. `-o name` prints what kubectl understands: canaryd get -o name | xargs kubectl describe.

What people say. A rollout begins when the Deployment's pod template changes (kubectl set image), not by canaryd start.
promote, abort, pause, resume, retry and skip write the annotation canaryd.io/override and wait until the daemon has
answered in status.lastOverride. Who may do that is RBAC: the verb patch on canaries (Role canaryd-operator); looking
needs get, list and watch (Role canaryd-viewer). `by` is kept with the word and is for people to read: it is the user
that the API server knows, or what --by says, and permits nothing.

Whether a daemon runs is seen by the Lease canaryd in the namespace canaryd ($CANARYD_NAMESPACE names another one).
canaryd doctor says what is missing: verbs, definitions, Deployments, Services, routes, counters.
canaryd delete gives all requests back to the plain Deployment first; --orphan leaves everything as it is."""


@click.command(name="help")
@click.argument("topic", required=False)
@click.pass_context
def show_help(ctx: click.Context, topic: str | None) -> int:
    """Help on a command or a topic: exit-codes, kubernetes, or reference (everything, as Markdown).

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
    if topic == "kubernetes":
        return KUBERNETES
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
    parts += ["## In a cluster", _block(KUBERNETES)]
    parts += ["## Exit codes", f"| code | meaning |\n|---|---|\n{codes}"]
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```\n{text}\n```"
