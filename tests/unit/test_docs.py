"""The documentation says what the code does."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature

from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_pb2 import RunErrorCode
from famulus.v1.user_data_service_pb2 import DeletionReceipt
from famulus_server import config
from famulus_server.api.settings import TlsSettings
from famulus_server.engine import policy, receipts
from famulus_server.identity import settings as identity
from famulus_server.models.settings import BreakerSettings, ModelSettings, RetrySettings
from famulus_server.ports.metrics import CATALOGUE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECORDS = sorted((DOCS / "adr").glob("0*.md"))
PAGES = [
    *RECORDS,
    DOCS / "architecture.md",
    DOCS / "audit.md",
    DOCS / "authentication.md",
    DOCS / "benchmarks.md",
    DOCS / "configuration.md",
    DOCS / "encryption.md",
    DOCS / "errors.md",
    DOCS / "image.md",
    DOCS / "kubernetes.md",
    DOCS / "metrics.md",
    DOCS / "privacy.md",
    DOCS / "security.md",
    DOCS / "tracing.md",
    DOCS / "troubleshooting.md",
    ROOT / "CHANGELOG.md",
]
SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "[server]": config.ServerSettings,
    "[auth]": identity.AuthSettings,
    "[[auth.issuers]]": identity.IssuerSettings,
    "[[auth.keys]]": identity.KeySettings,
    "[[auth.certificates]]": identity.CertificateSettings,
    "[tls]": TlsSettings,
    "[store]": config.StoreSettings,
    "[redis]": config.RedisSettings,
    "[worker]": config.WorkerSettings,
    "[embedded]": config.EmbeddedSettings,
    "[encryption]": config.EncryptionSettings,
    "[log]": config.LogSettings,
    "[metrics]": config.MetricsSettings,
    "[audit]": config.AuditSettings,
    "[retention]": config.RetentionSettings,
    "[[models]]": ModelSettings,
    "[models.retry]": RetrySettings,
    "[models.breaker]": BreakerSettings,
    "[models.limits]": policy.Quota,
    "[models.price]": policy.ModelPrice,
    "[prices]": config.PriceSettings,
    "[[routes]]": policy.Route,
    "[[routes.variants]]": policy.Variant,
    "[tiers.<name>]": policy.Tier,
    "[tiers.<name>.retention]": policy.Retention,
    "[tiers.<name>.limits]": policy.CallerQuotas,
    "[tiers.<name>.budgets]": policy.Budgets,
    "[tiers.<name>.budgets.<whose>]": policy.Budget,
}
CODE = re.compile(r"\b(?:[A-Z]+(?:_[A-Z]+)+|ABORTED|UNAUTHENTICATED|UNAVAILABLE|INTERNAL)\b")
# A key is not written into the file; these say where it is.
KEY_SOURCES = {"api_key_env", "api_key_file"}
# Keys of a model that become part of the policy.
OF_THE_POLICY = {"limits", "price"}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(page: Path, title: str) -> str:
    """What stands below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", read(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no section {title}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of tables whose first cell is code, by that; without it."""
    lines = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    return {key: rest.split(" | ") for key, rest in lines}


def default_of(kind: type[msgspec.Struct], key: str) -> str | object:
    """As it has to stand in the table: a value, `none` or `required`."""
    if key in KEY_SOURCES | OF_THE_POLICY and kind is ModelSettings:
        return "none"
    field = {field.name: field for field in msgspec.structs.fields(kind)}[key]
    if field.required:
        return "required"
    if isinstance(field.default, policy.Quota):
        return "no limits"
    if isinstance(field.default, msgspec.Struct):
        return "defaults below"
    if isinstance(field.default, tuple):
        return list(field.default)
    return "none" if field.default is None else field.default


def stated(cell: str) -> str | object:
    return tomllib.loads(f"value = {cell.strip('`')}")["value"] if cell.startswith("`") else cell


