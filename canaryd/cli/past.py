"""Options that the commands share which look back on a Prometheus: where it is, which window, which weights."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from canaryd.cli.exits import UsageError
from canaryd.cli.session import local, now

if TYPE_CHECKING:
    from canaryd.adapters.prometheus import PrometheusSource
    from canaryd.hindsight.past import Weights
    from canaryd.policy import Canary

MOST_ROWS = 10_000
MOST_BYTES = 1_000_000
TIMEOUT = timedelta(seconds=30)  # of one read: a person waits, and a block of the past is more than a tick's
_UNIX = re.compile(r"\d{1,12}(\.\d{1,9})?")


@dataclass(frozen=True, slots=True)
class Server:
    """The Prometheus that was named."""

    url: str
    scrape: timedelta
    bearer_file: str | None
    ca_file: str | None

    def source(self) -> PrometheusSource:
        """The source the daemon would use with these settings. Raises UsageError for an unusable URL."""
        from canaryd.adapters.prometheus import PrometheusSource

        try:
            return PrometheusSource(
                self.url,
                timeout=TIMEOUT,
                lag=self.scrape + timedelta(seconds=5),
                settle=self.scrape,
                ca_file=self.ca_file,
                bearer_file=self.bearer_file,
            )
        except ValueError as error:
            raise UsageError(f"--prometheus: {error}") from error

    def weights(self, canary: Canary, start: datetime, end: datetime) -> Weights:
        """What canaryd said the route had. Raises SourceError; UsageError when it said nothing."""
        from canaryd.adapters.prometheus_weight import configured_weights
        from canaryd.hindsight.past import Weights

        headers = self.source().authorization()
        step = min(self.scrape, canary.spec.interval)
        found = configured_weights(
            self.url, canary.name, start, end, step, timeout=TIMEOUT, headers=headers, ca_file=self.ca_file
        )
        if not found:
            raise UsageError(
                f'no weight is known: Prometheus has no canaryd_weight{{canary="{canary.name}",kind="configured"}} '
                "in this window; give --schedule FILE.csv or --weight N"
            )
        return Weights.of(found)


def server_options(command: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:
    """`--prometheus` and what goes with it; understood by `server`."""
    for option in (
        click.option("--ca-file", metavar="FILE", type=click.Path(), help="Certificates to trust."),
        click.option("--bearer-token-file", metavar="FILE", type=click.Path(), help="A token to send."),
        click.option(
            "--scrape-interval",
            "scrape",
            default="15s",
            show_default=True,
            metavar="TIME",
            help="Its own.",
        ),
        click.option("--prometheus", "url", required=required, metavar="URL", help="Such as http://127.0.0.1:9090."),
    ):
        command = option(command)
    return command


def server(url: str, scrape: str, bearer_token_file: str | None, ca_file: str | None) -> Server:
    """Raises UsageError."""
    return Server(url, duration(scrape, "--scrape-interval"), bearer_token_file, ca_file)


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--start` and `--end`; understood by `window`."""
    text = 'RFC 3339 ("2026-01-31T14:05:00Z"), Unix seconds, "14:05" or "2h" (ago)'
    command = click.option("--end", required=True, metavar="TIME", help="The same.")(command)
    return click.option("--start", required=True, metavar="TIME", help=f"{text}.")(command)


def window(start: str, end: str) -> tuple[datetime, datetime]:
    """Both as UTC; what has not happened yet is cut off. Raises UsageError."""
    present = now()
    first, last = moment(start, present), min(moment(end, present), present)
    if first >= last:
        raise UsageError(
            f"the window is empty: it begins at {first.isoformat()} and ends at {last.isoformat()}; "
            "--start must come before --end, and before now"
        )
    return first, last


