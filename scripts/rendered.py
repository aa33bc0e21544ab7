"""Writes what is read instead of 20 000 lines of YAML: objects of each rendering, and what they ask of a cluster.

python scripts/rendered.py            writes manifests/OBJECTS.txt and manifests/TOTALS.md
python scripts/rendered.py --check    exits with 1 when a file is not what would be written
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from shipped.render import REGIONS, Combination, Object, combinations, render  # noqa: E402
from shipped.tree import Tree, Workload, named  # noqa: E402

FIRST = Combination(f"overlays/{REGIONS[0]}")
MANY = 40  # changed objects that are counted instead of listed
HASH = re.compile(r"-[a-z0-9]{10}$")
CPU = {"m": 0.001, "": 1.0}
BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
SIDECARS = ("shop", "observability")  # namespaces whose pods get one, unless they say no
SIDECAR = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


def listing() -> str:
    """Objects of the first region by name, and for each other rendering what it adds (+), lacks (-) and changes (~)."""
    first = _objects(FIRST)
    lines = [
        "# Written by scripts/rendered.py; a test compares. Configurations without the hash in their names.",
        "",
        f"== {FIRST} ({len(first)})",
        *first,
    ]
    for other in combinations():
        if other == FIRST:
            continue
        found = _objects(other)
        marks = [f"+ {k}" for k in found if k not in first] + [f"- {k}" for k in first if k not in found]
        changed = [k for k in found if k in first and found[k] != first[k]]
        marks += (
            [f"~ {k}" for k in changed] if len(changed) < MANY else [f"~ {len(changed)} objects (the region's label)"]
        )
        lines += ["", f"== {other} ({len(found)})", *marks]
    return "\n".join(lines) + "\n"


def _objects(combination: Combination) -> dict[str, str]:
    objects = sorted(render(combination.root, *combination.components), key=lambda each: (each["kind"], named(each)))
    return {HASH.sub("", named(each)): json.dumps(each, sort_keys=True) for each in objects}


# ── totals ───────────────────────────────────────────────────────────────────────────────────────


def totals() -> str:
    """Pods, CPU and memory of each region, at the autoscalers' lower and upper bounds."""
    lines = [
        "<!-- Written by scripts/rendered.py; a test compares. -->",
        "# What a region asks for",
        "",
        "Without the charts (istiod, ingress, cert-manager) and kube-prometheus; with the sidecars that Istio adds",
        "(50m and 96Mi each, `install/istiod-values.yaml`). During a release the canary has up to as many pods as",
        "api-stable: once more that row. CronJobs run for minutes and are counted as one pod.",
    ]
    for region in REGIONS:
        tree = Tree(render(f"overlays/{region}"))
        lines += [
            "",
            f"## {region}",
            "",
            "| workload | pods | CPU requested | memory requested | CPU limit | memory limit |",
            "|---|---|---|---|---|---|",
        ]
        sums = [0.0] * 10
        for row in _rows(tree):
            name, fewest, most, asked = row
            lines.append(f"| {name} | {_range(fewest, most)} | {_each(asked, fewest, most)} |")
            for place, value in enumerate(asked):
                sums[2 * place] += value * fewest
                sums[2 * place + 1] += value * most
            sums[8] += fewest
            sums[9] += most
        cells = [_span(kind, sums[2 * n], sums[2 * n + 1]) for n, kind in enumerate(("cpu", "memory") * 2)]
        lines.append(
            f"| **all** | **{_range(int(sums[8]), int(sums[9]))}** | {' | '.join(f'**{c}**' for c in cells)} |"
        )
    return "\n".join(lines) + "\n"


def _rows(tree: Tree) -> Iterator[tuple[str, int, int, list[float]]]:
    """(name, fewest pods, most pods, [CPU requested, memory requested, CPU limit, memory limit] of one pod)."""
    for workload in sorted(tree.workloads, key=str):
        if workload.labels.get("app.kubernetes.io/component") == "canary":
            continue  # counted with api-stable
        containers = [*workload.containers, *([{"resources": SIDECAR}] if _has_sidecar(workload) else [])]
        yield str(workload), *tree.replicas(workload), _asked(containers)
    for each in tree.of("Prometheus"):
        spec = each["spec"]
        yield str(named(each)), spec["replicas"], spec["replicas"], _asked([{"resources": spec["resources"]}])


def _has_sidecar(workload: Workload) -> bool:
    return workload.injected or (
        workload.namespace in SIDECARS and workload.labels.get("sidecar.istio.io/inject") != "false"
    )


def _asked(containers: list[Object]) -> list[float]:
    return [
        sum(_number(what, c["resources"][kind][what]) for c in containers)
        for kind in ("requests", "limits")
        for what in ("cpu", "memory")
    ]


def _number(what: str, text: Any) -> float:
    """Cores, or bytes."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert found, f"{what} is {text!r}"
    return float(found[1]) * (CPU if what == "cpu" else BYTES)[found[2]]


def _each(asked: list[float], fewest: int, most: int) -> str:
    kinds = ("cpu", "memory") * 2
    return " | ".join(_span(kind, value * fewest, value * most) for kind, value in zip(kinds, asked, strict=True))


def _span(kind: str, low: float, high: float) -> str:
    shown = [f"{v:.2f}".rstrip("0").rstrip(".") if kind == "cpu" else f"{v / 2**30:.1f} GiB" for v in (low, high)]
    return shown[0] if shown[0] == shown[1] else " - ".join(shown)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} - {high}"


def files() -> dict[str, str]:
    """Every file that is written here, from the root of the repository, with its text."""
    return {"manifests/OBJECTS.txt": listing(), "manifests/TOTALS.md": totals()}


def main(arguments: list[str]) -> int:
    """Exit status."""
    stale = []
    for name, text in files().items():
        file = ROOT / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    print(f"rendered: {'stale' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
