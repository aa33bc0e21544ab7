"""What a person says: start, promote, abort, pause, resume, retry, skip.

A word goes into the state with who, why and the revision it is meant for; the daemon answers it, usually within a
second, and the answer is printed. Never moves anything itself.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.explain import facts
from canaryd.cli.session import Session, name_argument, now, with_session
from canaryd.errors import OverrideError
from canaryd.model import Action, Override, Phase, Release, RolloutState

LOOK = 0.02  # seconds between two looks for the answer
LONGEST = 500  # characters of a reason
_REVISION = re.compile(r"[A-Za-z0-9][-._:/@+A-Za-z0-9]{0,199}")


def _word(value: str, what: str, longest: int) -> str:
    """One line of text that is safe to keep and to show. Raises UsageError."""
    text = value.strip()
    if not text or len(text) > longest or render.is_deceptive(text) or "\n" in text:
        raise UsageError(f"--{what} must be one line of 1 to {longest} readable characters")
    return text


def _revision(value: str) -> str:
    if not _REVISION.fullmatch(value):
        raise UsageError(f'"{render.clean(value, 60)}" is not a revision; use letters, digits and -._:/@+, at most 200')
    return value


@dataclass(frozen=True)
class Outcome:
    """What came of a word."""

    code: Exit
    answer: str  # accepted, refused, recorded
    sentence: str


def _report(outcome: Outcome, said: dict[str, Any], form: str) -> int:
    if form != "table":
        output.emit({**said, "answer": outcome.answer, "sentence": outcome.sentence}, form)
    elif outcome.code is Exit.OK:
        click.echo(render.clean(outcome.sentence, 2000))
    else:
        click.echo(f"canaryd: {render.clean(outcome.sentence, 2000)}", err=True)
    return outcome.code


def _listen(session: Session, name: str, within: float, heard: Callable[[], Outcome | None]) -> Outcome | None:
    """Look until the state says what came of it, at most so many seconds."""
    deadline, mark = time.monotonic() + within, -1
    while True:
        new = session.mark()
        if new != mark:
            mark, outcome = new, heard()
            if outcome is not None:
                return outcome
        if time.monotonic() >= deadline:
            return None
        time.sleep(LOOK)


def _unanswered(session: Session, name: str, what: str, within: float) -> Outcome:
    missing = session.absent(now(), name)
    if missing:
        return Outcome(
            Exit.UNAVAILABLE, "recorded", f"{what} is recorded; {missing}: it will be carried out when it runs."
        )
    shows = f"canaryd status {session.plain(name)} shows when it is"
    sentence = f"{what} is recorded but not answered within {within:g} s; {shows}."
    return Outcome(Exit.TRY_AGAIN, "recorded", sentence)


def _patience(session: Session, name: str, within: float) -> float:
    """Nobody answers when nobody is there: look once."""
    return 0.0 if session.absent(now(), name) else within


def _within(session: Session, given: float | None) -> float:
    return session.answers_within if given is None else given


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every word has."""
    by = click.option(
        "--by", metavar="WHO", default=None, help="Who says it; default user@host, in a cluster its user."
    )
    within = click.option(
        "--answer-within",
        "given",
        type=click.FloatRange(0, 3600),
        metavar="SECONDS",
        help="How long to wait for the answer; default 1, in a cluster 15.",
    )
    return global_options(name_argument(by(within(output.format_option("table", "json", "yaml")(command)))))


@click.command()
@_common
@click.option("--revision", required=True, metavar="R", help="The revision that should run.")
@with_session
def start(session: Session, name: str, revision: str, by: str | None, given: float | None, form: str) -> int:
    """Say which revision should run: begin a rollout.

    The revision that is stable already ends a rollout instead (a revert). A revision that was rolled back is not tried
    again by this; canaryd retry does that. In a cluster the Deployment's pod template says it: kubectl set image.

    \b
    Example:
      canaryd start api --revision 7f3c
    """
    name, revision = session.name(name), _revision(revision)
    session.must_start_by_command(name)
    within = _within(session, given)
    by = _word(by or session.who(), "by", 200)
    before, at = session.store.load(name), now()
    if before.release is None or before.release.revision != revision:
        session.store.release(name, Release(revision=revision, by=by, at=at))
    said = {"canary": name, "action": "start", "revision": revision, "by": by}
    known = _nothing_new(name, revision, before.state)
    if known is not None:
        return _report(known, said, form)

    def heard() -> Outcome | None:
        state = session.store.load(name).state
        if state is None:
            return None
        if state.revision == revision or (state.stable_revision == revision and not state.phase.is_active):
            began = session.records(name, limit=1, kinds=("start", "restart", "revert"))
            sentence = began[0].sentence if began and began[0].at >= at else state.sentence
            return Outcome(Exit.OK, "accepted", sentence or f"{name}: revision {revision} is under way.")
        if state.phase is Phase.PROMOTING:
            return Outcome(
                Exit.OK,
                "recorded",
                f"{name}: the promotion of {state.revision} is finished first, then {revision} begins.",
            )
        for record in session.records(name, limit=1, kinds=("refused",)):
            if record.at >= at:
                return Outcome(Exit.REFUSED, "refused", record.sentence)
        return None

    outcome = _listen(session, name, _patience(session, name, within), heard)
    return _report(outcome or _unanswered(session, name, f"revision {revision} for {name}", within), said, form)


