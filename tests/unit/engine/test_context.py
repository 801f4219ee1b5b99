"""What is remembered of a thread changes what its next prompt costs, and never what is in it."""

from collections.abc import Callable, Sequence
from random import Random

import pytest

from contract.samples import START, TENANT, add_messages, add_thread, message, read_texts, texts, thread
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run, TruncationStrategy
from famulus_server.engine import context, prompt
from famulus_server.engine.prompt import Prompt
from famulus_server.ports import ModelCard, Remembered, Store, Turn
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import NoThreadCache

LAST_FIVE = TruncationStrategy(last_messages=5)
AUTO = TruncationStrategy()


class Memory:
    """Remembers everything that it was ever told, and gives what it is asked to."""

    def __init__(self, choose: Callable[[Sequence[Remembered]], Remembered | None] = lambda told: told[-1]) -> None:
        self.told: dict[tuple[str, str], list[Remembered]] = {}
        self.stale = 0
        self._choose = choose

    async def get(self, tenant: str, thread_id: str) -> Remembered | None:
        told = self.told.get((tenant, thread_id))
        return self._choose(told) if told else None

    def note_stale(self) -> None:
        self.stale += 1

    def put(self, tenant: str, thread_id: str, remembered: Remembered) -> None:
        self.told.setdefault((tenant, thread_id), []).append(remembered)

    def forget(self, tenant: str, thread_id: str) -> None:
        self.told.pop((tenant, thread_id), None)

    def of(self, thread_id: str = "thread_1") -> Remembered:
        """The newest."""
        return self.told[TENANT, thread_id][-1]


