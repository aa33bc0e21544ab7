"""The text of an Envoy RDS file (YAML or JSON): which splits it holds, and the same text with other weights.

Pure: text in, text out. It never writes YAML anew: the parser only tells where the numbers stand, and those characters
are replaced, so comments, order, quoting and everything foreign survive byte for byte. It never decides a weight.

Which routes count: those whose `weighted_clusters` name both clusters. Only where there are none, those that name one
of them, alone (`cluster:`) or among others, provided that all of them name the same one; the missing cluster then has
0 %, and the first write adds it. With a route name given, every route of that name that names at least one.
Routes inside a virtual host's `matcher` tree are not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from canaryd.errors import RouteError

MOST = 2**32 - 1  # Envoy's limit for the sum of the weights of one route
_STAMP = re.compile(r"canaryd:(.+):(\d{1,19}):(\d{1,3}):([^:]*)")
_LISTED = 10  # clusters named in an error


@dataclass(frozen=True, slots=True)
class Stamp:
    """What canaryd writes into `version_info`: who wrote last, from which state, and what."""

    canary: str
    version: int
    weight: int  # percent for `workload`
    workload: str  # that held the canary role

    def __str__(self) -> str:
        return f"canaryd:{self.canary}:{self.version}:{self.weight}:{self.workload}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None when somebody else wrote it."""
        match = _STAMP.fullmatch(text)
        return cls(match[1], int(match[2]), int(match[3]), match[4]) if match else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which routes are meant."""

    route: str  # name of the route; "" for every route that splits
    stable: str  # cluster names
    canary: str


@dataclass(frozen=True, slots=True)
class _Edit:
    """Characters start..end of the text become `before`, a value (where there is one), `after`."""

    start: int
    end: int
    before: str = ""
    after: str = ""
    weight: int | None = None  # index of the weight that goes in


@dataclass(frozen=True, slots=True)
class Split:
    """One `weighted_clusters`, or one plain `cluster` seen as 100 % of it."""

    line: int  # 1-based
    names: tuple[str, ...]  # clusters; "" for an entry without a name
    weights: tuple[int, ...]  # beside `names`
    stable: int  # index of our two in both
    canary: int
    named: frozenset[str]  # those of our two that are really there
    edits: tuple[_Edit, ...]
    total: _Edit | None  # where total_weight stands

    def percent(self, stamped: int | None) -> int:
        """Share of the canary among our two. A split that is not exactly the stamped one is never reported as it."""
        ours = self.weights[self.stable] + self.weights[self.canary]
        if ours == 0:
            raise RouteError(f"line {self.line}: both weights are 0; Envoy refuses that or sends nothing to either")
        hundredfold = 100 * self.weights[self.canary]
        if stamped is not None and 0 <= stamped <= 100:
            exact = hundredfold == stamped * ours
            if exact or (ours > MOST // 100 and self.weights[self.canary] == _part(ours, stamped)):
                return stamped
        up = -(-hundredfold // ours)
        return up if up != stamped else hundredfold // ours

    def with_weight(self, weight: int) -> tuple[int, ...]:
        """The weights that give the canary `weight` percent among our two, exactly.

        Other clusters keep their share. Where whole numbers cannot give both, all weights grow by the same factor.
        """
        ours = self.weights[self.stable] + self.weights[self.canary]
        others = sum(self.weights) - ours
        if others == 0:
            factor, ours = 1, ours if ours and ours % 100 == 0 else 100
        elif ours == 0:
            raise RouteError(f"line {self.line}: both weights are 0 beside other clusters; what is their share?")
        else:
            factor = 100 // math.gcd(ours, 100)
            factor = factor if sum(self.weights) * factor <= MOST else 1  # so large that the nearest is near enough
            ours *= factor
        weights = [w * factor for w in self.weights]
        weights[self.canary] = _part(ours, weight)
        weights[self.stable] = ours - weights[self.canary]
        return tuple(weights)


def _part(whole: int, percent: int) -> int:
    return (whole * percent + 50) // 100


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands that canaryd reads or changes."""

    wanted: Wanted
    splits: tuple[Split, ...]  # at least one
    version_info: str
    version_edit: _Edit
    grows: bool  # a write adds structure, not only other numbers

    @property
    def stamp(self) -> Stamp | None:
        return Stamp.parse(self.version_info)

    def weight(self, stamped: int | None) -> int:
        """Percent for the canary. Where routes disagree: the largest of those that differ from the stamped weight."""
        seen = {split.percent(stamped) for split in self.splits}
        return max(seen - {stamped} or seen)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────


