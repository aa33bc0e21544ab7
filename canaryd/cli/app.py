"""`canaryd` itself: global options, the table of commands, and how every error reaches a person.

Imports nothing but click, so that `canaryd --help` is there at once; a command's module is imported when it is typed.
Never shows a traceback unless CANARYD_DEBUG=1 asks for it.
"""

from __future__ import annotations

import codecs
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

import canaryd
from canaryd.cli.exits import Exit, exit_of, sentence_of
from canaryd.errors import CanarydError

# name -> module, attribute, one line of help; in the order in which they are listed
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "run": ("daemon", "run", "Run the daemon."),
    "demo": ("demo", "demo", "Three releases on real traffic, side by side, in two minutes."),
    "validate": ("validate", "validate", "Check Canary documents and the configuration."),
    "start": ("say", "start", "Say which revision should run: begin a rollout."),
    "status": ("status", "status", "Show where every canary is, or one with its evidence."),
    "get": ("get", "get", "List canaries, short."),
    "explain": ("explain", "explain", "Say why the latest decision, or an earlier one, was made."),
    "report": ("report", "report", "Write down one rollout: what happened, why, what now."),
    "traces": ("traces", "traces", "Show what traces say about a rollout."),
    "promote": ("say", "promote", "Take the next step now, or with --full go all the way."),
    "abort": ("say", "abort", "Roll back now."),
    "pause": ("say", "pause", "Keep the weight where it is."),
    "resume": ("say", "resume", "Go on after a pause."),
    "retry": ("say", "retry", "Try a rolled back revision again."),
    "skip": ("say", "skip", "Promote without further judging."),
    "wait": ("wait", "wait", "Wait until a rollout ends."),
    "delete": ("delete", "delete", "Delete a Canary of a cluster; the plain Deployment is brought back."),
    "doctor": ("doctor", "doctor", "Look for what is missing or not as it should be, and say what to do."),
    "analyze": ("analyze", "analyze", "Judge a past window as the daemon would have done."),
    "replay": ("replay", "replay", "Decide a stored rollout once more from Prometheus and the records, and compare."),
    "placebo": ("placebo", "placebo", "How often would canaries be rolled back that cannot be worse?"),
    "power": ("power", "power", "Say before a release what will be found, and in how long."),
    "null-simulation": (
        "null_simulation",
        "null_simulation",
        "Check by simulation how often good canaries are rolled back.",
    ),
    "manifests": ("manifests", "manifests", "Print what a cluster needs."),
    "health": ("health", "health", "Ask a running canaryd whether it is well."),
    "completion": ("completion", "completion", "Print a script that completes commands, options and canary names."),
    "help": ("help", "show_help", "Help on a command or a topic, such as exit-codes or kubernetes."),
}


@dataclass
class Options:
    """Global options, given before or after the command."""

    config: str | None = None
    state: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    namespace: str | None = None
    all_namespaces: bool = False
    plugin: bool = False  # typed as `kubectl canary`

    @property
    def cluster(self) -> bool:
        """A cluster was asked for in so many words."""
        return bool(self.context or self.kubeconfig or self.namespace or self.all_namespaces)


class Commands(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"canaryd.cli.{module}"), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


def _remember(ctx: click.Context, param: click.Parameter, value: str | bool | None) -> None:
    if value is not None and value is not False and param.name is not None:
        setattr(ctx.ensure_object(Options), param.name, value)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`; understood before and after the command's name."""
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(),
        expose_value=False,
        callback=_remember,
        help="Configuration; default $CANARYD_CONFIG, config/canaryd.yaml, /etc/canaryd/canaryd.yaml.",
    )(command)


def global_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--state`, and which cluster; understood before and after the command's name."""
    kept: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for option in (
        click.option("-A", "--all-namespaces", is_flag=True, help="The Canaries of all namespaces.", **kept),
        click.option("-n", "--namespace", metavar="N", help="Of a cluster; default that of the context.", **kept),
        click.option("--kubeconfig", metavar="FILE", type=click.Path(), help="Which clusters there are.", **kept),
        click.option("--context", metavar="C", help="Of the kubeconfig: the Canaries of that cluster.", **kept),
        click.option(
            "--state",
            metavar="PATH",
            type=click.Path(),
            help="State file; with it no configuration is needed.",
            **kept,
        ),
    ):
        command = option(command)
    return config_option(command)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: canaryd help exit-codes. Every command has an example: canaryd COMMAND --help.",
)
@global_options
@click.version_option(canaryd.__version__, "--version", message="canaryd %(version)s")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Canary analysis and progressive delivery that says how sure it is.

    \b
    Examples:
      canaryd demo                           see it work, two minutes
      canaryd start api --revision 7f3c      begin a rollout
      canaryd status -w                      watch
      canaryd explain api                    why the latest decision
      canaryd abort api --reason "pager"     roll back now
      kubectl canary status -n shop          the same in a cluster: canaryd help kubernetes
    """
    ctx.ensure_object(Options)


# ── from errors to people ────────────────────────────────────────────────────────────────────────────────────

_PLAIN = {
    **dict.fromkeys("−–—", "-"),
    **dict.fromkeys("●○◐◔◌☞", "*"),
    **{"→": "->", "…": "...", "▇": "#", "░": ".", "✓": "ok", "✕": "x", "‖": "=", "≠": "!=", "·": "|"},
    **{"▲": "^", "▼": "v", "▶": ">", "◀": "<", "├": "|", "└": "`", "─": "-", "│": "|", "“": '"', "”": '"'},
}


def _replace(error: UnicodeError) -> tuple[str, int]:
    """For terminals that know only ASCII: the nearest plain text, never a lost minus sign."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def _complain(text: str) -> None:
    click.echo(f"canaryd: {text}", err=True)


def run(args: Sequence[str] | None = None, *, plugin: bool = False) -> int:
    """Carry out one command line; returns the exit code. Errors raised on purpose become one sentence on stderr.

    `plugin`: it was typed as `kubectl canary`, so it is about the cluster that kubectl speaks with.
    """
    codecs.register_error("canaryd", _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="canaryd")
    debug = os.environ.get("CANARYD_DEBUG", "") not in ("", "0")
    try:
        name = "kubectl canary" if plugin else "canaryd"
        code = app.main(args=args, prog_name=name, standalone_mode=False, obj=Options(plugin=plugin))
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except CanarydError as error:
        if debug:
            raise
        _complain(sentence_of(error))
        return exit_of(error)
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:  # the last line of defence: one sentence instead of a traceback
        if debug:
            raise
        _complain(f"internal error: {type(error).__name__}: {error}; CANARYD_DEBUG=1 shows where")
        return Exit.INTERNAL
    return int(code or 0)
