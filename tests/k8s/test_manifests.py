"""What the manifests mean: names, ports, selectors, times and settings fit together, and fit the server."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import environment, run
from famulus_server import config
from k8s.manifests import BUILDS, CONFIG, K8S, SECRETS, SERVED, Manifests, Object, Workload, build, metrics_of

# docs/configuration.md: the server has ended so long after its drain_seconds.
EXIT_SECONDS = 5.0
PROBED = {"startup": "startup", "readiness": "readiness", "liveness": "liveness"}
RESTRICTED_VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
# Settings of other programs that the process reads itself.
FOREIGN = re.compile(r"OTEL_[A-Z_]+")


def each(what: str) -> pytest.MarkDecorator:
    """For each workload, or each one that serves."""
    chosen = [
        pytest.param(folder, workload.name, id=f"{folder}-{workload.name}")
        for folder in BUILDS
        for workload in _workloads(folder)
        if what == "workloads" or (folder in SERVED and workload.kind == "Deployment")
    ]
    return pytest.mark.parametrize(("folder", "name"), chosen)


def _workloads(folder: str) -> list[Workload]:
    try:
        return build(folder).workloads
    except pytest.skip.Exception:
        return []


@pytest.mark.parametrize("folder", SERVED)
def test_each_overlay_has_its_roles(folder: str, tmp_path: Path) -> None:
    made = build(folder)
    roles = {workload.name: made.settings_of(workload, tmp_path).server.role for workload in made.servers}
    assert (
        roles
        == {
            "overlays/dev": {"famulus-api": "all"},
            "overlays/prod": {"famulus-api": "api", "famulus-worker": "worker"},
        }[folder]
    )


@each("servers")
def test_ports_are_those_on_which_the_server_listens(folder: str, name: str, tmp_path: Path) -> None:
    made = build(folder)
    workload = made.workload(name)
    server = made.settings_of(workload, tmp_path).server
    addresses = {
        "grpc": server.listen,
        "health": server.health_listen,
        "metrics": workload.environment(SECRETS)["FAMULUS_METRICS_LISTEN"],
    }
    assert {port: int(addresses[port].rpartition(":")[2]) for port in workload.ports} == workload.ports
    # Nothing else reaches these: the kubelet, and Prometheus.
    assert {port for port, address in addresses.items() if address.startswith("0.0.0.0:")} >= {"health", "metrics"}
    # Who is called from elsewhere says so, and asks who calls.
    called = bool(made.selected({"matchLabels": _selector(made, "famulus")}, [workload])) if _called(made) else False
    assert addresses["grpc"].startswith("0.0.0.0:") == called


def _called(made: Manifests) -> bool:
    return any(service["metadata"]["name"] == "famulus" for service in made.of("Service"))


def _selector(made: Manifests, service: str) -> Mapping[str, str]:
    selector: Mapping[str, str] = made.one("Service", service)["spec"]["selector"]
    return selector


@each("servers")
def test_probes_are_of_grpc_at_the_health_port(folder: str, name: str) -> None:
    workload = build(folder).workload(name)
    assert {kind: probe["grpc"]["service"] for kind, probe in workload.probes.items()} == PROBED
    assert {probe["grpc"]["port"] for probe in workload.probes.values()} == {workload.ports["health"]}


@pytest.mark.parametrize("folder", [*SERVED, "base"])
def test_services_select_pods_that_have_their_ports(folder: str) -> None:
    made = build(folder)
    for service in made.of("Service"):
        selected = made.selected({"matchLabels": service["spec"]["selector"]}, made.servers)
        assert selected, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert all(workload.ports[port["targetPort"]] == port["port"] for workload in selected)


def test_calls_reach_the_api_and_not_the_workers() -> None:
    made = build("overlays/prod")
    for name in ("famulus", "famulus-headless"):
        [selected] = made.selected({"matchLabels": _selector(made, name)})
        assert selected.name == "famulus-api"
    assert made.one("Service", "famulus-headless")["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in made.one("Service", "famulus")["spec"]


@each("workloads")
def test_selector_of_a_workload_takes_its_own_pods_only(folder: str, name: str) -> None:
    made = build(folder)
    workload = made.workload(name)
    if selector := workload.whole["spec"].get("selector"):
        assert made.selected(selector) == [workload] or made.selected(selector)[0].name == name
        assert len(made.selected(selector)) == 1
        for constraint in workload.pod["topologySpreadConstraints"]:
            assert len(made.selected(constraint["labelSelector"])) == 1


@pytest.mark.parametrize("folder", BUILDS)
def test_nothing_is_allowed_on_the_network_but_named_ports(folder: str) -> None:
    made = build(folder)
    policies = [policy["spec"] for policy in made.of("NetworkPolicy")]
    for workload in made.workloads:
        own = [policy for policy in policies if made.selected(policy["podSelector"], [workload])]
        for direction in ("Ingress", "Egress"):
            # A pod that no policy names in a direction may do everything there.
            assert any(direction in policy["policyTypes"] for policy in own), (workload.name, direction)
        for policy in own:
            for rule in (*policy.get("ingress", ()), *policy.get("egress", ())):
                assert rule["ports"], policy
                assert rule.get("from") or rule.get("to"), policy
            for rule in policy.get("ingress", ()):
                for port in rule["ports"]:
                    assert port["port"] in workload.ports, (workload.name, port)


def test_network_lets_callers_prometheus_stores_and_providers_through() -> None:
    made = build("overlays/prod")
    worker, api = made.workload("famulus-worker"), made.workload("famulus-api")
    assert _open(made, api, "ingress") == {"grpc", "metrics"}
    assert _open(made, worker, "ingress") == {"metrics"}
    assert _open(made, api, "egress") == _open(made, worker, "egress") == {53, 443, 4318, 5432, 6379}
    migrating = build("overlays/prod/migration")
    [job] = migrating.workloads
    assert _open(migrating, job, "ingress") == set()
    assert _open(migrating, job, "egress") == {53, 5432, 6379}
    # Policies of the overlay hold for the Job as well, and say nothing else of it.
    assert _open(made, job, "egress") == _open(migrating, job, "egress")
    dev = build("overlays/dev")
    assert _open(dev, dev.workload("famulus-api"), "ingress") == {"metrics"}


def _open(made: Manifests, workload: Workload, direction: str) -> set[str | int]:
    """The ports that are open to a workload's pods, or to which they may speak."""
    policies = [policy["spec"] for policy in made.of("NetworkPolicy")]
    own = [policy for policy in policies if made.selected(policy["podSelector"], [workload])]
    return {port["port"] for policy in own for rule in policy.get(direction, ()) for port in rule["ports"]}


