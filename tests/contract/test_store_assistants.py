"""Assistants and their versions, in any store."""

import asyncio

import pytest

from contract.samples import ODD_IDS, OTHER, TENANT, assistant
from famulus.v1.assistant_pb2 import Assistant
from famulus_server.errors import NotFound
from famulus_server.ports import Cursor, Store, Transaction


def place(made: Assistant) -> Cursor:
    return Cursor(made.create_time.ToMicroseconds(), made.id)


async def insert(store: Store, made: Assistant) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, made))


async def get(store: Store, version: int, *, tenant: str = TENANT) -> Assistant:
    return await store.read(lambda tx: tx.assistants.get(tenant, "asst_1", version=version))


async def test_new_assistant_is_version_1_and_reads_as_stored(store: Store) -> None:
    made = assistant(name="tutor")
    assert await store.write(lambda tx: tx.assistants.insert(TENANT, made))
    assert (made.version, made.etag) == (1, "1")
    assert await store.read(lambda tx: tx.assistants.get(TENANT, "asst_1")) == made


async def test_replace_makes_the_next_version_and_keeps_the_old_ones(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant(name="one")))
    changed = assistant(name="two")
    await store.write(lambda tx: tx.assistants.replace(TENANT, changed))
    assert changed.version == 2
    newest = await store.read(lambda tx: tx.assistants.get(TENANT, "asst_1"))
    first = await store.read(lambda tx: tx.assistants.get(TENANT, "asst_1", version=1))
    assert (newest.name, newest.version) == ("two", 2)
    assert (first.name, first.version) == ("one", 1)
    assert newest.etag != first.etag


async def test_version_that_never_was_is_not_found(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant()))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.get(TENANT, "asst_1", version=2))


async def test_replace_and_delete_of_an_unknown_assistant_are_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.assistants.replace(TENANT, assistant()))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.assistants.delete(TENANT, "asst_1"))


async def test_list_is_newest_first_and_a_cursor_continues_it(store: Store) -> None:
    for number, seconds in enumerate([0, 5, 5, 9]):
        await insert(store, assistant(f"asst_{number}", seconds=seconds))
    first = await store.read(lambda tx: tx.assistants.page(TENANT, after=None, limit=2))
    rest = await store.read(lambda tx: tx.assistants.page(TENANT, after=place(first[-1]), limit=9))
    assert [made.id for made in first] == ["asst_3", "asst_2"]
    assert [made.id for made in rest] == ["asst_1", "asst_0"]


async def test_versions_are_listed_newest_first_and_a_cursor_continues_them(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant()))
    for _ in range(3):
        await store.write(lambda tx: tx.assistants.replace(TENANT, assistant()))
    first = await store.read(lambda tx: tx.assistants.versions(TENANT, "asst_1", after=None, limit=2))
    after = Cursor(first[-1].version, "asst_1")
    rest = await store.read(lambda tx: tx.assistants.versions(TENANT, "asst_1", after=after, limit=9))
    end = await store.read(lambda tx: tx.assistants.versions(TENANT, "asst_1", after=Cursor(1, "asst_1"), limit=9))
    assert [made.version for made in first] == [4, 3]
    assert [made.version for made in rest] == [2, 1]
    assert end == []


async def test_versions_of_an_unknown_assistant_are_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.versions(TENANT, "asst_1", after=None, limit=9))


async def test_configuration_that_is_taken_stores_nothing(store: Store) -> None:
    assert await store.write(lambda tx: tx.assistants.insert(TENANT, assistant("asst_1"), config_hash=b"h"))
    assert not await store.write(lambda tx: tx.assistants.insert(TENANT, assistant("asst_2"), config_hash=b"h"))
    assert await store.write(lambda tx: tx.assistants.insert(OTHER, assistant("asst_3"), config_hash=b"h"))
    found = await store.read(lambda tx: tx.assistants.find(TENANT, b"h"))
    assert found is not None
    assert found.id == "asst_1"
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.get(TENANT, "asst_2"))


async def test_fifty_callers_who_ensure_at_once_get_one_assistant(store: Store) -> None:
    async def unit(tx: Transaction, number: int) -> str:
        if await tx.assistants.insert(TENANT, assistant(f"asst_{number}"), config_hash=b"h"):
            return f"asst_{number}"
        found = await tx.assistants.find(TENANT, b"h")
        assert found is not None
        return found.id

    async def ensure(number: int) -> str:
        return await store.write(lambda tx: unit(tx, number))

    ids = await asyncio.gather(*(ensure(number) for number in range(50)))
    assert len(set(ids)) == 1
    assert len(await store.read(lambda tx: tx.assistants.page(TENANT, after=None, limit=100))) == 1


async def test_update_and_delete_free_the_configuration(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant("asst_1"), config_hash=b"h"))
    await store.write(lambda tx: tx.assistants.replace(TENANT, assistant("asst_1", name="changed")))
    assert await store.read(lambda tx: tx.assistants.find(TENANT, b"h")) is None
    assert await store.write(lambda tx: tx.assistants.insert(TENANT, assistant("asst_2"), config_hash=b"h"))
    await store.write(lambda tx: tx.assistants.delete(TENANT, "asst_2"))
    assert await store.write(lambda tx: tx.assistants.insert(TENANT, assistant("asst_3"), config_hash=b"h"))


async def test_deleted_assistant_is_gone_with_all_versions(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant()))
    await store.write(lambda tx: tx.assistants.replace(TENANT, assistant()))
    await store.write(lambda tx: tx.assistants.delete(TENANT, "asst_1"))
    for version in (0, 1, 2):
        with pytest.raises(NotFound):
            await get(store, version)
    assert await store.read(lambda tx: tx.assistants.page(TENANT, after=None, limit=9)) == []


async def test_another_tenants_assistant_is_as_good_as_none(store: Store) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant(), config_hash=b"h"))
    for version in (0, 1):
        with pytest.raises(NotFound):
            await get(store, version, tenant=OTHER)
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.versions(OTHER, "asst_1", after=None, limit=9))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.assistants.replace(OTHER, assistant(name="stolen")))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.assistants.delete(OTHER, "asst_1"))
    assert await store.read(lambda tx: tx.assistants.find(OTHER, b"h")) is None
    assert await store.read(lambda tx: tx.assistants.page(OTHER, after=None, limit=9)) == []
    assert (await store.read(lambda tx: tx.assistants.get(TENANT, "asst_1"))).name == ""


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_odd_ids_are_only_ids(store: Store, odd: str) -> None:
    await store.write(lambda tx: tx.assistants.insert(TENANT, assistant()))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.get(TENANT, odd))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.assistants.get(odd, "asst_1"))
