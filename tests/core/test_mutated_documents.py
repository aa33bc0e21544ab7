"""Hundreds of broken documents, the same on every run: each is a clear error or a valid document, never a traceback.

The shipped examples and the shipped settings are mutated as values and as texts.
"""

from __future__ import annotations

import copy
import io
import random
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from canaryd.config import Settings, check, load_canaries, load_settings
from canaryd.errors import CanarydError, ConfigError, Problem
from canaryd.policy import Canary

CONFIG = Path(__file__).parents[2] / "config"
SOURCES = {
    name: (CONFIG / name).read_text() for name in ("canaries/api.yaml", "canaries/checkout.yaml", "canaryd.yaml")
}
ROUNDS = 7  # times 16 ways to mutate, times three documents: 336
LONGEST = 3.0  # seconds of processor time for one document; the usual is a few hundredths

GOOD = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata: {name: bystander}
spec:
  workloads: {pools: [bystander-v1, bystander-v2]}
  route: {envoyFile: {path: /tmp/bystander.yaml}}
"""

# ── ways to break a document ─────────────────────────────────────────────────────────────────────────────────

Place = tuple[Any, Any]  # container and key or index in it


def _places(value: Any) -> list[Place]:
    """Every value inside a document."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in items] + [place for _, item in items for place in _places(item)]


def _somewhere(draw: random.Random, document: Any, among: type = object) -> Place:
    return draw.choice(
        [p for p in _places(document) if isinstance(p[0], dict | list) and isinstance(p[0][p[1]], among)]
    )


