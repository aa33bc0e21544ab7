"""Who speaks to the API server: names, groups, tokens, kubeconfig files, and tokens that really expire.

Tokens are drawn anew for each bench and known to its API server alone.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Client

MASTERS = "system:masters"
SERVER = "https://127.0.0.1:6443"


@dataclass(frozen=True)
class Identity:
    """One line of the API server's token file."""

    user: str
    groups: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)


def service_account(namespace: str, name: str) -> Identity:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return Identity(f"system:serviceaccount:{namespace}:{name}", groups)


# The bench's own parts; the audit log leaves them out.
COMPONENTS = ("controllers", "scheduler", "kwok", "pods", "istiod", "prometheus")


def everybody() -> dict[str, Identity]:
    """Name in the tests → identity. Nobody but the masters has any right until a test binds a role."""
    people = {
        "admin": Identity("admin", (MASTERS,)),
        "anna": Identity("anna"),
        "canaryd": service_account("canaryd", "canaryd"),
        "canaryd-2": service_account("canaryd", "canaryd"),  # the other replica: same account, other token
        "tenant": service_account("shop", "tenant"),
        "gitops": Identity("gitops"),
    }
    return people | {name: Identity(f"bench:{name}", (MASTERS,)) for name in COMPONENTS}


def token_file(identities: dict[str, Identity]) -> str:
    """The text for --token-auth-file."""
    lines = [
        f'{who.token},{who.user},{number},"{",".join(who.groups)}"' for number, who in enumerate(identities.values())
    ]
    return "\n".join(lines) + "\n"


def kubeconfig(authority: Path, *, token: str | None = None, file: Path | None = None, namespace: str = "shop") -> str:
    """A kubeconfig (JSON, which is YAML) for a token, or for a file that holds one and may change."""
    user = {"token": token} if file is None else {"tokenFile": str(file)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": {"server": SERVER, "certificate-authority": str(authority)}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "user", "namespace": namespace}}],
            "current-context": "bench",
        },
        indent=1,
    )


class RotatingToken:
    """A ServiceAccount's token in a file, as a kubelet projects it; the one before it stops working at rotation.

    Each token is bound to a Secret of its own; deleting the Secret revokes it (the server may remember a token for
    about 10 s).
    """

    def __init__(self, admin: Client, namespace: str, name: str, directory: Path, authority: Path) -> None:
        self.file = directory / f"{namespace}-{name}.token"
        self.kubeconfig = directory / f"{namespace}-{name}.rotating.kubeconfig"
        self._admin = admin
        self._namespace = namespace
        self._name = name
        self._bound: str | None = None
        self.kubeconfig.write_text(kubeconfig(authority, file=self.file, namespace=namespace))
        self.rotate()

    def rotate(self, *, revoke: bool = True) -> str:
        """Write a new token into `file` (atomically), revoke the one before, and return the new one."""
        secret = f"{self._name}-token-{secrets.token_hex(4)}"
        metadata = {"name": secret, "namespace": self._namespace}
        made = self._admin.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
        bound = {"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": made["metadata"]["uid"]}
        asked = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"boundObjectRef": bound}}
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{self._name}/token"
        token: str = self._admin.request("POST", path, asked)["status"]["token"]
        fresh = self.file.with_suffix(".new")
        fresh.write_text(token)
        os.replace(fresh, self.file)
        if revoke and self._bound is not None:
            self._admin.delete("secrets", self._bound, self._namespace)
        self._bound = secret
        return token
