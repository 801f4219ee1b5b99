"""`config check`: what it says of good settings, and how it refuses wrong ones."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from famulus_server.cli import main
from famulus_server.cli.config_explanation import without_password

MODEL = """
[[models]]
name = "{name}"
backend = "{backend}"
base_url = "https://127.0.0.1/v1"
context_window = {window}
"""


def config_check(text: str, folder: Path, environ: dict[str, str] | None = None) -> Result:
    file = folder / "famulus.toml"
    file.write_text(text)
    return CliRunner(env={"FAMULUS_CONFIG": None, **(environ or {})}).invoke(main, ["config", "check", str(file)])


def topics(shown: Result) -> dict[str, list[str]]:
    """What was said, by topic."""
    assert (shown.exit_code, shown.stderr) == (0, "")
    blocks = [block.splitlines() for block in shown.stdout.split("\n\n")[1:]]
    return {title: [line.removeprefix("  ") for line in lines] for title, *lines in blocks}


def test_without_a_file_the_defaults_are_explained() -> None:
    said = topics(CliRunner(env={"FAMULUS_CONFIG": None}).invoke(main, ["config", "check"]))
    assert said["Server"][0] == "Answers calls and executes runs; listens on 127.0.0.1:7461."
    assert said["Models"] == ["smollm2-135m-instruct: comes with the server", "scripted: comes with the server"]
    assert said["Tiers"][1] == "    no limits"
    assert said["Audit"] == ["Notes calls that may change something, and all that were refused for who the caller is."]
    assert said["Routes"] == said["Budgets"] == said["Warnings"] == ["none"]


def test_routes_are_explained_with_shares_fallbacks_and_their_end(tmp_path: Path) -> None:
    text = """
    [[routes]]
    name = "smart"
    variants = [{ model = "scripted", weight = 2 }, { model = "smollm2-135m-instruct" }]
    sticky = "user"
    fallbacks = ["scripted", "smollm2-135m-instruct"]
    when_down = "reply"
    reply = "Later."
    [[routes]]
    name = "patient"
    variants = [{ model = "scripted" }]
    when_down = "park"
    park_seconds = 2.5
    """
    assert topics(config_check(text, tmp_path))["Routes"] == [
        "smart: 66.67 % scripted, 33.33 % smollm2-135m-instruct; always the same for one user",
        "    where that is down: scripted, then smollm2-135m-instruct",
        "    where all are down: the run answers 'Later.', marked as degraded",
        "patient: 100 % scripted; always the same for one thread",
        "    where all are down: the run waits, and tries again every 2.5 s until it expires",
    ]


def test_tiers_and_budgets_are_explained_with_their_tenants(tmp_path: Path) -> None:
    text = """
    tenants = { acme = "gold", initech = "gold" }
    prices = { currency = "EUR" }
    [tiers.gold]
    weight = 4
    limits.tenant = { requests_per_minute = 1200, tokens_per_minute = 1_000_000, concurrent_runs = 8 }
    limits.tenant_model = { tokens_per_minute = 5, burst_seconds = 10 }
    budgets = { tenant = { amount = 1234567.5 }, user = { amount = 5, period = "day" } }
    """
    said = topics(config_check(text, tmp_path))
    assert said["Tiers"][2:] == [
        "gold: acme, initech; weight 4, at most 1,000 runs wait for a worker",
        "    each tenant: 1,200 requests a minute, 1,000,000 tokens a minute, 8 runs at a time",
        "    each tenant with each model: 5 tokens a minute (10 s' worth at once)",
    ]
    assert said["Budgets"] == ["gold: each tenant 1,234,567.5 EUR a month, each user 5 EUR a day"]
    assert said["Warnings"] == ["tiers.gold.budgets: no model has a price, so nothing is ever spent"]


def test_retention_is_explained_with_what_each_tier_has(tmp_path: Path) -> None:
    text = """
    retention = { sweep_seconds = 5, tombstone_days = 0.5 }
    [tiers.gold.retention]
    after_create_days = 1_000
    after_last_activity_days = 30
    on_completion = true
    max_after_create_days = 3_650
    """
    assert topics(config_check(text, tmp_path))["Retention"] == [
        "Looks every 5 s for threads whose time is over; ids of deleted ones are kept for 0.5 days.",
        "default: a thread is kept for ever, unless it says otherwise",
        "gold: a thread goes 1,000 days after its creation or 30 days after its last activity or with its last run, "
        "unless it says otherwise; 3,650 days after its creation in any case",
    ]


def test_models_are_explained_with_price_and_limits(tmp_path: Path) -> None:
    text = MODEL.format(name="big", backend="responses", window=400_000) + (
        "upstream_model = 'gpt'\nprice = { input = 0.25, output = 2, cached_input = 0.025 }\n"
        "limits = { concurrent_runs = 3 }\n"
    )
    assert topics(config_check(text, tmp_path))["Models"] == [
        "big: gpt by the Responses API at https://127.0.0.1/v1, with no key; 400,000 tokens of context",
        "    price per million tokens: 0.25 USD in, 0.025 USD of them cached, 2 USD out",
        "    limits, for all callers together: 3 runs at a time",
    ]


def test_what_is_allowed_but_perhaps_not_meant_is_warned_of(tmp_path: Path) -> None:
    text = (
        "[tiers.gold]\n[store]\nurl = 'postgresql://db/famulus'\n"
        + MODEL.format(name="big", backend="responses", window=400_000)
        + "price = { input = 1, output = 1 }\n"
        + MODEL.format(name="small", backend="chat", window=8_192)
        + "[[routes]]\nname = 'r'\nvariants = [{ model = 'big' }, { model = 'small', weight = 0 }]\n"
    )
    assert warnings(text, tmp_path) == [
        "[redis] url: an embedded Valkey is no use to other replicas: they see runs of this one with a delay",
        "[store] url: has no sslmode=require or stricter: who is on the way to db may read along",
        "tiers.gold: no tenant has it",
        "models: small has no price: what it does costs nothing",
        "routes: r never chooses small, whose weight is 0",
        "routes: r has context windows from 8,192 tokens (small) to 400,000 (big): which messages of a thread fit "
        "depends on the model chosen",
        "routes: r chooses models with built-in tools and without (small)",
    ]


def test_what_only_a_start_would_find_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text('{"keys": []}')
    issuer = "[[auth.issuers]]\nissuer = '{0}'\naudience = 'famulus'\njwks_file = '{1}/{0}.json'\nmax_lifetime = 60\n"
    issuer += "tenants = ['acme']\n"
    text = "[tiers.default.limits.tenant]\nrequests_per_minute = 60\n"
    text += "".join(issuer.format(name, tmp_path) for name in ("none", "jwks"))
    missing, empty, program = warnings(f"[encryption]\nkey_command = ['/no/such']\n{text}", tmp_path)
    assert missing.startswith(f"[[auth.issuers]] jwks_file: {tmp_path}/none.json: No such file or directory; until")
    assert empty.startswith(f"[[auth.issuers]] jwks_file: {tmp_path}/jwks.json: it has no key that can be used")
    assert program == "[encryption] key_command: there is no program /no/such here"


def warnings(text: str, folder: Path) -> list[str]:
    return topics(config_check(text, folder))["Warnings"]


POSTGRES = "[store] url: has no sslmode=require or stricter: who is on the way to {} may read along"
REDIS = "[redis] url: is no rediss://: whoever is on the way to {} reads along"


@pytest.mark.parametrize(
    ("store", "redis", "warned"),
    [
        ("postgresql://db/f", "redis://:hush@cache:6379/0", [POSTGRES.format("db"), REDIS.format("cache")]),
        ("postgresql://me:hush@[::1]:5,db:5/f?sslmode=prefer", "rediss://cache", [POSTGRES.format("db")]),
        ("postgresql:///f?host=10.0.0.1", "redis://[::1]:6379", [POSTGRES.format("10.0.0.1")]),
        ("postgresql://db/f?sslmode=require", "unix:///run/valkey", ["none"]),
        ("postgresql://127.0.0.1:5,localhost/f", "redis://127.0.0.1", ["none"]),
        ("postgresql:///f?host=/run/postgresql", "redis://localhost:6379/0", ["none"]),
    ],
)
def test_way_to_another_machine_without_tls_is_warned_of(
    store: str, redis: str, warned: list[str], tmp_path: Path
) -> None:
    assert warnings(f"[store]\nurl = '{store}'\n[redis]\nurl = '{redis}'\n", tmp_path) == warned


def test_way_to_the_database_may_be_encrypted_by_the_environment(tmp_path: Path) -> None:
    text = "[store]\nurl = 'postgresql://db/f'\n[redis]\nurl = 'redis://localhost'\n"
    assert topics(config_check(text, tmp_path, {"PGSSLMODE": "verify-full"}))["Warnings"] == ["none"]


def test_models_that_are_alike_are_not_warned_of(tmp_path: Path) -> None:
    models = MODEL.format(name="a", backend="chat", window=8_192) + MODEL.format(name="b", backend="chat", window=9_000)
    route = "[[routes]]\nname = 'r'\nvariants = [{ model = 'a' }]\nfallbacks = ['b']\n"
    assert warnings(models + route, tmp_path) == ["none"]


def test_environment_is_told_by_its_variables_and_no_secret_is_shown(tmp_path: Path) -> None:
    text = MODEL.format(name="m", backend="chat", window=9).replace("https://", "https://hush@") + (
        "api_key_env = 'THE_KEY'\n[store]\nurl = 'postgresql://elsewhere/famulus'\n"
    )
    environ = {
        "THE_KEY": "hush",
        "FAMULUS_STORE_URL": "postgresql://me:hush@db/famulus?password=hush",
        "FAMULUS_REDIS_URL": "rediss://:hush@cache:6379/1",
    }
    shown = config_check(text, tmp_path, environ)
    said = topics(shown)
    assert "hush" not in shown.output
    assert said["Store"] == ["PostgreSQL at postgresql://me:***@db/famulus, with 16 connections at most."]
    assert said["Redis"] == ["Redis or Valkey at rediss://:***@cache:6379/1."]
    assert "at https://***@127.0.0.1/v1, with a key" in said["Models"][0]
    assert said["From the environment"] == [
        "FAMULUS_STORE_URL: [store] url",
        "FAMULUS_REDIS_URL: [redis] url",
        "THE_KEY: the key of the model m",
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("unix://:hush@/run/valkey.sock?db=1", "unix://:***@/run/valkey.sock"),
        ("postgresql://me@db/famulus", "postgresql://me@db/famulus"),
        ("postgresql://me:hu@sh@db/famulus", "postgresql://me:***@db/famulus"),
        ("postgresql://me:hu/sh@db/famulus", "postgresql://me:***@db/famulus"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://hush@provider/v1?key=hush", "https://***@provider/v1"),
    ],
)
def test_urls_are_shown_without_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nlisten = '0.0.0.0:7461'\n", "server.listen: refusing to listen"),
        ("[server]\nhealth_listen = '127.0.0.1:7461'\n", "server.health_listen: is the address of server.listen"),
        (
            "[server]\nhealth_listen = '127.0.0.1:99999'\n",
            "server.health_listen: its port is no number from 0 to 65535",
        ),
        ("[metrics]\nlisten = '[::1]:65536'\n", "metrics.listen: its port is no number from 0 to 65535"),
        ("[tls]\ncert_file = '/nowhere'\nkey_file = '/nowhere'\n", "tls: TLS: /nowhere: No such file"),
        ("[[routes]]\nname = 'r'\nvariants = [{ model = 'none' }]\n", "routes[0].variants[0].model: there is no model"),
        (
            "[tiers.gold.limits.user]\nrequests = 1\n",
            "tiers.gold.limits.user: Object contains unknown field `requests`",
        ),
    ],
)
def test_wrong_settings_are_refused_as_by_serve(text: str, named: str, tmp_path: Path) -> None:
    refused = config_check(text, tmp_path)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {tmp_path}/famulus.toml: {named}")


def test_script_of_the_scripted_model_is_checked_too(tmp_path: Path) -> None:
    refused = config_check(f"[embedded]\nscript = '{tmp_path}/famulus.toml'\n", tmp_path)
    assert refused.exit_code == 2
    assert "famulus.toml" in refused.stderr


def test_file_named_here_wins_over_that_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[log]\nlevel = 'error'\n")
    (tmp_path / "famulus.toml").write_text("[log]\nlevel = 'debug'\n")
    files = {name: str(tmp_path / f"{name}.toml") for name in ("other", "famulus")}
    by_option = CliRunner().invoke(main, ["--config", files["other"], "config", "check"])
    assert "level error" in topics(by_option)["Log"][0]
    named = CliRunner().invoke(main, ["--config", files["other"], "config", "check", files["famulus"]])
    assert "level debug" in topics(named)["Log"][0]


@pytest.mark.parametrize(
    ("base_url", "warned"),
    [
        ("http://llm.example.org:8000/v1", True),
        ("http://10.0.0.5/v1", True),
        ("http://localhost.example.org/v1", True),
        ("https://llm.example.org/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://localhost/v1", False),
    ],
)
def test_model_that_is_asked_in_plain_text_over_a_network_is_warned_of(
    tmp_path: Path, base_url: str, warned: bool
) -> None:
    model = MODEL.format(name="m", backend="chat", window=8192).replace("https://127.0.0.1/v1", base_url)
    said = topics(config_check(model, tmp_path))["Warnings"]
    assert [line.startswith("models: m is asked over http") for line in said] == [warned]


def test_encryption_is_explained_and_keys_that_others_may_read_are_warned_of(tmp_path: Path) -> None:
    for name, mode in (("new.key", 0o600), ("old.key", 0o644)):
        (tmp_path / name).write_text("ab" * 32)
        (tmp_path / name).chmod(mode)
    text = f"[encryption]\nkey_file = '{tmp_path}/new.key'\nold_key_files = ['{tmp_path}/old.key']\nscope = 'thread'\n"
    said = topics(config_check(text, tmp_path))
    assert said["Encryption"] == [
        f"AES-256-GCM, with a data key for each thread, wrapped by the key in {tmp_path}/new.key, and 1 earlier ones."
    ]
    assert said["Warnings"] == [f"[encryption]: others than its owner may read {tmp_path}/old.key"]
    environ = {"FAMULUS_ENCRYPTION_KEY_COMMAND": "print-key --name 'my key'"}
    said = topics(config_check("", tmp_path, environ))
    assert "wrapped by the key that print-key prints." in said["Encryption"][0]
    assert topics(config_check("", tmp_path))["Encryption"] == [
        "None: the database and Redis hold what is said as it is."
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("key_file = 'a'\nkey_command = ['b']", "encryption: has both key_file and key_command"),
        ("old_key_files = ['a']", "encryption.old_key_files: goes with key_file or key_command only"),
        ("key_file = '/nowhere'", "encryption.key_file: /nowhere cannot be read: No such file or directory"),
        ("key_command = ['b']\nold_key_files = ['/dev/null']", "encryption.old_key_files[0]: /dev/null is no key"),
        ("scope = 'user'", "encryption.scope: Invalid enum value 'user'"),
    ],
)
def test_encryption_that_cannot_be_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    refused = config_check(f"[encryption]\n{text}\n", tmp_path)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f": {reason}" in refused.stderr


def test_list_in_the_environment_that_is_not_as_in_a_shell_is_refused(tmp_path: Path) -> None:
    refused = config_check("", tmp_path, {"FAMULUS_ENCRYPTION_KEY_COMMAND": "it's"})
    assert refused.stderr == "error: environment: FAMULUS_ENCRYPTION_KEY_COMMAND: No closing quotation\n"
