"""Draws two pictures of the documentation from real output: the live table, and what kubectl shows.

    canaryd demo --directory .demo && python scripts/picture.py [.demo/state.db]       docs/live-table.svg
    PYTHONPATH=tests/cluster:. python -m demo --record FILE && python scripts/picture.py --watch FILE
                                                                                       docs/kubectl-watch.svg

The table is that of `canaryd status -w` at the instant at which the last rollout under way had its newest look before
its last step but one: by then the bad releases are decided and the good one is on its way. Every word in it comes from
decision records, through canaryd.render.svg. The lines of kubectl are all that it printed, in its own columns; only the
colours are ours. Never starts anything.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from canaryd import render
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.model import Record

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "live-table.svg"
WATCH = ROOT / "docs" / "kubectl-watch.svg"
WIDTH = 116  # columns
COMMAND = "kubectl get canary -w"
COLOURS = {
    "Progressing": "cyan",
    "Promoting": "cyan",
    "Succeeded": "green",
    "RollingBack": "red",
    "RolledBack": "red",
}
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # the picture loads nothing from anywhere


def moment(store: SqliteStore) -> datetime:
    """The newest look at the second largest weight of any rollout; looks that moved the weight say less."""
    looks = [r for name in store.canaries() for r in store.records(name, limit=1000) if _is_look(r)]
    if not looks:
        raise SystemExit("picture: no look of a rollout under way is recorded in this state file")
    weights = sorted({r.body["weight"]["desired"] for r in looks})
    wanted = weights[max(len(weights) - 2, 0)]
    return max(r.at for r in looks if r.body["weight"]["desired"] == wanted)


def _is_look(record: Record) -> bool:
    body = record.body
    return body["kind"] == "hold" and body["phase"] == "Progressing" and body["weight"]["observed"] is not None


def bodies(store: SqliteStore, at: datetime) -> list[Mapping[str, Any]]:
    """The record of each canary that was in force then, with the last sentence that people were told by then."""
    out: list[Mapping[str, Any]] = []
    for name in store.canaries():
        records = store.records(name, limit=1000, before=at)
        if records:
            told = next((r for r in records if r.tell), records[0])
            out.append({**records[0].body, **{key: told.body[key] for key in ("sentence", "kind", "at")}})
    return out


def draw(state: Path) -> str:
    """The picture as SVG text that needs no font and no address from outside. Raises StoreError."""
    store = SqliteStore(state, create=False)
    try:
        at = moment(store)
        svg = render.svg(bodies(store, at), at.astimezone(UTC) + timedelta(milliseconds=300), width=WIDTH)
    finally:
        store.close()
    return _lean(svg)


def draw_watch(lines: Sequence[str]) -> str:
    """The lines that kubectl printed, as SVG text. Raises SystemExit when they are not of `kubectl get canary -w`."""
    if not lines or not lines[0].startswith("NAME "):
        raise SystemExit("picture: the first line of the file is not the heading that kubectl prints")
    width = max(map(len, lines)) + 2
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(Text(f"$ {COMMAND}", "bold"))
    for line in lines:
        phase = next((word for word in COLOURS if word in line.split()), "")
        console.print(Text(line, COLOURS.get(phase, "")))
    return _lean(console.export_svg(title=COMMAND, unique_id="kubectl"))


def _lean(svg: str) -> str:
    """Without anything that would be loaded from somewhere."""
    return _FONT.sub("", svg).replace("Fira Code, monospace", "monospace")


def main(arguments: list[str]) -> int:
    """Exit status."""
    picture = WATCH if arguments[:1] == ["--watch"] else PICTURE
    if picture is WATCH:
        svg = draw_watch(Path(arguments[1]).read_text(encoding="utf-8").splitlines())
    else:
        svg = draw(Path(arguments[0] if arguments else ".demo/state.db"))
    picture.write_text(svg, encoding="utf-8")
    print(f"picture: {picture.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