def read(text: str, wanted: Wanted) -> Layout:
    """Raises RouteError (without the name of the file) when it is not understood or no route is meant."""
    root = _compose(text)
    shared = _shared(root) if "&" in text else frozenset()
    found: list[Split] = []
    clusters: set[str] = set()
    for route, action in _actions(root):
        if wanted.route and _text(route, "name") != wanted.route:
            continue
        split = _split(text, action, wanted, shared, clusters)
        if split is not None:
            found.append(split)
    splits = _meant(found, wanted, clusters)
    version = _version_edit(text, root)
    return Layout(
        wanted=wanted,
        splits=splits,
        version_info=_text(root, "version_info"),
        version_edit=version,
        grows=bool(version.before) or any(edit.before for split in splits for edit in split.edits),
    )


def _compose(text: str) -> MappingNode:
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise RouteError(f"{line}not readable as YAML: {e.problem or e.context}") from e
    except YAMLError as e:
        raise RouteError(f"not readable as YAML: {str(e).splitlines()[0]}") from e
    except RecursionError:
        raise RouteError("not readable as YAML: nested too deeply") from None
    if not isinstance(root, MappingNode) or not root.value:
        raise RouteError("holds no DiscoveryResponse (a mapping with `resources`)")
    return root


def _shared(root: Node) -> frozenset[int]:
    """Ids of the nodes that stand at more than one place because of a YAML alias."""
    seen: set[int] = set()
    shared: set[int] = set()
    todo: list[Node] = [root]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            shared.add(id(node))
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            todo.extend(part for pair in node.value for part in pair)
        elif isinstance(node, SequenceNode):
            todo.extend(node.value)
    return frozenset(shared)


def _actions(root: MappingNode) -> Iterator[tuple[MappingNode, MappingNode]]:
    """Every route with its `route` action, each once however many aliases lead to it."""
    seen: set[int] = set()
    for resource in _each(root, "resources", seen):
        for host in _each(resource, "virtual_hosts", seen):
            for route in _each(host, "routes", seen):
                action = _field(route, "route")
                if action and isinstance(action[1], MappingNode) and id(action[1]) not in seen:
                    seen.add(id(action[1]))
                    yield route, action[1]


def _each(node: MappingNode, name: str, seen: set[int]) -> Iterator[MappingNode]:
    field = _field(node, name)
    if field is None or not isinstance(field[1], SequenceNode):
        return
    for item in field[1].value:
        if isinstance(item, MappingNode) and id(item) not in seen:
            seen.add(id(item))
            yield item


def _field(node: MappingNode, name: str) -> tuple[ScalarNode, Node] | None:
    """Key and value of a field, in either of the spellings that Envoy understands: snake_case or camelCase."""
    head, *tail = name.split("_")
    spellings = {name, head + "".join(word.capitalize() for word in tail)}
    found = [(k, v) for k, v in node.value if isinstance(k, ScalarNode) and k.value in spellings]
    if len(found) > 1:
        raise RouteError(f"line {_line(found[1][0])}: {name} is there twice")
    return found[0] if found else None


def _version_edit(text: str, root: MappingNode) -> _Edit:
    field = _field(root, "version_info")
    if field is None:
        return _prepend(text, root, "version_info")
    if not isinstance(field[1], ScalarNode) or field[1].style in ("|", ">"):
        raise RouteError(f"line {_line(field[1])}: version_info is not a text on one line")
    span = _span(field[1])
    if span.end > span.start:
        return span
    after = text.index(":", _span(field[0]).end) + 1  # no value at all: the parser places it anywhere
    return _Edit(after, after, " ")


def _text(node: MappingNode, name: str) -> str:
    field = _field(node, name)
    return str(field[1].value) if field and isinstance(field[1], ScalarNode) else ""


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