def test_every_error_reason_is_explained_with_the_code_that_its_proto_names() -> None:
    proto = read(ROOT / "protos/famulus/v1/error_reason.proto")
    entries = re.findall(r"((?:^ *//.*\n)+) *ERROR_REASON_(\w+) = \d+;", proto, re.MULTILINE)
    codes = {name: CODE.findall(comment) for comment, name in entries}
    explained = rows(section(DOCS / "errors.md", "Status of a call"))
    names = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert explained.keys() == names
    for name, (code, *_) in explained.items():
        assert codes[name] == [code], name


def test_reasons_are_called_unused_exactly_while_the_server_never_gives_them() -> None:
    source = "".join(read(path) for path in (ROOT / "server/famulus_server").rglob("*.py"))
    used = set(re.findall(r"\bERROR_REASON_(\w+)", source))
    explained = rows(section(DOCS / "errors.md", "Status of a call"))
    unused = {name for name, cells in explained.items() if "Not sent by this version." in cells[-1]}
    assert unused == explained.keys() - used


def test_every_error_of_a_run_is_explained() -> None:
    explained = rows(section(DOCS / "errors.md", "Error of a run"))
    names = {name.removeprefix("RUN_ERROR_CODE_") for name in RunErrorCode.keys()}  # noqa: SIM118
    assert explained.keys() == names - {"UNSPECIFIED"}


def test_every_metric_is_explained_as_it_is_exposed() -> None:
    explained = rows(section(DOCS / "metrics.md", "All metrics"))
    assert explained == {
        f"famulus_{metric.name}": [
            type(metric).__name__.lower(),
            ", ".join(f"`{label}`" for label in metric.labels) or "none",
            metric.help,
        ]
        for metric in CATALOGUE
    }


def test_examples_of_queries_ask_for_metrics_that_are_there() -> None:
    known = {f"famulus_{metric.name}": metric for metric in CATALOGUE}
    examples = section(DOCS / "metrics.md", "Questions")
    asked = re.findall(r"(famulus_\w+?)(?:_bucket|_count|_sum)?\b(?:\{(.*?)\})?", examples)
    assert len(asked) >= 5
    for name, labels in asked:
        assert name in known, name
        assert set(re.findall(r"(\w+)(?:=|!=|=~)\"", labels)) <= set(known[name].labels), name


@pytest.mark.parametrize("title", SECTIONS)
def test_every_setting_is_explained_with_its_default(title: str) -> None:
    kind = SECTIONS[title]
    names = {field.name for field in msgspec.structs.fields(kind)}
    if "api_key" in names:
        names = names - {"api_key"} | KEY_SOURCES | OF_THE_POLICY
    explained = rows(section(DOCS / "configuration.md", f"`{title}`"))
    assert explained.keys() == names
    assert {key: stated(cells[0]) for key, cells in explained.items()} == {key: default_of(kind, key) for key in names}


def test_every_table_of_the_settings_has_its_section_in_the_page() -> None:
    tables = set(tables_in(msgspec.inspect.type_info(config.Settings)))
    assert tables - {config.Settings, policy.Policy} | {config.PriceSettings} == set(SECTIONS.values())
    assert section(DOCS / "configuration.md", "`[tenants]`")


def tables_in(found: object) -> Iterator[type]:
    """All structs that a type is made of."""
    match found:
        case msgspec.inspect.StructType(cls=kind, fields=fields):
            yield kind
            for field in fields:
                yield from tables_in(field.type)
        case msgspec.inspect.VarTupleType(item_type=inner) | msgspec.inspect.DictType(value_type=inner):
            yield from tables_in(inner)
        case msgspec.inspect.UnionType(types=several):
            for one in several:
                yield from tables_in(one)


def test_sections_that_the_settings_know_are_those_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "famulus.toml"
    path.write_text("[nonsense]\n", encoding="utf-8")
    with pytest.raises(config.ConfigError) as refused:
        config.load(path, {})
    known = set(str(refused.value).partition("there are ")[2].split(", "))
    assert {title.strip("[]").partition(".")[0] for title in SECTIONS} | {"tenants"} == known


