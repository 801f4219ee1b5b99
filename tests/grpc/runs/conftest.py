"""One server for the tests of a file; those that need other settings open their own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from famulus_server.embedded.upstream import ScriptedUpstream
from run_stage import Stage, open_stage, stage_settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    async with (
        ScriptedUpstream() as upstream,
        open_stage(stage_settings(folder, upstream.base_url), upstream) as opened,
    ):
        yield opened
