"""The examples in config/ are valid, fit the resource where they are for a cluster, and say what the program does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_crd import SCHEMA, misfits

from canaryd import manifests
from canaryd.config import check, load_settings
from canaryd.policy import dump_canary, parse_canary

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
CLUSTER = sorted(f for f in (CONFIG / "cluster").glob("*.yaml") if f.name != "canaryd.yaml")


@pytest.mark.parametrize("file", sorted(CONFIG.rglob("*.yaml")), ids=lambda f: str(f.relative_to(CONFIG)))
def test_every_example_is_valid(file: Path) -> None:
    assert check([str(file)]).problems == ()


@pytest.mark.parametrize("file", CLUSTER, ids=lambda f: f.name)
def test_an_example_for_a_cluster_fits_the_definition_of_the_resource(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    assert list(misfits(document["spec"], SCHEMA["properties"]["spec"])) == []
    assert list(misfits({**document["spec"], "alfa": "1%"}, SCHEMA["properties"]["spec"])) != []


def test_what_the_example_calls_a_default_is_one() -> None:
    document = yaml.safe_load((CONFIG / "cluster" / "checkout.yaml").read_text())
    spelt = dump_canary(parse_canary(document))
    spec = document["spec"]
    for key in ("stable", "readyTimeout", "keepFailed", "onDelete"):
        del spec["workloads"]["deployment"][key]
    for key in ("alpha", "budget", "interval", "onBlind", "blindDeadline"):
        del spec[key]
    assert dump_canary(parse_canary(document)) == spelt


def test_the_settings_for_a_cluster_are_those_that_are_installed_but_for_what_each_place_chooses() -> None:
    example = load_settings(CONFIG / "cluster" / "canaryd.yaml")
    installed = yaml.safe_load(manifests.settings_text(manifests.Install(image="x", watched=("shop",))))
    assert example.mode == installed["mode"] == "cluster"
    assert list(example.cluster.namespaces) == installed["cluster"]["namespaces"]
    assert example.metrics.source == installed["metrics"]["source"]
    assert str(example.metrics.prometheus.url) == installed["metrics"]["prometheus"]["url"]
    assert example.web.listen == installed["web"]["listen"]
