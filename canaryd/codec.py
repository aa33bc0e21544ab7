"""The nouns of `canaryd.model` to JSON values and back, so that state can be kept and read by other versions.

Driven by the type hints, once for each type. A field that equals its default is left out, a field nobody knows is
ignored, a missing one takes its default: a newer or an older canaryd reads the same state. Anything else that does not
fit is a StoreError that names the field; nothing is guessed. Pure: no clock, no files.

Forms: times as ISO 8601 in UTC with microseconds; spans as seconds (exact for spans below a century); enums by value;
floats as numbers, "nan", "inf" or "-inf"; tuples as lists; float64 arrays bit by bit as {"shape", "f8"} (base64, little
endian), as {"shape", "f4"} where float32 says the same, or, where that is shorter, as {"shape", "z"} or {"shape", "z4"}
(the same through zlib, float32 with all first bytes first); a Reading with one row for each family
of counters; Mapping[str, Any] as it is, but null for a number that is not finite. What is read never grows beyond
MOST_NUMBERS in an array and MOST_ARRAYS in a mapping, whatever was compressed into it.
"""

from __future__ import annotations

import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from canaryd.errors import StoreError
from canaryd.model import Arm, CounterKey, Floats, RolloutState

T = TypeVar("T")

MOST_NUMBERS = 2**16  # of one compressed array; the largest of a rollout has a few thousand
MOST_ARRAYS = 64  # of one mapping


def encode(value: Any, hint: Any = None) -> Any:
    """A value as plain JSON values. `hint` is its type where that is not its class, such as `tuple[Answer, ...]`.

    Raises StoreError that names the field when a value is not of the type that its field declares.
    """
    kind: Any = type(value) if hint is None else hint
    try:
        return _coder(kind).out(value)
    except _Misfit as e:
        raise StoreError(f"{_name(kind)} cannot be written: {e}") from None


def decode(kind: type[T], value: Any) -> T:
    """JSON values as a `kind`. Raises StoreError that names the field when something does not fit."""
    try:
        result: T = _coder(kind).back(value)
    except _Misfit as e:
        raise StoreError(f"{_name(kind)} cannot be read: {e}") from None
    return result


def encode_state(state: RolloutState) -> dict[str, Any]:
    """What is saved of a rollout."""
    encoded: dict[str, Any] = encode(state, RolloutState)
    return encoded


def decode_state(value: Any) -> RolloutState:
    """What was saved of a rollout; fields of other versions are ignored or take their defaults. Raises StoreError."""
    return decode(RolloutState, value)


