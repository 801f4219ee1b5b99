"""The table of roles holds against what the services really have."""

import importlib
import pkgutil

import pytest
from google.protobuf.descriptor import FileDescriptor

import famulus.v1
from famulus_server.api.roles import INCLUDED, METHODS, REFLECTION, who_may


def files() -> list[FileDescriptor]:
    """Of all messages and services that there are stubs of."""
    names = [module.name for module in pkgutil.iter_modules(famulus.v1.__path__) if module.name.endswith("_pb2")]
    return [importlib.import_module(f"famulus.v1.{name}").DESCRIPTOR for name in names]


SERVICES = {name: one for file in files() for name, one in file.services_by_name.items()}
RPCS = {f"/{service.full_name}/{method.name}" for service in SERVICES.values() for method in service.methods}
PLANNED = "/famulus.v1.UserDataService/"  # its rows are there before it is


def test_every_method_has_its_row_and_every_row_its_method() -> None:
    assert "/famulus.v1.RunService/CreateRun" in RPCS
    rows = {method for method in METHODS if "UserDataService" in SERVICES or not method.startswith(PLANNED)}
    assert rows == RPCS | {f"/{REFLECTION}/ServerReflectionInfo"}


@pytest.mark.parametrize("method", sorted(RPCS))
def test_method_that_reads_is_for_readers_and_no_other(method: str) -> None:
    name = method.rpartition("/")[2]
    reads = name.startswith(("Get", "List", "Watch", "Wait", "Query")) and not method.startswith(PLANNED)
    assert (METHODS[method] == "reader") == reads


def test_roles_include_one_another_as_documented() -> None:
    get, run, assistant = (
        "/famulus.v1.RunService/GetRun",
        "/famulus.v1.RunService/CreateRun",
        "/famulus.v1.AssistantService/CreateAssistant",
    )
    allowed = {role: {method for method in (get, run, assistant) if role in who_may(method)} for role in INCLUDED}
    assert allowed == {
        "reader": {get},
        "writer": {get, run},
        "operator": {get, run, assistant},
        "privacy": set(),
        "tools": set(),
    }


def test_data_of_users_are_for_the_role_privacy_alone() -> None:
    for method in (method for method in METHODS if method.startswith(PLANNED)):
        assert who_may(method) == {"privacy"}


def test_method_without_a_row_is_for_nobody() -> None:
    assert who_may("/famulus.v1.RunService/Nonsense") == frozenset()
