"""Limits, tiers, routes and prices in the settings: what is read, and what is refused."""

from pathlib import Path

import pytest

from famulus_server.config import ConfigError, Settings, check, check_models, load, variables
from famulus_server.engine.policy import Budget, ModelPrice, Policy, Quota, Tier, Variant

TWO_MODELS = """
[[models]]
name = "big"
backend = "responses"
base_url = "https://127.0.0.1/v1"
[models.price]
input = 1
output = 2.5
cached_input = 0.1
[models.limits]
requests_per_minute = 500

[[models]]
name = "small"
backend = "chat"
base_url = "https://127.0.0.1/v1"
"""
ROUTE = "[[routes]]\nname = 'both'\n"


def read(text: str, folder: Path) -> Settings:
    file = folder / "famulus.toml"
    file.write_text(text)
    settings = load(file, {})
    check(settings, source=str(file))
    return settings


def refused(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read(text, folder)
    return str(error.value).removeprefix(f"{folder}/famulus.toml: ")


def test_without_a_file_nothing_is_limited_routed_or_priced() -> None:
    policy = load(None, {}).policy
    assert policy == Policy() == Settings().policy
    assert policy.tier("anybody") == Tier()
    assert Tier().limits.tenant == Quota(requests_per_minute=None, tokens_per_minute=None, concurrent_runs=None)


def test_tiers_have_the_tenants_that_name_them_and_the_default_one_all_others(tmp_path: Path) -> None:
    text = """
    [tiers.gold]
    weight = 4
    max_queued_runs = 7
    [tiers.gold.limits.tenant_model]
    tokens_per_minute = 9
    burst_seconds = 10
    [tiers.gold.budgets.user]
    amount = 5
    period = "day"
    [tenants]
    acme = "gold"
    """
    policy = read(text, tmp_path).policy
    gold = policy.tier("acme")
    assert (gold.weight, gold.max_queued_runs) == (4, 7)
    assert gold.limits.tenant_model == Quota(tokens_per_minute=9, burst_seconds=10.0)
    assert gold.budgets.user == Budget(amount=5.0, period="day")
    assert policy.tier("other") == Tier()


def test_the_default_tier_can_be_set(tmp_path: Path) -> None:
    assert read("[tiers.default]\nweight = 2\n", tmp_path).policy.tier("anybody").weight == 2


def test_prices_and_limits_of_models_belong_to_the_policy(tmp_path: Path) -> None:
    settings = read(TWO_MODELS + "[prices]\ncurrency = 'EUR'\n", tmp_path)
    assert settings.policy.prices == {"big": ModelPrice(input=1.0, output=2.5, cached_input=0.1)}
    assert settings.policy.quotas == {"big": Quota(requests_per_minute=500)}
    assert settings.policy.currency == "EUR"


def test_a_scalar_beside_the_sections_is_also_read_from_the_environment() -> None:
    assert load(None, {"FAMULUS_PRICES_CURRENCY": "CHF"}).policy.currency == "CHF"


def test_routes_are_found_by_their_names(tmp_path: Path) -> None:
    variants = 'variants = [{ model = "big", weight = 9 }, { model = "small" }]\nfallbacks = ["small"]\n'
    route = read(TWO_MODELS + ROUTE + variants, tmp_path).policy.routes["both"]
    assert route.variants == (Variant(model="big", weight=9), Variant(model="small", weight=1))
    assert (route.fallbacks, route.sticky, route.when_down) == (("small",), "thread", "fail")


def test_routes_may_name_embedded_models(tmp_path: Path) -> None:
    text = ROUTE + "variants = [{ model = 'scripted' }]\nfallbacks = ['smollm2-135m-instruct']\n"
    assert read(text, tmp_path).policy.routes.keys() == {"both"}
    assert refused("[embedded]\nlocal_model = 'off'\n" + text, tmp_path) == (
        "routes[0].fallbacks[0]: there is no model 'smollm2-135m-instruct'; there are scripted"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tiers = 1\n", "tiers: must be a table: [tiers]"),
        ("[tiers]\ngold = 1\n", "tiers.gold: Expected `object`, got `int`"),
        ("[tiers.gold]\nwait = 1\n", "tiers.gold: Object contains unknown field `wait`"),
        ("[tiers.gold]\nweight = 0\n", "tiers.gold.weight: Expected `int` >= 1"),
        ("[tiers.gold.limits]\nteam = {}\n", "tiers.gold.limits: Object contains unknown field `team`"),
        (
            "[tiers.gold.limits.user]\nrequests_per_minute = 0\n",
            "tiers.gold.limits.user.requests_per_minute: Expected `int` >= 1",
        ),
        (
            "[tiers.gold.limits.user]\nburst_seconds = inf\n",
            "tiers.gold.limits.user.burst_seconds: Expected `float` <= 86400.0",
        ),
        ("[tiers.gold.budgets.user]\n", "tiers.gold.budgets.user: Object missing required field `amount`"),
        (
            "[tiers.gold.budgets.user]\namount = nan\n",
            "tiers.gold.budgets.user.amount: Expected `float` >= 0.0",
        ),
        (
            "[tiers.gold.budgets.user]\namount = 1\nperiod = 'week'\n",
            "tiers.gold.budgets.user.period: Invalid enum value 'week'",
        ),
        ("[tenants]\nacme = 'gold'\n", "tenants.acme: there is no tier 'gold'; there are default"),
        ("[tenants]\nacme = 1\n", "tenants.acme: there is no tier 1; there are default"),
        ("tenants = []\n", "tenants: must be a table: [tenants]"),
        ("[prices]\ncurrency = 'dollars'\n", "prices.currency: Expected `str` matching regex '^[A-Z]{3}$'"),
        ("[routes]\n", "routes: must be an array of tables: [[routes]]"),
        (ROUTE, "routes[0]: Object missing required field `variants`"),
        (ROUTE + "variants = []\n", "routes[0].variants: Expected `array` of length >= 1"),
        (ROUTE + "variants = ['big']\n", "routes[0].variants[0]: Expected `object`, got `str`"),
        (ROUTE + "variants = [{ model = 'big', weight = 0 }]\n", "routes[0].variants: all weights are 0"),
        (
            ROUTE + "variants = [{ model = 'big' }, { model = 'big' }]\n",
            "routes[0].variants: 'big' stands there twice",
        ),
        (
            ROUTE + "variants = [{ model = 'big' }]\nfallbacks = ['small', 'small']\n",
            "routes[0].fallbacks: 'small' stands there twice",
        ),
        (
            ROUTE + "variants = [{ model = 'big' }]\nfallbacks = ['big']\n",
            "routes[0].fallbacks: 'big' is what they stand in for",
        ),
        (
            ROUTE + "variants = [{ model = 'big' }]\nwhen_down = 'reply'\n",
            'routes[0].reply: when_down = "reply" needs one',
        ),
        (
            ROUTE + "variants = [{ model = 'big' }]\nreply = 'Later.'\n",
            'routes[0].reply: goes with when_down = "reply" only',
        ),
        (
            2 * (ROUTE + "variants = [{ model = 'big' }]\n"),
            "routes: two routes have the name 'both'",
        ),
        (
            "[[routes]]\nname = 'small'\nvariants = [{ model = 'big' }]\n",
            "routes[0].name: a model has the name 'small': choose another",
        ),
        (
            ROUTE + "variants = [{ model = 'big' }, { model = 'bigger' }]\n",
            "routes[0].variants[1].model: there is no model 'bigger'; there are big, small",
        ),
        ("[limits]\n", "limits: unknown section; there are server, store, redis, worker, embedded, log, retention, "),
    ],
)
def test_what_is_wrong_is_named_by_its_key(text: str, reason: str, tmp_path: Path) -> None:
    assert refused(TWO_MODELS + text if text.startswith("[") else text + TWO_MODELS, tmp_path).startswith(reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("limits = { requests = 1 }", "models[0].limits: Object contains unknown field `requests`"),
        ("price = { input = 1 }", "models[0].price: Object missing required field `output`"),
        ("price = { input = -1, output = 1 }", "models[0].price.input: Expected `float` >= 0.0"),
        ("cost = 1", "models[0]: Object contains unknown field `cost`"),
    ],
)
def test_what_is_wrong_with_a_model_is_named_by_its_key(line: str, reason: str, tmp_path: Path) -> None:
    text = f"[[models]]\nname = 'm'\nbackend = 'chat'\nbase_url = 'http://127.0.0.1'\n{line}\n"
    assert refused(text, tmp_path).startswith(reason)


