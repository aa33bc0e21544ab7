"""`canaryd delete`: deletes a Canary of a cluster and shows what canaryd still does before it is gone."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from canaryd import render, wording
from canaryd.cli.app import global_options
from canaryd.cli.exits import Exit, NotFoundError, UsageError
from canaryd.cli.session import Session, name_argument, now, with_session
from canaryd.cli.wait import duration_option

if TYPE_CHECKING:
    from canaryd.cli.cluster import ClusterSession

ORPHAN = "canaryd.io/on-delete"  # the annotation that says what becomes of the rest
LOOK = 0.2  # seconds between two looks at what a watch told


@click.command()
@global_options
@name_argument
@click.option("--orphan", is_flag=True, help="Leave route, Deployments and Services as they are now.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@duration_option("--timeout", "10m", "Longest wait until it is gone; 0s: do not wait.")
@with_session
def delete(session: Session, name: str, orphan: bool, yes: bool, timeout: timedelta) -> int:
    """Delete a Canary of a cluster; the plain Deployment is brought back.

    All requests go back to the Deployment that people edit, none is lost, and what canaryd made is removed; then the
    Canary is gone. With --orphan everything stays as it is. Exits with 75 when it is not gone in time: it goes
    on all the same.

    \b
    Examples:
      canaryd delete api -n shop
      kubectl canary delete api --orphan --yes
    """
    if not session.clustered:
        raise UsageError("delete is for a cluster; without one, take the document out of the directory of Canaries")
    from canaryd.cli.cluster import ClusterSession

    assert isinstance(session, ClusterSession)
    key = session.name(name)
    if not yes:
        _ask(session, key, orphan)
    uid = _delete(session, key, orphan)
    return _until_gone(session, key, uid, timeout)


def _ask(session: ClusterSession, key: str, orphan: bool) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("nobody can be asked here: --yes says that it is meant")
    body = session.body(key)
    click.echo(render.lines([body])[0], err=True)
    what = "everything stays as it is" if orphan else "the plain Deployment is brought back"
    click.confirm(f"Delete the Canary {key}? ({what})", abort=True, err=True)


def _delete(session: ClusterSession, key: str, orphan: bool) -> str:
    """Says that it shall go, and how; returns which one it is. Raises KubeError, NotFoundError."""
    from canaryd.cli.cluster import split
    from canaryd.kube.kinds import CANARIES

    namespace, plain = split(key)
    obj = session.raw(key)
    if obj is None:
        raise NotFoundError(f"{key} is gone already")
    uid = str(obj["metadata"]["uid"])
    if orphan:
        wish = {"metadata": {"uid": uid, "annotations": {ORPHAN: "orphan"}}}
        session.client.patch(CANARIES, namespace, plain, wish, how="merge")
    session.client.delete(CANARIES, namespace, plain, uid=uid, propagation="Background")
    return uid


def _until_gone(session: ClusterSession, key: str, uid: str, timeout: timedelta) -> int:
    deadline, mark, told = time.monotonic() + timeout.total_seconds(), -1, ""
    while True:
        new = session.mark()
        if new != mark:
            mark, obj = new, session.raw(key)
            if obj is None or obj["metadata"].get("uid") != uid:
                click.echo(f"{session.plain(key)} is deleted")
                return Exit.OK
        waits = _waits_for(session, key)
        if waits != told:
            told = waits
            click.echo(f"{session.plain(key)}: {render.clean(told, 600)}", err=True)
        if time.monotonic() >= deadline:
            click.echo(f"canaryd: {key} is not gone within {wording.span(timeout)}; it goes on all the same", err=True)
            return Exit.TRY_AGAIN
        time.sleep(LOOK)


def _waits_for(session: ClusterSession, key: str) -> str:
    """What is still done before it is gone."""
    obj = session.raw(key) or {}
    finalizers = ", ".join((obj.get("metadata") or {}).get("finalizers") or ())
    if not finalizers:
        return "waits for the API server"
    if missing := session.absent(now(), key):
        return f"waits for {finalizers}, but {missing}"
    status = obj.get("status") or {}
    ready: dict[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    held = str(ready.get("message") or "") if ready.get("status") == "False" else ""
    said = held or str(status.get("message") or "")
    return f"waits for {finalizers}" + (f": {said}" if said else "")
