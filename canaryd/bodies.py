"""Reading the body of a record defensively: it may come from an older version, a file, or somebody's hand. Pure.

Nothing raises here: what is not what it should be reads as an empty part, no number, or no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Body = Mapping[str, Any]  # of a record, or a part of one


def part(body: Body, key: str) -> Body:
    """A mapping in a mapping; an empty one when it is none."""
    value = body.get(key)
    return value if isinstance(value, Mapping) else {}


def parts(body: Body, key: str) -> list[Body]:
    """The mappings of a list in a mapping."""
    value = body.get(key)
    items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
    return [item for item in items if isinstance(item, Mapping)]


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:  # a whole number beyond every float
        return None
    return known if math.isfinite(known) else None


def instant(value: object) -> datetime | None:
    """ISO text → UTC, without a zone taken as UTC; None when it is no time."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        if at is None:
            return None
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
