"""YAML text → plain JSON values that know the line of each key and value.

Built on the parser's events, so that nothing is constructed that a JSON document could not hold: no tags, no dates, no
merge keys, keys are text. Sizes are bounded, aliases are counted as often as they are used, a broken document does not
hide the ones after it. Never opens a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from canaryd.policy import said

MAX_DEPTH = 40  # a Canary needs 7
MAX_NODES = 20_000  # keys and values of one document, aliases counted as often as they are used
MAX_DOCUMENTS = 100  # of one file

_BOUNDARY = re.compile(r"^---(?=[ \t\n]|\Z)", re.MULTILINE)
_CONTENT = re.compile(r"^[^\S\n]*[^\s#%]", re.MULTILINE)  # a line that is neither blank, a comment nor a directive
_FORBIDDEN = re.compile(
    "[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\ufffe\uffff]",
)
_FORBIDDEN_VALUE = re.compile("[\0\ud800-\udfff]")  # written with an escape: no path, name or text can hold them
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True)
class Node:
    """A value of a document and where it stands."""

    line: int  # 1-based line where the value begins
    value: Any = None  # plain JSON value
    keys: dict[str, int] = field(default_factory=dict)  # of a mapping: line of each key
    children: dict[str, Node] | list[Node] | None = None  # of a mapping, of a sequence, of a scalar
    size: int = 1  # nodes in all


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong with the text itself."""

    line: int  # 1-based
    key: str  # "" where none is known
    message: str


@dataclass(slots=True)
class Document:
    """One document of a file; `root` is None when it could not be understood at all."""

    line: int  # 1-based line where it begins
    root: Node | None = None
    mistakes: list[Mistake] = field(default_factory=list)


class _UnreadableError(Exception):
    """The rest of the document makes no sense."""

    def __init__(self, line: int, message: str) -> None:
        self.mistake = Mistake(line, "", message)


def read_documents(text: str) -> list[Document]:
    """Every document of a file, in order; documents that hold nothing but comments are left out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = [0, *(m.start() for m in _BOUNDARY.finditer(text) if m.start())]
    documents: list[Document] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        if not _CONTENT.search(part[3:] if part.startswith("---") else part):
            continue
        line = text.count("\n", 0, start)
        if len(documents) == MAX_DOCUMENTS:
            message = f"more than {MAX_DOCUMENTS} documents in one file; use several files"
            documents.append(Document(line + 1, mistakes=[Mistake(line + 1, "", message)]))
            break
        documents.append(_read_document(part, line))
    return documents


def _read_document(text: str, lines_before: int) -> Document:
    """One document; the parser's lines count from its beginning."""
    document = Document(lines_before + 1)
    try:
        _refuse_control_characters(text)
        document.root = _Composer(document.mistakes).compose(YAML(typ="safe", pure=True).parse(text))
        document.line = document.root.line
    except _UnreadableError as e:
        document.mistakes.append(e.mistake)
    except MarkedYAMLError as e:
        document.mistakes.append(_explained(e))
    except (YAMLError, ValueError, OverflowError, IndexError, AssertionError, AttributeError):
        # the parser's own accidents on text that is no YAML, such as an escape beyond Unicode
        document.mistakes.append(Mistake(1, "", "not valid YAML: a part of this document cannot be understood"))
    _shift(document, lines_before)
    return document


def _refuse_control_characters(text: str) -> None:
    if match := _FORBIDDEN.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise _UnreadableError(line, f"a character that YAML does not allow (U+{ord(match.group()):04X})")


def _shift(document: Document, lines: int) -> None:
    """Lines of the part → lines of the file."""
    document.mistakes = [Mistake(m.line + lines, m.key, m.message) for m in document.mistakes]
    if document.root is None or not lines:
        return
    document.line += lines
    seen: set[int] = set()
    todo = [document.root]
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        node.line += lines
        node.keys = {key: line + lines for key, line in node.keys.items()}
        todo.extend(node.children.values() if isinstance(node.children, dict) else node.children or ())


