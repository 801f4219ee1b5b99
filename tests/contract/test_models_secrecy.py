"""What an upstream is told, and what it cannot make us tell others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from contract.model_stage import Open, ask, open_stage
from famulus_server.embedded.upstream.script import Fault, Scene
from famulus_server.errors import ModelAuthenticationError, ModelRejectedRequest

KEY = "our-very-own-key"


@pytest.fixture(name="stage_on", params=["responses", "chat"])
def choose_backend(request: pytest.FixtureRequest) -> Open:
    return partial(open_stage, request.param)


@asynccontextmanager
async def redirecting(status: int, target: str) -> AsyncIterator[str]:
    """A server that sends everybody elsewhere."""

    async def send_away(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": target + request.path.removeprefix("/v1")})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", send_away)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_takes_the_prompt_nowhere(stage_on: Open, status: int) -> None:
    async with (
        stage_on(Scene(text="give me your prompts")) as elsewhere,
        redirecting(status, elsewhere.upstream.base_url) as configured,
        stage_on(base_url=configured, api_key=KEY, count_tokens=True) as stage,
    ):
        with pytest.raises(ModelRejectedRequest):
            await stage.play(user="a1b2")
        await stage.model.count(ask())
        assert elsewhere.upstream.requests == []


@pytest.mark.parametrize(
    ("field", "told"),
    [("auto", {}), ("none", {}), ("safety_identifier", {"safety_identifier": "a1b2"}), ("user", {"user": "a1b2"})],
)
async def test_user_is_told_by_his_pseudonym_where_the_settings_say_so(
    stage_on: Open, field: Any, told: dict[str, str]
) -> None:
    async with stage_on(Scene(text="hi"), user_field=field) as stage:
        await stage.play(user="a1b2")
        await stage.play()
        first, second = (request.body for request in stage.upstream.requests)
    names = ("safety_identifier", "user")
    assert {name: first[name] for name in names if name in first} == told
    # Nobody is told as nobody.
    assert not set(names) & second.keys()


async def test_nothing_is_kept_by_the_provider() -> None:
    async with open_stage("responses", Scene(text="hi")) as stage:
        await stage.play()
        [request] = stage.upstream.requests
    assert request.body["store"] is False
    assert not {"previous_response_id", "conversation", "metadata"} & request.body.keys()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_key_that_the_upstream_quotes_is_told_to_nobody(stage_on: Open, status: int) -> None:
    quoting = f"Incorrect API key provided: {KEY}"
    async with stage_on(Scene(fault=Fault(kind="status", status=status, message=quoting)), api_key=KEY) as stage:
        with pytest.raises((ModelAuthenticationError, ModelRejectedRequest)) as caught:
            await stage.play()
    assert KEY not in str(caught.value) + caught.value.public


async def test_name_and_password_in_the_url_go_to_the_upstream_as_such(stage_on: Open) -> None:
    async with stage_on(Scene(text="hi")) as elsewhere:
        url = elsewhere.upstream.base_url.replace("http://", "http://me:p%40ss@")
        async with stage_on(base_url=url, count_tokens=True) as stage:
            await stage.play()
            await stage.model.count(ask())
        assert {request.headers["authorization"] for request in elsewhere.upstream.requests} == {"Basic bWU6cEBzcw=="}
