"""The manifests in `k8s/`, as kustomize builds them."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from famulus_server import config

Object: TypeAlias = dict[str, Any]

K8S = Path(__file__).parents[2] / "k8s"
TOOLS = K8S / ".tools"
# What is applied, by the folder of its kustomization.
BUILDS = ("base", "overlays/dev", "overlays/prod", "overlays/prod/migration")
SERVED = ("overlays/dev", "overlays/prod")
COMPONENTS = ("components/monitoring", "components/gateway", "components/envoy-gateway")
CONFIG = "famulus.toml"


def tool(name: str) -> str:
    """The path of a tool that `make -C k8s tools` installs."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"*** k8s/ was NOT tested: no {name}; `make -C k8s tools` installs it, with Go ***")
    return found


@dataclass(frozen=True, eq=False)
class Workload:
    """A Deployment or a Job, and the one container of its pods."""

    whole: Object

    @property
    def kind(self) -> str:
        return str(self.whole["kind"])

    @property
    def name(self) -> str:
        return str(self.whole["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        """Those of its pods."""
        labels: Mapping[str, str] = self.whole["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def pod(self) -> Object:
        pod: Object = self.whole["spec"]["template"]["spec"]
        return pod

    @property
    def container(self) -> Object:
        [container] = self.pod["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def ports(self) -> Mapping[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", ())}

    @property
    def probes(self) -> Mapping[str, Object]:
        """By what they are for."""
        kinds = ("startup", "readiness", "liveness")
        return {kind: self.container[f"{kind}Probe"] for kind in kinds if f"{kind}Probe" in self.container}

    @property
    def pre_stop_seconds(self) -> float:
        return float(self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))

    def secrets(self) -> list[tuple[str, str, str]]:
        """Variables that come from Secrets: name, Secret, key."""
        references = [(each["name"], each["valueFrom"]["secretKeyRef"]) for each in self._env if "valueFrom" in each]
        return [(name, reference["name"], reference["key"]) for name, reference in references]

    def environment(self, secrets: Mapping[str, str]) -> dict[str, str]:
        """What the process gets, with these values of the variables that come from Secrets."""
        literal = {each["name"]: each["value"] for each in self._env if "value" in each}
        return literal | {name: secrets[name] for name, _, _ in self.secrets()}

    @property
    def _env(self) -> Sequence[Object]:
        env: Sequence[Object] = self.container.get("env", ())
        return env


@dataclass(frozen=True, eq=False)
class Manifests:
    """All objects of one kustomization."""

    objects: Sequence[Object]

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        [found] = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(one) for kind in ("Deployment", "Job") for one in self.of(kind)]

    @property
    def servers(self) -> list[Workload]:
        """Those that serve."""
        return [workload for workload in self.workloads if workload.kind == "Deployment"]

    def workload(self, name: str) -> Workload:
        [found] = [workload for workload in self.workloads if workload.name == name]
        return found

    def selected(self, selector: Mapping[str, Any], workloads: Iterable[Workload] | None = None) -> list[Workload]:
        """The workloads whose pods a label selector takes."""
        chosen = self.workloads if workloads is None else workloads
        return [workload for workload in chosen if _selects(selector, workload.labels)]

    def config_of(self, workload: Workload) -> str:
        """The text of its famulus.toml."""
        [volume] = [volume for volume in workload.pod["volumes"] if "configMap" in volume]
        return str(self.one("ConfigMap", volume["configMap"]["name"])["data"][CONFIG])

    def settings_of(self, workload: Workload, folder: Path) -> config.Settings:
        """What its process makes of file and environment; a folder for the file."""
        path = folder / f"{workload.name}.toml"
        path.write_text(self.config_of(workload), encoding="utf-8")
        names = [name for name, _, _ in workload.secrets()]
        given = image_environment() | workload.environment(dict.fromkeys(names, "") | SECRETS)
        settings = config.load(path, given)
        config.check(settings)
        return settings


@cache
def image_environment() -> dict[str, str]:
    """What the image says where a pod says nothing. Without PATH, which leads to its own programs."""
    dockerfile = (K8S.parent / "Dockerfile").read_text(encoding="utf-8")
    [told] = re.findall(r"^ENV (.+)$", dockerfile.replace("\\\n", ""), re.MULTILINE)
    pairs = (pair.partition("=") for pair in shlex.split(told))
    return {name: value for name, _, value in pairs if name != "PATH"}


def metrics_of(scaler: Object) -> set[str]:
    """The metrics of an autoscaler that come from the server."""
    metrics = [metric for metric in scaler["spec"]["metrics"] if metric["type"] != "Resource"]
    return {metric[metric["type"].lower()]["metric"]["name"] for metric in metrics}


# Values that pass for those of the Secrets.
SECRETS = {
    "FAMULUS_STORE_URL": "postgresql://famulus:password@postgresql.example/famulus",
    "FAMULUS_REDIS_URL": "rediss://:password@redis.example:6379/0",
    "OPENAI_API_KEY": "key of a model",
}


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


@cache
def build(folder: str) -> Manifests:
    """The objects of a kustomization below `k8s/`. Do not change them."""
    return built(K8S / folder)


def built(folder: Path) -> Manifests:
    """The objects of the kustomization in a folder."""
    done = subprocess.run([tool("kustomize"), "build", str(folder)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    # Deprecated fields are named there.
    assert not done.stderr, done.stderr
    return Manifests(list(yaml.safe_load_all(done.stdout)))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """`overlays/prod` with all components."""
    folder = tmp_path_factory.mktemp("whole").resolve()
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "famulus",
        "resources": [os.path.relpath(K8S / "overlays/prod", folder)],
        "components": [os.path.relpath(K8S / component, folder) for component in COMPONENTS],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    return built(folder)
