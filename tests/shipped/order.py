"""Reads manifests/order.txt: which stage an object is applied in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shipped.render import MANIFESTS, Object

PART_OF = "app.kubernetes.io/part-of"


@dataclass(frozen=True)
class Stage:
    """One line: all terms must hold, each with one of its alternatives."""

    name: str
    terms: Mapping[str, tuple[str, ...]]

    def takes(self, each: Object) -> bool:
        meta = each["metadata"]
        known = {"kind": each["kind"], "name": meta["name"], "part-of": (meta.get("labels") or {}).get(PART_OF)}
        return all(known[term] in allowed for term, allowed in self.terms.items())


def read(text: str) -> list[Stage]:
    """ValueError when a line has an unknown term."""
    stages = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *terms = line.split()
        pairs = {key: tuple(value.split(",")) for key, _, value in (term.partition("=") for term in terms)}
        if not pairs or pairs.keys() - {"kind", "name", "part-of"}:
            raise ValueError(f"order.txt: {line!r}: terms are kind=, name= and part-of=")
        stages.append(Stage(name, pairs))
    return stages


STAGES = read((MANIFESTS / "order.txt").read_text())


def stage_of(each: Object) -> str | None:
    return next((stage.name for stage in STAGES if stage.takes(each)), None)