def test_stores_and_providers_are_where_the_network_lets_pods_go() -> None:
    made = build("overlays/prod")
    text = made.config_of(made.workload("famulus-worker"))
    assert set(re.findall(r'url = "(\w+)://[^/:"]+/', text)) == {"https"}


@each("servers")
def test_pod_has_time_to_drain(folder: str, name: str, tmp_path: Path) -> None:
    made = build(folder)
    workload = made.workload(name)
    drain = made.settings_of(workload, tmp_path).server.drain_seconds
    grace = workload.pod["terminationGracePeriodSeconds"]
    assert grace >= workload.pre_stop_seconds + drain + EXIT_SECONDS
    if made.selected({"matchLabels": {"app.kubernetes.io/component": "api"}}, [workload]):
        # Endpoints, gateways and resolvers need some seconds to forget a pod.
        assert workload.pre_stop_seconds >= 5


@each("workloads")
def test_every_variable_is_a_setting_or_the_key_of_a_model(folder: str, name: str, tmp_path: Path) -> None:
    made = build(folder)
    workload = made.workload(name)
    path = None
    if workload.kind == "Deployment":
        path = tmp_path / CONFIG
        path.write_text(made.config_of(workload), encoding="utf-8")
    given = workload.environment(SECRETS)
    used = {*config.variables(path, given), "FAMULUS_CONFIG"}
    assert {variable for variable in given if not FOREIGN.fullmatch(variable)} - used == set()
    assert config.unknown_variables(given) == []


