"""What usage costs, to the last billionth."""

import pytest

from famulus.v1.run_pb2 import Run, Usage
from famulus_server.engine import prices
from famulus_server.engine.policy import ModelPrice, Policy

PLAIN = ModelPrice(input=2.5, output=10)
FINE = ModelPrice(input=2.5, output=10, cached_input=1.25, reasoning=20)


def test_model_without_a_price_costs_nothing() -> None:
    assert prices.cost_nanos(None, Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)) == 0


@pytest.mark.parametrize(
    ("price", "cost"),
    [(PLAIN, 100 * 2_500 + 50 * 10_000), (FINE, 60 * 2_500 + 40 * 1_250 + 30 * 10_000 + 20 * 20_000)],
)
def test_cached_and_reasoning_tokens_cost_as_the_others_unless_they_have_prices(price: ModelPrice, cost: int) -> None:
    used = Usage(prompt_tokens=100, cached_prompt_tokens=40, completion_tokens=50, reasoning_tokens=20)
    assert prices.cost_nanos(price, used) == cost


def test_free_cache_costs_nothing() -> None:
    used = Usage(prompt_tokens=100, cached_prompt_tokens=100)
    assert prices.cost_nanos(ModelPrice(input=1, output=1, cached_input=0), used) == 0


def test_part_that_is_larger_than_its_whole_is_not_paid_twice() -> None:
    used = Usage(prompt_tokens=10, cached_prompt_tokens=99, completion_tokens=10, reasoning_tokens=99)
    assert prices.cost_nanos(FINE, used) == 10 * 1_250 + 10 * 20_000


def test_prices_are_the_decimals_that_were_written() -> None:
    # As floats 0.1 + 0.2 is more than 0.3, and 10**15 tokens show it.
    price = ModelPrice(input=0.1, output=0.2)
    used = Usage(prompt_tokens=10**15, completion_tokens=10**15)
    assert prices.cost_nanos(price, used) == 3 * 10**17
    assert prices.cost_nanos(ModelPrice(input=1e-05, output=0), Usage(prompt_tokens=10**6 + 1)) == 10_000
    assert prices.nanos(0.1) == 100_000_000


def test_cost_is_rounded_to_the_nearest_billionth() -> None:
    price = ModelPrice(input=0.0004, output=0)
    costs = [prices.cost_nanos(price, Usage(prompt_tokens=tokens)) for tokens in (1, 2, 3, 4)]
    assert costs == [0, 1, 1, 2]


def test_price_is_that_of_the_variant_where_there_is_one() -> None:
    policy = Policy(prices={"asked": ModelPrice(input=1, output=1), "answering": ModelPrice(input=3, output=3)})
    used = Usage(prompt_tokens=1)
    for run, cost in [
        (Run(model="asked"), 1_000),
        (Run(model="asked", variant="answering"), 3_000),
        (Run(model="asked", variant="free"), 0),
    ]:
        prices.set_cost(policy, run, used)
        assert used.cost_nanos == cost
