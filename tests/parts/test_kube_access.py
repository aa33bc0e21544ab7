"""Where the API server is and who we are there: found, or said in one sentence without what is secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from canaryd.errors import ConfigError, KubeForbiddenError, KubeNotFoundError
from canaryd.kube.asking import ask, refusal
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import CANARIES, CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, SECRETS

SECRET = "s3cr3t-t0ken"
WHOLE = f"""
apiVersion: v1
kind: Config
clusters:
- name: home
  cluster: {{server: "http://someone:{SECRET}@127.0.0.1:1/prefix"}}
users:
- name: me
  user: {{token: {SECRET}}}
contexts:
- name: day
  context: {{cluster: home, user: me, namespace: shop}}
- name: night
  context: {{cluster: home, user: me}}
current-context: day
"""


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def written(path: Path, text: str = WHOLE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_the_first_of_argument_environment_and_home_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "home" / ".kube" / "config", WHOLE.replace("namespace: shop", "namespace: at-home"))
    assert KubeClient.connect().namespace == "at-home"
    monkeypatch.setenv("KUBECONFIG", written(tmp_path / "a", WHOLE.replace("namespace: shop", "namespace: in-a")))
    assert KubeClient.connect().namespace == "in-a"
    given = written(tmp_path / "b")
    assert KubeClient.connect(kubeconfig=given).namespace == "shop"
    assert KubeClient.connect(kubeconfig=given, context="night").namespace == "default"


def test_the_server_is_named_without_what_is_secret_in_its_url(tmp_path: Path) -> None:
    assert KubeClient.connect(kubeconfig=written(tmp_path / "a")).server == "http://127.0.0.1:1/prefix"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(None, "there is no such kubeconfig", id="absent"),
        pytest.param("", "the kubeconfig cannot be used", id="empty"),
        pytest.param("{", "the kubeconfig is no YAML", id="torn"),
        pytest.param("[1, 2]", "the kubeconfig cannot be used", id="list"),
        pytest.param(
            WHOLE.replace("current-context: day", "current-context: dusk"), "cannot be used", id="no-such-context"
        ),
        pytest.param(
            WHOLE.replace("{cluster: home, user: me, namespace: shop}", "{user: me}"), "cluster", id="no-cluster"
        ),
        pytest.param(WHOLE.replace("- name: me\n  user", "- nam: me\n  user"), "cannot be used", id="nameless-user"),
        pytest.param(WHOLE.replace("  user: {token", "  usr: {token"), "Expected key user in", id="user-without-user"),
        pytest.param(WHOLE.replace("server:", "sever:"), "has no server", id="no-server"),
    ],
)
def test_a_kubeconfig_that_is_wrong_is_told_with_its_name_and_nothing_that_is_in_it(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        written(file, text)
    with pytest.raises(ConfigError, match=said) as caught:
        KubeClient.connect(kubeconfig=str(file))
    assert str(file) in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.__cause__!r}"
    assert len(str(caught.value)) < 400


def test_an_unknown_context_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no context 'dawn'; known: day, night"):
        KubeClient.connect(kubeconfig=written(tmp_path / "a"), context="dawn")


def test_without_any_configuration_it_says_where_it_has_looked() -> None:
    with pytest.raises(ConfigError, match=r"no kubeconfig \(\$KUBECONFIG, ~/.kube/config\), and this is no pod"):
        KubeClient.connect()
    with pytest.raises(ConfigError, match="context 'day' was named, but there is no kubeconfig"):
        KubeClient.connect(context="day")


def test_in_a_pod_without_a_service_account_it_says_that_the_token_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ConfigError, match="the service account of this pod cannot be used: Service token file"):
        KubeClient.connect()


def test_the_command_line_does_not_load_the_kubernetes_package() -> None:
    modules = "canaryd.cli, canaryd.kube.client, canaryd.kube.informer, canaryd.kube.lease"
    program = f"import sys, {modules}; sys.exit('kubernetes' in sys.modules or 'urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ── what is asked, and what is refused ───────────────────────────────────────────────────────────────────────


def test_paths_and_sentences_are_those_of_the_server_and_of_rbac() -> None:
    asked = ask("update", "PUT", CANARIES, "shop", "checkout", subresource="status", query={"a": "b c", "empty": ""})
    assert asked.target == "/apis/canaryd.io/v1alpha1/namespaces/shop/canaries/checkout/status?a=b+c"
    assert asked.subject == "update canaries.canaryd.io/status checkout in shop"
    assert ask("list", "GET", CONFIG_MAPS, None).target == "/api/v1/configmaps"
    assert ask("list", "GET", DEPLOYMENTS, None).subject == "list deployments.apps in all namespaces"
    assert ask("get", "GET", NAMESPACES, "ignored", "shop").target == "/api/v1/namespaces/shop"


def status(reason: str, message: str, **details: object) -> bytes:
    import json

    return json.dumps({"kind": "Status", "reason": reason, "message": message, "details": details}).encode()


def test_of_a_secret_only_the_reason_is_told() -> None:
    told = status("Invalid", f'Secret "a" is invalid: data: Invalid value: "{SECRET}"')
    error = refusal(ask("update", "PUT", SECRETS, "shop", "a"), 422, {}, told)
    assert str(error) == "invalid: update secrets a in shop: Invalid"


def test_a_refusal_by_admission_keeps_what_the_rule_says() -> None:
    told = status("Forbidden", 'pods "a" is forbidden: exceeded quota: few, requested: pods=1')
    error = refusal(ask("create", "POST", CONFIG_MAPS, "shop"), 403, {}, told)
    assert type(error) is KubeForbiddenError
    assert str(error).endswith("exceeded quota: few, requested: pods=1")


def test_what_a_server_says_reaches_no_terminal_raw_and_never_at_length() -> None:
    error = refusal(ask("get", "GET", CONFIG_MAPS, "shop", "a"), 404, {}, status("NotFound", "\x1b[31m" + "x" * 9000))
    assert type(error) is KubeNotFoundError
    assert str(error).isprintable()
    assert len(str(error)) < 700
