"""A small client of the API server, for tests: JSON in and out, one identity each, verified TLS.

It retries nothing and hides nothing, so that a test sees what the server said. It is not what canaryd uses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

Object = dict[str, Any]
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
# resource → (group/version, is it namespaced); what the tests of this project speak of
RESOURCES = {
    "namespaces": ("v1", False),
    "nodes": ("v1", False),
    "pods": ("v1", True),
    "services": ("v1", True),
    "events": ("v1", True),
    "secrets": ("v1", True),
    "configmaps": ("v1", True),
    "serviceaccounts": ("v1", True),
    "deployments": ("apps/v1", True),
    "replicasets": ("apps/v1", True),
    "horizontalpodautoscalers": ("autoscaling/v2", True),
    "endpointslices": ("discovery.k8s.io/v1", True),
    "leases": ("coordination.k8s.io/v1", True),
    "roles": ("rbac.authorization.k8s.io/v1", True),
    "rolebindings": ("rbac.authorization.k8s.io/v1", True),
    "clusterroles": ("rbac.authorization.k8s.io/v1", False),
    "clusterrolebindings": ("rbac.authorization.k8s.io/v1", False),
    "customresourcedefinitions": ("apiextensions.k8s.io/v1", False),
    "virtualservices": ("networking.istio.io/v1", True),
    "destinationrules": ("networking.istio.io/v1", True),
    "gateways": ("networking.istio.io/v1", True),
    "envoyfilters": ("networking.istio.io/v1alpha3", True),
    "peerauthentications": ("security.istio.io/v1", True),
    "httproutes": ("gateway.networking.k8s.io/v1", True),
    "canaries": ("canaryd.io/v1alpha1", True),
}


class ApiError(Exception):
    """The server refused; `status` is the HTTP status, `reason` and `message` are the server's."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Client:
    """One identity at one API server. Safe to share between threads as far as requests.Session is; else make two."""

    def __init__(self, server: str, token: str, authority: Path, timeout: float = 30.0) -> None:
        self.server = server
        self._timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between us and our own loopback
        self._session.verify = str(authority)
        self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self._session.close()

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Any:
        """The decoded answer (text when it is not JSON). Raises ApiError; requests' errors when nobody answers."""
        data = None if body is None else json.dumps(body)
        until = time.monotonic() + self._timeout
        while True:
            answer = self._session.request(
                method,
                self.server + path,
                params=query,
                data=data,
                headers={"Content-Type": kind},
                timeout=self._timeout,
            )
            # A definition is established a moment before its storage is there.
            if answer.status_code != 429 or time.monotonic() > until:
                break
            time.sleep(0.2)
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        if answer.status_code >= 400:
            said = answer.json() if is_json else {}
            raise ApiError(answer.status_code, said.get("reason", ""), said.get("message", answer.text[:500]))
        return answer.json() if is_json else answer.text

    def get(self, resource: str, name: str, namespace: str | None = "shop") -> Object:
        found: Object = self.request("GET", path(resource, namespace, name))
        return found

    def find(self, resource: str, name: str, namespace: str | None = "shop") -> Object | None:
        """Like `get`, but None when there is no such object."""
        try:
            return self.get(resource, name, namespace)
        except ApiError as e:
            if e.status == 404:
                return None
            raise

    def list(self, resource: str, namespace: str | None = "shop", selector: str = "") -> list[Object]:
        """All of a namespace, or of the cluster when it is None."""
        items: list[Object] = self.request("GET", path(resource, namespace), labelSelector=selector)["items"]
        return items

    def create(self, manifest: Object) -> Object:
        made: Object = self.request("POST", _path_of(manifest), manifest)
        return made

    def apply(self, manifest: Object, manager: str = "bench") -> Object:
        """Server-side apply, forced: made when missing."""
        target = f"{_path_of(manifest)}/{manifest['metadata']['name']}"
        done: Object = self.request("PATCH", target, manifest, PATCHES["apply"], fieldManager=manager, force="true")
        return done

    def replace(self, manifest: Object) -> Object:
        """PUT; with a resourceVersion inside it is a compare-and-swap (ApiError 409)."""
        done: Object = self.request("PUT", f"{_path_of(manifest)}/{manifest['metadata']['name']}", manifest)
        return done

    def patch(
        self, resource: str, name: str, body: Any, namespace: str | None = "shop", kind: str = "merge", part: str = ""
    ) -> Object:
        """`kind` is one of PATCHES; `part` a subresource such as "status" or "scale"."""
        target = path(resource, namespace, name) + (f"/{part}" if part else "")
        done: Object = self.request("PATCH", target, body, PATCHES[kind])
        return done

    def delete(self, resource: str, name: str, namespace: str | None = "shop") -> None:
        """Ask for deletion; silent when there is none."""
        try:
            self.request("DELETE", path(resource, namespace, name))
        except ApiError as e:
            if e.status != 404:
                raise

    def can(self, verb: str, resource: str, namespace: str | None = "shop") -> bool:
        """Whether the server lets this identity do it. A new role binding takes effect some milliseconds late."""
        group = RESOURCES[resource][0].rpartition("/")[0]
        wish = {"verb": verb, "group": group, "resource": resource, "namespace": namespace or ""}
        review = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
        body = {**review, "spec": {"resourceAttributes": wish}}
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    def watch(
        self, resource: str, namespace: str | None = "shop", version: str = "", seconds: int = 60
    ) -> Iterator[Object]:
        """Watch events as the server sends them, ERROR events included, until it ends the watch after `seconds`."""
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        url = self.server + path(resource, namespace)
        with self._session.get(url, params=query, stream=True, timeout=seconds + 5) as answer:
            for line in answer.iter_lines():
                if line:
                    yield json.loads(line)


def path(resource: str, namespace: str | None = None, name: str = "") -> str:
    """The REST path of a resource named as in RESOURCES."""
    version, namespaced = RESOURCES[resource]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    middle = f"/namespaces/{namespace}" if namespaced and namespace is not None else ""
    return f"{root}{middle}/{resource}" + (f"/{name}" if name else "")


def _path_of(manifest: Object) -> str:
    version, kind, metadata = manifest["apiVersion"], manifest["kind"].lower(), manifest["metadata"]
    plural = f"{kind[:-1]}ies" if kind.endswith("y") and not kind.endswith("ay") else f"{kind}s"
    _, namespaced = RESOURCES.get(plural, (version, True))
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    middle = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
    return f"{root}{middle}/{plural}"
