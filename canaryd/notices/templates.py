"""Other words for a decision, in Jinja2, by whoever keeps canaryd.yaml. Pure, and bounded whatever a template says.

A template may show values and choose between them; it may not call, assign, include or compute texts without bound.
So it ends, and soon, with a text of a bounded size. What cannot be rendered is a TemplateError with words for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from canaryd import wording
from canaryd.errors import CanarydError

LONGEST = 3000  # characters of what comes out
MOST_LOOPS = 2  # within each other
MOST_TURNS = 200  # of one loop

_FILTERS = (
    *("default", "d", "upper", "lower", "title", "capitalize", "trim", "truncate", "round", "int", "float", "abs"),
    *("first", "last", "length", "count", "join", "sort", "e", "escape"),
)
_FUNCTIONS: Mapping[str, Callable[..., str]] = {
    "percent": wording.percent,
    "points": wording.points,
    "count": wording.count,
    "span": wording.span,
    "amount": wording.amount,
}
_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.For, nodes.If, nodes.CondExpr),
    *(nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or),
    *(nodes.Not, nodes.Const, nodes.List, nodes.Tuple, nodes.Concat, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div),
    *(nodes.Neg, nodes.Pos, nodes.Call, nodes.Keyword, nodes.Slice),
)


class TemplateError(CanarydError):
    """A template cannot be used; the text says why."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Arithmetic of numbers only, and no attribute that is no key."""

    intercepted_binops = frozenset({"+", "-", "*", "/"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(side, int | float) for side in (left, right)):
            raise TemplateError(f"{operator} is for numbers; texts stand beside each other, or are joined by ~")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return False

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Mapping):
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        if isinstance(obj, list | tuple | str) and isinstance(argument, int | slice):
            try:
                return obj[argument]
            except IndexError:
                pass
        return self.undefined(obj=obj, name=argument)


def _environment(finish: Callable[[str], str]) -> _Sandbox:
    env = _Sandbox(autoescape=False, undefined=StrictUndefined, finalize=lambda value: finish(_shown(value)))
    env.filters = {name: filter_ for name, filter_ in env.filters.items() if name in _FILTERS}
    env.globals = dict(_FUNCTIONS)
    return env


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        raise TemplateError("a whole mapping or list is no text; name what of it is to be shown")
    text = str(value)
    if len(text) > LONGEST:
        raise TemplateError(f"a value has {len(text)} characters, {LONGEST} are the most")
    return text


def problem(text: str) -> str:
    """Why a template cannot be used; "" when it can."""
    try:
        _checked(_environment(str), text)
    except (JinjaError, TemplateError, RecursionError) as e:
        return f"is no template that canaryd can use: {e}"
    return ""


def _checked(env: _Sandbox, text: str) -> nodes.Template:
    tree = env.parse(text)
    _walk(tree, 0)
    return tree


def _walk(node: nodes.Node, loops: int) -> None:
    if not isinstance(node, _ALLOWED):
        raise TemplateError(f"line {node.lineno}: {type(node).__name__.lower()} is not for templates of messages")
    if isinstance(node, nodes.For):
        loops += 1
        if loops > MOST_LOOPS or node.recursive:
            raise TemplateError(f"line {node.lineno}: at most {MOST_LOOPS} loops within each other, and none recursive")
    if isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Name) and node.node.name in _FUNCTIONS):
        raise TemplateError(f"line {node.lineno}: only these can be called: {', '.join(_FUNCTIONS)}")
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        raise TemplateError(f"line {node.lineno}: no filter {node.name}; there are: {', '.join(_FILTERS)}")
    for child in node.iter_child_nodes():
        _walk(child, loops)


def render(text: str, facts: Mapping[str, Any], finish: Callable[[str], str] = str) -> str:
    """The text for these facts (plain JSON values); `finish` makes each value safe where it is shown.

    Raises TemplateError, also where nothing or too much comes out.
    """
    env = _environment(finish)
    try:
        template = env.from_string(_checked(env, text))
        out, size = [], 0
        for turn, piece in enumerate(template.generate(_bounded(facts))):
            size += len(piece)
            if size > LONGEST or turn > MOST_TURNS * 50:
                raise TemplateError(f"more than {LONGEST} characters came out")
            out.append(piece)
    except JinjaError as e:
        raise TemplateError(f"{type(e).__name__}: {e}") from e
    except (TypeError, ValueError, ArithmeticError, RecursionError) as e:
        raise TemplateError(f"{type(e).__name__}: {str(e)[:200]}") from e
    if not (said := "".join(out).strip()):
        raise TemplateError("nothing came out")
    return said


def _bounded(value: Any, depth: int = 0) -> Any:
    """Values as a template may see them: no list longer than a loop may turn, nothing but JSON."""
    if isinstance(value, Mapping):
        return {str(k): _bounded(v, depth + 1) for k, v in list(value.items())[:MOST_TURNS]} if depth < 8 else {}
    if isinstance(value, list | tuple):
        return [_bounded(v, depth + 1) for v in value[:MOST_TURNS]] if depth < 8 else []
    if isinstance(value, str):
        return value[:LONGEST]
    return value if value is None or isinstance(value, bool | int | float) else str(value)[:LONGEST]