def moment(text: str, at: datetime) -> datetime:
    """RFC 3339, Unix seconds, "14:05" or "10m" (ago). Raises UsageError."""
    from canaryd.cli.explain import parse_time

    try:
        found = _unix(text) or parse_time(text, local(at))
        return found.astimezone(UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise UsageError(f'"{text[:60]}" is not a time that canaryd can use') from error


def _unix(text: str) -> datetime | None:
    return datetime.fromtimestamp(float(text), UTC) if _UNIX.fullmatch(text.strip()) else None


def duration(text: str, option: str) -> timedelta:
    """A positive duration such as "30s". Raises UsageError."""
    from canaryd.policy import parse_duration

    try:
        span = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    if not timedelta(0) < span <= timedelta(hours=1):
        raise UsageError(f'{option}: {text[:20]} is out of range; use more than 0s and at most 1h, such as "30s"')
    return span


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────────────────


def read_schedule(path: str) -> Weights:
    """A CSV of `time,weight`. Raises UsageError that names file and line."""
    from canaryd.hindsight.past import Weights

    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path}: the schedule cannot be read: {reason}") from error
    if len(text) > MOST_BYTES:
        raise UsageError(f"{path}: the schedule is larger than {MOST_BYTES:,} characters")
    try:
        rows = list(_rows(path, text))
        if not rows:
            raise UsageError(f"{path}: the schedule is empty; write lines such as 2026-01-31T14:05:00Z,10")
        return Weights.of(rows)
    except csv.Error as error:
        raise UsageError(f"{path}: {error}") from error


def _rows(path: str, text: str) -> Iterator[tuple[datetime, int]]:
    lines = [(i, row) for i, row in enumerate(csv.reader(text.splitlines()), start=1) if "".join(row).strip()]
    if len(lines) > MOST_ROWS:
        raise UsageError(f"{path}: {len(lines)} rows; use at most {MOST_ROWS}")
    if lines and not any(c.isdigit() for c in "".join(lines[0][1])):
        del lines[0]  # the header
    before = datetime.min.replace(tzinfo=UTC)
    for i, row in lines:
        cells = [cell.strip() for cell in row]
        if len(cells) != 2:
            raise UsageError(f"{path}: row {i} has {len(cells)} columns; write time,weight")
        at = _time(path, i, cells[0])
        if at <= before:
            raise UsageError(
                f"{path}: row {i}: {at.isoformat()} is not after {before.isoformat()}; "
                "the times must be in ascending order"
            )
        yield at, _percent(path, i, cells[1])
        before = at


def _time(path: str, row: int, text: str) -> datetime:
    try:
        at = _unix(text) or datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        at = None
    if at is None or at.tzinfo is None:
        wanted = 'use RFC 3339 with its zone, "2026-01-31T14:05:00Z", or Unix seconds'
        raise UsageError(f'{path}: row {row}: "{text[:40]}" is no time; {wanted}')
    return at.astimezone(UTC)


def _percent(path: str, row: int, text: str) -> int:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not (0 <= value <= 100 and value == int(value)):
        raise UsageError(f'{path}: row {row}: "{text[:40]}" is no weight; use a whole percentage from 0 to 100')
    return int(value)


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────


def read_canary(path: str, interval: str | None = None) -> Canary:
    """The one Canary in a file, with another interval when given. Raises ConfigError, UsageError."""
    from canaryd.config import check
    from canaryd.errors import ConfigError

    loaded = check([path])
    if loaded.problems:
        raise ConfigError(list(loaded.problems))
    if len(loaded.canaries) != 1:
        names = ", ".join(c.name for c in loaded.canaries) or "none"
        raise UsageError(f"{path}: one Canary is wanted, there are: {names}")
    (canary,) = loaded.canaries
    return canary if interval is None else _every(canary, duration(interval, "--interval"))


def _every(canary: Canary, interval: timedelta) -> Canary:
    """The same Canary, looked at so often. Raises UsageError when that does not fit the rest of it."""
    from pydantic import ValidationError

    from canaryd.policy import dump_canary, format_duration, parse_canary

    document = dump_canary(canary)
    document["spec"]["interval"] = format_duration(interval)
    try:
        return parse_canary(document)
    except ValidationError as error:
        raise UsageError(f"--interval: {error.errors()[0]['msg']}") from error