# ── one split ────────────────────────────────────────────────────────────────────────────────────────────────


def _split(text: str, action: MappingNode, wanted: Wanted, shared: frozenset[int], clusters: set[str]) -> Split | None:
    """The split of one route; None when it names neither cluster. Adds the names it saw to `clusters`."""
    ours = {wanted.stable, wanted.canary}
    plain, weighted = _field(action, "cluster"), _field(action, "weighted_clusters")
    if plain and isinstance(plain[1], ScalarNode):
        clusters.add(plain[1].value)
        if plain[1].value not in ours:
            return None
        touched: list[Node] = [action]
        split = _plain_split(plain[0], plain[1], wanted)
    elif weighted and isinstance(weighted[1], MappingNode):
        entries = _field(weighted[1], "clusters")
        if entries is None or not isinstance(entries[1], SequenceNode):
            return None
        names = {_text(entry, "name") for entry in entries[1].value if isinstance(entry, MappingNode)}
        clusters |= names - {""}
        if not names & ours:
            return None
        split, nodes = _weighted_split(text, weighted[1], entries[1], wanted)
        touched = [*nodes, *([action, weighted[1]] if wanted.route else [])]  # other routes may share these
    else:
        return None
    for node in touched:
        if id(node) in shared and (wanted.route or node is not action):
            raise RouteError(f"line {_line(node)}: a YAML alias shares this with another place; write it out in both")
    return split


def _plain_split(key: ScalarNode, value: ScalarNode, wanted: Wanted) -> Split:
    """`cluster: x` is 100 % for x; writing turns it into weighted_clusters."""
    q = '"' if key.style == '"' else ""
    entry = f"{{{q}name{q}: {{}}, {q}weight{q}: "
    after = _span(value).end
    return Split(
        line=_line(key),
        names=(wanted.stable, wanted.canary),
        weights=(100, 0) if value.value == wanted.stable else (0, 100),
        stable=0,
        canary=1,
        named=frozenset({value.value}),
        edits=(
            _Edit(_span(key).start, _span(key).end, f"{q}weighted_clusters{q}"),
            _Edit(_span(value).start, after, f"{{{q}clusters{q}: [" + _named(entry, wanted.stable), "}, ", weight=0),
            _Edit(after, after, _named(entry, wanted.canary), "}]}", weight=1),
        ),
        total=None,
    )


def _named(entry: str, name: str) -> str:
    head, tail = entry.split("{}")
    return head + json.dumps(name, ensure_ascii=False) + tail


def _weighted_split(
    text: str, weighted: MappingNode, entries: SequenceNode, wanted: Wanted
) -> tuple[Split, list[Node]]:
    """The split, and the nodes that a write would touch."""
    names: list[str] = []
    weights: list[int] = []
    edits: list[_Edit] = []
    nodes: list[Node] = [entries]
    for entry in entries.value:
        if not isinstance(entry, MappingNode):
            raise RouteError(f"line {_line(entry)}: not a weighted cluster")
        names.append(_text(entry, "name"))
        field = _field(entry, "weight")
        weights.append(_number(field[1]) if field else 0)
        edits.append(_at(_span(field[1]) if field else _prepend(text, entry, "weight"), len(edits)))
        nodes += [entry, *([field[1]] if field else [])]
    named = frozenset(names) & {wanted.stable, wanted.canary}
    for name in (wanted.stable, wanted.canary):
        if names.count(name) > 1:
            raise RouteError(f"line {_line(weighted)}: cluster {name!r} is there twice; its weight is ambiguous")
        if name not in names:
            edits.append(_at(_prepend_entry(text, entries, name), len(edits)))
            names.append(name)
            weights.append(0)
    total = _field(weighted, "total_weight")
    split = Split(
        line=_line(weighted),
        names=tuple(names),
        weights=tuple(weights),
        stable=names.index(wanted.stable),
        canary=names.index(wanted.canary),
        named=named,
        edits=tuple(edits),
        total=_span(total[1]) if total else None,
    )
    return split, nodes + ([total[1]] if total else [])


def _number(node: Node) -> int:
    value = str(node.value) if isinstance(node, ScalarNode) else ""
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise RouteError(f"line {_line(node)}: the weight {value[:40]!r} is not a whole number")
    return int(value)