def _nothing_new(name: str, revision: str, state: RolloutState | None) -> Outcome | None:
    """The answer for a revision that has been rolled out before, is under way, or is stable; None for a new one."""
    if state is None:
        return None
    if state.revision == revision and state.phase in (Phase.ROLLED_BACK, Phase.IDLE):
        what = "was rolled back" if state.phase is Phase.ROLLED_BACK else "was ended"
        sentence = f'{name}: revision {revision} {what}; canaryd retry {name} --reason "…" tries it again.'
        return Outcome(Exit.REFUSED, "refused", sentence)
    if state.revision == revision:
        return Outcome(Exit.OK, "accepted", f"{name}: revision {revision} is {state.phase} already. {state.sentence}")
    if state.stable_revision == revision and not state.phase.is_active:
        return Outcome(Exit.OK, "accepted", f"{name}: revision {revision} is stable already.")
    return None


def _say(session: Session, name: str, action: Action, options: dict[str, Any]) -> int:
    """Write the word, listen for the answer, report it."""
    name, form, within = session.name(name), options["form"], _within(session, options["given"])
    plain = session.plain(name)
    stored = session.store.load(name)
    revision = options["revision"] or (stored.state.revision if stored.state else "")
    if not revision:
        raise OverrideError(f"{plain} has no rollout to {action}; {session.beginning(name)} begins one.")
    reason = options["reason"] or _ask_reason(action)
    override = Override(
        id=uuid.uuid4().hex,
        action=action,
        revision=_revision(revision),
        by=_word(options["by"] or session.who(), "by", 200),
        reason=_word(reason, "reason", LONGEST),
        at=now(),
        full=bool(options.get("full")),
    )
    if "yes" in options and not options["yes"] and (action is not Action.PROMOTE or override.full):
        _ask_leave(session, name, override)
    session.say(name, override)

    def heard() -> Outcome | None:
        answer = session.answer(name, override.id)
        if answer is None:
            return None
        code, word = (Exit.OK, "accepted") if answer.accepted else (Exit.REFUSED, "refused")
        return Outcome(code, word, answer.sentence)

    said = {
        "canary": plain,
        "id": override.id,
        "action": action.value,
        "revision": override.revision,
        "full": override.full,
    }
    said |= {"by": override.by, "reason": override.reason}
    outcome = _listen(session, name, _patience(session, name, within), heard)
    return _report(outcome or _unanswered(session, name, f"{action} of {plain}", within), said, form)


def _ask_reason(action: Action) -> str:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f'{action} needs a reason that is kept with it: --reason "…"')
    text: str = click.prompt(f"Why {action}? (kept with the decision)", err=True)
    return text


def _ask_leave(session: Session, name: str, override: Override) -> None:
    """On a terminal, what changes much is asked again, with the evidence it overrules."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    what = {
        Action.ABORT: "Roll back now",
        Action.SKIP: "Promote without further judging",
        Action.PROMOTE: "Promote all the way to 100 %",
    }[override.action]
    body = session.body(name)
    click.echo(
        f"{session.plain(name)} {override.revision}: {facts(body)}. {render.clean(body.get('sentence'), 600)}", err=True
    )
    click.confirm(f"{what}?", abort=True, err=True)


def _action(action: Action, doc: str, *, asks: bool = False, full: bool = False) -> click.Command:
    """The command of one word."""

    def command(session: Session, name: str, **options: Any) -> int:
        return _say(session, name, action, options)

    made = with_session(command)
    if asks:
        made = click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal either.")(made)
    if full:
        made = click.option("--full", is_flag=True, help="All the way to 100 %, not one step.")(made)
    made = click.option(
        "--revision", metavar="R", help="Only if this is the canary's revision; default the current one."
    )(made)
    made = click.option("--reason", metavar="WHY", help="Kept with the decision; asked for on a terminal.")(made)
    return click.command(name=action.value, help=doc)(_common(made))


promote = _action(
    Action.PROMOTE,
    """Take the next step now, or with --full go all the way.

    The answer says which evidence this overrules; it is kept with who and why.

    \b
    Examples:
      canaryd promote api --reason "looked at the graphs"
      canaryd promote api --full --reason "hotfix" --yes
    """,
    asks=True,
    full=True,
)
abort = _action(
    Action.ABORT,
    """Roll back now: all requests go to stable again.

    \b
    Example:
      canaryd abort api --reason "customers complain"
    """,
    asks=True,
)
pause = _action(
    Action.PAUSE,
    """Keep the weight where it is until resumed; safety rules stay at work.

    \b
    Example:
      canaryd pause api --reason "lunch"
    """,
)
resume = _action(
    Action.RESUME,
    """Go on after a pause.

    \b
    Example:
      canaryd resume api --reason "back"
    """,
)
retry = _action(
    Action.RETRY,
    """Try a rolled back revision again, from the first step and with fresh evidence.

    \b
    Example:
      canaryd retry api --reason "the database was at fault"
    """,
)
skip = _action(
    Action.SKIP,
    """Promote without further judging; whoever says it takes the responsibility.

    \b
    Example:
      canaryd skip api --reason "tested by hand"
    """,
    asks=True,
)
