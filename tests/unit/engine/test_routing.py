"""Which variant of a route a run gets."""

from collections import Counter

import pytest

from famulus.v1.run_pb2 import Run
from famulus_server.engine.policy import Route, Variant
from famulus_server.engine.routing import choose


def route(*weights: int, **fields: str) -> Route:
    variants = tuple(Variant(model=f"m{number}", weight=weight) for number, weight in enumerate(weights))
    return Route(**{"name": "split", "variants": variants, **fields})  # type: ignore[arg-type]


def runs(count: int, **fields: str) -> list[Run]:
    return [Run(**{"thread_id": f"thread_{number}", **fields}) for number in range(count)]  # type: ignore[arg-type]


def test_variants_are_chosen_as_often_as_their_weights_say() -> None:
    split = route(1, 0, 3)
    counts = Counter(choose(split, run) for run in runs(4_000))
    assert set(counts) == {"m0", "m2"}
    assert counts["m0"] == pytest.approx(1_000, rel=0.1)


def test_choice_is_the_same_for_all_runs_of_a_thread() -> None:
    split = route(1, 1)
    assert len({choose(split, Run(id=f"run_{number}", thread_id="thread_1")) for number in range(50)}) == 1


def test_choice_can_be_the_same_for_all_threads_of_a_user() -> None:
    split = route(1, 1, sticky="user")
    assert len({choose(split, run) for run in runs(50, user_id="me")}) == 1
    # Those that are nobody's go by their thread.
    assert len({choose(split, run) for run in runs(50)}) == 2


def test_two_routes_do_not_choose_alike() -> None:
    one, other = route(1, 1), route(1, 1, name="other")
    assert any(choose(one, run) != choose(other, run) for run in runs(50))


def test_more_weight_for_one_variant_takes_no_thread_from_it() -> None:
    before, after = route(1, 1), route(3, 1)
    assert all(choose(after, run) == "m0" for run in runs(200) if choose(before, run) == "m0")
