"""Renders overlays and components with the real `kubectl kustomize`, each combination once."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-1")
IN_OVERLAYS = ("region", "remote-write", "jaeger-opensearch", "redis-cache")  # what each region has already
Object = dict[str, Any]


@dataclass(frozen=True)
class Combination:
    """Something that may be applied: an overlay or the base, and components on top."""

    root: str
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.root.removeprefix("overlays/"), *self.components))


def components() -> tuple[str, ...]:
    """All that are in the folder."""
    return tuple(sorted(file.parent.name for file in (MANIFESTS / "components").glob("*/kustomization.yaml")))


def combinations() -> list[Combination]:
    """No region; every region; every component by itself where it belongs; and what is likely together."""
    first = f"overlays/{REGIONS[0]}"
    extra = [name for name in components() if name not in IN_OVERLAYS]
    return [
        Combination("base", ("jaeger-opensearch", "redis-cache")),
        *(Combination(f"overlays/{region}") for region in REGIONS),
        *(Combination(first, (name,)) for name in extra if name != "jaeger-dev"),
        Combination("base", ("jaeger-dev", "redis-cache", "sampling-100")),  # a test cluster
        Combination("base", ("jaeger-dev", "redis-cache", "flagger")),
        Combination(first, ("mtls-permissive", "rate-limit-shadow", "external-secrets")),  # the first day
        Combination(first, ("ambient", "jwt-required", "letsencrypt", "canaryd-cluster-wide", "federation")),
        Combination(first, ("traffic-gateway-api", "jwt-required", "letsencrypt", "sampling-100", "external-secrets")),
    ]


def kubectl() -> Path:
    """That of the bench when it is built, else the one on PATH."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canaryd" / "tools"
    built = sorted(cache.glob("kubernetes-*/kubectl"), key=lambda file: file.stat().st_mtime)
    found = built[-1] if built else shutil.which("kubectl")
    assert found, "kubectl not found: scripts/cluster-tools kubernetes"
    return Path(found)


def render(root: str, *with_components: str) -> list[Object]:
    """The objects, in kustomize's order. Fresh copies: change them as you like."""
    return [json.loads(_parsed(each)) for each in text(root, *with_components).split("\n---\n")]


@functools.cache
def _parsed(document: str) -> str:
    """As JSON: combinations differ in few documents, and YAML is slow."""
    return json.dumps(yaml.load(document, _Loader))


@functools.cache
def text(root: str, *with_components: str) -> str:
    """What kubectl prints; AssertionError with its words when it does not."""
    with tempfile.TemporaryDirectory(dir=MANIFESTS, prefix=".render-") as scratch:
        named = [f"../components/{name}" for name in with_components]
        wanted = {"resources": [f"../{root}"], **({"components": named} if named else {})}
        (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
        done = subprocess.run([kubectl(), "kustomize", scratch], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{root} {with_components}: {done.stderr}"
    return done.stdout


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]  # yaml has no types here
    """Takes `=` for a plain word, as some definitions mean it."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)
