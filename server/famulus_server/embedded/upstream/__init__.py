"""A deterministic OpenAI-compatible server for tests; see `docs/scripted-upstream.md`."""

from famulus_server.embedded.upstream.recorder import ReceivedRequest
from famulus_server.embedded.upstream.script import (
    Fault,
    Match,
    Scene,
    Script,
    ScriptError,
    ToolCall,
    Usage,
    default_script,
    load_script,
    parse_script,
)
from famulus_server.embedded.upstream.server import ScriptedUpstream

__all__ = [
    "Fault",
    "Match",
    "ReceivedRequest",
    "Scene",
    "Script",
    "ScriptError",
    "ScriptedUpstream",
    "ToolCall",
    "Usage",
    "default_script",
    "load_script",
    "parse_script",
]
