"""What model turns cost."""

from fractions import Fraction

from famulus.v1.run_pb2 import Run, Usage
from famulus_server.engine.policy import ModelPrice, Policy

_NANOS = 1_000_000_000
_TOKENS_OF_A_PRICE = 1_000_000


def cost_nanos(price: ModelPrice | None, usage: Usage) -> int:
    """What usage costs, in billionths of the currency's unit, rounded to the nearest; 0 without a price. Prices are
    taken as the decimal numbers that the operator wrote, and all else is exact."""
    if price is None:
        return 0
    # Some servers count more in a part than in the whole.
    cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
    reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
    total = (
        (usage.prompt_tokens - cached) * _exact(price.input)
        + cached * _exact(price.input if price.cached_input is None else price.cached_input)
        + (usage.completion_tokens - reasoning) * _exact(price.output)
        + reasoning * _exact(price.output if price.reasoning is None else price.reasoning)
    )
    return round(total * _NANOS / _TOKENS_OF_A_PRICE)


def set_cost(policy: Policy, run: Run, usage: Usage) -> None:
    """Notes in usage what it costs with the model that answers the run."""
    usage.cost_nanos = cost_nanos(policy.prices.get(run.variant or run.model), usage)


def nanos(amount: float) -> int:
    """An amount of the currency in billionths of its unit."""
    return round(_exact(amount) * _NANOS)


def _exact(number: float) -> Fraction:
    # The shortest decimal that stands for the float is what was written: 0.1, and not 0.1000000000000000055.
    return Fraction(repr(number))
