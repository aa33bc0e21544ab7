"""The documents say what the program does: examples validate, links lead somewhere, lists and references are fresh."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from canaryd.cli.app import COMMANDS, app
from canaryd.cli.exits import Exit
from canaryd.cli.help import TOPICS
from canaryd.config import Settings, check
from canaryd.model import Phase, Verdict
from canaryd.policy import Canary, dump_canary
from canaryd.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").rglob("*.md")]
)
MAKEFILE = (ROOT / "Makefile").read_text()


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=named)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def code(text: str) -> list[str]:
    """Everything that is set as code: spans, fenced and indented lines."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}\S.*$", rest, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", rest)
    return [line for block in fenced for line in block.splitlines()] + indented + spans


# ── what a reader copies ─────────────────────────────────────────────────────────────────────────────────────


@pages
def test_every_document_shown_is_valid(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    if page.name == "README.md" and page.parent == ROOT:
        assert blocks, "the README shows a Canary document"
    for i, block in enumerate(blocks):
        file = tmp_path / f"{i}.yaml"
        file.write_text(block)
        loaded = check([str(file)])
        assert loaded.problems == ()
        assert len(loaded.canaries) == 1


@pages
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    context = click.Context(app, info_name="canaryd")
    for line in code(page.read_text()):
        for name, rest in re.findall(r"(?:^|[;&|(]) *(?:\$ )?(?:canaryd|kubectl canary) ([a-z][\w-]*)([^;&|`]*)", line):
            assert name in COMMANDS, f"canaryd {name}: {line}"
            command = app.get_command(context, name)
            assert command is not None
            rest = re.split(" {2,}", rest)[0]  # what follows are words about it
            known = {o for p in command.params for o in p.opts} | {"--help", "-h"}
            for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r'"[^"]*"', "", rest)):
                assert option in known, f"canaryd {name} {option}: {line}"
            topic = rest.split()[:1]
            assert name != "help" or not topic or topic[0] in (*TOPICS, *COMMANDS), line


@pages
def test_every_make_target_shown_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    shown = {word for line in code(page.read_text()) for word in re.findall(r"(?<![\w-])make ([a-z-]+)", line)}
    assert shown <= targets


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_script_and_benchmark_shown_exists() -> None:
    for page in PAGES:
        if page.name == "cli.md":  # written by the program, with places elsewhere
            continue
        for path in re.findall(
            r"(?<![/\w])((?:scripts|benchmarks|canaryd|config|docs|tests)/[\w./-]*\w)", page.read_text()
        ):
            found = (ROOT / path).exists() or (page.parent / path).exists()
            assert found or path.endswith(("canaries", "NAME.py")), f"{named(page)}: {path}"
    described = (ROOT / "benchmarks" / "README.md").read_text()
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        assert benchmark.stem in ("run", "idle_daemon") or f"`{benchmark.stem}`" in described, benchmark


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["canary-document.md", "settings.md", "permissions.md"])
def test_the_reference_is_what_the_program_says(name: str) -> None:
    written = script("reference").PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == written, "run scripts/reference.py"


def paths(value: Any, above: str = "") -> set[str]:
    """Every key of plain data as "section.key"; the kind stands in the brackets of a metric, as in the reference."""
    out: set[str] = set()
    for key, below in value.items():
        out.add(f"{above}.{key}".lstrip("."))
        items = below if isinstance(below, list) else [below]
        for item in items:
            if isinstance(item, dict) and key not in ("labels", "annotations", "clusters"):
                many = f"[{item.get('kind', '')}]" if isinstance(below, list) else ""
                out |= paths(item, f"{above}.{key}{many}".lstrip("."))
    return out


def documented(name: str) -> set[str]:
    out: set[str] = set()
    section = ""
    for line in (ROOT / "docs" / name).read_text().splitlines():
        if line.startswith("## "):
            section = line.strip("# `") if "`" in line else ""
        elif found := re.match(r"\| `(\w+)` \|", line):
            out.add(f"{section}.{found[1]}".lstrip("."))
    return out


def test_every_key_that_can_be_set_is_documented() -> None:
    (canary,) = check([str(ROOT / "config/canaries/checkout.yaml")]).canaries
    assert paths(dump_canary(canary)) <= documented("canary-document.md")
    assert set(script("reference").keys(Canary)) == documented("canary-document.md")
    assert paths(Settings().model_dump(mode="json", by_alias=True)) <= documented("settings.md")


def test_the_operators_page_explains_every_phase_verdict_and_metric() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for word in (*Phase, *Verdict):
        assert f"`{word.value}`" in text
    exposed = set(re.findall(r"^# TYPE (canaryd_\w+)", Telemetry().exposition().decode(), re.MULTILINE))
    shown = set(re.findall(r"canaryd_[a-z_]+", text))
    assert shown - {"canaryd_"} <= exposed
    assert exposed - shown - {name for name in exposed if name.endswith("_created")} == set()


def test_what_the_operators_page_quotes_is_what_the_program_says() -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "canaryd").rglob("*.py"))
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)  # texts that are written on several lines
    table = (ROOT / "docs" / "operations.md").read_text().partition("## When something is wrong")[2]
    cells = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    quotes = [re.findall(r"`([^`]+)`", cell) for cell in cells]
    assert len(quotes) > 15
    for quote in quotes:
        for text in quote:
            pieces = [p.strip(" :;,.()") for p in re.split(r"…|\d+ ?(?:%|min|s\b|ms)?|api-?\w*|NAME|\(|\)", text)]
            longest = max(pieces, key=len)
            assert longest in source, f"{text}: {longest!r}"


def test_the_architecture_names_every_layer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    text = (ROOT / "docs" / "architecture.md").read_text()
    for module in (m.strip().removeprefix("canaryd.") for layer in layers for m in layer.split("|")):
        assert module == "__main__" or f"`{module}`" in text, module


def test_every_exit_code_is_in_the_reference_of_commands() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for exit_code in Exit:
        assert f"| {exit_code.value} | {exit_code.meaning} |" in text


# ── pictures and decisions ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("picture", ["live-table.svg", "kubectl-watch.svg", "one-tick.svg"])
def test_a_picture_is_whole_and_loads_nothing(picture: str) -> None:
    text = (ROOT / "docs" / picture).read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"@import|@font-face|url\((?!['\"]?#)|<image|<script", text)


def test_decisions_are_numbered_listed_and_complete() -> None:
    folder = ROOT / "docs" / "adr"
    listed = (folder / "README.md").read_text()
    files = sorted(folder.glob("[0-9]*.md"))
    assert [int(f.name[:3]) for f in files] == list(range(1, len(files) + 1))
    for file in files:
        text = file.read_text()
        assert f"]({file.name})" in listed
        assert re.search(r"^- Status: \w+\n- Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_every_mutation_of_the_core_still_has_its_text() -> None:
    mutants = script("mutate").MUTANTS
    assert len({m.name for m in mutants}) == len(mutants) >= 18
    for mutant in mutants:
        assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant.name