@each("servers")
def test_settings_pass_the_servers_own_check(folder: str, name: str, tmp_path: Path) -> None:
    made = build(folder)
    workload = made.workload(name)
    file = tmp_path / CONFIG
    file.write_text(made.config_of(workload), encoding="utf-8")
    given = workload.environment(SECRETS)
    # Files of a volume that is not there.
    for variable in [variable for variable in given if variable.startswith("FAMULUS_TLS_")]:
        del given[variable]
        given["FAMULUS_AUTH_PLAINTEXT"] = "true"
    checked = run("config", "check", str(file), env=environment(given))
    assert checked.returncode == 0, checked.stderr
    assert "unknown" not in checked.stderr


@pytest.mark.parametrize("folder", SERVED)
def test_budgets_let_nodes_be_drained_and_keep_a_pod(folder: str) -> None:
    made = build(folder)
    budgets = [budget["spec"] for budget in made.of("PodDisruptionBudget")]
    for workload in made.servers:
        [budget] = [one for one in budgets if made.selected(one["selector"], [workload])]
        assert budget["maxUnavailable"] == 1
        scaled = [one for one in made.of("HorizontalPodAutoscaler") if _target(one) == workload.name]
        for scaler in scaled:
            assert scaler["spec"]["minReplicas"] > budget["maxUnavailable"]


