"""`canaryd health`: asks a running canaryd over HTTP; for health checks of containers. Imports little, runs often."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import click

from canaryd.cli.app import config_option
from canaryd.cli.exits import Exit, UsageError
from canaryd.cli.session import Session, with_files
from canaryd.errors import SourceError

DEFAULT = "http://127.0.0.1:9095/healthz"
LARGEST = 4096  # bytes of the answer that are read


@click.command()
@config_option
@click.option("--url", metavar="URL", help=f"What to ask; default from the configuration, else {DEFAULT}.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), metavar="SECONDS", default=3.0, show_default=True)
@with_files
def health(session: Session, url: str | None, timeout: float) -> int:
    """Ask a running canaryd whether it is well.

    \b
    Examples:
      canaryd health
      canaryd health --url http://127.0.0.1:9095/readyz
    """
    status, answer = _ask(url or _configured(session), timeout)
    click.echo(answer.strip() or f"HTTP {status}", err=status != 200)
    return Exit.OK if status == 200 else Exit.UNAVAILABLE


def _configured(session: Session) -> str:
    """The address in the configuration, as seen from this machine. Raises UsageError when there is none to ask."""
    if session.settings is None:
        return DEFAULT
    address = session.settings.web.address
    if address is None or address[1] == 0:
        raise UsageError("the configuration has no fixed web.listen to ask; use --url")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(address[0], address[0])  # noqa: S104 - not bound
    return f"http://[{host}]:{address[1]}/healthz" if ":" in host else f"http://{host}:{address[1]}/healthz"


def _ask(url: str, timeout: float) -> tuple[int, str]:
    """HTTP status and the beginning of the answer. Raises SourceError, UsageError."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise UsageError(f"{url!r} is not an address; use one such as {DEFAULT}")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        return response.status, response.read(LARGEST).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"{url} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
