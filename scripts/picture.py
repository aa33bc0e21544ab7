"""Draws docs/live-table.svg: the table of `canaryd status -w` as it stood in the middle of a real `canaryd demo`.

    canaryd demo --directory .demo && python scripts/picture.py [.demo/state.db]

Shows the instant at which the last rollout under way had its newest look before its last step but one: by then the bad
releases are decided and the good one is on its way. Every word in the picture comes from decision records, through
canaryd.render.svg. Never starts anything.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from canaryd import render
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.model import Record

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "live-table.svg"
WIDTH = 116  # columns
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
    return _FONT.sub("", svg).replace("Fira Code, monospace", "monospace")


def main(arguments: list[str]) -> int:
    """Exit status."""
    PICTURE.write_text(draw(Path(arguments[0] if arguments else ".demo/state.db")), encoding="utf-8")
    print(f"picture: {PICTURE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