def drop_key(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    del container[key]


def rename_key(draw: random.Random, document: Any) -> None:
    container, key = draw.choice([p for p in _places(document) if isinstance(p[0], dict)])
    at = draw.randrange(len(key))
    container[key[:at] + draw.choice(["", "x", "_", "é", " ", ".", "[0]", key[at] * 2]) + key[at + 1 :]] = (
        container.pop(key)
    )


def swap_type(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    container[key] = draw.choice([5, -1, 0.5, True, "text", "", [], {}, [1, "a"], {"a": 1}, "30", "5%", "30s"])


def huge_number(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    container[key] = draw.choice(
        [10**17, 10**18, -(10**40), 10**4000, 1e300, 1e-300, "1e999%", "9" * 38 + "d", "9" * 5000]
    )


def not_a_number(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    container[key] = draw.choice([float("nan"), float("inf"), float("-inf"), "nan%", "NaN", "infs"])


def nested(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    for _ in range(draw.choice([2, 20, 60, 120])):
        container[key] = draw.choice([[container[key]], {"a": container[key]}])


def unicode_text(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    container[key] = draw.choice(
        ["é", "名前", "\u202etxt", "٣s", "５%", "a\x1b[31mb", "\U0001f4a9", "\ufeffx", "a\u2028b", "\x85"]
    )


def null(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document)
    container[key] = None


def empty(draw: random.Random, document: Any) -> None:
    container, key = _somewhere(draw, document, draw.choice([str, dict, list]))
    container[key] = type(container[key])()


def doubled(draw: random.Random, document: Any) -> None:
    lists = [p for p in _places(document) if isinstance(p[0][p[1]], list)]
    container, key = draw.choice(lists)
    container[key] = container[key] * (draw.choice([2, 60]) if len(container[key]) < 10 else 1)


def reordered(draw: random.Random, document: Any) -> None:
    container, key = draw.choice([p for p in _places(document) if isinstance(p[0][p[1]], list)])
    draw.shuffle(container[key])
    container[key] = container[key] + copy.deepcopy(container[key][:1])


VALUES: tuple[Callable[[random.Random, Any], None], ...] = (
    drop_key,
    rename_key,
    swap_type,
    huge_number,
    not_a_number,
    nested,
    unicode_text,
    null,
    empty,
    doubled,
    reordered,
)


def truncated(draw: random.Random, text: bytes) -> bytes:
    return text[: draw.randrange(len(text))]


def random_bytes(draw: random.Random, text: bytes) -> bytes:
    at = draw.randrange(len(text))
    return text[:at] + draw.randbytes(draw.choice([1, 3, 50])) + text[at + draw.choice([0, 1, 50]) :]


def yaml_signs(draw: random.Random, text: bytes) -> bytes:
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text))
        sign = draw.choice(
            [b"\t", b": ", b"- ", b"*a ", b"&a ", b"!x ", b"{", b"]", b"'", b'"', b"\n", b"|\n", b"? ", b"%", b"\\"]
        )
        text = text[:at] + sign + text[at:]
    return text


def lines_moved(draw: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[a], lines[b] = lines[b], b" " * draw.randrange(4) + lines[a]
    return b"".join(lines)


def lines_doubled(draw: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    return b"".join(lines[:at] + lines[at : at + draw.randint(1, 5)] * draw.choice([2, 50]) + lines[at:])


TEXTS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    truncated,
    random_bytes,
    yaml_signs,
    lines_moved,
    lines_doubled,
)


def _yaml(value: Any) -> bytes:
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(value, out)
    return out.getvalue().encode()


PARSED = {name: YAML(typ="safe", pure=True).load(text) for name, text in SOURCES.items()}


@cache
def mutant(source: str, way: str, seed: int) -> bytes:
    """The same bytes for the same arguments, on every machine."""
    draw = random.Random(f"{source} {way} {seed}")
    for change in VALUES:
        if change.__name__ == way:
            document = copy.deepcopy(PARSED[source])
            for _ in range(draw.choice([1, 1, 3])):
                change(draw, document)
            return _yaml(document)
    (alter,) = (change for change in TEXTS if change.__name__ == way)
    return alter(draw, SOURCES[source].encode())


MUTANTS = [
    pytest.param(source, change.__name__, seed, id=f"{Path(source).stem}-{change.__name__}-{seed}")
    for source in SOURCES
    for change in (*VALUES, *TEXTS)
    for seed in range(ROUNDS)
]


# ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = re.compile(
    r"pydantic|Input should|validation error|Field required|Traceback|errors\.pydantic|object at 0x|<[a-z ]+>"
)


def readable(problems: list[Problem] | tuple[Problem, ...]) -> None:
    for problem in problems:
        assert isinstance(problem, Problem)
        assert problem.file
        assert problem.line >= 0
        assert len(problem.message) > 8
        assert problem.message.isprintable()
        assert problem.key.isprintable()
        assert len(str(problem)) < 700
        assert not FOREIGN.search(problem.message), problem.message


def test_there_are_at_least_three_hundred_mutants_and_they_are_the_same_on_every_run() -> None:
    texts = {mutant(*p.values) for p in MUTANTS[::2]}
    assert len(MUTANTS) >= 300
    assert len(texts) > 125  # of 168 looked at
    for param in MUTANTS[::40]:
        assert mutant.__wrapped__(*param.values) == mutant(*param.values)


@pytest.mark.parametrize(("source", "way", "seed"), MUTANTS)
def test_a_mutated_document_is_valid_or_a_clear_error(tmp_path: Path, source: str, way: str, seed: int) -> None:
    (tmp_path / "canaries").mkdir()
    file = tmp_path / "mutant.yaml"
    file.write_bytes(mutant(source, way, seed))
    (tmp_path / "good.yaml").write_text(GOOD)
    began = time.process_time()

    try:
        settings = load_settings(file)
    except ConfigError as e:
        readable(e.problems)
        settings = Settings()
    places = settings.model_copy(update={"canaries": ("*.yaml",)})
    loaded = load_canaries(places, tmp_path) if seed % 2 else check([tmp_path])
    readable(loaded.problems)
    readable(loaded.notes)

    assert time.process_time() - began < LONGEST
    assert "bystander" in loaded.sources
    assert all(isinstance(canary, Canary) for canary in loaded.canaries)
    assert loaded.settings is not None or len(loaded.canaries) >= 2 or loaded.problems


@pytest.mark.parametrize(("source", "way", "seed"), MUTANTS[::13])
def test_a_valid_document_after_a_broken_one_in_the_same_file_is_loaded(
    tmp_path: Path, source: str, way: str, seed: int
) -> None:
    text = mutant(source, way, seed)
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode("latin-1").encode()
    file = tmp_path / "both.yaml"
    file.write_bytes(b"---\n" + text + b"\n---\n" + GOOD.encode())
    assert "bystander" in check([file]).sources


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "{" * 100_000, "a: " * 50_000, "- " * 50_000, "x" * 900_000, "&a " * 9]
)
@pytest.mark.parametrize("before", ["", "spec: "])
def test_a_hostile_text_is_refused_in_bounded_time(tmp_path: Path, before: str, value: str) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(before + value)
    began = time.process_time()
    loaded = check([file])
    assert loaded.problems
    readable(loaded.problems)
    assert time.process_time() - began < 5 * LONGEST


def test_every_error_is_one_of_canaryds_own() -> None:
    assert issubclass(ConfigError, CanarydError)
