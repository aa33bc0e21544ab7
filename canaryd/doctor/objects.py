"""What people's commands ask a cluster about itself: who we are, who leads. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from canaryd.kube.asking import JSON
from canaryd.kube.kinds import Kind

REVIEWS = Kind("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False)
STALE = timedelta(seconds=30)  # a Lease that was not renewed for so long has no holder


def leaderless(lease: JSON, at: datetime) -> str:
    """Why nobody leads by this Lease; "" while somebody does. Another machine's clock may differ by some seconds."""
    spec = lease.get("spec") or {}
    holder, renewed = str(spec.get("holderIdentity") or ""), spec.get("renewTime")
    if not renewed:
        return "canaryd is not running (nobody ever led)"
    since = ago(renewed, at)
    if not holder:
        return f"canaryd is not running (the last leader stopped {since:.0f} s ago)"
    patience = max(STALE.total_seconds(), 3 * int(spec.get("leaseDurationSeconds") or 0))
    return f"canaryd is not running ({holder} led, and was last heard of {since:.0f} s ago)" if since > patience else ""


def ago(then: str, at: datetime) -> float:
    """Seconds; none for what lies ahead by another clock."""
    return max(0.0, (at - datetime.fromisoformat(then)).total_seconds())
