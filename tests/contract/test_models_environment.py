"""What the environment of the server means for its calls of models: a proxy for others, and nothing else."""

from functools import partial

import pytest

from contract.model_stage import Open, open_stage, text_of
from dead_proxy import dead_proxy, proxied_by
from famulus_server.embedded.upstream.script import Scene

HI = Scene(text="hi")
OF_THE_SDK = {
    "OPENAI_API_KEY": "spy-key",
    "OPENAI_ADMIN_KEY": "spy-admin",
    "OPENAI_ORG_ID": "spy-organization",
    "OPENAI_PROJECT_ID": "spy-project",
    "OPENAI_WEBHOOK_SECRET": "spy-secret",
    "OPENAI_CUSTOM_HEADERS": "X-Spy: spy-header\nAuthorization: Bearer spy-token",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/spy",
}


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_upstream_on_this_machine_is_not_looked_for_at_a_proxy(
    stage_on: Open, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_proxy() as environment, monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        async with (
            stage_on(HI) as local,
            stage_on(base_url=local.upstream.base_url.replace("127.0.0.1", host)) as named,
        ):
            assert text_of(await named.play()) == "hi"


async def test_upstream_elsewhere_is_called_through_the_proxy(stage_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage_on(HI) as proxy:
        for name, value in proxied_by(proxy.upstream.base_url.removesuffix("/v1")).items():
            monkeypatch.setenv(name, value)
        async with stage_on(base_url="http://upstream.invalid/v1") as remote:
            assert text_of(await remote.play()) == "hi"
        assert proxy.upstream.requests[0].headers["host"] == "upstream.invalid"


@pytest.mark.parametrize("key", ["our-key", ""])
async def test_upstream_is_told_nothing_of_the_environment(
    stage_on: Open, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OF_THE_SDK.items():
        monkeypatch.setenv(name, value)
    async with stage_on(HI, api_key=key) as stage:
        await stage.play()
        [request] = stage.upstream.requests
    assert request.headers["authorization"] == f"Bearer {key or 'none'}"
    assert not {"openai-organization", "openai-project", "x-spy"} & request.headers.keys()
    assert "spy" not in str(request.headers) + str(request.body)