class _Misfit(Exception):  # noqa: N818  (never leaves this module)
    """A value that does not fit; gathers the path to it on the way up, so that a good value costs nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.path: list[str] = []

    def inside(self, step: str) -> _Misfit:
        self.path.insert(0, step)
        return self

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.message}" if self.path else self.message


def _expected(wanted: str, value: Any) -> _Misfit:
    shown = repr(value)
    return _Misfit(f"expected {wanted}, found {shown if len(shown) <= 60 else shown[:57] + '...'}")


@dataclass(frozen=True, slots=True)
class _Coder:
    """Both directions of one type; both raise _Misfit."""

    out: Callable[[Any], Any]
    back: Callable[[Any], Any]


# ── single values ────────────────────────────────────────────────────────────────────────────────────────────


def _exactly(kind: type, wanted: str) -> _Coder:
    def same(value: Any) -> Any:
        if type(value) is not kind:  # a bool is no int, and numpy's scalars are neither
            raise _expected(wanted, value)
        return value

    return _Coder(same, same)


_text = _exactly(str, "a text")


def _float_out(value: Any) -> float | str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected("a number", value)
    number = float(value)
    return number if math.isfinite(number) else repr(number)  # JSON has no word for these


def _float_back(value: Any) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected("a number", value)
    try:
        return float(value)
    except OverflowError:
        raise _expected("a number", value) from None


def _time_out(value: Any) -> str:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _expected("a time with its zone", value)
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _time_back(value: Any) -> datetime:
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        pass
    raise _expected("a time with its zone, such as 2026-01-31T12:00:00+00:00", value)


def _span_out(value: Any) -> float:
    if not isinstance(value, timedelta):
        raise _expected("a span of time", value)
    return value.total_seconds()


def _span_back(value: Any) -> timedelta:
    try:
        return timedelta(seconds=_float_back(value))
    except (ValueError, OverflowError):
        raise _expected("a number of seconds", value) from None


def _enum(kind: type[StrEnum]) -> _Coder:
    def out(value: Any) -> str:
        if not isinstance(value, kind):
            raise _expected(f"one of {', '.join(kind)}", value)
        return value.value

    def back(value: Any) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise _expected(f"one of {', '.join(kind)}", value) from None

    return _Coder(out, back)


def _array_out(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        raise _expected("a float64 array", value)
    data = value.astype("<f8", copy=False).tobytes()
    full, small = "f8", "z"
    with np.errstate(all="ignore"):  # what does not fit is written in full
        short = value.astype("<f4")
    packing = data
    if short.astype("<f8").tobytes() == data:
        full, small, data = "f4", "z4", short.tobytes()
        packing = _planes(data, 4)
    packed = zlib.compress(packing, 9) if value.size <= MOST_NUMBERS else data
    name, data = (small, packed) if len(packed) < len(data) else (full, data)
    return {"shape": list(value.shape), name: b64encode(data).decode("ascii")}


def _array_back(value: Any) -> Floats:
    try:
        shape, (name, kind) = value["shape"], next(form for form in _FORMS if form[0] in value)
        if all(type(n) is int and n >= 0 for n in shape):  # reshape refuses what does not match, but takes -1
            data = b64decode(value[name], validate=True)
            if name.startswith("z"):
                data = _unpacked(data, math.prod(shape), np.dtype(kind).itemsize)
            if name == "z4":
                data = _planes(data, len(data) // 4)
            return np.frombuffer(data, dtype=kind).astype(np.float64).reshape(shape)
    except (TypeError, KeyError, ValueError, OverflowError, StopIteration, zlib.error):
        pass
    raise _expected('an array as {"shape": [...], "f8", "f4", "z" or "z4": base64 of that many numbers}', value)


_FORMS = (("z4", "<f4"), ("z", "<f8"), ("f4", "<f4"), ("f8", "<f8"))


def _planes(data: bytes, width: int) -> bytes:
    """Every `width`-th byte after the other: the signs and exponents of all numbers side by side, which pack well."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes() if data else data


def _unpacked(data: bytes, numbers: int, each: int) -> bytes:
    """Exactly so many bytes out of zlib's, never using more memory than that. Raises ValueError for another number."""
    if numbers > MOST_NUMBERS:
        raise ValueError("too large")
    size = numbers * each
    reader = zlib.decompressobj()
    out = reader.decompress(data, size + 1)  # one more than wanted tells whether there is more
    if len(out) != size or not reader.eof or reader.unused_data:
        raise ValueError("another size")
    return out


def _arrays_back(value: Any) -> dict[str, Floats]:
    if isinstance(value, Mapping) and len(value) > MOST_ARRAYS:
        raise _expected(f"at most {MOST_ARRAYS} arrays", f"{len(value)} arrays")
    return _members(value, str, _array_back)


