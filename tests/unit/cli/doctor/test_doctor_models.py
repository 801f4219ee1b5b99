"""What `doctor` says of models and their providers."""

from pathlib import Path

import pytest

from famulus_server.embedded.upstream import ScriptedUpstream, default_script
from famulus_server.embedded.upstream.script import Script, parse_script
from unit.cli.doctor.conftest import Doctor, Provider, model


async def test_key_that_the_provider_refuses_is_named_and_never_shown(
    doctor: Doctor, provider: Provider, tmp_path: Path
) -> None:
    found = await doctor(model(provider.url, more="api_key_env = 'BIG_KEY'"), environ={"BIG_KEY": "sk-hush-model"})
    assert found.code == 1
    assert found.seen("model big").endswith("and refuses the key (HTTP 401)")
    assert found.remedy("model big") == "Correct the key in the variable BIG_KEY."
    file = tmp_path / "key"
    file.write_text("sk-hush-model")
    found = await doctor(model(provider.url, more=f"api_key_file = '{file}'"))
    assert found.remedy("model big") == f"Correct the key in the file {file}."
    assert (await doctor(model(provider.url))).remedy("model big").startswith("Give it a key")


async def test_backend_that_the_provider_does_not_have(doctor: Doctor, provider: Provider) -> None:
    found = await doctor(model(provider.url, backend="chat", more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.seen("model big", "backend") == "chat, which it does not have, but responses"
    assert found.remedy("model big", "backend") == 'Say backend = "responses".'


async def test_address_without_its_path_and_a_name_that_is_not_listed(doctor: Doctor, provider: Provider) -> None:
    key = {"K": provider.key}
    found = await doctor(model(provider.url.removesuffix("/v1"), more="api_key_env = 'K'"), environ=key)
    assert found.remedy("model big") == "Correct base_url: most end in /v1, and this one does not."
    found = await doctor(model(provider.url, name="tiny", more="api_key_env = 'K'"), environ=key)
    assert (found.code, found.seen("model tiny", "name")) == (0, "tiny is not among those it lists: big")


@pytest.mark.parametrize(("status", "verdict"), [(429, "warn"), (503, "fail"), (302, "fail")])
async def test_provider_that_does_not_work(doctor: Doctor, provider: Provider, status: int, verdict: str) -> None:
    provider.listing = status
    found = await doctor(model(provider.url, more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.verdict("model big") == verdict
    assert f"(HTTP {status})" in found.seen("model big")


@pytest.mark.parametrize(
    ("date", "said"), [("Mon, 01 Jan 2035 00:00:00 GMT", "ahead of"), ("Mon, 01 Jan 2024 00:00:00 GMT", "behind")]
)
async def test_clock_of_the_provider(doctor: Doctor, provider: Provider, date: str, said: str) -> None:
    provider.date = date
    found = await doctor(model(provider.url, more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.verdict("model big", "clock") == "warn"
    assert said in found.seen("model big", "clock")


async def test_models_that_are_not_reached_each_for_another_reason(
    doctor: Doctor, unused: int, provider: Provider
) -> None:
    found = await doctor(
        model(f"http://127.0.0.1:{unused}/v1", name="off")
        + model("http://me:hush-db@no-such-host.invalid/v1", name="lost")
        + model(provider.url.replace("http:", "https:"), name="bare")
    )
    assert found.seen("model off") == f"http://127.0.0.1:{unused}/v1: nobody listens there"
    assert found.seen("model lost") == "http://***@no-such-host.invalid/v1: the name of its host is not known"
    assert "TLS" in found.seen("model bare")


async def test_model_is_asked_for_a_word_only_where_that_is_wanted(doctor: Doctor) -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        text = model(upstream.base_url, name="scripted", more="[embedded]\nscripted_model = 'off'")
        looked = await doctor(text)
        assert ("model scripted", "answer") not in looked.findings
        assert {one.path for one in upstream.requests if one.method == "POST" and one.scene} == set()
        asked = await doctor(text, "--ask")
        assert asked.verdict("model scripted", "answer") == "ok"
        assert "tokens used" in asked.seen("model scripted", "answer")
        upstream.replace(load_failing())
        assert "HTTP 400" in (await doctor(text, "--ask")).seen("model scripted", "answer")


def load_failing() -> Script:
    return parse_script(b"[[scene]]\nfault = { kind = 'status', status = 400 }\n", source="the test", syntax="toml")