class Rows:
    """Counts what is read from a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: SqliteStore) -> None:
        self._store = store
        self._before = store.stats.statements
        self.messages = 0
        parse = Message.FromString

        def count(body: bytes) -> Message:
            self.messages += 1
            return parse(body)

        monkeypatch.setattr("famulus_server.store.messages.Message", _Counting(count))

    @property
    def statements(self) -> int:
        return self._store.stats.statements - self._before


class _Counting:
    def __init__(self, parse: Callable[[bytes], Message]) -> None:
        self.FromString = parse


def the_run(strategy: TruncationStrategy = AUTO, *, thread_id: str = "thread_1", turns: int = 0) -> Run:
    return Run(id="run_now", thread_id=thread_id, model="m", truncation_strategy=strategy, turns=turns)


def card(window: int = 8_192) -> ModelCard:
    return ModelCard(name="m", context_window=window, max_output_tokens=16, built_in_tools=True)


async def build(
    store: Store, cache: Memory | NoThreadCache, run: Run, *turns: Turn, model: ModelCard | None = None
) -> Prompt:
    return await prompt.build(store, cache, TENANT, run, model or card(), turns)


def words(made: Prompt) -> list[str]:
    return [item["content"][0]["text"] for item in made.request.items]


def naive(messages: Sequence[Message], run: Run, turns: Sequence[Turn], window: int) -> list[str]:
    """What the prompt holds, by the rule's own words and without any cleverness."""
    seen = [made for made in messages if not turns or made.sequence <= turns[0].seen_sequence]
    later = [made for made in messages if turns and made.sequence > turns[0].seen_sequence]
    if run.truncation_strategy.HasField("last_messages"):
        kept = seen[-run.truncation_strategy.last_messages :]
    else:
        cost = [8 - -len(made.content[0].text.text) // 3 for made in seen]
        budget = window - 16 - sum(cost[:1])
        start = len(seen)
        while start > 1 and (start == len(seen) or sum(cost[start - 1 :]) <= budget):
            start -= 1
        # The newest one is kept whatever it costs, the one before it is not.
        kept = seen[:1] + seen[start:]
    return texts([*kept, *later])


class History:
    """Threads to which anything may happen that can happen to threads."""

    def __init__(self, store: Store, random: Random) -> None:
        self._store = store
        self._random = random
        self._made = 0
        self.threads = ["origin"]

    async def begin(self) -> None:
        await add_thread(self._store, "origin")

    async def go_on(self) -> None:
        step = self._random.choice(
            [*[self._append] * 6, *[self._edit, self._delete, self._fork, self._roll_back] * 2, self._clear]
        )
        await step(self._random.choice(self.threads))

    async def bury(self) -> None:
        """Deletes a thread; its forks live on."""
        if len(self.threads) > 1:
            buried = self.threads.pop(self._random.randrange(len(self.threads)))
            await self._store.write(lambda tx: tx.threads.bury(TENANT, buried, START))

    async def all(self, thread_id: str) -> list[Message]:
        return await self._store.read(lambda tx: tx.messages.page(TENANT, thread_id, limit=100_000))

    def _message(self, run_id: str = "") -> Message:
        self._made += 1
        text = f"m{self._made} " + "x" * self._random.choice([1, 10, 100, 300])
        return message(f"msg_{self._made}", text=text, run_id=run_id)

    async def _append(self, thread_id: str) -> None:
        new = [self._message() for _ in range(self._random.choice([1, 2, 2, 9]))]
        await self._store.write(lambda tx: tx.messages.append(TENANT, thread_id, new))

    async def _edit(self, thread_id: str) -> None:
        if known := await self.all(thread_id):
            changed = self._message()
            changed.id = self._random.choice(known).id
            await self._store.write(lambda tx: tx.messages.replace(TENANT, thread_id, changed))

    async def _delete(self, thread_id: str) -> None:
        if known := await self.all(thread_id):
            # Often at an end, where windows and what is remembered of them begin.
            gone = self._random.choice([known[0], known[-1], self._random.choice(known)]).id
            await self._store.write(lambda tx: tx.messages.delete(TENANT, thread_id, gone))

    async def _clear(self, thread_id: str) -> None:
        """Nearly all goes."""
        known = await self.all(thread_id)
        left = self._random.sample(known, min(len(known), self._random.choice([0, 1, 2])))
        for gone in known:
            if gone not in left:
                await self._store.write(lambda tx: tx.messages.delete(TENANT, thread_id, gone.id))  # noqa: B023

    async def _fork(self, thread_id: str) -> None:
        name = f"fork_{len(self.threads)}_{self._made}_{self._random.random()}"
        known = await self.all(thread_id)
        upto = self._random.choice(known).sequence if known else 0
        await self._store.write(lambda tx: tx.threads.fork(TENANT, thread_id, upto, thread(name)))
        self.threads.append(name)

    async def _roll_back(self, thread_id: str) -> None:
        """A run writes something, and is rolled back."""
        written = [self._message("run_1") for _ in range(2)]
        await self._store.write(lambda tx: tx.messages.append(TENANT, thread_id, written))
        await add_messages(self._store, thread_id, self._message().id)
        for made in written:
            await self._store.write(lambda tx: tx.messages.delete(TENANT, thread_id, made.id))  # noqa: B023


@pytest.mark.parametrize("seed", range(12))
async def test_prompt_is_the_same_whatever_is_remembered(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # So that windows have several pages.
    monkeypatch.setattr(prompt, "_PAGE", 3)
    monkeypatch.setattr(context, "_PAGE", 3)
    random = Random(seed)
    cache = Memory(lambda told: random.choice([None, told[-1], random.choice(told)]))
    history = History(store, random)
    await history.begin()
    starts: dict[str, int] = {}
    for step in range(150):
        await history.go_on()
        if step == 100:
            await history.bury()
        thread_id = random.choice(history.threads)
        window = random.choice([100, 400, 4_000])
        strategy = random.choice([AUTO, TruncationStrategy(last_messages=random.choice([1, 2, 5, 20]))])
        turns = []
        if thread_id in starts and random.random() < 0.3:
            turns = [Turn(number=1, seen_sequence=starts[thread_id], items=[])]
        run = the_run(strategy, thread_id=thread_id, turns=len(turns))
        made = await build(store, cache, run, *turns, model=card(window))
        everything = await history.all(thread_id)
        assert words(made) == naive(everything, run, turns, window), f"step {step}"
        assert made == await build(store, NoThreadCache(), run, *turns, model=card(window))
        if not turns:
            starts[thread_id] = made.seen_sequence
    assert cache.stale


@pytest.mark.parametrize("strategy", [LAST_FIVE, AUTO])
async def test_warm_run_on_a_long_thread_reads_what_is_new_by_one_statement(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, strategy: TruncationStrategy
) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(10_000)))
    cache = Memory()
    first = await build(store, cache, the_run(strategy))
    await add_messages(store, "thread_1", "answer", "question")
    rows = Rows(monkeypatch, store)
    second = await build(store, cache, the_run(strategy))
    # What is new, and the newest that was remembered, to compare.
    assert (rows.messages, rows.statements) == (3, 1)
    assert words(second)[-2:] == ["answer", "question"]
    assert words(second)[-5:-2] == words(first)[-3:]
    assert cache.stale == 0


async def test_later_turn_of_a_run_reads_no_more_than_what_is_new(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(1_000)))
    cache = Memory()
    first = await build(store, cache, the_run())
    await add_messages(store, "thread_1", "late")
    rows = Rows(monkeypatch, store)
    turn = Turn(number=1, seen_sequence=first.seen_sequence, items=[])
    second = await build(store, cache, the_run(turns=1), turn)
    assert (rows.messages, rows.statements) == (2, 1)
    assert words(second) == [*words(first), "late"]
    assert len(cache.told[TENANT, "thread_1"]) == 1, "the first turn's window is remembered only"


@pytest.mark.parametrize("strategy", [LAST_FIVE, AUTO])
@pytest.mark.parametrize("count", [0, 1, 20])
async def test_run_on_a_thread_that_was_made_with_it_reads_nothing(
    store: SqliteStore, strategy: TruncationStrategy, count: int
) -> None:
    messages = [message(f"m{number}") for number in range(count)]
    await store.write(lambda tx: tx.threads.insert(TENANT, thread("thread_1"), messages))
    read = await build(store, NoThreadCache(), the_run(strategy))
    cache = Memory()
    before = store.stats.statements
    known = Remembered(revision=0, floor=0, upto=count, messages=messages)
    made = await prompt.build(store, cache, TENANT, the_run(strategy), card(), (), thread=known)
    assert store.stats.statements == before
    assert made == read
    # And the next run finds what the store confirms.
    assert await build(store, cache, the_run(strategy)) == read
    assert (len(cache.told) == 1, cache.stale) == (count > 1, 0)