def test_autoscalers_scale_what_there_is_by_metrics_that_there_are() -> None:
    made = build("overlays/prod")
    scalers = made.of("HorizontalPodAutoscaler")
    assert {_target(scaler) for scaler in scalers} == {workload.name for workload in made.servers}
    for scaler in scalers:
        # Its number would be reset by each apply.
        assert "replicas" not in made.workload(_target(scaler)).whole["spec"]
    adapted = yaml.safe_load((K8S / "examples/prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    offered = {rule["name"]["as"] for kind in ("custom", "external") for rule in adapted[kind]}
    wanted = {name for scaler in scalers for name in metrics_of(scaler)}
    # That pods have them is seen where pods are started.
    assert wanted == offered
    assert wanted


def _target(scaler: Object) -> str:
    return str(scaler["spec"]["scaleTargetRef"]["name"])


def test_slots_of_a_worker_are_more_than_the_runs_by_which_it_scales(tmp_path: Path) -> None:
    made = build("overlays/prod")
    slots = made.settings_of(made.workload("famulus-worker"), tmp_path).worker.slots
    [wanted] = [
        float(metric["pods"]["target"]["averageValue"])
        for metric in made.one("HorizontalPodAutoscaler", "famulus-worker")["spec"]["metrics"]
        if metric["type"] == "Pods"
    ]
    assert wanted < slots


def test_monitor_finds_the_service_of_metrics(whole: Manifests) -> None:
    [monitor] = whole.of("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    [service] = [one for one in whole.of("Service") if wanted <= one["metadata"].get("labels", {}).items()]
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    assert {workload.name for workload in whole.selected({"matchLabels": service["spec"]["selector"]})} == {
        workload.name for workload in whole.servers
    }


def test_route_leads_to_the_service_over_tls_and_is_never_cut(whole: Manifests) -> None:
    [route] = whole.of("GRPCRoute")
    [backend] = [backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    [port] = whole.one("Service", backend["name"])["spec"]["ports"]
    assert backend["port"] == port["port"]
    [policy] = whole.of("BackendTLSPolicy")
    [target] = policy["spec"]["targetRefs"]
    assert (target["name"], target["sectionName"]) == (backend["name"], port["name"])
    [timeouts] = whole.of("BackendTrafficPolicy")
    assert timeouts["spec"]["targetRefs"] == [
        {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": route["metadata"]["name"]}
    ]
    assert timeouts["spec"]["timeout"]["http"]["requestTimeout"] == "0s"


@pytest.mark.parametrize("folder", [folder for folder in BUILDS if folder.startswith("overlays/")])
def test_images_have_versions(folder: str) -> None:
    for workload in build(folder).workloads:
        assert re.search(r":\d+\.\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", workload.container["image"])


def test_image_of_the_overlay_for_trying_out_is_the_one_that_is_built_here() -> None:
    version = tomllib.loads((K8S.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    built = (K8S.parent / ".ci/image").read_text(encoding="utf-8")
    [name] = re.findall(r"^default=(\S+)$", built, re.MULTILINE)
    shown = name.replace("$VERSION", version).replace("${EXTRAS:+-$EXTRAS}", "-embedded")
    assert build("overlays/dev").workload("famulus-api").container["image"] == shown
    [production] = {workload.container["image"] for workload in build("overlays/prod").servers}
    assert production.endswith(f":{version}")
    # As the page for users of the image has it.
    assert shown in (K8S.parent / "docs/image.md").read_text(encoding="utf-8")


def test_everything_in_production_has_one_image() -> None:
    workloads = [*build("overlays/prod").workloads, *build("overlays/prod/migration").workloads]
    assert len({workload.container["image"] for workload in workloads}) == 1


@pytest.mark.parametrize("folder", BUILDS)
def test_no_secret_stands_in_the_manifests(folder: str) -> None:
    made = build(folder)
    assert made.of("Secret") == []
    for workload in made.workloads:
        for variable in workload.environment(SECRETS):
            if re.search(r"KEY(?!_FILE)|URL|PASSWORD|TOKEN", variable):
                assert variable in {name for name, _, _ in workload.secrets()}
    for held in made.of("ConfigMap"):
        assert not re.search(r"password\s*=|api_key\s*=|://[^/\s]*@|-----BEGIN", "".join(held["data"].values()))


@each("workloads")
def test_pod_is_restricted(folder: str, name: str) -> None:
    assert list(complaints(build(folder).workload(name))) == []


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("pod", {"hostNetwork": True}),
        ("pod", {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}),
        ("pod", {"securityContext": {}}),
        ("container", {"securityContext": {"allowPrivilegeEscalation": False}}),
        ("pod", {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}),
        ("pod", {"automountServiceAccountToken": True}),
        ("container", {"resources": {"requests": {"cpu": "1"}}}),
    ],
)
def test_pod_that_is_not_restricted_is_found(where: str, change: Object) -> None:
    good = build("overlays/prod").workload("famulus-api")
    pod = dict(good.pod)
    if where == "pod":
        pod |= change
    else:
        pod["containers"] = [good.container | change]
    assert list(complaints(Workload({"spec": {"template": {"spec": pod}}})))


def complaints(workload: Workload) -> Iterator[str]:
    """What the Pod Security Standard `restricted` would say of its pods, and what we ask beyond that."""
    pod, container = workload.pod, workload.container
    of_pod, of_container = pod.get("securityContext", {}), container.get("securityContext", {})
    yield from (f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    for volume in pod.get("volumes", ()):
        yield from (f"volume of the kind {kind}" for kind in volume.keys() - {"name"} - RESTRICTED_VOLUMES)
    yield from (f"host port {port}" for port in container.get("ports", ()) if "hostPort" in port)
    wanted: Mapping[str, tuple[Any, Any]] = {
        "runAsNonRoot": (of_pod.get("runAsNonRoot"), True),
        "seccompProfile": (of_pod.get("seccompProfile"), {"type": "RuntimeDefault"}),
        "runAsUser": (of_pod.get("runAsUser"), 10001),
        "allowPrivilegeEscalation": (of_container.get("allowPrivilegeEscalation"), False),
        "capabilities": (of_container.get("capabilities"), {"drop": ["ALL"]}),
        "readOnlyRootFilesystem": (of_container.get("readOnlyRootFilesystem"), True),
        "automountServiceAccountToken": (pod.get("automountServiceAccountToken"), False),
        "enableServiceLinks": (pod.get("enableServiceLinks"), False),
    }
    yield from (f"{key} is {found}" for key, (found, right) in wanted.items() if found != right)
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        yield from (f"no {kind} of {what}" for what in {"cpu", "memory"} - resources.get(kind, {}).keys())


@each("servers")
def test_process_can_write_where_it_has_to(folder: str, name: str, tmp_path: Path) -> None:
    made = build(folder)
    workload = made.workload(name)
    writable = {mount["mountPath"] for mount in workload.container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {str(made.settings_of(workload, tmp_path).data_dir), "/tmp"}
