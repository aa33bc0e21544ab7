"""The shipped recording rules, checked and tried by promtool, and what they must have in common with the code."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from canaryd.adapters.series import UNREACHED_FLAGS
from canaryd.policy import ErrorSource

pytestmark = pytest.mark.prometheus

RULES = Path(__file__).resolve().parents[2] / "manifests/base/20-monitoring/rules/recording.yaml"
NAMES = ErrorSource()
SERVED = f'{NAMES.requests}{{reporter="destination",destination_workload="api",destination_workload_namespace="shop"'
SENT = (
    f'{NAMES.requests}{{reporter="source",destination_service_name="api-canary",destination_service_namespace="shop",'
    'namespace="web",pod="web-0"'
)


def promtool(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *argv], capture_output=True, text=True, timeout=60, check=False)


def tried(directory: Path, series: dict[str, str], expected: dict[str, list[tuple[str, float]]]) -> None:
    """After two evaluations of the rules each expression is exactly these samples."""
    test: dict[str, Any] = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": name,
                        "eval_time": "30s",
                        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
                    }
                    for name, samples in expected.items()
                ],
            }
        ],
    }
    file = directory / "test.yaml"
    YAML().dump(test, file)
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stderr + done.stdout


def test_promtool_finds_nothing_wrong() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stderr
    assert "3 rules found" in done.stdout


def test_the_rules_have_the_names_and_the_flags_that_are_read() -> None:
    (group,) = YAML(typ="safe", pure=True).load(RULES.read_text())["groups"]
    by_name = {rule["record"]: rule["expr"] for rule in group["rules"]}
    assert list(by_name) == [NAMES.recorded_requests, NAMES.recorded_durations, NAMES.recorded_unreached]
    assert f"({'|'.join(UNREACHED_FLAGS)})" in by_name[NAMES.recorded_unreached]


def test_requests_are_summed_over_clients_and_kept_by_pod_code_and_flags(tmp_path: Path) -> None:
    series = {
        f'{SERVED},pod="api-0",source_workload="web",response_code="200",response_flags="-"}}': "0 10 20",
        f'{SERVED},pod="api-0",source_workload="cron",response_code="200",response_flags="-"}}': "0 1 2",
        f'{SERVED},pod="api-1",response_code="200",response_flags="-"}}': "0 5 3",
        f'{SERVED},pod="api-1",response_code="500",response_flags="-"}}': "_ _ 4",
        f'{SENT},response_code="200",response_flags="-",pod="web-1"}}'.replace('pod="web-0",', ""): "0 10 20",
    }
    name = NAMES.recorded_requests
    own = 'destination_workload="api",destination_workload_namespace="shop",response_flags="-"'
    expected = [
        (f'{name}{{{own},pod="api-0",response_code="200"}}', 22.0),
        (f'{name}{{{own},pod="api-1",response_code="200"}}', 3.0),  # a restart stays one
        (f'{name}{{{own},pod="api-1",response_code="500"}}', 4.0),
    ]
    tried(tmp_path, series, {name: expected})


def test_durations_of_requests_that_were_not_served_are_left_out(tmp_path: Path) -> None:
    bucket = SERVED.replace(NAMES.requests, NAMES.durations) + ',pod="api-0",le="5"'
    series = {f'{bucket},response_code="{code}"}}': "0 1 2" for code in ("200", "503", "0", "429")}
    own = 'destination_workload="api",destination_workload_namespace="shop",pod="api-0",le="5"'
    tried(tmp_path, series, {NAMES.recorded_durations: [(f"{NAMES.recorded_durations}{{{own}}}", 4.0)]})


def test_losses_are_kept_by_client_and_every_client_has_a_zero(tmp_path: Path) -> None:
    series = {
        f'{SENT},destination_workload="api",response_code="200",response_flags="-"}}': "0 10 20",
        f'{SENT},destination_workload="unknown",response_code="503",response_flags="UH"}}': "_ 1 7",
        f'{SENT},destination_workload="api",response_code="503",response_flags="UF,URX"}}': "_ 1 2",
        f'{SENT},destination_workload="api",response_code="0",response_flags="DC"}}': "0 1 3",
    }
    name = NAMES.recorded_unreached
    own = 'destination_service_name="api-canary",destination_service_namespace="shop",namespace="web",pod="web-0"'
    expected = [
        (f'{name}{{{own},response_code="503",response_flags="UH"}}', 7.0),
        (f'{name}{{{own},response_code="503",response_flags="UF,URX"}}', 2.0),
        (f"{name}{{{own}}}", 0.0),
    ]
    tried(tmp_path, series, {name: expected})
