"""`canaryd doctor`: goes through the checks and says what is missing, why it matters, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.text import Text

from canaryd import render
from canaryd.cli import output
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, sentence_of
from canaryd.cli.session import Session, now, optional_name, with_session
from canaryd.errors import CanarydError

if TYPE_CHECKING:
    from canaryd.doctor.findings import Finding
    from canaryd.doctor.further import Site
    from canaryd.policy import Canary
    from canaryd.ports import MetricSource

_LOOKS = {"fine": ("✓", "green"), "warning": ("▲", "yellow"), "error": ("✕", "bold red")}


@click.command()
@global_options
@optional_name
@click.option("--prometheus", metavar="URL", help="Of a cluster: where the counters are; default spec.prometheus.")
@output.format_option("table", "json", "yaml")
@with_session
def doctor(session: Session, name: str | None, prometheus: str | None, form: str) -> int:
    """Look for what is missing or not as it should be, and say what to do. Changes nothing.

    In a cluster: what the daemon's ServiceAccount may do, the definition, the leader, Deployments, Services, routes,
    autoscalers. Without one: documents, state, daemon, routes. In both: counters of both versions, Prometheus' clock
    and scrape interval, bucket edges, lost counters, and what each step can find at the traffic of the last hour.
    Exits with 0 when all is fine, 5 when something keeps releases from being looked after, 6 for less than that.

    \b
    Examples:
      canaryd doctor                         all Canaries
      canaryd doctor api                     one
      kubectl canary doctor -A               those of a whole cluster
      kubectl -n canaryd exec deploy/canaryd -- canaryd doctor -A -o json
    """
    found = list(_in_cluster(session, name, prometheus) if session.clustered else _of_files(session, name))
    if form == "table":
        _show(found)
    else:
        output.emit([{"check": check, **asdict(finding)} for check, finding in found], form)
    worst = {str(finding.severity) for _, finding in found}
    return Exit.AMISS if "error" in worst else Exit.DOUBTFUL if "warning" in worst else Exit.OK


def _in_cluster(session: Session, name: str | None, prometheus: str | None) -> Iterator[tuple[str, Finding]]:
    from canaryd.cli.cluster import ClusterSession, split
    from canaryd.doctor.cluster import CHECKS, Cluster
    from canaryd.doctor.findings import examine
    from canaryd.doctor.further import Site
    from canaryd.wiring import metric_source, prometheus_health

    assert isinstance(session, ClusterSession)
    namespace, plain = split(session.name(name)) if name else (session.namespace, "")
    installed = session.installed
    scope: tuple[str, ...] = (namespace,) if namespace else ()
    if installed is not None and not name and not session.scoped:
        scope = installed.cluster.namespaces

    def source(canary: Canary) -> MetricSource | None:
        url = prometheus or (canary.spec.prometheus.url if canary.spec.prometheus else None)
        if installed is not None and not prometheus:
            return metric_source(installed)
        return _prometheus(url) if url else None

    own, lease = session.lease
    domain = installed.cluster.domain if installed is not None else "cluster.local"
    scrape = installed.metrics.prometheus.scrape_interval if installed is not None and not prometheus else None
    cluster = Cluster(
        session.client,
        scope,
        plain,
        now(),
        source,
        own=own,
        lease=lease,
        domain=domain,
        health=prometheus_health(installed, prometheus),
        scrape=scrape,
    )
    yield from examine(CHECKS, cluster, sentence_of)
    yield from _further(lambda: Site(installed, cluster.subjects, cluster.at, session.client))


def _prometheus(url: str) -> MetricSource:
    from canaryd.cli.past import Server, duration

    return Server(url, duration("15s", "--scrape-interval"), None, None).source()


def _of_files(session: Session, name: str | None) -> Iterator[tuple[str, Finding]]:
    from canaryd.doctor.files import CHECKS, Files
    from canaryd.doctor.findings import examine
    from canaryd.doctor.further import Site
    from canaryd.wiring import metric_source, prometheus_health

    session.require_config()
    settings, loaded = session.settings, session.documents
    assert settings is not None
    assert loaded is not None
    wanted = session.name(name) if name else None
    canaries = [canary for canary in loaded.canaries if wanted in (None, canary.name)]
    if wanted and not canaries and wanted not in loaded.refused:
        raise NotFoundError(f"{wanted} has a state but no document")
    files = Files(
        loaded,
        canaries,
        lambda: session.sqlite if session.has_state else None,
        lambda: session.absent(now()),
        lambda: metric_source(settings),
        now(),
        prometheus_health(settings, None),
        settings.metrics.prometheus.scrape_interval,
    )
    yield from examine(CHECKS, files, sentence_of)
    yield from _further(lambda: Site(settings, files.subjects, files.at))


def _further(site: Callable[[], Site]) -> Iterator[tuple[str, Finding]]:
    """The checks that plug in; what keeps all of them from being made has been told by then."""
    from canaryd.doctor.findings import examine
    from canaryd.doctor.further import checks

    try:
        yield from examine(checks(), site(), sentence_of)
    except CanarydError:
        return


def _show(found: list[tuple[str, Finding]]) -> None:
    """One line for each finding; what is not fine with why and what to do below."""
    width = max((len(check) for check, _ in found), default=0)
    lines = list(_lines(found, width))
    output.show(Text("\n").join(lines))
    counts = [(sum(f.severity == kind for _, f in found), kind) for kind in ("error", "warning")]
    told = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for n, kind in counts if n)
    click.echo(f"\n{told or 'all is fine'}.")


def _lines(found: list[tuple[str, Finding]], width: int) -> Iterator[Text]:
    for check, finding in found:
        icon, style = _LOOKS[finding.severity]
        line = Text(f"{icon} ", style).append(f"{check:<{width}}  ", "bold")
        line.append(f"{render.clean(finding.about, 130)}: " if finding.about else "")
        line.append(render.clean(finding.what, 600), style if finding.severity != "fine" else "")
        yield line
        for word, text in (("why", finding.why), ("do", finding.remedy)):
            if text:
                yield Text(f"{'':{width + 4}}{word:<3} {render.clean(text, 600)}", render.QUIET)
