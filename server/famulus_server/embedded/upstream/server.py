"""The scripted upstream: an OpenAI-compatible HTTP server that plays a script and remembers what it was asked."""

import asyncio
import ipaddress
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from aiohttp import web

from famulus_server.embedded.upstream.chat import ChatWire
from famulus_server.embedded.upstream.director import Director
from famulus_server.embedded.upstream.player import Player
from famulus_server.embedded.upstream.prompt import Api, Prompt, read_chat, read_count, read_responses
from famulus_server.embedded.upstream.recorder import ReceivedRequest, Recorder
from famulus_server.embedded.upstream.responses import ResponsesWire
from famulus_server.embedded.upstream.script import Scene, Script, ScriptError, default_script, parse_script
from famulus_server.embedded.upstream.wire import CREATED, error_object

_LARGEST_BODY = 256 * 1024 * 1024  # bytes
_SHUTDOWN_SECONDS = 1.0
_READERS = {"responses": read_responses, "chat": read_chat, "input_tokens": read_count}


class ScriptedUpstream:
    """Serves the Responses API and Chat Completions from a script.

    `requests` holds what arrived. Use it as an async context manager, or call `start` and `close`; all methods belong
    to the event loop that ran `start`. Without a script it plays the built-in one.
    """

    def __init__(self, *, script: Script | None = None, history: int = 10_000) -> None:
        """`history` is the number of requests to remember."""
        self._director = Director(script=default_script() if script is None else script)
        self._recorder = Recorder(history=history)
        self._players: dict[Api, Player] = {
            "responses": Player(wire=ResponsesWire()),
            "chat": Player(wire=ChatWire()),
            "input_tokens": Player(wire=ResponsesWire()),  # plays its faults
        }
        self._playing: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    @property
    def requests(self) -> list[ReceivedRequest]:
        return self._recorder.requests

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False) -> str:
        """Listen, and return the base URL, which ends in /v1. Port 0 takes a free one.

        Raises ValueError for a host that is not loopback unless `allow_remote`; OSError when the port is taken.
        """
        if not (allow_remote or _is_loopback(host)):
            raise ValueError(f"{host} is not a loopback address; the scripted upstream asks nobody for a password")
        # Cancelling the handler is how a client that went away is noticed while nothing is being written.
        self._runner = web.AppRunner(
            self._routes(), handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        self._closing = False
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, backlog=1024).start()
        except OSError:
            await self.close()
            raise
        bound_host, bound_port = self._runner.addresses[0][:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        self.base_url = f"http://{shown}:{bound_port}/v1"
        return self.base_url

    async def close(self) -> None:
        """Stop listening and cut the answers that are being played. Does nothing when it was not started."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._closing = True
        for task in self._playing:
            task.cancel()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def replace(self, script: Script) -> None:
        """Play this script from the next request on; its scenes count from zero."""
        self._director = Director(script=script)

    async def wait_for_request(self, number: int, *, timeout: float = 5.0) -> ReceivedRequest:
        """The request of this number, counted from 1. Raises TimeoutError after `timeout` seconds."""
        return await self._recorder.wait(number, timeout)

    async def wait_for_end(self, number: int, *, timeout: float = 5.0) -> ReceivedRequest:
        """The same request once it has ended; its `outcome` says how. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            request = await self._recorder.wait(number, timeout)
            await request.closed.wait()
        return request

    def _routes(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/responses/input_tokens", self._input_tokens)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_put("/_script", self._put_script)
        app.router.add_get("/_script/requests", self._get_requests)
        app.router.add_delete("/_script/requests", self._delete_requests)
        app.router.add_post("/_script/requests/{number}/release", self._release)
        app.router.add_route("*", "/{rest:.*}", _no_such_route)
        return app

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "responses")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "chat")

    async def _input_tokens(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "input_tokens")

    async def _answer(self, request: web.Request, api: Api) -> web.StreamResponse:
        received = await self._record(request)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a handler runs in a task")
        self._playing.add(task)
        try:
            response = await self._perform(request, received, api)
            received.close("completed")
        except asyncio.CancelledError:
            received.close("broken" if self._closing else "disconnected")
            raise
        except ConnectionError:
            # The client left while it was written to: no error of ours, and nobody is there to read the answer.
            received.close("broken" if self._closing else "disconnected")
            return web.Response()
        finally:
            self._playing.discard(task)
        return response

    async def _perform(self, request: web.Request, received: ReceivedRequest, api: Api) -> web.StreamResponse:
        if isinstance(received.body, str):
            return _refusal(400, "We could not parse the JSON body of your request.")
        try:
            prompt = _READERS[api](received.body)
        except msgspec.ValidationError as error:
            return _refusal(400, f"Invalid request: {error}")
        complaint = self._complaint(prompt)
        if complaint:
            return _refusal(400, complaint)
        scene = self._director.choose(prompt)
        if api == "input_tokens" and (scene is None or scene.fault is None):
            return _count(scene, prompt, received)
        if scene is None:
            return _refusal(404, "No scene of the script matches this request.", code="no_scene")
        received.scene = scene.name
        return await self._players[api].play(scene, prompt, request, received)

    def _complaint(self, prompt: Prompt) -> str | None:
        return prompt.unpaired_call() if self._director.script.check_tool_pairs else None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        received = await self._record(request)
        models = [
            {"id": name, "object": "model", "created": CREATED, "owned_by": "script"}
            for name in self._director.script.models
        ]
        received.close("completed")
        return web.json_response({"object": "list", "data": models})

    async def _put_script(self, request: web.Request) -> web.StreamResponse:
        syntax: Literal["toml", "json"] = "json" if request.content_type == "application/json" else "toml"
        try:
            self.replace(parse_script(await request.read(), source="the request", syntax=syntax))
        except ScriptError as error:
            return _refusal(400, str(error))
        return web.Response(status=204)

    async def _get_requests(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            return _refusal(400, "`after` is the number of a request.")
        return web.json_response([seen.to_json() for seen in self.requests if seen.number > int(after)])

    async def _delete_requests(self, _: web.Request) -> web.StreamResponse:
        self._recorder.clear()
        return web.Response(status=204)

    async def _release(self, request: web.Request) -> web.StreamResponse:
        for received in self.requests:
            if str(received.number) == request.match_info["number"]:
                received.released.set()
                return web.Response(status=204)
        return _refusal(404, "No such request.")

    async def _record(self, request: web.Request) -> ReceivedRequest:
        raw = await request.read()
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = raw.decode(errors="replace")
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await self._recorder.add(method=request.method, path=request.path, headers=headers, body=body)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _count(scene: Scene | None, prompt: Prompt, received: ReceivedRequest) -> web.Response:
    told = None
    if scene is not None:
        received.scene, told = scene.name, scene.usage.input
    count = prompt.input_tokens if told is None else told
    return web.json_response({"object": "response.input_tokens", "input_tokens": count})


def _refusal(status: int, message: str, *, code: str | None = None) -> web.Response:
    return web.json_response(error_object(status, message, code), status=status)


async def _no_such_route(request: web.Request) -> web.StreamResponse:
    return _refusal(404, f"Unknown request URL: {request.method} {request.path}.")
