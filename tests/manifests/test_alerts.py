"""Each alert fires on what it is for and is silent otherwise, as promtool says, which finds no fault in the rules."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from shipped.render import MANIFESTS, ROOT

pytestmark = pytest.mark.prometheus

FILES = sorted(MANIFESTS.glob("*/*/rules/*.yaml"))
GROUPS = [(file, group) for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = {r["alert"]: r for _, group in GROUPS for r in group["rules"] if "alert" in r}
BASE = MANIFESTS / "base" / "20-monitoring" / "rules"


@dataclass(frozen=True)
class Case:
    """Series (one sample each 30 s) with which the alert fires at `at`, and others with which it does not."""

    fires: dict[str, str]
    silent: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)  # of the alert, without its severity
    summary: str = ""
    at: str = "20m"


def served(code: str, values: str, flags: str = "-", workload: str = "api-stable", **more: str) -> dict[str, str]:
    labels = {
        "reporter": "destination",
        "destination_workload": workload,
        "destination_workload_namespace": "shop",
        "response_code": code,
        "response_flags": flags,
        **more,
    }
    return {series("istio_requests_total", labels): values}


def series(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}"


def quick(edge: str, quick_ones: int) -> dict[str, str]:
    """100 requests in each interval, so many of them within 500 ms."""
    base = {"reporter": "destination", "destination_workload": "api-stable", "destination_workload_namespace": "shop"}
    name = "istio_request_duration_milliseconds_bucket"
    return {
        series(name, {**base, "le": edge}): f"0+{quick_ones}x40",
        series(name, {**base, "le": "+Inf"}): "0+100x40",
    }


def lost(flags: str, each: int) -> dict[str, str]:
    labels = {
        "reporter": "source",
        "destination_service_name": "api-stable",
        "destination_service_namespace": "shop",
        "response_flags": flags,
    }
    return {series("istio_requests_total", labels): f"0+{each}x40"}


def weights(desired: str, observed: str) -> dict[str, str]:
    return {
        'canaryd_weight{canary="shop/api",kind="desired"}': f"{desired}x40",
        'canaryd_weight{canary="shop/api",kind="observed"}': f"{observed}x40",
    }


def pushes(slow: int) -> dict[str, str]:
    name = "pilot_proxy_convergence_time_bucket"
    return {
        f'{name}{{le="10"}}': f"0+{100 - slow}x40",
        f'{name}{{le="30"}}': "0+100x40",
        f'{name}{{le="+Inf"}}': "0+100x40",
    }


def targets(down: int) -> dict[str, str]:
    return {
        f'up{{job="istio-system/envoy-stats",namespace="shop",pod="api-{n}"}}': f"{0 if n < down else 1}x40"
        for n in range(20)
    }


def limited(refused: int) -> dict[str, str]:
    name = "envoy_http_local_rate_limiter_http_local_rate_limit"
    pod = '{namespace="shop",pod="api-0"}'
    return {f"{name}_enabled{pod}": "0+1000x40", f"{name}_rate_limited{pod}": f"0+{refused}x40"}


SERVICE = {"destination_workload": "api-stable", "destination_workload_namespace": "shop"}
CASES = {
    "MeshErrorBudgetBurnFast": Case(
        at="80m",
        fires={**served("200", "0+98x200"), **served("503", "0+2x200")},
        silent={**served("200", "0+99.9x200"), **served("503", "0+0.1x200"), **served("429", "0+50x200", "RL")},
        labels=SERVICE,
        summary="api-stable fails 2% of its requests, 14 times what its objective of 99.9 % allows",
    ),
    "MeshLatencySLO": Case(
        fires=quick("500.0", 80),
        silent=quick("500", 97),
        labels=SERVICE,
        summary="20% of the requests to api-stable take longer than 500 ms",
    ),
    "MeshConnectionFailures": Case(
        fires=lost("UF,URX", 60),
        silent={**lost("DC", 600), **lost("UH", 3)},
        labels={
            "destination_service_name": "api-stable",
            "destination_service_namespace": "shop",
            "response_flags": "UF,URX",
        },
        summary="clients do not reach api-stable (UF,URX, 2/s)",
    ),
    "CanarydDown": Case(
        fires={'canaryd_leader{pod="canaryd-0"}': "0x40"},
        silent={'canaryd_leader{pod="canaryd-0"}': "0x40", 'canaryd_leader{pod="canaryd-1"}': "1x40"},
        summary="no canaryd leads: releases neither go on nor are they rolled back",
    ),
    "CanaryMetricsAbsent": Case(
        fires={'canaryd_blind_seconds{canary="shop/api"}': "0+30x40"},
        silent={'canaryd_blind_seconds{canary="shop/api"}': "90x40"},
        labels={"canary": "shop/api"},
        summary="canaryd has not seen the counters of shop/api for 20m 0s: its release is held",
    ),
    "CanaryRegressed": Case(
        fires={'canaryd_phase{canary="shop/api",phase="RolledBack"}': "0x10 1x30"},
        silent={
            'canaryd_phase{canary="shop/api",phase="Progressing"}': "1x40",
            'canaryd_verdict{canary="shop/api",verdict="healthy"}': "1x40",
            'canaryd_verdict{canary="shop/api",verdict="regressed"}': "0x40",
        },
        labels={"canary": "shop/api", "phase": "RolledBack"},
        summary="the release of shop/api was worse than stable and is taken back",
    ),
    "CanaryWeightMismatch": Case(
        fires=weights("25", "60"),
        silent=weights("25", "30"),
        labels={"canary": "shop/api"},
        summary="the share of requests that shop/api gets is not the one that was decided",
    ),
    "IstiodPushSlow": Case(
        fires=pushes(slow=10), silent=pushes(slow=0), summary="routes take 28s to reach the proxies (p99)"
    ),
    "IstiodRejectedConfig": Case(
        fires={'pilot_total_xds_rejects{type="lds"}': "0x30 1x10"},
        silent={'pilot_total_xds_rejects{type="lds"}': "7x40"},
        labels={"type": "lds"},
        summary="proxies refuse configuration of type lds and keep their last one",
    ),
    "EnvoyStatsTargetsDown": Case(
        fires=targets(down=3),
        silent=targets(down=1),
        labels={"namespace": "shop"},
        summary="15% of the sidecars in shop cannot be scraped",
    ),
    "JaegerDroppingSpans": Case(
        fires={'otelcol_receiver_refused_spans_total{namespace="observability",pod="c-0"}': "0+300x40"},
        silent={
            'otelcol_receiver_refused_spans_total{namespace="observability",pod="c-0"}': "5x40",
            'otelcol_exporter_send_failed_spans_total{namespace="observability",pod="c-0"}': "0x40",
        },
        labels={"namespace": "observability", "pod": "c-0"},
        summary="c-0 loses 10 spans per second",
    ),
    "RateLimitSaturated": Case(
        fires=limited(100),
        silent=limited(40),
        labels={"namespace": "shop", "pod": "api-0"},
        summary="api-0 is over its rate limit with 10% of its requests",
    ),
    "ModelSyncLagging": Case(
        fires={'kube_cronjob_status_last_successful_time{namespace="shop",cronjob="model-sync"}': "60x40"},
        silent={'kube_cronjob_status_last_successful_time{namespace="shop",cronjob="model-sync"}': "0+30x40"},
        labels={"namespace": "shop", "cronjob": "model-sync"},
        summary="models in shop are 19m 0s old; 15 minutes are promised",
    ),
    "CacheHitRatioLow": Case(
        at="40m",
        fires={
            'redis_keyspace_hits_total{namespace="shop",pod="redis-0"}': "0+80x80",
            'redis_keyspace_misses_total{namespace="shop",pod="redis-0"}': "0+20x80",
        },
        silent={
            'redis_keyspace_hits_total{namespace="shop",pod="redis-0"}': "0+90x80",
            'redis_keyspace_misses_total{namespace="shop",pod="redis-0"}': "0+10x80",
        },
        labels={"namespace": "shop"},
        summary="only 80% of what is asked of the cache in shop is in it; 85 % are expected",
    ),
    "CacheWithoutMaster": Case(
        fires={'redis_instance_info{role="slave",namespace="shop",pod="redis-1"}': "1x40"},
        silent={'redis_instance_info{role="master",namespace="shop",pod="redis-0"}': "1x40"},
        labels={"namespace": "shop", "role": "master"},
        summary="no Redis takes writes, and the sentinels have not made another one the master",
    ),
}


def promtool(directory: Path, rules: list[str], *cases: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": "30s", "tests": list(cases)}))
    argv = ["promtool", "test", "rules", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def unit_test(name: str, given: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "30s",
        "input_series": [{"series": key, "values": values} for key, values in given.items()],
        "alert_rule_test": [{"alertname": name, "eval_time": CASES[name].at, "exp_alerts": expected}],
    }


def firing(name: str) -> dict[str, Any]:
    case, rule = CASES[name], ALERTS[name]
    notes = {"summary": case.summary, "runbook_url": rule["annotations"]["runbook_url"]}
    return {"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": notes}


ALL = [str(file) for file in FILES]


def test_promtool_finds_nothing_wrong() -> None:
    argv = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", *ALL]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_twelve_alerts_in_four_groups_and_each_is_tried() -> None:
    alerts = {g["name"]: [r for r in g["rules"] if "alert" in r] for file, g in GROUPS if file.parent == BASE}
    alerts = {name: rules for name, rules in alerts.items() if rules}
    assert len(alerts) == 4
    assert sum(map(len, alerts.values())) == 12
    assert set(CASES) == set(ALERTS)
    pages = {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    assert pages == set(ALERTS)


def test_each_fires_on_what_it_is_for(tmp_path: Path) -> None:
    cases = [unit_test(name, case.fires, [firing(name)]) for name, case in CASES.items()]
    done = promtool(tmp_path, ALL, *cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_is_silent_otherwise(tmp_path: Path) -> None:
    done = promtool(tmp_path, ALL, *(unit_test(name, case.silent, []) for name, case in CASES.items()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_neither_would_pass_with_the_series_of_the_other(tmp_path: Path) -> None:
    """promtool says of each alert that it was not there, or there."""
    swapped = [unit_test(name, case.silent, [firing(name)]) for name, case in CASES.items()]
    said = promtool(tmp_path, ALL, *swapped)
    assert [name for name in CASES if f"alertname: {name}" not in said.stdout + said.stderr] == []


def test_an_expression_that_was_broken_is_found(tmp_path: Path) -> None:
    """The edge as Prometheus 2 wrote it, which Prometheus 3 no longer does: the alert would be dead without a word."""
    text = (BASE / "alerts-mesh.yaml").read_text().replace('le=~"500(\\\\.0)?"', 'le="500"')
    assert text != (BASE / "alerts-mesh.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(text)
    case = unit_test("MeshLatencySLO", CASES["MeshLatencySLO"].fires, [firing("MeshLatencySLO")])
    assert promtool(tmp_path, ["broken.yaml"], case).returncode != 0
