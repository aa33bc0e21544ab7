"""Secrets are planted in every channel of a real canaryd, everything goes wrong, and then everything is searched."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from slack_server import APP_TOKEN, TOKEN, Slack, running

from canaryd import slackapi
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.model import DecisionKind, Phase, Record, RolloutState

PLANTED = re.compile(rb"planted")
SETTINGS = """\
state: {{path: state.db}}
canaries: [canaries]
metrics: {{source: scrape, scrape: {{urls: ["http://127.0.0.1:9/stats"]}}}}
web: {{listen: "127.0.0.1:0"}}
log: {{format: json, level: debug}}
notify:
  channels:
    - name: bot
      slack: {{botTokenFile: bot, channel: C0WRONG, apiURL: "{api}", timeout: 1s,
              buttons: {{appTokenFile: app, allow: [U12345]}}}}
    - name: hook
      slack: {{webhookURLFile: hook, timeout: 1s}}
    - name: events
      webhook: {{urlFile: url, secretFile: key, allowLocal: true, timeout: 1s}}
    - name: mail
      apprise: {{urlsEnv: CANARYD_TEST_URLS}}
""".replace("name: events", "name: program")
CANARY = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata: {name: api}
spec:
  workloads: {pools: [api-a, api-b]}
  route: {envoyFile: {path: rds.yaml}}
"""


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    with running() as made:
        yield made


def test_no_secret_is_in_a_log_a_page_a_metric_an_error_or_the_state(slack: Slack, tmp_path: Path) -> None:
    base = slack.url.removesuffix("/api/")
    secrets = {"bot": TOKEN, "app": APP_TOKEN, "hook": f"{base}/services/T/B/planted-other", "key": "planted-key"}
    secrets["url"] = "http://user:planted-password@127.0.0.1:9/planted-path?key=planted-query"
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "canaryd.yaml").write_text(SETTINGS.format(api=slack.url))
    (tmp_path / "canaries").mkdir()
    (tmp_path / "canaries" / "api.yaml").write_text(CANARY)
    with closing(SqliteStore(tmp_path / "state.db")) as store:
        body = {"rollout": "api-1", "severity": "critical"}
        owed = Record("api/1", "api", datetime.now(UTC), DecisionKind.ROLLBACK, "api 25 % → 0 %", body, tell=True)
        store.save("api", RolloutState(rollout="api-1", phase=Phase.ROLLED_BACK, number=1), 0, [owed])
    urls = "json://user:planted-apprise@127.0.0.1:9/planted-target\nxml://user:planted-xml@127.0.0.1:9/planted"
    env = {**os.environ, "CANARYD_TEST_URLS": urls}
    said = tmp_path / "log"
    run = [sys.executable, "-m", "canaryd", "--config", str(tmp_path / "canaryd.yaml")]
    with said.open("wb") as out, subprocess.Popen([*run, "run"], stderr=out, stdout=out, env=env) as daemon:
        try:
            port = _port(said)
            pages = [_page(port, path) for path in ("/status", "/metrics", "/healthz", "/readyz")]
            wanted = (b"knows no channel", b"invalid_token", b"127.0.0.1", b"Apprise could not deliver", b'"buttons"')
            end = time.monotonic() + 30
            while not all(word in said.read_bytes() for word in wanted) and time.monotonic() < end:
                time.sleep(0.2)
            pages += [_page(port, path) for path in ("/status", "/metrics")]
        finally:
            daemon.terminate()
            daemon.wait(20)
    doctor = subprocess.run([*run, "doctor"], env=env, check=False, capture_output=True, timeout=60)
    for word in wanted:
        assert word in said.read_bytes(), said.read_text()
    assert b"channel_not_found" in b"".join(pages)
    assert b"knows no channel" in doctor.stdout, doctor.stdout
    written = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file() and f.name not in secrets}
    everything = {**written, "pages": b"".join(pages), "doctor": doctor.stdout + doctor.stderr}
    assert {name for name, data in everything.items() if PLANTED.search(data)} == set()
    assert {"log", "state.db"} <= written.keys()


def _port(log: Path) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if found := re.search(rb'"address": "127.0.0.1:(\d+)"', log.read_bytes()):
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _page(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read()
    except urllib.error.HTTPError as e:
        return e.read()


def test_slack_sdk_has_no_logger_that_anybody_hears(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running() as slack:
        web = slackapi.client(TOKEN, slack.url, timedelta(seconds=1))
        slackapi.call(web, "auth.test", place="here")
        slack.faults.append(lambda handler, _: handler.answer(200, "planted") or True)
        with pytest.raises(slackapi.SlackError):
            slackapi.call(web, "auth.test", place="here")
    assert [r.name for r in caplog.records if not r.name.startswith("websockets")] == []
