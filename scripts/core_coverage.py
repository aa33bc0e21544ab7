"""Fails the build when the pure core's tests leave too many of its lines or branches unrun.

Reads the coverage data that `make cover` has just written; never runs a test itself.
Lines and branches are held to the limit separately: a total over both hides branches behind lines.
"""

from __future__ import annotations

import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from coverage import Coverage

LIMIT = 95.0  # percent, of lines and of branches
ELSEWHERE = {"canaryd.deployments"}  # pure as well, but proven on real controllers, in tests/cluster


def core_modules(root: Path) -> tuple[str, ...]:
    """The modules that the import contract keeps pure, without the package's name: one list for both rules."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["type"] == "forbidden"]
    return tuple(module.removeprefix("canaryd.") for module in pure["source_modules"] if module not in ELSEWHERE)


def measured(root: Path, core: tuple[str, ...]) -> dict[str, Any]:
    """coverage.py's JSON report of the core's files; a file no test imported counts with nothing run."""
    include = [str(root / "canaryd" / f"{name}.py") for name in core]
    include += [str(root / "canaryd" / name / "*") for name in core]
    coverage = Coverage(data_file=str(root / ".coverage"), config_file=str(root / "pyproject.toml"))
    coverage.load()
    coverage.report(include=include, show_missing=True, skip_covered=True, precision=1)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "core.json"
        coverage.json_report(include=include, outfile=str(report))
        return dict(json.loads(report.read_text(encoding="utf-8")))


def share(covered: int, total: int) -> float:
    """Percent, 0..100; nothing to cover is fully covered."""
    return 100.0 * covered / total if total else 100.0


def shortfalls(report: dict[str, Any], core: tuple[str, ...], limit: float = LIMIT) -> list[str]:
    """One sentence for each way in which the report misses the limit; empty when it holds."""
    totals = report["totals"]
    lines = share(totals["covered_lines"], totals["num_statements"])
    branches = share(totals["covered_branches"], totals["num_branches"])
    print(f"pure core: {lines:.1f} % of lines, {branches:.1f} % of branches (at least {limit:.0f} % of each)")
    seen = {Path(file).parts[1].removesuffix(".py") for file in report["files"]}
    found = [f"canaryd.{name} was not measured" for name in core if name not in seen]
    found += [f"{lines:.1f} % of lines are covered"] * (lines < limit)
    found += [f"{branches:.1f} % of branches are covered"] * (branches < limit)
    return found


def main() -> int:
    """Exit status for make."""
    root = Path(__file__).resolve().parent.parent
    core = core_modules(root)
    problems = shortfalls(measured(root, core), core)
    for problem in problems:
        print(f"core coverage: {problem}; at least {LIMIT:.0f} % is required", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