def test_what_does_not_go_together_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    assert refused("[server]\nrole = 'api'\n", tmp_path).startswith("settings: server.role: SQLite serves one process")
    none = "[embedded]\nlocal_model = 'off'\nscripted_model = 'off'\n"
    assert refused(none, tmp_path).startswith("models: there is no model: configure [[models]]")
    same = TWO_MODELS.replace('"small"', '"scripted"') + "[embedded]\nscripted_model = 'on'\n"
    assert refused(same, tmp_path).startswith("models: 'scripted' is the name of an embedded model")


def test_routes_are_checked_against_the_models_that_there_really_are(tmp_path: Path) -> None:
    policy = read(ROUTE + "variants = [{ model = 'smollm2-135m-instruct' }]\n", tmp_path).policy
    check_models(policy, ["smollm2-135m-instruct", "scripted"])
    with pytest.raises(ConfigError, match=r"settings: routes\[0\].variants\[0\].model: there is no model"):
        check_models(policy, ["scripted"])


def test_variables_that_are_used_are_told_with_what_they_give(tmp_path: Path) -> None:
    file = tmp_path / "famulus.toml"
    file.write_text(TWO_MODELS.replace('"small"', '"small"\napi_key_env = "THE_KEY"'))
    environ = {"FAMULUS_LOG_LEVEL": "debug", "THE_KEY": "hush", "FAMULUS_CACHE_DIR": "elsewhere", "HOME": "here"}
    assert variables(file, environ) == {"FAMULUS_LOG_LEVEL": "[log] level", "THE_KEY": "the key of the model small"}
    assert variables(None, {}) == {}