@dataclass(slots=True)
class _Open:
    """A mapping or sequence that has not ended yet."""

    node: Node
    path: str
    anchor: str | None
    key: str | None = None  # of a mapping: the key whose value comes next
    key_line: int = 0


class _Composer:
    """Events of one document → its root; mistakes that leave the rest readable go to the list."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes
        self._open: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}  # None: not ended yet
        self._count = 0
        self._root: Node | None = None

    def compose(self, events: Iterator[Any]) -> Node:
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, DocumentStartEvent) and self._root is not None:
                raise _UnreadableError(line, 'another document begins here; put a line "---" before it')
            if isinstance(event, ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, AliasEvent):
                self._alias(event, line)
            elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
                self._begin(event, line)
            elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                self._end()
        if self._root is None:
            raise _UnreadableError(1, "there is nothing in this document")
        return self._root

    def _scalar(self, event: Any, line: int) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.node.children, dict) and top.key is None:
            self._key(top, event, line)
            return
        if match := _FORBIDDEN_VALUE.search(event.value):
            name = f"U+{ord(match.group()):04X}"
            self._mistakes.append(Mistake(line, self._path(), f"the character {name} is not allowed in a value"))
        plain = event.implicit[0] and not event.style
        self._tag(event, line, allowed=("!", "tag:yaml.org,2002:str"))
        if top is not None and top.key is not None and not event.value:
            line = top.key_line  # the parser places what is not there where the next thing begins
        node = Node(line, _plain_value(event.value) if plain else event.value)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._add(node)

    def _key(self, top: _Open, event: Any, line: int) -> None:
        key = str(event.value)
        if event.anchor or event.tag not in (None, "!"):
            raise _UnreadableError(line, f"the key {said(key)} must be plain text, without anchor and tag")
        if key == "<<":
            raise _UnreadableError(line, 'merge keys ("<<") are not supported; write the keys out')
        if key == "":
            raise _UnreadableError(line, "a key is empty; write it before the colon")
        top.key, top.key_line = key, line

    def _alias(self, event: Any, line: int) -> None:
        if event.anchor not in self._anchors:
            raise _UnreadableError(line, f"the alias *{event.anchor[:60]} has no anchor &{event.anchor[:60]} before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise _UnreadableError(line, f"the alias *{event.anchor[:60]} stands inside its own anchor")
        self._no_key_expected(line)
        self._add(node)

    def _begin(self, event: Any, line: int) -> None:
        self._no_key_expected(line)
        kind = "map" if isinstance(event, MappingStartEvent) else "seq"
        self._tag(event, line, allowed=(f"tag:yaml.org,2002:{kind}", "!"))
        if len(self._open) >= MAX_DEPTH:
            raise _UnreadableError(line, f"nested more than {MAX_DEPTH} levels deep")
        node = Node(line, {}, children={}) if kind == "map" else Node(line, [], children=[])
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append(_Open(node, self._path(), event.anchor))

    def _end(self) -> None:
        ended = self._open.pop()
        if ended.anchor:
            self._anchors[ended.anchor] = ended.node
        self._add(ended.node, counted=True)

    def _no_key_expected(self, line: int) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.node.children, dict) and top.key is None:
            raise _UnreadableError(line, "a key must be plain text; put text that begins with { [ or * in quotes")

    def _tag(self, event: Any, line: int, *, allowed: tuple[str, ...]) -> None:
        tag = str(event.tag) if event.tag else ""
        if tag and tag not in allowed:
            shown = said(tag.replace("tag:yaml.org,2002:", "!!"))
            self._mistakes.append(Mistake(line, self._path(), f"the tag {shown} is not allowed; write the plain value"))

    def _path(self) -> str:
        """Of the value that comes next."""
        if not self._open:
            return ""
        top = self._open[-1]
        return extended(top.path, top.key if top.key is not None else len(top.node.value))

    def _add(self, node: Node, *, counted: bool = False) -> None:
        """Put a finished value into what is open. Its parts have been counted unless it is a scalar or an alias."""
        self._count += 1 if counted else node.size
        if self._count > MAX_NODES:
            raise _UnreadableError(node.line, f"more than {MAX_NODES} keys and values in one document")
        if not self._open:
            self._root = node
            return
        top = self._open[-1]
        top.node.size += node.size
        if isinstance(top.node.children, list):
            top.node.children.append(node)
            top.node.value.append(node.value)
        elif isinstance(top.node.children, dict) and top.key is not None:
            if top.key in top.node.keys:
                message = f"this key is given before, in line {top.node.keys[top.key]}; keep one of them"
                self._mistakes.append(Mistake(top.key_line, self._path(), message))
            else:
                top.node.keys[top.key] = top.key_line
                top.node.children[top.key] = node
                top.node.value[top.key] = node.value
            top.key = None


def _plain_value(text: str) -> Any:
    """YAML 1.2's core schema. What YAML 1.1 would read differently (yes, 010, 1_000, 12:30) stays text."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= 30 else float(text)
    return float(text) if _FLOAT.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text) else text


