"""Which configured model answers a run: the one that it asked for, or those of a route (features, row 25)."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from famulus.v1.run_pb2 import Run
from famulus_server.engine.policy import Policies, Route
from famulus_server.ports import Model, ModelCard, Models


class Router:
    """The models by their names, and by the names of the routes that hold now."""

    def __init__(self, *, models: Models, policies: Policies) -> None:
        self._models = models
        self._policies = policies

    def card(self, name: str) -> ModelCard | None:
        """The card of a model, or what all models of a route can do; None where there is none of the name, or the route
        has none that is configured."""
        route = self.route(name)
        if route is None:
            return self._models.card(name)
        cards = [card for card in map(self._models.card, _models_of(route)) if card is not None]
        if not cards:
            return None
        limits = [card.max_output_tokens for card in cards if card.max_output_tokens is not None]
        return replace(
            min(cards, key=lambda card: card.context_window),
            name=name,
            max_output_tokens=min(limits, default=None),
            built_in_tools=all(card.built_in_tools for card in cards),
        )

    def open(self, name: str) -> Model:
        """The configured model of that name; KeyError where there is none."""
        return self._models.open(name)

    def route(self, name: str) -> Route | None:
        """The route of that name."""
        return self._policies.current.routes.get(name)

    def rests(self, name: str) -> float:
        """Seconds for which the model is not to be asked; 0 where it may be."""
        return self._models.rests(name)

    def candidates(self, run: Run, *, avoid: Collection[str] = ()) -> Sequence[str]:
        """The models to ask for a run, the first one first: who answered its turns so far goes on. Those to `avoid`
        come last. Those that lack what the run needs are none."""
        route = self.route(run.model)
        names = [run.model] if route is None else [choose(route, run), *route.fallbacks]
        if route is not None and run.turns and run.variant in _models_of(route):
            names.insert(0, run.variant)
        return sorted(filter(lambda name: self._can(name, run), dict.fromkeys(names)), key=lambda name: name in avoid)

    def _can(self, name: str, run: Run) -> bool:
        # Looked at when the run was created; but the route may be another one since.
        card = self._models.card(name)
        return card is not None and (card.built_in_tools or all(tool.HasField("function") for tool in run.tools))

    def is_degraded(self, run: Run, model: str) -> bool:
        """Whether this model is not the one that the run should have."""
        route = self.route(run.model)
        return route is not None and model != choose(route, run)


def choose(route: Route, run: Run) -> str:
    """The variant of a route for a run: as often as its weight says, and always the same for one thread, or one user.
    It needs no memory: all replicas choose alike."""
    key = run.user_id if route.sticky == "user" and run.user_id else run.thread_id
    weights = [variant.weight for variant in route.variants]
    # Of the route as well: its threads must not all be those that another route gives its first variant.
    digest = hashlib.sha256(f"{route.name}\0{key}".encode()).digest()
    place = int.from_bytes(digest[:8]) * sum(weights) >> 64
    for variant, weight in zip(route.variants, weights, strict=True):
        place -= weight
        if place < 0:
            return variant.model
    raise ValueError(f"no variant of route {route.name} has a weight")


def _models_of(route: Route) -> Sequence[str]:
    return [*(variant.model for variant in route.variants), *route.fallbacks]