def test_example_file_has_a_bit_of_everything_and_stands_in_the_readme() -> None:
    settings = config.load(DOCS / "example.toml", {"OPENAI_API_KEY": "a key"})
    config.check(settings)
    assert [(model.backend, model.api_key) for model in settings.models] == [("responses", "a key"), ("chat", "")]
    [route] = settings.policy.routes.values()
    assert [(variant.model, variant.weight) for variant in route.variants] == [("gpt-5-mini", 9), ("llama", 1)]
    assert route.fallbacks == ("llama",)
    assert settings.policy.prices.keys() == {"gpt-5-mini"}
    assert settings.policy.quotas.keys() == {"gpt-5-mini", "llama"}
    default, gold = settings.policy.tier("anybody"), settings.policy.tier("acme")
    assert default.limits.tenant.concurrent_runs == 8
    assert default.budgets.tenant == policy.Budget(amount=50.0)
    assert gold.weight > default.weight
    assert f"```toml\n{read(DOCS / 'example.toml')}```" in read(ROOT / "README.md")


def test_examples_of_the_settings_in_the_readme_load_also_as_one(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", read(ROOT / "README.md"), re.DOTALL)
    assert len(examples) == 2
    path = tmp_path / "famulus.toml"
    path.write_text("\n".join(examples), encoding="utf-8")
    settings = config.load(path, {"OPENAI_API_KEY": "a key"})
    assert settings.policy.routes
    assert settings.store.url
    assert settings.redis.url


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", read(DOCS / "authentication.md"), re.DOTALL))
def test_set_up_of_authentication_is_one_that_a_server_starts_with(example: str, tmp_path: Path) -> None:
    path = tmp_path / "famulus.toml"
    path.write_text(example, encoding="utf-8")
    settings = config.load(path, {})
    config.check(settings)
    assert settings.auth.configured


def test_example_of_the_environment_is_obeyed() -> None:
    [example] = re.findall(r"```sh\n(.*?)```", read(DOCS / "configuration.md"), re.DOTALL)
    environ = dict(line.split("=", 1) for line in example.splitlines())
    settings = config.load(None, environ)
    for variable, value in environ.items():
        _, name, key = variable.lower().split("_", 2)
        assert str(getattr(getattr(settings, name), key)) == value


def test_receipt_is_verified_by_the_example_in_the_page() -> None:
    [example] = re.findall(r"```python\n(.*?)```", read(DOCS / "privacy.md"), re.DOTALL)
    receipt = DeletionReceipt(id="del_1", user_hmac="ab")
    receipts.sign(receipt, "acme", seed=bytes(32))
    known: dict[str, Any] = {}
    exec(compile(example, "privacy.md", "exec"), known)
    assert known["verified"](receipt, receipt.public_key)["receipt_id"] == "del_1"
    with pytest.raises(InvalidSignature):
        known["verified"](receipt, bytes(32))


def test_every_direct_dependency_has_a_reason() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))
    groups = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
    wanted = [*project["project"]["dependencies"], *(one for group in groups for one in group)]
    names = {re.split(r"[=<>\[ ]", one)[0] for one in wanted}
    explained = re.findall(r"^(?:- |\| )`([\w-]+)` (?:\(|\| )", read(DOCS / "adr/0006-dependencies.md"), re.MULTILINE)
    assert sorted(explained) == sorted(names)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem[:4])
def test_record_has_its_four_parts_and_stands_in_the_index(record: Path) -> None:
    parts = re.findall(r"^## (.*)$", read(record), re.MULTILINE)
    assert parts == ["Context", "Decision", "Alternatives", "Consequences"]
    assert f"({record.name})" in read(DOCS / "adr/README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = read(page)
    named = re.findall(r"`([\w.-][\w./-]*/[\w-]*(?:\.\w+)*|\w+\.py)`", text)
    roots = (ROOT, ROOT / "server/famulus_server")
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
