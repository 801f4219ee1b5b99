"""Another tenant's ids, page tokens and request ids in every RPC: as good as none, and nothing of that tenant changes.

What there is to call is what the API's descriptors say: a new RPC fails here until `tenants.requests` has it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from msgspec.structs import replace

from famulus_server.api import server
from famulus_server.config import StoreSettings
from postgres import create_database
from serving import Refusal, ServerThread, settings_in
from tenants import (
    LISTS,
    METHODS,
    Belongings,
    Client,
    HeaderCaller,
    everything,
    furnish,
    lists,
    masked,
    named_by,
    naming_fields,
    requests,
    services,
    twins,
)

VICTIM, ONE, OTHER = "tenant-victim", "tenant-one", "tenant-other"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def channel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A channel to a server for which the tenant of a call stands in a header."""
    settings = settings_in(tmp_path_factory.mktemp("tenants"))
    if request.param == "postgres":
        url = create_database(request.getfixturevalue("postgres_url"))
        settings = replace(settings, store=StoreSettings(url=url, pool=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "OneCaller", HeaderCaller)
        thread = ServerThread(settings)
        running = thread.start()
    with grpc.insecure_channel(running.address) as opened:
        yield opened
    thread.stop()


@dataclass(frozen=True)
class Scene:
    """What a tenant has, and two others who do not know of each other: one asks for it, one for what nobody has."""

    victim: Client
    its: Belongings
    one: Client
    ones: Belongings
    other: Client
    others: Belongings


@pytest.fixture(scope="module")
def scene(channel: grpc.Channel) -> Scene:
    victim, one, other = (Client(channel, name) for name in (VICTIM, ONE, OTHER))
    return Scene(victim, furnish(victim), one, furnish(one), other, furnish(other))


def test_server_offers_no_other_services_of_ours(channel: grpc.Channel) -> None:
    offered = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert services() == {name for name in offered if name.startswith("famulus.")}


def test_every_rpc_is_asked_by_everything_it_can_name(scene: Scene) -> None:
    asked = requests(scene.its, scene.ones)
    assert asked.keys() == METHODS.keys()
    for name, method in METHODS.items():
        for field in naming_fields(method.input_type):
            values = {named_by(request, field) for request in asked[name]}
            assert values & set(scene.its.values()), f"{name}: no request has another tenant's {field}"


@pytest.mark.parametrize("name", METHODS)
def test_what_another_tenant_has_is_as_good_as_none(scene: Scene, name: str) -> None:
    before = everything(scene.victim, scene.its)
    theirs, nothing = scene.its, twins(scene.its)
    foreign, unknown = requests(theirs, scene.ones)[name], requests(nothing, scene.others)[name]
    for number, (asked, twin) in enumerate(zip(foreign, unknown, strict=True)):
        told, plain = scene.one.outcome(name, asked), scene.other.outcome(name, twin)
        assert masked(told, theirs, scene.ones) == masked(plain, nothing, scene.others), f"request {number}"
        if not isinstance(told, Refusal):
            assert not [value for value in theirs.values() if value in str(told)], f"request {number}"
    assert everything(scene.victim, theirs) == before


@pytest.mark.parametrize("name", LISTS)
def test_list_of_everything_has_nothing_of_another_tenant(scene: Scene, name: str) -> None:
    named = lists(scene.ones)[name]
    shown = str(scene.one.call(name, **named))
    assert not [value for value in scene.its.values() if value in shown]
    assert shown != str(scene.victim.call(name, **lists(scene.its)[name]))


@pytest.mark.parametrize("name", LISTS)
def test_page_token_of_another_tenant_is_refused_like_a_damaged_one(scene: Scene, name: str) -> None:
    refusals = []
    for its in (scene.its, twins(scene.its)):
        [request] = [one for one in requests(its, scene.ones)[name] if named_by(one, "page_token")][-1:]
        told = scene.one.outcome(name, request)
        assert isinstance(told, Refusal)
        refusals.append((told.code, told.reason, told.raw))
    assert refusals[0][:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    assert refusals[0] == refusals[1]


def test_owner_is_told_otherwise_than_a_stranger(scene: Scene, channel: grpc.Channel) -> None:
    """Otherwise the requests would ask for nothing."""
    owner = Client(channel, "tenant-owner")
    its = furnish(owner)
    nothing = twins(its)
    stranger = requests(nothing, scene.others)
    for name, asked in requests(its, its).items():
        told = masked(owner.outcome(name, asked[0]), its, {})
        assert told != masked(scene.other.outcome(name, stranger[name][0]), nothing, {}), name
