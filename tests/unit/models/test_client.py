"""What goes over the wire for a turn, beside what the SDK's own method sends."""

import msgspec

from contract.model_stage import HELLO
from famulus_server.embedded.upstream.script import Scene, Script
from famulus_server.embedded.upstream.server import ScriptedUpstream
from famulus_server.models.connection import Connection
from famulus_server.models.settings import ModelSettings

BODY = {"model": "m", "input": HELLO, "stream": True}
LONGER = BODY | {"instructions": "sei höflich"}
HEADERS = {"Accept-Encoding": "identity", "traceparent": "00-1-1-00"}
OTHERS = HEADERS | {"traceparent": "00-2-2-00"}


async def test_turns_are_sent_as_the_sdk_sends_them() -> None:
    async with ScriptedUpstream(script=Script(scenes=(Scene(text="hi"),))) as upstream:
        connection = Connection(
            settings=ModelSettings(name="m", backend="responses", base_url=upstream.base_url, api_key="sk-1")
        )
        try:
            client = await connection.client()
            for body, headers in ((BODY, HEADERS), (LONGER, OTHERS), (BODY, {"Accept-Encoding": "identity"})):
                async with client.responses.with_streaming_response.create(
                    stream=True, extra_body=body, extra_headers=headers
                ) as response:
                    expected = await response.read()
                async with client.turn("/responses", msgspec.json.encode(body), headers) as response:
                    assert len(await response.read()) == len(expected)
        finally:
            await connection.close()
        sent = [(request.path, request.headers, request.body) for request in upstream.requests]
    assert len(sent) == 6
    assert sent[::2] == sent[1::2]
