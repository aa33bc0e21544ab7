"""The annotation in which people say what should happen to a rollout: read, answered for, and added to. Pure.

`canaryd.io/override` holds one JSON object or a list of them. Whoever writes the annotation leaves it there, a GitOps
tool puts it back, and a manifest may carry it for years: a word is known by its id, or, without one, by what it says,
so that it is carried out once. Whatever cannot be carried out becomes a Refusal with a sentence, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from canaryd.errors import OverrideError
from canaryd.model import Action, Override

OVERRIDE = "canaryd.io/override"
MOST_BYTES = 8192  # of the annotation
MOST_WORDS = 20  # in it
REMEMBERED = 100  # answered words that are kept in mind besides those that still stand in the annotation

_KEYS = ("action", "revision", "reason", "by", "id", "at", "full")
_LONGEST = {"revision": 200, "reason": 500, "by": 200, "id": 200}  # characters
_HARMLESS = (Action.ABORT, Action.PAUSE)  # what may be said without naming the revision: it can only make it safer
_NOBODY = "somebody (annotation)"
_EXAMPLE = '{"action": "abort", "revision": "…", "reason": "…", "by": "…"}'


@dataclass(frozen=True, slots=True)
class Refusal:
    """A word that nobody can carry out, and why."""

    id: str
    action: str  # as it was written, "" where there is none
    sentence: str
    revision: str = ""
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an annotation says, in its order."""

    overrides: tuple[Override, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return (*(word.id for word in self.overrides), *(word.id for word in self.refusals))

    def without(self, answered: Collection[str]) -> Heard:
        """What has not been answered; `answered` holds marks."""
        return Heard(
            tuple(word for word in self.overrides if mark(word.id) not in answered),
            tuple(word for word in self.refusals if mark(word.id) not in answered),
        )


def mark(id_: str) -> str:
    """Twelve characters that stand for an id in the list of those answered."""
    return sha256(id_.encode(errors="replace")).hexdigest()[:12]


def heard(text: str | None, now: datetime) -> Heard:
    """What the annotation says, an id that comes twice once; `now` is when a word was said that does not tell."""
    if text is None or not text.strip():
        return Heard()
    if len(text.encode(errors="replace")) > MOST_BYTES:
        size = len(text.encode(errors="replace"))
        return _nothing_but(text, f"it has {size} bytes, {MOST_BYTES} are the most")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return _nothing_but(text, f"it is no JSON; right would be {_EXAMPLE}")
    items = said if isinstance(said, list) else [said]
    if len(items) > MOST_WORDS:
        return _nothing_but(text, f"it holds {len(items)} words, {MOST_WORDS} are the most")
    words: dict[str, Override | Refusal] = {}
    for item in items:
        word = _word(item, now)
        words.setdefault(word.id, word)
    return Heard(
        tuple(w for w in words.values() if isinstance(w, Override)),
        tuple(w for w in words.values() if isinstance(w, Refusal)),
    )


def remembered(before: Sequence[str], answered: Sequence[str], standing: Sequence[str]) -> tuple[str, ...]:
    """Marks of answered words, newest last: all that still stand in the annotation, and the latest of the others.

    `before` are marks; `answered` and `standing` are ids, of words answered now and of all words in the annotation.
    """
    marks = dict.fromkeys((*before, *map(mark, answered)))
    here = set(map(mark, standing))
    others = [m for m in marks if m not in here]
    kept = here.union(others[-REMEMBERED:])
    return tuple(m for m in marks if m in kept)


def added(text: str | None, word: Override, answered: Collection[str], now: datetime) -> str:
    """The annotation with one more word; words that wait for an answer stay before it, the answered go.

    Plain ASCII without characters that JSON writers escape differently. Raises OverrideError when there are too many.
    """
    waiting = heard(text, now).without(answered).overrides
    words = [_document(w) for w in (*waiting, word)]
    written = _ascii(words[0] if len(words) == 1 else words)
    if len(words) > MOST_WORDS or len(written) > MOST_BYTES:
        raise OverrideError(f"{len(waiting)} words wait for an answer already; is the daemon running?")
    return written


# ── one word ─────────────────────────────────────────────────────────────────────────────────────────────────


def _nothing_but(text: str, why: str) -> Heard:
    return Heard(refusals=(Refusal(_drawn(text), "", f"the annotation {OVERRIDE} is refused: {why}"),))


def _drawn(text: str) -> str:
    """The id of a word that brings none."""
    return f"said-{sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def _word(item: Any, now: datetime) -> Override | Refusal:
    drawn = _drawn(json.dumps(item, sort_keys=True))
    if not isinstance(item, Mapping):
        return Refusal(drawn, "", f"a word is refused: expected an object such as {_EXAMPLE}, found {_shown(item)}")
    texts = {key: _text(item.get(key), longest) for key, longest in _LONGEST.items()}
    wrong = _wrong(item, texts)
    known = {key: text or "" for key, text in texts.items()}
    id_ = known["id"] or drawn
    action = _text(item.get("action"), 64) or ""
    if wrong:
        sentence = f"{action or 'a word'} is refused: {wrong}"
        return Refusal(id_, action, sentence, known["revision"], known["by"], known["reason"])
    return Override(
        id=id_,
        action=Action(action),
        revision=known["revision"],
        by=known["by"] or _NOBODY,
        reason=known["reason"] or "no reason given",
        at=_time(item.get("at")) or now,
        full=item.get("full", False),
    )


def _wrong(item: Mapping[str, Any], texts: Mapping[str, str | None]) -> str:
    """Why it cannot be carried out; "" when it can."""
    unknown = [key for key in item if key not in _KEYS]
    if unknown:
        return f"{_shown(unknown[0])} is no key; the keys are {', '.join(_KEYS)}"
    if item.get("action") not in tuple(Action):
        return f"action is {_shown(item.get('action'))}; it must be one of {', '.join(Action)}"
    for key, text in texts.items():
        if text is None:
            return f"{key} must be one line of at most {_LONGEST[key]} readable characters"
    if not isinstance(item.get("full", False), bool):
        return f"full is {_shown(item['full'])}; it must be true or false"
    if item.get("at") is not None and _time(item["at"]) is None:
        return f"at is {_shown(item['at'])}; it must be a time with its zone, such as 2026-01-31T12:00:00Z"
    if not texts["revision"] and item["action"] not in _HARMLESS:
        return "revision is missing; without it the word could hit another release than the one that was meant"
    return ""


def _text(value: Any, longest: int) -> str | None:
    """One readable line; "" where nothing was given, None where it is something else."""
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= longest and value.isprintable():
        return value.strip()
    return None


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC) if time.tzinfo is not None else None
    except (TypeError, ValueError, OverflowError):
        return None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _document(word: Override) -> dict[str, Any]:
    out = {"action": word.action.value, "revision": word.revision, "reason": word.reason, "by": word.by, "id": word.id}
    return {**out, "at": word.at.astimezone(UTC).isoformat(), **({"full": True} if word.full else {})}


def _ascii(value: Any) -> str:
    """JSON of plain ASCII; what some writers escape for HTML is escaped here, so that all of them agree on the text."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&\x7f":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
