"""The section `notify` of canaryd.yaml: what is refused, in which words, and what becomes of what is right."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from canaryd import wiring
from canaryd.adapters.memory import MemoryStore
from canaryd.adapters.slack import SlackBot, SlackWebhook
from canaryd.adapters.slack_buttons import SlackButtons
from canaryd.adapters.webhook import WebhookNotifier
from canaryd.config import load_settings
from canaryd.doctor import notify
from canaryd.doctor.further import Site
from canaryd.errors import ConfigError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise imports it

WRONG = [
    ("channels: [{name: a}]", "notify.channels[0]", "exactly one of slack, webhook, apprise is needed; none is given"),
    ("channels: [{name: log, apprise: {urlsEnv: X}}]", "notify.channels[0].name", '"log" is what canaryd calls'),
    ("channels: [{name: a, slack: {botTokenFile: t}}]", "notify.channels[0].slack", "channel is missing"),
    (
        "channels: [{name: a, slack: {botTokenFile: t, botTokenEnv: T, channel: C0AB}}]",
        "notify.channels[0].slack",
        "botTokenFile and botTokenEnv are given",
    ),
    ("channels: [{name: a, slack: {webhookURLEnv: T, channel: C0AB}}]", "notify.channels[0].slack", "need a bot"),
    (
        "channels: [{name: a, slack: {botTokenEnv: T, channel: general}}]",
        "notify.channels[0].slack.channel",
        '"general" is no channel; use its id, such as C024BE91L, or "#name"',
    ),
    (
        "channels: [{name: a, slack: {botTokenEnv: T, channel: C0AB, mentions: {critical: [here, anna]}}}]",
        "notify.channels[0].slack.mentions.critical[1]",
        '"anna" is no mention',
    ),
    (
        "channels: [{name: a, slack: {botTokenEnv: T, channel: C0AB, buttons: {appTokenEnv: A, allow: []}}}]",
        "notify.channels[0].slack.buttons.allow",
        "use 1 to 500",
    ),
    ("channels: [{name: a, webhook: {}}]", "notify.channels[0].webhook", "exactly one of url, urlFile, urlEnv"),
    (
        "channels: [{name: a, apprise: {urlsEnv: X}, templates: {rolback: x}}]",
        "notify.channels[0].templates.rolback",
        '"rolback" is no kind of decision',
    ),
    (
        'channels: [{name: a, apprise: {urlsEnv: X}, templates: {step: "{{ x.y() }}"}}]',
        "notify.channels[0].templates.step",
        "line 1: only these can be called",
    ),
    (
        "channels: [{name: a, apprise: {urlsEnv: X}}, {name: a, apprise: {urlsEnv: X}}]",
        "notify.channels[1].name",
        'two channels of the name "a"',
    ),
    ("routes: [{channels: [b]}]", "notify.routes[0].channels[0]", 'there is no channel "b"; there are: none'),
    ("routes: [{channels: [b], kinds: [advance]}]", "notify.routes[0].kinds[0]", '"advance" is not known here'),
    ("giveUp: 1s", "notify.giveUp", "1s is out of range"),
    ("channels: [{name: a, slack: {botToken: xoxb-planted}}]", "notify.channels[0].slack.botToken", "unknown key"),
]


@pytest.mark.parametrize(("text", "key", "words"), WRONG, ids=[w[1] for w in WRONG])
def test_what_is_wrong_is_said_with_its_key_and_what_would_be_right(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    file = tmp_path / "canaryd.yaml"
    file.write_text(f"notify:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    found = {p.key: p.message for p in caught.value.problems}
    assert key in found, found
    assert words in found[key]
    assert all(p.line == 2 for p in caught.value.problems)
    assert "planted" not in str(caught.value)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The one of the documentation, with its secrets where it says, but below a directory of its own."""
    page = (ROOT / "docs" / "notifications.md").read_text()
    (text,) = re.findall(r"```yml\n(notify:.*?)```", page, re.DOTALL)
    (tmp_path / "secrets").mkdir()
    for name, secret in (
        ("slack-bot-token", "xoxb-1"),
        ("slack-app-token", "xapp-1"),
        ("checkout-webhook", "https://hooks.slack.com/services/x"),
        ("audit-key", "k"),
        ("apprise-urls", "json://localhost"),
    ):
        (tmp_path / "secrets" / name).write_text(secret)
    file = tmp_path / "canaryd.yaml"
    file.write_text(text.replace("/etc/canaryd/secrets", "secrets").replace("timeout: 10s", "timeout: 1s"))
    return file


def test_the_documented_example_makes_the_notifiers_that_it_names(example: Path) -> None:
    settings, store = load_settings(example), MemoryStore()
    made = wiring.notifiers(settings, store)
    assert [n.name for n in made] == ["releases", "checkout-alarms", "audit", "mail"]
    assert [type(n) for n in made[:3]] == [SlackBot, SlackWebhook, WebhookNotifier]
    assert [type(x) for x in wiring.listeners(settings, store)] == [SlackButtons]
    slack = settings.notify.channels[0].slack
    assert slack is not None
    assert slack.bot_token_file == str(example.parent / "secrets" / "slack-bot-token")
    assert slack.buttons is not None
    assert slack.buttons.app_token_file == str(example.parent / "secrets" / "slack-app-token")


def test_doctor_looks_at_each_channel_and_says_what_to_do(example: Path) -> None:
    text = example.read_text()
    example.write_text(text.replace("channel: C0", 'apiURL: "http://127.0.0.1:9/api/"\n        channel: C0'))
    (example.parent / "secrets" / "audit-key").unlink()
    site = Site(load_settings(example), (), datetime.now(UTC))
    found = {finding.what.partition(":")[0]: finding for finding in notify.channels(site)}
    assert list(found) == ["releases", "releases, buttons", "checkout-alarms", "audit", "mail"]
    assert [str(f.severity) for f in found.values()] == ["error", "error", "fine", "warning", "fine"]
    assert "connection refused" in found["releases"].what
    assert "audit-key cannot be read" in found["audit"].what
    assert all(f.why and f.remedy for f in found.values() if f.severity != "fine")


def test_without_channels_nothing_of_slack_is_loaded() -> None:
    code = (
        "import sys; from canaryd.config import Settings; from canaryd import wiring, daemon, process;"
        "from canaryd.adapters.memory import MemoryStore; wiring.notifiers(Settings(), MemoryStore());"
        "print([m for m in ('slack_sdk', 'jinja2', 'apprise', 'websockets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
