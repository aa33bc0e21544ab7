"""Rules for all tests: a part that this machine lacks is skipped loudly, and in CI it is a failure."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from canaryd.demo import envoy, prometheus

pytest.register_assert_rewrite("router_promises")  # tests that several modules share

# Who starts the tests in the background (nohup, some build servers) ignores Ctrl-C, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MISSING = pytest.StashKey[dict[str, int]]()  # how to get it → tests that wanted it


def _lacks(marker: str) -> str | None:
    """How to get the part that `marker` stands for, or None when it is here."""
    if marker == "envoy" and envoy.find() is None:
        return envoy.HOW_TO_GET_IT
    if marker == "prometheus" and (prometheus.find() is None or shutil.which("promtool") is None):
        return prometheus.HOW_TO_GET_IT
    if marker == "browser" and shutil.which("chromium") is None:
        return "Chromium not found: apt-get install chromium"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: skip, or fail where CI=true, what needs a part that is not here."""
    for marker in ("envoy", "prometheus", "browser"):
        if item.get_closest_marker(marker) is None or (advice := _lacks(marker)) is None:
            continue
        counted = item.config.stash.setdefault(MISSING, {})
        counted[advice] = counted.get(advice, 0) + 1
        if os.environ.get("CI") == "true":
            pytest.fail(advice, pytrace=False)
        pytest.skip(advice)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One loud line for each missing part."""
    failed = os.environ.get("CI") == "true"
    for advice, tests in config.stash.get(MISSING, {}).items():
        verdict = "FAILED" if failed else "DID NOT RUN"
        terminalreporter.write_line(f"!!! {tests} tests {verdict}: {advice}", red=True, bold=True)
