"""All objects are what Kubernetes and the operators take: no field is unknown, missing, or of the wrong type."""

from functools import cache
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from k8s.manifests import BUILDS, K8S, TOOLS, Manifests, Object, build, tool

# The oldest that has all we use (preStop.sleep for good), and the newest that is known here.
VERSIONS = ("1.34", "1.37")
CUSTOM = {"gateway.networking.k8s.io", "gateway.envoyproxy.io", "monitoring.coreos.com"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", BUILDS)
def test_kubernetes_takes_every_object(folder: str, version: str) -> None:
    for one in build(folder).objects:
        check_object(one, version)


def test_operators_take_the_objects_of_components(whole: Manifests) -> None:
    kinds = {one["kind"] for one in whole.objects if is_custom(one)}
    assert kinds == {"ServiceMonitor", "PrometheusRule", "GRPCRoute", "BackendTLSPolicy", "BackendTrafficPolicy"}
    for one in whole.objects:
        if is_custom(one):
            check_custom(one)
        else:
            check_object(one, VERSIONS[-1])


def test_operators_take_the_example_of_a_gateway() -> None:
    check_custom(yaml.safe_load((K8S / "examples/envoy-client-traffic.yaml").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"parentRef": []}},
        {"spec": {"rules": [{"timeouts": {"request": "0s"}}]}},
        {"spec": {"hostnames": "famulus.example.com"}},
    ],
)
def test_wrong_custom_object_is_found(change: Object) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        check_custom({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {}} | change)


def test_unknown_field_is_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check_object({"apiVersion": "v1", "kind": "ServiceAccount", "automount": False}, VERSIONS[-1])


def is_custom(one: Object) -> bool:
    return one["apiVersion"].partition("/")[0] in CUSTOM


def check_object(one: Object, version: str) -> None:
    kubernetes_validate.validate(one, version, strict=True)


def check_custom(one: Object) -> None:
    schemas(one["apiVersion"], one["kind"]).validate(one)


@cache
def schemas(api_version: str, kind: str) -> jsonschema_rs.Validator:
    """What the definition of a custom resource says of it; beyond that, it may have no fields."""
    tool("kustomize")  # or a skip, as there are no definitions either
    group, _, version = api_version.partition("/")
    # The loader in C: some definitions are megabytes of text.
    for path in sorted((TOOLS / "crds").glob("*.yaml")):
        for definition in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            spec = definition["spec"] if definition and definition["kind"] == "CustomResourceDefinition" else {}
            if spec and (spec["group"], spec["names"]["kind"]) == (group, kind):
                [schema] = [each["schema"] for each in spec["versions"] if each["name"] == version]
                return jsonschema_rs.validator_for(strict(schema["openAPIV3Schema"]))
    raise AssertionError(f"no definition of {api_version} {kind} in {TOOLS / 'crds'}")


def strict(schema: Any) -> Any:
    """The same, refusing what it does not name, as the server does with strict validation."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    names_all = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    if names_all and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
