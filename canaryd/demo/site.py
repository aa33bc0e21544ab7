"""One canaryd at work in a directory: its configuration, its process, its state, and the commands that people type.

It never decides anything, and writes nothing outside its directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.demo.lab import replace_file
from canaryd.demo.processes import Child, LabError, Nursery, fetch, free_port, wait_until
from canaryd.errors import StoreError

SETTINGS = """\
state: {{path: state.db}}
canaries: [canaries]
web: {{listen: "127.0.0.1:{port}"}}
log: {{format: json, level: info}}
metrics:
  source: {source}
{section}"""


def from_prometheus(url: str, *, scrape: str = "1s", lag: str = "1500ms", timeout: str = "3s") -> str:
    """The section of the settings for counters from a Prometheus; durations as in the settings."""
    return f'  prometheus: {{url: "{url}", scrapeInterval: {scrape}, lag: {lag}, timeout: {timeout}}}\n'


def from_page(url: str, *, timeout: str = "1500ms") -> str:
    """The same for counters read directly from a text page such as Envoy's."""
    return f'  scrape: {{urls: ["{url}"], timeout: {timeout}}}\n'


def from_jaeger(url: str, *, timeout: str = "3s") -> str:
    """A section more, for traces; put after one of the others."""
    return f'traces: {{jaeger: {{url: "{url}", externalURL: "{url}", timeout: {timeout}, lag: 2s}}}}\n'


class Site:
    """See the module. `section` is what `from_prometheus` or `from_page` made, with `from_jaeger` where wanted."""

    def __init__(self, directory: Path, nursery: Nursery, section: str, *, config: str = "canaryd.yaml") -> None:
        """Writes the configuration; several sites with configurations of their own may share a directory."""
        self.directory, self._nursery = directory, nursery
        self.config = directory / config
        self.port = free_port()
        self.documents = directory / "canaries"
        self.documents.mkdir(parents=True, exist_ok=True)
        source = section.split(":")[0].strip()
        self.config.write_text(SETTINGS.format(port=self.port, source=source, section=section))

    @property
    def state(self) -> Path:
        return self.directory / "state.db"

    def write(self, name: str, document: str) -> Path:
        """A Canary document, put into place whole."""
        path = self.documents / f"{name}.yaml"
        replace_file(path, document)
        return path

    def run(self, name: str = "canaryd") -> Child:
        """`canaryd run`; its log is NAME.log of the nursery."""
        return self._nursery.start(name, [sys.executable, "-m", "canaryd", "run", "--config", str(self.config)])

    def open_store(self, daemon: Child, timeout: float = 20.0) -> SqliteStore:
        """The state file, once the daemon is at work. Raises LabError with its last words when it is not in time."""

        def opened() -> SqliteStore | None:
            if not daemon.running:
                raise LabError(f"canaryd did not start:\n{daemon.last_words()}")
            try:
                store = SqliteStore(self.state, create=False)
            except StoreError:
                return None
            if store.heartbeat():
                return store
            store.close()
            return None

        store = wait_until(opened, "canaryd to begin", timeout=timeout)
        assert store is not None
        return store

    def command(self, *words: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
        """`canaryd WORDS` as a person types it, with this configuration."""
        argv = [sys.executable, "-m", "canaryd", *words, "--config", str(self.config)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CANARYD_")}
        return subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of one of the daemon's own pages, such as /metrics. Raises OSError when nobody answers."""
        status, body = fetch(f"http://127.0.0.1:{self.port}{path}")
        return status, body.decode()