async def test_wider_window_reads_the_rest_and_is_remembered(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(100)))
    cache = Memory()
    await build(store, cache, the_run(LAST_FIVE))
    assert (cache.of().floor, cache.of().upto, cache.of().first) == (95, 100, None)
    rows = Rows(monkeypatch, store)
    made = await build(store, cache, the_run(TruncationStrategy(last_messages=20)))
    assert words(made) == [f"m{number}" for number in range(80, 100)]
    # The newest in vain, then both between a BEGIN and a COMMIT.
    assert (rows.messages, rows.statements) == (1 + 16, 1 + 4)
    assert (cache.of().floor, cache.of().upto) == (80, 100)


async def test_first_message_is_remembered_beside_the_window(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *(f"m{number}" for number in range(1_000)))
    cache = Memory()
    made = await build(store, cache, the_run(), model=card(512))
    kept = cache.of()
    assert kept.first is not None
    # With the one that was not to fit.
    assert [*texts([kept.first]), *texts(kept.messages[1:])] == words(made)
    assert kept.floor == kept.messages[0].sequence - 1


async def test_whole_short_thread_is_remembered_and_nothing_below_it_is_looked_for(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_thread(store, "thread_1", *"abc")
    await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "a"))
    cache = Memory()
    for strategy in (LAST_FIVE, AUTO):
        await build(store, cache, the_run(strategy))
        rows = Rows(monkeypatch, store)
        assert words(await build(store, cache, the_run(strategy))) == ["b", "c"]
        assert (rows.messages, rows.statements) == (1, 1)
    await add_thread(store, "empty")
    await build(store, cache, the_run(thread_id="empty"))
    assert (TENANT, "empty") not in cache.told


@pytest.mark.parametrize("strategy", [LAST_FIVE, AUTO])
async def test_change_of_a_remembered_message_is_seen_and_counted(
    store: SqliteStore, strategy: TruncationStrategy
) -> None:
    await add_thread(store, "thread_1", *"abc")
    cache = Memory()
    await build(store, cache, the_run(strategy))
    await store.write(lambda tx: tx.messages.replace(TENANT, "thread_1", message("a", text="A")))
    assert words(await build(store, cache, the_run(strategy))) == ["A", "b", "c"]
    await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", "c"))
    assert words(await build(store, cache, the_run(strategy))) == ["A", "b"]
    assert cache.stale == 2
    assert words(await build(store, cache, the_run(strategy))) == ["A", "b"]
    assert cache.stale == 2


@pytest.mark.parametrize("strategy", [LAST_FIVE, AUTO])
@pytest.mark.parametrize("left", ["", "a", "b", "c", "ab", "ac"])
async def test_thread_of_which_little_is_left_is_seen_as_it_is(
    store: SqliteStore, strategy: TruncationStrategy, left: str
) -> None:
    await add_thread(store, "thread_1", *"abc")
    cache = Memory()
    await build(store, cache, the_run(strategy))
    for name in set("abc") - set(left):
        await store.write(lambda tx: tx.messages.delete(TENANT, "thread_1", name))  # noqa: B023
    for _ in range(2):
        assert words(await build(store, cache, the_run(strategy))) == list(left)
    await add_messages(store, "thread_1", "d")
    assert words(await build(store, cache, the_run(strategy))) == [*left, "d"]


async def test_store_that_was_restored_from_a_backup_is_believed(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *"abc")
    cache = Memory()
    lost = Remembered(revision=0, floor=0, upto=3, messages=[message("other")])
    cache.put(TENANT, "thread_1", lost)
    assert words(await build(store, cache, the_run())) == await read_texts(store, "thread_1")
    cache.put(TENANT, "thread_1", Remembered(revision=0, floor=0, upto=9, messages=[message("other")]))
    assert words(await build(store, cache, the_run())) == await read_texts(store, "thread_1")
    assert cache.stale == 2


@pytest.mark.parametrize("strategy", [LAST_FIVE, AUTO])
async def test_what_lies_too_far_back_is_not_needed_and_not_stale(
    store: SqliteStore, strategy: TruncationStrategy
) -> None:
    await add_thread(store, "thread_1", *"abc")
    cache = Memory()
    await build(store, cache, the_run(strategy))
    await add_messages(store, "thread_1", *(f"m{number}" for number in range(300)))
    made = await build(store, cache, the_run(strategy))
    assert words(made)[-5:] == [f"m{number}" for number in range(295, 300)]
    assert cache.stale == 0


async def test_deleted_thread_has_an_empty_prompt_and_is_not_remembered_again(store: SqliteStore) -> None:
    await add_thread(store, "thread_1", *"abc")
    cache = Memory()
    await build(store, cache, the_run())
    await store.write(lambda tx: tx.threads.bury(TENANT, "thread_1", START))
    assert words(await build(store, cache, the_run())) == []
    assert len(cache.told[TENANT, "thread_1"]) == 1
