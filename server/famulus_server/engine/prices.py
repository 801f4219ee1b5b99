"""What model turns cost."""

from fractions import Fraction
from functools import lru_cache
from math import lcm

from famulus.v1.run_pb2 import Run, Usage
from famulus_server.engine.policy import ModelPrice, Policy

_NANOS = 1_000_000_000
_TOKENS_OF_A_PRICE = 1_000_000
# Different prices and amounts of a policy that are kept as exact numbers.
_KEPT = 1_024


def cost_nanos(price: ModelPrice | None, usage: Usage) -> int:
    """What usage costs, in billionths of the currency's unit, rounded to the nearest; 0 without a price. Prices are
    taken as the decimal numbers that the operator wrote, and all else is exact."""
    if price is None:
        return 0
    # Some servers count more in a part than in the whole.
    cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
    reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
    fresh, again, said, thought, unit = _in_integers(price)
    total = (
        (usage.prompt_tokens - cached) * fresh
        + cached * again
        + (usage.completion_tokens - reasoning) * said
        + reasoning * thought
    )
    return round(Fraction(total, unit))


def set_cost(policy: Policy, run: Run, usage: Usage) -> None:
    """Notes in usage what it costs with the model that answers the run."""
    usage.cost_nanos = cost_nanos(policy.prices.get(run.variant or run.model), usage)


@lru_cache(maxsize=_KEPT)
def nanos(amount: float) -> int:
    """An amount of the currency in billionths of its unit."""
    return round(_exact(amount) * _NANOS)


@lru_cache(maxsize=_KEPT)
def _in_integers(price: ModelPrice) -> tuple[int, int, int, int, int]:
    """What a token costs: of the input, the cached input, the output, and the reasoning; and how many of these are a
    billionth."""
    exact = [
        _exact(price.input),
        _exact(price.input if price.cached_input is None else price.cached_input),
        _exact(price.output),
        _exact(price.output if price.reasoning is None else price.reasoning),
    ]
    unit = lcm(*(one.denominator for one in exact))
    fresh, again, said, thought = (int(one * unit) * _NANOS for one in exact)
    return fresh, again, said, thought, unit * _TOKENS_OF_A_PRICE


def _exact(number: float) -> Fraction:
    # The shortest decimal that stands for the float is what was written: 0.1, and not 0.1000000000000000055.
    return Fraction(repr(number))
