"""What must hold between the shipped objects, and what no API server checks. Each lint returns findings in words.

`ALL` names them; tests/manifests plants a violation for each. Pure: objects and a few texts in, findings out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from shipped.network import admitted
from shipped.render import MANIFESTS, ROOT, Object
from shipped.tree import CLUSTER_KINDS, Tree, Workload, matches, named, texts

Lint = Callable[[Tree], Iterator[str]]
VERSIONS = yaml.safe_load((MANIFESTS / "versions.yaml").read_text())
ISTIOD = yaml.safe_load((MANIFESTS / "install" / "istiod-values.yaml").read_text())
# Secrets that an operator, External Secrets or cert-manager makes: README.md says how
SECRETS = {
    ("istio-system", "kiali-signing-key"),
    ("shop", "redis-auth"),
    ("monitoring", "remote-write"),
    ("istio-ingress", "api-tls"),
    ("istio-ingress", "letsencrypt-account"),
}
OURS = ("istio-system", "istio-ingress", "monitoring", "observability", "canaryd", "shop")
PROMETHEUS = {"app.kubernetes.io/name": "prometheus", "prometheus": "mesh"}
# what runs and needs no preStop: nobody sends it requests that it would lose
SERVES_NOBODY = {"canaryd"}
GRACE = {"opensearch": 120}  # seconds; 30 for everybody else: a node hands its shards over first


def _host_kinds(tree: Tree) -> Iterator[tuple[str, Object]]:
    """(whole host, object) for whatever sets the routes of a host inside the mesh."""
    for each in tree.of("VirtualService"):
        for host in each["spec"]["hosts"]:
            yield _whole(host, each), each
    for each in tree.of("HTTPRoute"):
        for parent in each["spec"]["parentRefs"]:
            if parent.get("kind") == "Service":
                yield _whole(parent["name"], each), each
    for each in tree.of("Canary", group="flagger.app"):
        yield _whole(each["metadata"]["name"], each), each


def _whole(host: str, each: Object) -> str:
    return host if "." in host else f"{host}.{each['metadata']['namespace']}.svc.cluster.local"


# ── who is who ───────────────────────────────────────────────────────────────────────────────────


def images_are_pinned(tree: Tree) -> Iterator[str]:
    """Each image has exactly the tag (one of the tags) that versions.yaml says."""
    for workload in tree.workloads:
        for container in [*workload.containers, *(workload.pod.get("initContainers") or [])]:
            name, _, tag = container["image"].partition("@")[0].rpartition(":")
            allowed = VERSIONS["images"].get(name)
            if str(tag) not in [str(each) for each in (allowed if isinstance(allowed, list) else [allowed])]:
                yield f"{workload}: image {container['image']}; versions.yaml says {allowed}"


def labels_are_the_standard_ones(tree: Tree) -> Iterator[str]:
    """Everything belongs to a part; pods say their name, and their version where they have one image of their own."""
    for each in tree.objects:
        labels = each["metadata"].get("labels") or {}
        if "app.kubernetes.io/part-of" not in labels and not _is_canaryds(each):
            yield f"{named(each)}: no label app.kubernetes.io/part-of"
    for workload in tree.workloads:
        if "app.kubernetes.io/name" not in workload.labels:
            yield f"{workload}: pods without app.kubernetes.io/name"
        if "app.kubernetes.io/version" not in workload.labels and workload.name != "canaryd":
            yield f"{workload}: pods without app.kubernetes.io/version"


def _is_canaryds(each: Object) -> bool:
    """The settings of canaryd, whose name carries a hash, and its definition."""
    return each["metadata"]["name"].startswith("canaryd-") or each["kind"] == "CustomResourceDefinition"


def namespaces_are_shipped(tree: Tree) -> Iterator[str]:
    """Nothing is put where nobody makes a namespace; those with our pods alone demand restricted ones."""
    there = {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in tree.of("Namespace")}
    for each in tree.objects:
        place = each["metadata"].get("namespace")
        if each["kind"] in CLUSTER_KINDS:
            continue
        if place not in there:
            yield f"{named(each)}: the namespace {place} is not among {', '.join(there)}"
    for name, labels in there.items():
        level = labels.get("pod-security.kubernetes.io/enforce")
        expected = {"monitoring": "privileged", "istio-system": "baseline"}.get(name, "restricted")
        if level != expected:
            yield f"Namespace {name}: pod security is {level}, {expected} is meant"


def names_are_found(tree: Tree) -> Iterator[str]:
    """ServiceAccounts, ConfigMaps, Secrets and claims that pods name are there."""
    for workload in tree.workloads:
        account = workload.pod.get("serviceAccountName")
        if not account or tree.find("ServiceAccount", workload.namespace, account) is None:
            yield f"{workload}: no ServiceAccount {account}"
        for volume in workload.pod.get("volumes") or []:
            if (config := volume.get("configMap")) and not tree.find("ConfigMap", workload.namespace, config["name"]):
                yield f"{workload}: no ConfigMap {config['name']}"
            secret = volume.get("secret")
            if secret and (workload.namespace, secret["secretName"]) not in SECRETS:
                yield f"{workload}: nobody makes the Secret {secret['secretName']}"
            claim = volume.get("persistentVolumeClaim")
            if claim and not tree.find("PersistentVolumeClaim", workload.namespace, claim["claimName"]):
                yield f"{workload}: no claim {claim['claimName']}"


def no_secret_is_shipped(tree: Tree) -> Iterator[str]:
    for each in tree.of("Secret"):
        yield f"{named(each)}: a Secret in a repository is none"


# ── pods ─────────────────────────────────────────────────────────────────────────────────────────


def pods_are_harmless(tree: Tree) -> Iterator[str]:
    """What restricted pod security asks for, a read-only file system, and no token that is not needed."""
    for workload in tree.workloads:
        context = workload.pod.get("securityContext") or {}
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{workload}: may run as root"
        if (context.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            yield f"{workload}: no seccomp profile"
        for container in [*workload.containers, *(workload.pod.get("initContainers") or [])]:
            own = container.get("securityContext") or {}
            if own.get("allowPrivilegeEscalation") is not False or own.get("readOnlyRootFilesystem") is not True:
                yield f"{workload}/{container['name']}: privileges, or a file system that can be written"
            if (own.get("capabilities") or {}).get("drop") != ["ALL"]:
                yield f"{workload}/{container['name']}: capabilities are not dropped"
        bound = _is_bound(tree, workload)
        if workload.pod.get("automountServiceAccountToken") is not bound:
            yield f"{workload}: its token is {'missing' if bound else 'mounted without any right to use it'}"


def _is_bound(tree: Tree, workload: Workload) -> bool:
    wanted = ("ServiceAccount", workload.pod.get("serviceAccountName"), workload.namespace)
    return any(
        (subject["kind"], subject["name"], subject.get("namespace")) == wanted
        for binding in tree.of("RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    )


def pods_end_and_begin_well(tree: Tree) -> Iterator[str]:
    """Requests and limits, probes, a time to end in, and no moment without pods during an update."""
    for workload in tree.workloads:
        for container in [*workload.containers, *(workload.pod.get("initContainers") or [])]:
            given = container.get("resources") or {}
            for kind, what in itertools.product(("requests", "limits"), ("cpu", "memory")):
                if what not in (given.get(kind) or {}):
                    yield f"{workload}/{container['name']}: no {kind} of {what}"
        if workload.pod.get("terminationGracePeriodSeconds") != GRACE.get(workload.name, 30):
            yield f"{workload}: no 30 s to end in"
        if workload.kind == "CronJob":
            yield from _jobs_end(workload)
            continue
        for container in workload.containers:
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{workload}/{container['name']}: no {probe}"
            if workload.name not in SERVES_NOBODY and "preStop" not in (container.get("lifecycle") or {}):
                yield f"{workload}/{container['name']}: ends while requests still arrive (no preStop)"
        yield from _updates_without_a_gap(tree, workload)


def _jobs_end(workload: Workload) -> Iterator[str]:
    spec = workload.whole["spec"]
    if spec.get("concurrencyPolicy") != "Forbid" or not spec.get("startingDeadlineSeconds"):
        yield f"{workload}: runs may overlap, or start at any later time"
    if not spec["jobTemplate"]["spec"].get("activeDeadlineSeconds"):
        yield f"{workload}: a run may last for ever"


def _updates_without_a_gap(tree: Tree, workload: Workload) -> Iterator[str]:
    if tree.replicas(workload)[1] < 2 and workload.labels.get("app.kubernetes.io/component") != "canary":
        return  # a single one, on purpose
    if workload.kind == "Deployment":
        rolling = (workload.whole["spec"].get("strategy") or {}).get("rollingUpdate") or {}
        if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
            yield f"{workload}: an update may take pods away before others are ready"
    spread = {each["topologyKey"] for each in workload.pod.get("topologySpreadConstraints") or []}
    affinity = (workload.pod.get("affinity") or {}).get("podAntiAffinity") or {}
    spread |= {e["topologyKey"] for e in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []}
    if not {"topology.kubernetes.io/zone", "kubernetes.io/hostname"} <= spread:
        yield f"{workload}: its pods may all be on one node or in one zone"


def budgets_can_be_kept(tree: Tree) -> Iterator[str]:
    """Each budget selects at least two pods and lets one go; no pod has two; whatever serves with several has one."""
    budgets = defaultdict(list)
    for budget in tree.of("PodDisruptionBudget"):
        spec = budget["spec"]
        chosen = tree.selected(budget["metadata"]["namespace"], spec["selector"])
        for workload in chosen:
            budgets[str(workload)].append(named(budget))
        if budget["metadata"]["name"] == "prometheus-mesh":
            continue  # the operator makes these pods
        if not chosen:
            yield f"{named(budget)}: selects nothing"
        if all(w.labels.get("app.kubernetes.io/component") == "canary" for w in chosen):
            continue  # canaryd sets their number
        fewest = sum(tree.replicas(workload)[0] for workload in chosen)
        if fewest < 2 or spec.get("minAvailable", 0) >= fewest or spec.get("maxUnavailable", 1) == 0:
            yield f"{named(budget)}: with {fewest} pods nothing may ever be evicted, or it protects none"
    for workload in tree.workloads:
        if len(budgets[str(workload)]) > 1:
            yield f"{workload}: two budgets, so no eviction: {', '.join(budgets[str(workload)])}"
        if not budgets[str(workload)] and workload.kind != "CronJob" and tree.replicas(workload)[0] > 1:
            yield f"{workload}: no PodDisruptionBudget"


def autoscalers_own_their_number(tree: Tree) -> Iterator[str]:
    """The target exists and says no number itself; no two autoscalers' pods overlap."""
    seen: list[tuple[Object, Mapping[str, Any], str]] = []
    for hpa in tree.of("HorizontalPodAutoscaler"):
        spec, place = hpa["spec"], hpa["metadata"]["namespace"]
        target = tree.find(spec["scaleTargetRef"]["kind"], place, spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"{named(hpa)}: no {spec['scaleTargetRef']['kind']} {spec['scaleTargetRef']['name']}"
            continue
        if "replicas" in target["spec"]:
            yield f"{named(target)}: says its number, and {named(hpa)} another"
        if not 2 <= spec["minReplicas"] <= spec["maxReplicas"]:
            yield f"{named(hpa)}: {spec['minReplicas']} to {spec['maxReplicas']}"
        labels = target["spec"]["template"]["metadata"]["labels"]
        for other, selector, where in seen:
            if where == place and matches(selector, labels):
                yield f"{named(hpa)} and {named(other)} select the same pods: the controller acts for neither"
        seen.append((hpa, target["spec"]["selector"], place))


# ── services and routes ──────────────────────────────────────────────────────────────────────────


def services_find_their_pods(tree: Tree) -> Iterator[str]:
    """Each Service selects pods, each of its ports is one of theirs, and its name says what it speaks."""
    for service in tree.of("Service"):
        if service["spec"].get("selector", {}).items() <= PROMETHEUS.items():
            continue  # the operator makes these pods, with a port named web
        behind = tree.served(service)
        if not behind:
            yield f"{named(service)}: selects no pods"
        for port in service["spec"]["ports"]:
            if not re.match(r"(http|grpc|tcp|https)(-|$)", port.get("name", "")):
                yield f"{named(service)}: port {port.get('name')} does not begin with what it speaks"
            for workload in behind:
                wanted = port.get("targetPort", port["port"])
                if wanted not in workload.ports and wanted not in workload.ports.values():
                    yield f"{named(service)}: {workload} has no port {wanted}"


def monitors_find_a_port(tree: Tree) -> Iterator[str]:
    """Each endpoint of a ServiceMonitor is a port of a Service that it selects, and Prometheus may read there."""
    for monitor in tree.of("ServiceMonitor"):
        place, spec = monitor["metadata"]["namespace"], monitor["spec"]
        if (place, monitor["metadata"]["name"]) == ("istio-system", "istiod"):
            continue  # of the chart: app=istiod, http-monitoring
        services = [
            each
            for each in tree.of("Service")
            if each["metadata"]["namespace"] == place
            and matches(spec["selector"], each["metadata"].get("labels") or {})
        ]
        for endpoint in spec["endpoints"]:
            pairs = [(s, p) for s in services for p in s["spec"]["ports"] if p["name"] == endpoint["port"]]
            if not pairs:
                yield f"{named(monitor)}: no selected Service has a port {endpoint['port']}"
            for service, port in pairs:
                for workload in tree.served(service):
                    number = workload.ports.get(port["targetPort"], port["targetPort"])
                    if not admitted(tree, workload, number, "monitoring", PROMETHEUS):
                        yield f"{named(monitor)}: no NetworkPolicy lets Prometheus reach port {number} of {workload}"
        if tree.find("RoleBinding", place, "prometheus-mesh") is None:
            yield f"{named(monitor)}: Prometheus has no Role in {place}"
    for monitor in tree.of("PodMonitor"):
        for place in monitor["spec"]["namespaceSelector"].get("matchNames") or ["(any)"]:
            if tree.find("RoleBinding", place, "prometheus-mesh") is None:
                yield f"{named(monitor)}: Prometheus has no Role in {place}"


def routes_lead_somewhere(tree: Tree) -> Iterator[str]:
    """Hosts and destinations are Services with that port; splits add up to 100; each route has a name."""
    for route in tree.of("VirtualService"):
        place = route["metadata"]["namespace"]
        for host in route["spec"]["hosts"]:
            if host.endswith(".svc.cluster.local") and tree.service(host, place) is None:
                yield f"{named(route)}: no Service {host}"
        for gateway in route["spec"].get("gateways") or []:
            if gateway != "mesh" and tree.find("Gateway", *gateway.split("/")) is None:
                yield f"{named(route)}: no Gateway {gateway}"
        for rule in route["spec"]["http"]:
            if not rule.get("name"):
                yield f"{named(route)}: a route without a name cannot be found again"
            ends = rule["route"]
            if len(ends) > 1 and sum(each["weight"] for each in ends) != 100:
                yield f"{named(route)}: {rule.get('name')} has weights that are not 100 together"
            for end in ends:
                yield from _reaches(tree, route, end["destination"]["host"], end["destination"]["port"]["number"])
    for route in tree.of("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            ends = rule["backendRefs"]
            if not rule.get("name"):
                yield f"{named(route)}: a rule without a name cannot be found again"
            if len(ends) > 1 and sum(each["weight"] for each in ends) != 100:
                yield f"{named(route)}: {rule.get('name')} has weights that are not 100 together"
            for end in ends:
                yield from _reaches(tree, route, end["name"], end["port"])
        for parent in route["spec"]["parentRefs"]:
            place = parent.get("namespace", route["metadata"]["namespace"])
            if tree.find(parent["kind"], place, parent["name"]) is None:
                yield f"{named(route)}: no {parent['kind']} {place}/{parent['name']}"


def _reaches(tree: Tree, route: Object, host: str, port: int) -> Iterator[str]:
    service = tree.service(host, route["metadata"]["namespace"])
    if service is None or port not in [each["port"] for each in service["spec"]["ports"]]:
        yield f"{named(route)}: no Service {host} with port {port}"


def destination_rules_have_a_host(tree: Tree) -> Iterator[str]:
    """And look for outliers: without that, a region's failover does nothing."""
    for rule in tree.of("DestinationRule"):
        if tree.service(rule["spec"]["host"], rule["metadata"]["namespace"]) is None:
            yield f"{named(rule)}: no Service {rule['spec']['host']}"
        policy = rule["spec"].get("trafficPolicy") or {}
        if "localityLbSetting" in (policy.get("loadBalancer") or {}) and "outlierDetection" not in policy:
            yield f"{named(rule)}: locality settings without outlier detection do nothing"


def one_controller_for_each_host(tree: Tree) -> Iterator[str]:
    """Not a VirtualService and an HTTPRoute, and not canaryd and Flagger, for one host."""
    kinds = defaultdict(set)
    for host, each in _host_kinds(tree):
        kinds[host].add((each["kind"], each["apiVersion"].split("/")[0]))
    for host, found in kinds.items():
        if len(found) > 1:
            yield f"{host}: routed by {' and '.join(sorted(kind for kind, _ in found))}, which is not defined"
    ours = {(e["metadata"]["namespace"], e["spec"]["workloads"]["deployment"]["name"]) for e in _canaries(tree)}
    flaggers = {
        (e["metadata"]["namespace"], e["spec"]["targetRef"]["name"]) for e in tree.of("Canary", group="flagger.app")
    }
    for place, name in sorted(ours & flaggers):
        yield f"{place}/{name}: canaryd and Flagger would take each other's weights for drift"
    for name, count in Counter(
        f"{e['metadata']['namespace']}/{e['metadata']['name']}" for e in tree.of("VirtualService")
    ).items():
        if count > 1:
            yield f"VirtualService {name}: twice"


def _canaries(tree: Tree) -> list[Object]:
    return tree.of("Canary", group="canaryd.io")


def canaries_name_what_is_there(tree: Tree) -> Iterator[str]:
    """Deployments, routes and Services of a Canary, and the routes in it by name."""
    for canary in _canaries(tree):
        place, spec = canary["metadata"]["namespace"], canary["spec"]
        deployment = spec["workloads"]["deployment"]
        for name in (deployment["name"], deployment["stable"]):
            if tree.find("Deployment", place, name) is None:
                yield f"{named(canary)}: no Deployment {name}"
        kind, key = ("VirtualService", "http") if "istio" in spec["route"] else ("HTTPRoute", "rules")
        listed = spec["route"].get("istio", {}).get("virtualServices") or spec["route"].get("gatewayApi", {}).get(
            "httpRoutes"
        )
        for each in listed:
            found = tree.find(kind, place, each["name"])
            if found is None:
                yield f"{named(canary)}: no {kind} {each['name']}"
                continue
            there = {rule.get("name") for rule in found["spec"][key]}
            for wanted in set(each.get("routes") or []) - there:
                yield f"{named(canary)}: {kind} {each['name']} has no route {wanted}"
        if (
            tree.find("Role", place, "canaryd-watched") is None
            and tree.find("ClusterRole", None, "canaryd-watched") is None
        ):
            yield f"{named(canary)}: canaryd has no rights in {place}"


# ── mesh ─────────────────────────────────────────────────────────────────────────────────────────


def telemetry_has_its_providers(tree: Tree) -> Iterator[str]:
    """A provider that the mesh configuration does not define does nothing, without a word."""
    known = {each["name"] for each in ISTIOD["meshConfig"]["extensionProviders"]} | {"prometheus"}
    for telemetry in tree.of("Telemetry"):
        for part in ("tracing", "accessLogging", "metrics"):
            for each in telemetry["spec"].get(part) or []:
                for provider in each.get("providers") or []:
                    if provider["name"] not in known:
                        yield f"{named(telemetry)}: provider {provider['name']} is not in install/istiod-values.yaml"
                if part == "accessLogging" and not each.get("filter"):
                    yield f"{named(telemetry)}: logs every request"


def mesh_addresses_are_services(tree: Tree) -> Iterator[str]:
    """Providers of the mesh configuration send to a Service and a port of it."""
    for provider in ISTIOD["meshConfig"]["extensionProviders"]:
        for target in provider.values():
            if isinstance(target, Mapping) and "service" in target:
                service = tree.service(target["service"], "")
                if service is None or target["port"] not in [each["port"] for each in service["spec"]["ports"]]:
                    yield f"install/istiod-values.yaml: no Service {target['service']}:{target['port']}"


def rate_limits_apply(tree: Tree) -> Iterator[str]:
    """The virtual host is that of a Service's port of the selected pods, and their counters are kept."""
    for each in tree.of("EnvoyFilter"):
        place = each["metadata"]["namespace"]
        chosen = tree.pods(place, each["spec"]["workloadSelector"]["labels"])
        if not chosen:
            yield f"{named(each)}: selects no pods"
        ports = {
            port["port"]
            for service in tree.of("Service")
            if any(workload in tree.served(service) for workload in chosen)
            for port in service["spec"]["ports"]
        }
        ports |= {
            c["spec"]["service"]["port"] for c in tree.of("Canary", group="flagger.app")
        }  # Flagger makes the Service
        for patch in each["spec"]["configPatches"]:
            host = (patch["match"].get("routeConfiguration") or {}).get("vhost", {}).get("name")
            if host and host not in {f"inbound|http|{port}" for port in ports}:
                yield f"{named(each)}: virtual host {host}; the Services' ports are {sorted(ports)}"
        for workload in chosen:
            if "http_local_rate_limit" not in workload.annotations.get("proxy.istio.io/config", ""):
                yield f"{named(each)}: {workload} does not keep the counters (annotation proxy.istio.io/config)"
        for place_of in tree.of("Namespace"):
            labels = place_of["metadata"].get("labels") or {}
            if place_of["metadata"]["name"] == place and labels.get("istio.io/dataplane-mode") == "ambient":
                yield f"{named(each)}: waypoints ignore EnvoyFilters"


def policies_let_in_whom_they_name(tree: Tree) -> Iterator[str]:
    """Principals exist, selected pods exist and have those ports, and each namespace denies the rest."""
    gateways = {"istio-ingress/istio-ingress", "shop/waypoint"}
    for policy in tree.of("AuthorizationPolicy"):
        place, spec = policy["metadata"]["namespace"], policy["spec"]
        chosen = tree.selected(place, spec["selector"]) if "selector" in spec else []
        if "selector" in spec and not chosen and spec["selector"]["matchLabels"] != {"istio": "ingress"}:
            yield f"{named(policy)}: selects no pods"
        for target in spec.get("targetRefs") or []:
            if tree.find(target["kind"], place, target["name"]) is None:
                yield f"{named(policy)}: no {target['kind']} {target['name']}"
        for text in texts(spec):
            found = re.fullmatch(r"cluster\.local/ns/([^/]+)/sa/([^/]+)", text)
            if found and not tree.find("ServiceAccount", *found.groups()) and "/".join(found.groups()) not in gateways:
                yield f"{named(policy)}: no ServiceAccount {'/'.join(found.groups())}"
        for rule in spec.get("rules") or []:
            for port in [p for to in rule.get("to") or [] for p in to["operation"].get("ports") or []]:
                if chosen and not any(int(port) in workload.ports.values() for workload in chosen):
                    yield f"{named(policy)}: no selected pod has port {port}"
        if spec.get("action", "ALLOW") == "ALLOW" and spec and not tree.find("AuthorizationPolicy", place, "deny-all"):
            yield f"{named(policy)}: {place} has no deny-all, so what it does not name is allowed elsewhere"


def tokens_are_required(tree: Tree) -> Iterator[str]:
    """A RequestAuthentication lets requests without a token pass; a policy must ask for one."""
    for each in tree.of("RequestAuthentication"):
        place = each["metadata"]["namespace"]
        asked = [
            policy
            for policy in tree.of("AuthorizationPolicy")
            if policy["metadata"]["namespace"] == place
            and policy["spec"].get("action") == "DENY"
            and "notRequestPrincipals" in json.dumps(policy["spec"])
        ]
        if not asked:
            yield f"{named(each)}: nobody asks for the token"


# ── configuration files ──────────────────────────────────────────────────────────────────────────

_ADDRESS = re.compile(r"\b([a-z][a-z0-9-]*(?:-[0-9])?)\.([a-z][a-z0-9-]*)(?:\.svc(?:\.cluster\.local)?)?:([0-9]+)")


def addresses_resolve(tree: Tree) -> Iterator[str]:
    """Each NAME.NAMESPACE:PORT in a configuration or a command is a Service that is shipped or provided."""
    spoken = [(named(each), each.get("data") or {}) for each in tree.of("ConfigMap")]
    spoken += [(str(w), w.pod) for w in tree.workloads]
    spoken += [(named(each), each["spec"]) for each in tree.of("MetricTemplate")]
    for where, value in spoken:
        for text in texts(value):
            for name, place, port in _ADDRESS.findall(text):
                if place not in OURS or f"{place}/{name}" in VERSIONS["provided"]:
                    continue
                service = tree.find("Service", place, name)
                if service is None or int(port) not in [each["port"] for each in service["spec"]["ports"]]:
                    yield f"{where}: no Service {place}/{name} with port {port}"


def alerts_have_runbooks(tree: Tree) -> Iterator[str]:
    """Each alert says what is wrong, how bad it is, and where it is written what to do; that page exists."""
    for rule in _rules(tree):
        if "alert" not in rule:
            continue
        notes, name = rule.get("annotations") or {}, rule["alert"]
        if not notes.get("summary") or (rule.get("labels") or {}).get("severity") not in ("critical", "warning"):
            yield f"alert {name}: no summary or no severity"
        page = Path(notes.get("runbook_url", "")).name
        if page != f"{name}.md" or not (ROOT / "docs" / "runbooks" / page).is_file():
            yield f"alert {name}: no page docs/runbooks/{name}.md, or its runbook_url does not lead there"


def _rules(tree: Tree) -> list[Object]:
    return [rule for each in tree.of("PrometheusRule") for group in each["spec"]["groups"] for rule in group["rules"]]


# ── rights ───────────────────────────────────────────────────────────────────────────────────────


def rights_are_narrow(tree: Tree) -> Iterator[str]:
    """No wildcard; Secrets only by name; subjects and roles of bindings exist."""
    for role in tree.of("Role", "ClusterRole"):
        for rule in role["rules"]:
            if "*" in [*rule.get("apiGroups", []), *rule.get("resources", []), *rule["verbs"]]:
                yield f"{named(role)}: a wildcard"
            if "secrets" in rule.get("resources", []) and not rule.get("resourceNames"):
                yield f"{named(role)}: reads every Secret"
            if {"roles", "rolebindings", "clusterroles", "clusterrolebindings"} & set(rule.get("resources", [])):
                yield f"{named(role)}: may widen rights"
    theirs = {("monitoring", "prometheus-k8s")}  # kube-prometheus'
    for binding in tree.of("RoleBinding", "ClusterRoleBinding"):
        ref = binding["roleRef"]
        place = binding["metadata"].get("namespace") if ref["kind"] == "Role" else None
        if tree.find(ref["kind"], place, ref["name"]) is None:
            yield f"{named(binding)}: no {ref['kind']} {ref['name']}"
        for subject in binding["subjects"]:
            where = (subject.get("namespace"), subject["name"])
            if where not in theirs and tree.find("ServiceAccount", *where) is None:
                yield f"{named(binding)}: no ServiceAccount {'/'.join(map(str, where))}"


# names that Roles grant one by one, as the programs ask for them
GRANTED = {("leases", "canaryd"), ("leases", "cache-watcher"), ("secrets", "kiali-signing-key")}


def names_in_rights_are_those_asked_for(tree: Tree) -> Iterator[str]:
    """kustomize adds the hash of a ConfigMap to every equal name in a Role: the right would be for nothing."""
    for role in tree.of("Role", "ClusterRole"):
        for rule in role["rules"]:
            for pair in itertools.product(rule.get("resources", []), rule.get("resourceNames") or []):
                if pair not in GRANTED:
                    yield f"{named(role)}: grants {' '.join(pair)}, which nobody asks for"


def nothing_is_there_twice(tree: Tree) -> Iterator[str]:
    keys = Counter((e["apiVersion"].split("/")[0], named(e)) for e in tree.objects)
    for (_, name), count in keys.items():
        if count > 1:
            yield f"{name}: {count} times"


ALL: dict[str, Lint] = {
    lint.__name__: lint
    for lint in (
        images_are_pinned,
        labels_are_the_standard_ones,
        namespaces_are_shipped,
        names_are_found,
        no_secret_is_shipped,
        pods_are_harmless,
        pods_end_and_begin_well,
        budgets_can_be_kept,
        autoscalers_own_their_number,
        services_find_their_pods,
        monitors_find_a_port,
        routes_lead_somewhere,
        destination_rules_have_a_host,
        one_controller_for_each_host,
        canaries_name_what_is_there,
        telemetry_has_its_providers,
        mesh_addresses_are_services,
        rate_limits_apply,
        policies_let_in_whom_they_name,
        tokens_are_required,
        addresses_resolve,
        alerts_have_runbooks,
        rights_are_narrow,
        names_in_rights_are_those_asked_for,
        nothing_is_there_twice,
    )
}
