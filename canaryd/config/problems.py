"""What the schema found wrong → where it stands in the text, and words for the person who wrote it.

Every message names the value and what would be right; none is the validator's own. Pure: texts and documents in,
problems out.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from canaryd.config.yamltext import Document, Node, extended
from canaryd.errors import Problem
from canaryd.policy import MisfitError, said

MAX_PROBLEMS = 50  # of one document; more help nobody

Path = tuple[str | int, ...]
T = TypeVar("T", bound=BaseModel)


def validated(model: type[T], document: Document, file: str) -> tuple[T | None, list[Problem]]:
    """The document as `model`, and everything that is wrong with it, in the order of the lines; one or the other."""
    problems = [Problem(file, m.line, m.key, m.message) for m in document.mistakes]
    value: T | None = None
    if document.root is not None:
        try:
            value = model.model_validate_json(json.dumps(document.root.value), by_alias=True, by_name=False)
        except ValidationError as e:
            told = {(p.line, p.key) for p in problems}  # a value with a mistake in its text needs no second one
            problems += [p for p in _problems(e, model, document.root, file) if (p.line, p.key) not in told]
    problems = list(dict.fromkeys(sorted(problems, key=lambda p: p.line)))
    if len(problems) > MAX_PROBLEMS:
        rest = Problem(file, document.line, "", f"{len(problems) - MAX_PROBLEMS} more problems in this document")
        problems = [*problems[:MAX_PROBLEMS], rest]
    return (None if problems else value), problems


def problem_at(root: Node, file: str, path: Path, message: str) -> Problem:
    """A problem with the value at `path`; with its nearest parent when the document does not write it out."""
    line, key, _ = _located(root, path)
    return Problem(file, line, key, message)


def _problems(error: ValidationError, model: type[BaseModel], root: Node, file: str) -> list[Problem]:
    found: list[Problem] = []
    for finding in error.errors(include_url=False):
        cause = finding.get("ctx", {}).get("error")
        for path, message in cause.wrong if isinstance(cause, MisfitError) else (((), ""),):
            if len(found) > 4 * MAX_PROBLEMS:  # a hostile document; explaining each costs time
                return found
            loc: Path = (*finding["loc"], *path, *(("kind",) if finding["type"].startswith("union_tag") else ()))
            line, key, node = _located(root, loc, key_itself=finding["type"] == "extra_forbidden")
            said_so = message or _explained(finding, node, model, loc)
            found.append(Problem(file, line, key, said_so))
    return found


def _located(root: Node, path: Path, *, key_itself: bool = False) -> tuple[int, str, Node | None]:
    """Line, key as it is written, and the value (None: not written) of a path of the schema.

    The schema's path has more parts than the document where it is written short: the kind of a metric, the weight in
    a list of plain weights, the steps of a linear plan.
    """
    node, line, key = root, root.line, ""
    before: str | int = ""
    for part in path:
        children = node.children
        if isinstance(part, int) and isinstance(children, list) and part < len(children):
            node, key = children[part], extended(key, part)
            line = node.line
        elif isinstance(before, int) and isinstance(children, dict) and node.value.get("kind") == part:
            pass  # the kind of a metric, which the schema puts into its path
        elif isinstance(part, str) and isinstance(children, dict) and part in children:
            line, node, key = node.keys[part], children[part], extended(key, part)
            if node.children is None and not key_itself:
                line = node.line
        elif isinstance(part, str) and isinstance(children, dict) and part != "[key]":
            return line, extended(key, part), None
        before = part
    return line, key, node


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────

_MAPPING = 'is not a mapping; write "key: value" lines below the key'


def _explained(finding: Any, node: Node | None, model: type[BaseModel], loc: Path) -> str:
    """One finding of the validator in words. `node` is the value as written, None when it is missing."""
    kind, ctx = finding["type"], finding.get("ctx", {})
    value = node.value if node is not None and not isinstance(node.value, dict | list) else finding["input"]
    if kind == "value_error":
        return str(ctx["error"])
    if kind == "missing":
        return "this key is missing; it has no default"
    if kind == "extra_forbidden":
        return _unknown_key(str(loc[-1]), known_keys(model, loc[:-1]))
    if kind.startswith("union_tag"):
        return _unknown_kind(value, ctx.get("expected_tags", ""), model, loc)
    if value is None:
        return "is empty; write a value or leave it out"
    if kind in ("literal_error", "enum"):
        return _unknown_word(value, ctx["expected"])
    return f"{said(value)} {_not_acceptable(kind, ctx, value)}"


def _not_acceptable(kind: str, ctx: dict[str, Any], value: object) -> str:
    """The end of a sentence that begins with the value."""
    match kind:
        case "string_type" if isinstance(value, int | float) and not isinstance(value, bool):
            return f'is a number here; put it in quotes to make it text: "{value}"'
        case "string_type" if isinstance(value, bool):
            return f'is a truth value here; put it in quotes to make it text: "{str(value).lower()}"'
        case "string_type":
            return "is not text"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return "is not a whole number"
        case "tuple_type" | "list_type":
            return "is not a list; write [a, b] or lines that begin with a dash"
        case "model_type" | "dict_type" | "model_attributes_type":
            return _MAPPING
        case "greater_than_equal":
            return f"is too small; use {ctx['ge']} or more"
        case "less_than_equal":
            return f"is too large; use {ctx['le']} or less"
        case "string_too_short" | "too_short":
            return "is too short; it must not be empty"
        case "string_too_long" | "too_long":
            unit = "characters" if kind == "string_too_long" else "entries"
            return f"is too long; use at most {ctx['max_length']} {unit}"
        case _:  # the fuzzed documents reach none; better vague than the validator's own words
            return "is not acceptable here"


def _unknown_key(key: str, known: Sequence[str]) -> str:
    if match := nearest(key, known):
        return f'unknown key; did you mean "{match}"?'
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"


def _unknown_word(value: object, expected: str) -> str:
    """`expected` as pydantic lists it: `'hold' or 'rollback'`."""
    listed, words = expected.replace("'", '"'), expected.split("'")[1::2]
    match = nearest(value, words) if isinstance(value, str) and len(words) > 1 else None
    return f"{said(value)} is not known here; " + (
        f'did you mean "{match}"? Use {listed}' if match else f"use {listed}"
    )


def _unknown_kind(value: object, expected: str, model: type[BaseModel], loc: Path) -> str:
    """Of a metric: the kind decides which other keys there are."""
    if not expected:
        kinds = ", ".join(kind for m in _models_at(model, loc[:-1]) for kind in _kinds(m))
        return f"this key is missing; use one of {kinds}"
    return _unknown_word(value.get("kind") if isinstance(value, dict) else value, expected)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant, if any; case does not matter."""
    plain = {known_word.lower(): known_word for known_word in known}
    close = difflib.get_close_matches(word[:60].lower(), plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else None


# ── the schema's own keys ────────────────────────────────────────────────────────────────────────────────────


def known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that a mapping at `path` may have, in the order of the schema."""
    return list(dict.fromkeys(field.alias or name for m in _models_at(model, path) for name, field in _fields(m)))


def _models_at(model: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        if len(models) > 1 and (of_kind := [m for m in models if part in _kinds(m)]):
            models = of_kind
            continue
        fields = [field for m in models for name, field in _fields(m) if (field.alias or name) == part]
        models = [m for field in fields for m in _models_in(field.annotation)]
    return models


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    yield from model.model_fields.items()


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models named anywhere in a type: `tuple[Step, ...]` → Step."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