def extended(path: str, part: str | int) -> str:
    """Path of a child: `spec.steps`, 2 → `spec.steps[2]`; keys that are no plain words are put in quotes."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not re.fullmatch(r"[A-Za-z0-9_$-]{1,60}", part):
        return f"{path}[{said(part)}]"
    return f"{path}.{part}" if path else part


# ── the parser's words in a person's words ───────────────────────────────────────────────────────────────────

_EXPLANATIONS: tuple[tuple[str, str], ...] = (
    ("'\\t' that cannot start", "a tab; YAML is indented with spaces"),
    ("mapping values are not allowed", 'a ":" where none can be; put a text that contains ": " in quotes'),
    ("could not find expected ':'", 'this is no "key: value"; a ":" with a space after it is missing'),
    ("unexpected end of stream", "a quoted text is not closed"),
    ("unexpected document separator", "a quoted text is not closed"),
    ("expected ',' or ']'", "a list in [ ] is not closed, or a comma is missing"),
    ("expected ',' or '}'", "a mapping in { } is not closed, or a comma is missing"),
    ("expected <block end>", "this does not fit what stands before it; check the indentation and the quotes"),
    ("sequence entries are not allowed", 'a "- " where no list can begin'),
    ("unknown escape character", "a backslash before a character that needs none; use single quotes for plain text"),
    ("expected escape sequence", "an escape with a backslash is not complete"),
    ("expected the node content", "a value is missing here, or a bracket is not closed"),
    ("cannot start any token", "a value cannot begin with this character; put it in quotes"),
    ("expected alphabetic or numeric", "an & or * without a name; put the text in quotes"),
    ("expected chomping or indentation", "text behind | or >; begin it in the next line"),
    ("mapping keys are not allowed", 'a "? " where no key can begin; put the text in quotes'),
    ("did not find expected <document start>", "text after the end of the document"),
    ("expected '<document start>'", "text that fits neither the indentation nor the values above"),
    ("undefined tag handle", "a tag that is not allowed; write the plain value"),
    ("duplicate anchor", "an anchor of this name is given before"),
)


def _explained(error: MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = " ".join(f"{error.problem or error.context or 'unreadable'}".split())
    known = (sentence for words, sentence in _EXPLANATIONS if words in problem)
    sentence = next(known, f"the text cannot be understood here ({problem[:120]})")
    begun = error.context_mark.line + 1 if error.context_mark is not None else line
    if begun != line and ("not closed" in sentence or "missing" in sentence):
        line, begun = begun, line  # the mistake is where it begins; the parser notices later
        sentence += f" (noticed in line {begun})"
    return Mistake(line, "", f"not valid YAML: {sentence}")
