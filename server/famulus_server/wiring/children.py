"""Starts what this process brings along: a Valkey server, the local model, the scripted upstream."""

import asyncio
import contextlib
import os
from pathlib import Path

from famulus_server.config import SCRIPTED_MODEL, Settings
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.local_model import MODEL_NAME, LocalModel
from famulus_server.embedded.supervisor import Child, keep_running
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.embedded.weights import cache_dir, find_weights, pull_weights
from famulus_server.engine.user_data import Wipe
from famulus_server.models.settings import ModelSettings
from famulus_server.wiring.progress import Progress

# What llama.cpp gives each of the local model's slots.
_LOCAL_CONTEXT = 2_048


async def start_children(
    settings: Settings, stack: contextlib.AsyncExitStack, progress: Progress
) -> tuple[tuple[str, list[Wipe]], list[ModelSettings]]:
    """Starts Redis and models side by side: they do not need each other, and each takes a moment."""
    try:
        async with asyncio.TaskGroup() as starting:
            redis_url = starting.create_task(_redis(settings, stack))
            models = starting.create_task(_embedded_models(settings, stack, progress))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return redis_url.result(), models.result()


async def _redis(settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[str, list[Wipe]]:
    """The URL, and how to wipe what is deleted from the files of a server that is ours."""
    if settings.redis.url:
        return settings.redis.url, []
    valkey = EmbeddedValkey(data_dir=settings.data_dir)
    url = await valkey.start()
    stack.push_async_callback(valkey.close)
    _supervise(valkey, "valkey", stack)
    return url, [valkey.compact]


async def _embedded_models(
    settings: Settings, stack: contextlib.AsyncExitStack, progress: Progress
) -> list[ModelSettings]:
    """The models that this process brings along: the local one first, where it can be had."""
    models: list[ModelSettings] = []
    if settings.with_local_model:
        try:
            weights = await _weights(progress)
            local = LocalModel(weights=weights, data_dir=settings.data_dir)
            models.append(
                ModelSettings(
                    name=MODEL_NAME, backend="chat", base_url=await local.start(), context_window=_LOCAL_CONTEXT
                )
            )
            stack.push_async_callback(local.close)
            _supervise(local, "local model", stack)
        except EmbeddedUnavailable as error:
            if settings.embedded.local_model == "on":
                raise
            progress(f"no local model: {error}")
            progress("using the scripted upstream instead: it answers by a script")
    if settings.with_scripted_model:
        # Here, because aiohttp takes a third of all the other imports together; models need it only after the start.
        from famulus_server.embedded.upstream import ScriptedUpstream, default_script, load_script

        script = load_script(Path(settings.embedded.script)) if settings.embedded.script else default_script()
        upstream = ScriptedUpstream(script=script, history=100)
        models.append(ModelSettings(name=SCRIPTED_MODEL, backend="responses", base_url=await upstream.start()))
        stack.push_async_callback(upstream.close)
    return models


def _supervise(child: Child, name: str, stack: contextlib.AsyncExitStack) -> None:
    """Call it once the stack will close the child: supervision ends before that."""
    stack.push_async_callback(end, asyncio.create_task(keep_running(child, name=name), name=f"supervise {name}"))


async def _weights(progress: Progress) -> Path:
    cache = cache_dir(os.environ)
    found = find_weights(cache)
    if found is not None:
        return found
    last = -1

    def tell(done: int, total: int) -> None:
        nonlocal last
        percent = done * 100 // total
        if percent // 10 != last:
            last = percent // 10
            progress(f"downloading the local model: {percent} % of {total // 1_000_000} MB")

    return await pull_weights(cache, environ=os.environ, progress=tell)


async def end(task: "asyncio.Task[None]") -> None:
    """Cancels a task, and waits until it is."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
