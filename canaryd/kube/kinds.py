"""The kinds of objects that canaryd reads or writes, and where a server keeps them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API."""

    group: str  # "" is the core group
    version: str
    plural: str  # as in the URL and in RBAC rules
    kind: str  # as in the objects
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As written into objects: "apps/v1", "v1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As kubectl and people name it: "pods", "canaries.canaryd.io"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def root(self) -> str:
        """Path of the group and version on the server."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


CANARIES = Kind("canaryd.io", "v1alpha1", "canaries", "Canary")
VIRTUAL_SERVICES = Kind("networking.istio.io", "v1", "virtualservices", "VirtualService")
HTTP_ROUTES = Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SETS = Kind("apps", "v1", "replicasets", "ReplicaSet")
CONTROLLER_REVISIONS = Kind("apps", "v1", "controllerrevisions", "ControllerRevision")
PODS = Kind("", "v1", "pods", "Pod")
SERVICES = Kind("", "v1", "services", "Service")
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap")
SECRETS = Kind("", "v1", "secrets", "Secret")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")
HPAS = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
ENDPOINT_SLICES = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
