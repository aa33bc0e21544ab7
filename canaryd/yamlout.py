"""Plain JSON values → YAML text that is the same on every machine: order kept, nothing folded, long texts in blocks.

For what is committed or piped into kubectl; `canaryd.config.show` writes documents for people. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/]([A-Za-z0-9 _./()+'%-]*[A-Za-z0-9/.)%])?")
_BLOCK = re.compile(r"[!-~][ -~]*(\n+[!-~][ -~]*|\n+ +[!-~][ -~]*)+\n?")
_END = "\n"
# read as something else than text, by readers of YAML 1.1 or 1.2
_MISREAD = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf"})


def documents(objects: Iterable[Mapping[str, Any]]) -> str:
    """One YAML document for each object, separated by `---`."""
    return "---\n".join("\n".join(_mapping(each, 0)) + "\n" for each in objects)


def _mapping(value: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, item in value.items():
        yield from _entry(f"{'  ' * depth}{_text(key)}:", item, depth)


def _entry(start: str, item: Any, depth: int) -> Iterator[str]:
    """`key:` or `-` with what belongs to it."""
    if isinstance(item, Mapping) and item:
        yield start
        yield from _mapping(item, depth + 1)
    elif isinstance(item, str) and _BLOCK.fullmatch(item):
        yield f"{start} |{'' if item.endswith(_END) else '-'}"
        yield from (f"{'  ' * (depth + 1)}{line}" if line else "" for line in item.removesuffix(_END).split(_END))
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        yield start
        for each in item:
            yield from _listed(each, depth)
    else:
        yield f"{start} {_scalar(item)}"


def _listed(item: Any, depth: int) -> Iterator[str]:
    """An item of a list; a mapping begins on the line of its dash."""
    dash = "  " * depth + "- "
    if isinstance(item, Mapping) and item:
        first, *rest = _mapping(item, depth + 1)
        yield dash + first.lstrip(" ")
        yield from rest
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        yield dash.rstrip(" ")
        for each in item:
            yield from _listed(each, depth + 1)
    else:
        yield from _entry(dash.rstrip(" "), item, depth)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (Mapping, Sequence)):
        return "{}" if isinstance(value, Mapping) else "[]"
    number = json.dumps(value)
    return number.replace("e", ".0e") if isinstance(value, float) and "." not in number else number


def _text(value: str) -> str:
    """In quotes where any reader could take it for something else."""
    if _PLAIN.fullmatch(value) and value.lower() not in _MISREAD:
        return value
    return "".join(c if c.isprintable() else _escaped(c) for c in json.dumps(value, ensure_ascii=False))


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
