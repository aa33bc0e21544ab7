"""Writes manifests/base/50-canaryd and its cluster-wide variant from the program that also prints them.

python scripts/manifests.py            writes them
python scripts/manifests.py --check    exits with 1 when a file is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import canaryd
from canaryd import crd, manifests, yamlout
from canaryd.manifests import Install

HOME = Path(__file__).resolve().parent.parent / "manifests"
BASE = "base/50-canaryd"
WIDE = "components/canaryd-cluster-wide"
HEAD = "# Written by scripts/manifests.py; a test compares.\n"
IMAGE = f"canaryd:{canaryd.__version__}"


def files() -> dict[str, str]:
    """Every file below manifests/ that is written here, with its text."""
    install = Install(image=IMAGE, watched=("shop",))
    wide = Install(image=IMAGE)
    parts = {
        "namespace.yaml": [manifests.namespace(install)],
        "crd.yaml": [crd.definition()],
        "people.yaml": manifests.people(install),
        "rbac.yaml": [*manifests.service_account(install), *manifests.lease_rights(install)],
        "rbac-shop.yaml": manifests.watched_rights(install),
        "deployment.yaml": [manifests.deployment(install)],
        "service.yaml": manifests.around(install),
    }
    written = {f"{BASE}/{name}": yamlout.documents(objects) for name, objects in parts.items()}
    written[f"{BASE}/canaryd.yaml"] = manifests.settings_text(install)
    written[f"{BASE}/kustomization.yaml"] = yamlout.documents([_base(list(parts))])
    written[f"{WIDE}/rbac.yaml"] = yamlout.documents(manifests.cluster_rights(wide))
    written[f"{WIDE}/canaryd.yaml"] = manifests.settings_text(wide)
    written[f"{WIDE}/kustomization.yaml"] = yamlout.documents([_wide(install)])
    return {name: HEAD + text for name, text in written.items()}


def _base(resources: list[str]) -> Mapping[str, Any]:
    """The settings' name carries their hash, so that changed settings restart the daemon."""
    settings = {"name": manifests.SETTINGS, "namespace": manifests.NAME, "files": ["canaryd.yaml"]}
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
        "configMapGenerator": [settings],
    }


def _wide(install: Install) -> Mapping[str, Any]:
    """One ClusterRole instead of a Role in each namespace."""
    settings = {
        "name": manifests.SETTINGS,
        "namespace": manifests.NAME,
        "behavior": "replace",
        "files": ["canaryd.yaml"],
    }
    dropped = [
        {"$patch": "delete", **{key: each[key] for key in ("apiVersion", "kind")}, "metadata": _named(each)}
        for each in manifests.watched_rights(install)
    ]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["rbac.yaml"],
        "configMapGenerator": [settings],
        "patches": [{"patch": yamlout.documents([each])} for each in dropped],
    }


def _named(each: Mapping[str, Any]) -> Mapping[str, str]:
    return {key: each["metadata"][key] for key in ("name", "namespace")}


def main(arguments: list[str]) -> int:
    """Exit status."""
    stale = []
    for name, text in files().items():
        file = HOME / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    print(f"manifests: {'stale' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