def _plain(value: Any) -> Any:
    """A copy made of JSON values alone; a number that is not finite becomes null, which readers of bodies tolerate."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if kind is dict and all(type(key) is str for key in value):  # nearly always: what is below in fewer steps
        return {key: item if type(item) in _LEAVES else _at(key, _plain, item) for key, item in value.items()}
    if isinstance(value, Mapping):
        return _members(value, str, _plain)
    if isinstance(value, list | tuple):
        return [_at(i, _plain, item) for i, item in enumerate(value)]
    if isinstance(value, str):  # an enum
        return str(value)
    raise _expected("a plain JSON value", value)


_LEAVES = frozenset({str, int, bool, NoneType})  # JSON values that are what they are


# ── values made of others ────────────────────────────────────────────────────────────────────────────────────


def _at(step: object, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except _Misfit as e:
        raise e.inside(str(step)) from None


def _members(value: Any, key: type, convert: Callable[[Any], Any]) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _expected("a mapping", value)
    for k in value:
        if not isinstance(k, key):
            raise _expected(f"keys that are {key.__name__}", k)
    return {str(k): _at(k, convert, v) for k, v in value.items()}


def _optional(inner: _Coder) -> _Coder:
    return _Coder(
        lambda value: None if value is None else inner.out(value),
        lambda value: None if value is None else inner.back(value),
    )


def _sequence(hints: tuple[Any, ...]) -> _Coder:
    """`tuple[X, ...]` or a tuple of fixed length."""
    endless = len(hints) == 2 and hints[1] is Ellipsis
    coders = [_coder(h) for h in hints[:1]] if endless else [_coder(h) for h in hints]

    def chosen(value: Any, kind: type[tuple[Any, ...]] | type[list[Any]]) -> list[tuple[int, Any, _Coder]]:
        if not isinstance(value, kind) or not (endless or len(value) == len(coders)):
            raise _expected("a list" if endless else f"a list of {len(coders)}", value)
        return [(i, item, coders[0] if endless else coders[i]) for i, item in enumerate(value)]

    return _Coder(
        lambda value: [_at(i, coder.out, item) for i, item, coder in chosen(value, tuple)],
        lambda value: tuple(_at(i, coder.back, item) for i, item, coder in chosen(value, list)),
    )


def _counters_out(value: Any) -> list[list[Any]]:
    """One row for each family: the seven texts of its key, its edges, its values. Repeating no name saves 9 in 10."""
    families: dict[tuple[str, ...], tuple[list[Any], list[Any]]] = {}
    if not isinstance(value, Mapping):
        raise _expected("a mapping of counters", value)
    for key, count in value.items():
        if not isinstance(key, CounterKey) or not all(isinstance(text, str) for text in key[:-1]):
            raise _expected("a counter's key", key)
        edges, values = families.setdefault(tuple(map(str, key[:-1])), ([], []))
        edges.append(_float_out(key.le))
        values.append(_float_out(count))
    return [[*family, edges, values] for family, (edges, values) in families.items()]


def _counters_back(value: Any) -> dict[CounterKey, float]:
    counters: dict[CounterKey, float] = {}
    try:
        for arm, exporter, pod, name, code, flags, grpc, edges, values in value:
            for text in (exporter, pod, name, code, flags, grpc):
                _text.back(text)
            for le, count in zip(edges, values, strict=True):
                key = CounterKey(Arm(arm), exporter, pod, name, code, flags, grpc, _float_back(le))
                counters[key] = _float_back(count)
    except (TypeError, ValueError):
        raise _expected("rows of seven texts, edges and values", value) from None
    return counters


def _record(kind: type) -> _Coder:
    """A dataclass as a mapping of those fields that differ from their defaults."""
    hints = get_type_hints(kind)
    coders = {f.name: _coder(hints[f.name]) for f in fields(kind)}
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    defaults = {
        f.name: coders[f.name].out(f.default_factory() if f.default_factory is not MISSING else f.default)
        for f in fields(kind)
        if f.name not in required
    }
    nothing = object()

    def out(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            raise _expected(f"a {kind.__name__}", value)
        encoded = {name: _at(name, coder.out, getattr(value, name)) for name, coder in coders.items()}
        return {name: v for name, v in encoded.items() if v != defaults.get(name, nothing)}

    def back(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _expected(f"the fields of a {kind.__name__}", value)
        for name in required:
            if name not in value:
                raise _Misfit("is missing").inside(name)
        return kind(**{name: _at(name, coders[name].back, value[name]) for name in coders if name in value})

    return _Coder(out, back)


_SINGLE: Mapping[Any, _Coder] = {
    str: _text,
    int: _exactly(int, "a whole number"),
    bool: _exactly(bool, "true or false"),
    float: _Coder(_float_out, _float_back),
    datetime: _Coder(_time_out, _time_back),
    timedelta: _Coder(_span_out, _span_back),
    Any: _Coder(_plain, _plain),
}


def _compile(hint: Any) -> _Coder:
    """Both directions for a type hint. Raises TypeError for a type that no noun uses yet: a mistake in the program."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SINGLE:
        return _SINGLE[hint]
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        return _optional(_coder(next(a for a in arguments if a is not NoneType)))
    if origin is np.ndarray:
        return _Coder(_array_out, _array_back)
    if origin is tuple:
        return _sequence(arguments)
    if origin is Mapping and arguments[0] is CounterKey:
        return _Coder(_counters_out, _counters_back)
    if origin is Mapping and get_origin(arguments[1]) is np.ndarray:
        return _Coder(lambda v: _members(v, str, _array_out), _arrays_back)
    if origin is Mapping and arguments[0] is str:
        value = _coder(arguments[1])
        return _Coder(lambda v: _members(v, str, value.out), lambda v: _members(v, str, value.back))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint)
    raise TypeError(f"the codec does not know {hint!r}")


_coder: Callable[[Any], _Coder] = cache(_compile)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