# ── places in the text ───────────────────────────────────────────────────────────────────────────────────────


def _span(node: Node) -> _Edit:
    return _Edit(int(node.start_mark.index), int(node.end_mark.index))


def _at(edit: _Edit, weight: int) -> _Edit:
    return _Edit(edit.start, edit.end, edit.before, edit.after, weight)


def _prepend(text: str, mapping: MappingNode, key: str) -> _Edit:
    """A new first field of a mapping."""
    first = mapping.value[0][0]
    start = _span(first).start
    if mapping.flow_style:
        return _Edit(start, start, f'"{key}": ', ", ")
    return _Edit(start, start, f"{key}: ", _newline(text) + " " * int(first.start_mark.column))


def _prepend_entry(text: str, entries: SequenceNode, name: str) -> _Edit:
    """A new first entry of the list of weighted clusters."""
    start = _span(entries.value[0]).start
    quoted = json.dumps(name, ensure_ascii=False)
    if entries.flow_style:
        return _Edit(start, start, f'{{"name": {quoted}, "weight": ', "}, ")
    dash = text.rfind("-", 0, start)
    column = dash - (text.rfind("\n", 0, dash) + 1)
    return _Edit(dash, dash, f"- {{name: {quoted}, weight: ", "}" + _newline(text) + " " * column)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _meant(found: Sequence[Split], wanted: Wanted, clusters: set[str]) -> tuple[Split, ...]:
    """Of all routes that name at least one of our clusters, those that canaryd may change."""
    both = tuple(split for split in found if len(split.named) == 2)
    if wanted.route and found:
        return tuple(found)
    if both:
        return both
    pair = f"{wanted.stable!r} and {wanted.canary!r}"
    if len({name for split in found for name in split.named}) > 1:
        raise RouteError(
            f"no route splits between {pair}, but lines {', '.join(str(s.line) for s in found[:_LISTED])} name one of "
            "them; give the route's name, or write weighted_clusters with both"
        )
    if not found:
        there = ", ".join(repr(name) for name in sorted(clusters)[:_LISTED]) or "none"
        more = ", …" if len(clusters) > _LISTED else ""
        where = f"the route named {wanted.route!r}" if wanted.route else "any route"
        raise RouteError(f"clusters {pair} are not in {where}; clusters there: {there}{more}")
    return tuple(found)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────


def rewrite(text: str, layout: Layout, weight: int, stamp: Stamp) -> str:
    """The same text with `weight` percent (0..100) for the canary in every split, and the stamp.

    Raises RouteError when the place where something must be added is not one that can be written to safely.
    """
    changes: list[tuple[int, int, str]] = []
    for split in layout.splits:
        weights = split.with_weight(weight)
        for edit in split.edits:
            number = "" if edit.weight is None else str(weights[edit.weight])
            if edit.weight is None or edit.before or weights[edit.weight] != split.weights[edit.weight]:
                changes.append((edit.start, edit.end, edit.before + number + edit.after))
        if split.total is not None:
            changes.append((split.total.start, split.total.end, str(sum(weights))))
    place = layout.version_edit
    value = json.dumps(str(stamp), ensure_ascii=False)
    changes.append((place.start, place.end, place.before + value + place.after))
    written = _spliced(text, sorted(changes, key=lambda change: change[:2]))
    if layout.grows:
        _check(written, layout, weight, stamp)
    return written


def _spliced(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end, piece in changes:
        pieces += [text[at:start], piece]
        at = end
    return "".join([*pieces, text[at:]])


def _check(written: str, layout: Layout, weight: int, stamp: Stamp) -> None:
    """What was added is read back as it was meant; else nothing is written."""
    try:
        again = read(written, layout.wanted)
        right = {split.percent(weight) for split in again.splits} == {weight} and again.stamp == stamp
        whole = len(again.splits) == len(layout.splits) and all(len(split.named) == 2 for split in again.splits)
    except RouteError as e:
        raise RouteError(f"cannot be changed safely as it is written ({e}); write weighted_clusters with both") from e
    if not (right and whole):
        raise RouteError("cannot be changed safely as it is written; write weighted_clusters with both clusters")
