"""Where a command looks: files, or which cluster; and what an error means for a script."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from canaryd.cli.app import Options
from canaryd.cli.exits import Exit, UsageError, exit_of, sentence_of
from canaryd.cli.session import Session, session_of
from canaryd.doctor.findings import Check, Severity, error, examine, fine
from canaryd.doctor.objects import leaderless
from canaryd.errors import (
    CanarydError,
    KubeConflictError,
    KubeForbiddenError,
    KubeUnreachableError,
    SourceError,
    StoreError,
)

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without a configuration, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("CANARYD_CONTEXT", "CANARYD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def configured(directory: Path, text: str) -> str:
    (directory / "config").mkdir(exist_ok=True)
    file = directory / "config/canaryd.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(Options(context="prod"), id="context"),
        pytest.param(Options(kubeconfig="k.yaml"), id="kubeconfig"),
        pytest.param(Options(namespace="shop"), id="namespace"),
        pytest.param(Options(all_namespaces=True), id="all"),
        pytest.param(Options(plugin=True), id="kubectl"),
    ],
)
def test_a_cluster_is_meant_when_one_is_asked_for_even_beside_a_configuration_of_files(
    options: Options, somewhere: Path
) -> None:
    configured(somewhere, "mode: embedded\n")
    assert session_of(options).clustered


def test_a_context_in_the_environment_means_a_cluster_unless_files_are_named(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARYD_CONTEXT", "prod")
    assert session_of(Options()).clustered
    assert not session_of(Options(state="state.db")).clustered
    file = configured(somewhere, "mode: embedded\n")
    assert not session_of(Options(config=file)).clustered


def test_the_configuration_says_what_is_meant_where_nothing_else_does(somewhere: Path) -> None:
    assert type(session_of(Options())) is Session
    configured(somewhere, "mode: cluster\n")
    assert session_of(Options()).clustered
    assert not session_of(Options(state="state.db")).clustered


def test_a_state_file_and_a_cluster_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="cannot go with"):
        session_of(Options(state="x.db", context="prod"))
    with pytest.raises(UsageError, match="contradict"):
        session_of(Options(namespace="shop", all_namespaces=True))


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────


def caused(error: CanarydError, by: Exception) -> CanarydError:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(KubeForbiddenError("x", status=403), Exit.FORBIDDEN, id="forbidden"),
        pytest.param(caused(StoreError("x"), KubeForbiddenError("y", status=403)), Exit.FORBIDDEN, id="passed-on"),
        pytest.param(caused(StoreError("x"), KubeUnreachableError("y")), Exit.UNREACHABLE, id="away"),
        pytest.param(KubeConflictError("x", status=409), Exit.TRY_AGAIN, id="conflict"),
        pytest.param(StoreError("x"), Exit.STATE, id="state"),
        pytest.param(SourceError("x"), Exit.UNAVAILABLE, id="other"),
    ],
)
def test_the_exit_code_is_that_of_what_the_api_server_said(error: CanarydError, code: Exit) -> None:
    assert exit_of(error) is code


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "forbidden: patch canaries.canaryd.io api in shop, as anna",
            "anna may not patch canaries in shop: ask for the Role canaryd-operator",
        ),
        (
            "forbidden: list canaries.canaryd.io in all namespaces, as anna",
            "anna may not list canaries in all namespaces: ask for the Role canaryd-viewer",
        ),
        (
            "forbidden: get configmaps canaryd-history-api in shop, as system:serviceaccount:a:b",
            "system:serviceaccount:a:b may not get configmaps in shop: ask for a Role with the verb get on configmaps",
        ),
        (
            "forbidden: patch canaries.canaryd.io api in shop: admission webhook says no",
            "shop/api: forbidden: patch canaries.canaryd.io api in shop: admission webhook says no",
        ),
    ],
)
def test_who_may_not_is_told_in_a_sentence_and_what_a_webhook_says_is_passed_on(text: str, sentence: str) -> None:
    assert sentence_of(caused(StoreError(f"shop/api: {text}"), KubeForbiddenError(text, status=403))) == sentence


# ── who leads ────────────────────────────────────────────────────────────────────────────────────────────────


def lease(ago: float, holder: str = "canaryd-0", duration: int = 10) -> dict[str, object]:
    at = (NOW - timedelta(seconds=ago)).isoformat()
    return {"spec": {"holderIdentity": holder, "renewTime": at, "leaseDurationSeconds": duration}}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        pytest.param(lease(2), "", id="leads"),
        pytest.param(lease(-5), "", id="another-clock"),
        pytest.param(lease(29), "", id="patience"),
        pytest.param(lease(31), "canaryd is not running (canaryd-0 led, and was last heard of 31 s ago)", id="silent"),
        pytest.param(lease(31, duration=60), "", id="a-long-lease"),
        pytest.param(lease(5, holder=""), "canaryd is not running (the last leader stopped 5 s ago)", id="released"),
        pytest.param({"spec": {}}, "canaryd is not running (nobody ever led)", id="never"),
    ],
)
def test_a_lease_tells_whether_anybody_leads(found: dict[str, object], told: str) -> None:
    assert leaderless(found, NOW) == told


# ── the list of checks ───────────────────────────────────────────────────────────────────────────────────────


def test_a_check_that_fails_is_a_warning_and_keeps_no_other_from_being_made() -> None:
    def breaks(_: str) -> list[object]:
        raise SourceError("no connection")

    checks = (Check("a", breaks), Check("b", lambda subject: [fine(subject)]))  # type: ignore[arg-type]
    found = list(examine(checks, "all is well", str))
    assert [(name, f.severity, f.what) for name, f in found] == [
        ("a", Severity.WARNING, "could not be looked at: no connection"),
        ("b", Severity.FINE, "all is well"),
    ]


def test_nothing_else_is_looked_at_where_what_is_vital_fails() -> None:
    def breaks(_: str) -> list[object]:
        raise SourceError("no connection")

    checks = (Check("a", breaks, vital=True), Check("b", lambda _: [error("x", "y", "z")]))  # type: ignore[arg-type]
    assert [(name, f.severity) for name, f in examine(checks, "", str)] == [("a", Severity.ERROR)]
