"""What a running server makes of settings that have changed."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from famulus_server.cli.configuration import Changes, Configuration
from famulus_server.cli.reloading import Reloading
from famulus_server.encryption.key_sources import new_key
from famulus_server.engine.policy import Policies, Policy
from famulus_server.identity.settings import AuthSettings
from famulus_server.wiring.server import RunningServer

MODEL = "[[models]]\nname = '{name}'\nbackend = 'chat'\nbase_url = 'http://127.0.0.1'\n"


class Stage:
    """A server with a file, as far as reloading knows it."""

    def __init__(self, folder: Path, text: str, changes: Changes | None = None) -> None:
        self.file = folder / "famulus.toml"
        self.file.write_text(text)
        configuration = Configuration(file=self.file)
        settings = configuration.load_to_serve(changes or {})
        names = (*settings.embedded_models, *(model.name for model in settings.models))
        self._policies = Policies(settings.policy)
        self.admitted: list[AuthSettings] = []
        server = RunningServer(
            address="127.0.0.1:1",
            models=names,
            default_model=names[0],
            scripted_model=None,
            policies=self._policies,
            admit=self.admitted.append if settings.auth.configured else None,
        )
        self._reloading = Reloading(
            configuration=configuration, changes=changes or {}, settings=settings, server=server
        )

    @property
    def policy(self) -> Policy:
        return self._policies.current

    def reload(self, text: str | None = None) -> list[dict[str, object]]:
        """What is logged when the file has this text."""
        if text is not None:
            self.file.write_text(text)
        with capture_logs() as logged:
            self._reloading.reload()
        return [dict(line) for line in logged]


def reloaded(stage: Stage, *changed: str) -> dict[str, object]:
    return {"event": "settings reloaded", "log_level": "info", "file": str(stage.file), "changed": list(changed)}


def test_everything_of_the_policy_takes_effect_and_is_named_by_its_key(tmp_path: Path) -> None:
    stage = Stage(tmp_path, MODEL.format(name="m"))
    logged = stage.reload(
        MODEL.format(name="m")
        + "limits = { concurrent_runs = 3 }\nprice = { input = 1, output = 1 }\n"
        + "[[routes]]\nname = 'r'\nvariants = [{ model = 'm' }]\n"
        + "[tiers.gold]\nweight = 2\n[tenants]\nacme = 'gold'\n[prices]\ncurrency = 'EUR'\n"
    )
    assert logged == [
        reloaded(stage, "tiers", "tenants", "routes", "models.price", "models.limits", "prices.currency"),
    ]
    assert stage.policy.tier("acme").weight == 2
    assert stage.policy.routes.keys() == {"r"}
    assert stage.policy.currency == "EUR"
    assert stage.reload() == [reloaded(stage)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tiers.gold]\nweigth = 1\n", "tiers.gold: Object contains unknown field `weigth`"),
        ("[tiers.gold\n", "is not TOML"),
        ("[tenants]\nacme = 'gold'\n", "tenants.acme: there is no tier 'gold'"),
        ("[server]\nlisten = '0.0.0.0:1'\n", "server.listen: refusing to listen"),
    ],
)
def test_settings_that_are_wrong_change_nothing(text: str, reason: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path, "[tiers.default]\nweight = 3\n")
    before = stage.policy
    [logged] = stage.reload(text)
    assert (logged["event"], logged["log_level"]) == ("settings not reloaded", "error")
    assert str(logged["reason"]).startswith(f"{stage.file}: {reason}")
    assert stage.policy is before
    stage.file.unlink()
    [logged] = stage.reload()
    assert logged["reason"] == f"{stage.file}: cannot be read: No such file or directory"
    assert stage.policy is before


def test_what_needs_a_restart_is_named_until_it_had_one(tmp_path: Path) -> None:
    old, new = MODEL.format(name="old"), MODEL.format(name="new")
    stage = Stage(tmp_path, MODEL.format(name="kept") + old)
    text = (
        "[server]\ndrain_seconds = 3\n[log]\nlevel = 'error'\n"
        + MODEL.format(name="kept").replace("chat", "responses")
        + new
        + "[tiers.default]\nweight = 2\n"
    )
    keys = ["server.drain_seconds", "log.level", "models.kept.backend", "models.old", "models.new"]
    warned = {"event": "settings changed that need a restart", "log_level": "warning", "keys": keys}
    assert stage.reload(text) == [reloaded(stage, "tiers"), warned]
    assert stage.policy.tier("anybody").weight == 2
    assert stage.reload() == [reloaded(stage), warned]


def test_model_that_left_the_file_keeps_its_limits_and_price_while_it_is_served(tmp_path: Path) -> None:
    limited = MODEL.format(name="gone") + "limits = { concurrent_runs = 2 }\nprice = { input = 1, output = 1 }\n"
    stage = Stage(tmp_path, MODEL.format(name="m") + limited)
    before = stage.policy
    told, rest = stage.reload(MODEL.format(name="m"))
    assert (stage.policy, told["changed"], rest["keys"]) == (before, [], ["models.gone"])


def test_route_to_a_model_that_comes_with_the_next_start_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, MODEL.format(name="m"))
    route = "[[routes]]\nname = 'r'\nvariants = [{ model = 'new' }]\n"
    [logged] = stage.reload(MODEL.format(name="m") + MODEL.format(name="new") + route)
    assert str(logged["reason"]).endswith("routes[0].variants[0].model: there is no model 'new'; there are m")
    assert logged["models_after_a_restart"] == ["new"]
    assert stage.policy.routes == {}


def test_options_of_the_command_line_stay(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "", {"server": {"listen": "127.0.0.1:9"}})
    # Otherwise the address would need a restart.
    assert stage.reload("[server]\nlisten = '127.0.0.1:8'\n") == [reloaded(stage)]


KEY = "[[auth.keys]]\nname = '{name}'\ntenant = 't'\nroles = []\nsha256 = '{sha}'\n"
ONE, TWO = (KEY.format(name=name, sha=str(name) * 64) for name in (1, 2))


def test_callers_are_those_of_the_file_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, ONE)
    assert stage.reload(ONE + TWO) == [reloaded(stage, "auth.keys")]
    assert stage.reload() == [reloaded(stage)]
    assert [[key.name for key in auth.keys] for auth in stage.admitted] == [["1", "2"]]
    [told, rest] = stage.reload("[auth]\nopen_reflection = true\n" + TWO)
    assert told == reloaded(stage, "auth.keys")
    assert rest["keys"] == ["auth.open_reflection"]


def test_without_any_callers_left_nobody_is_let_in(tmp_path: Path) -> None:
    stage = Stage(tmp_path, ONE)
    assert stage.reload("") == [reloaded(stage, "auth.keys")]
    assert stage.admitted == [AuthSettings()]


def test_last_key_can_be_taken_back_from_a_server_that_others_reach(tmp_path: Path) -> None:
    # It could not be started so.
    reachable = "[server]\nlisten = '0.0.0.0:1'\n[auth]\nplaintext = true\n"
    stage = Stage(tmp_path, reachable + ONE)
    assert stage.reload(reachable) == [reloaded(stage, "auth.keys")]
    assert stage.admitted == [AuthSettings(plaintext=True)]
    stage.reload(reachable + ONE)
    assert reloaded(stage, "auth.keys") in stage.reload("[server]\nlisten = '0.0.0.0:1'\n")
    assert stage.admitted[-1] == AuthSettings()


def test_caller_is_taken_out_though_the_file_of_the_key_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "famulus.key"
    file.write_text(new_key())
    file.chmod(0o600)
    encryption = f"[encryption]\nkey_file = '{file}'\n"
    stage = Stage(tmp_path, encryption + ONE + TWO)
    file.unlink()
    assert stage.reload(encryption + TWO) == [reloaded(stage, "auth.keys")]
    assert [[key.name for key in auth.keys] for auth in stage.admitted] == [["2"]]


def test_server_that_asks_nobody_begins_to_with_the_next_start(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "")
    [told, rest] = stage.reload(ONE)
    assert (told, rest["keys"], stage.admitted) == (reloaded(stage), ["auth.keys"], [])
