"""Picks the scene for a prompt."""

from famulus_server.embedded.upstream.prompt import Prompt
from famulus_server.embedded.upstream.script import Match, Scene, Script


class Director:
    """Tries the scenes in order; one that was played `times` times is used up."""

    def __init__(self, *, script: Script) -> None:
        self.script = script
        self._played = [0] * len(script.scenes)

    def choose(self, prompt: Prompt) -> Scene | None:
        """The first scene that matches, counted as played; None when none does."""
        for at, scene in enumerate(self.script.scenes):
            left = scene.times is None or self._played[at] < scene.times
            if left and _fits(scene.match, prompt):
                self._played[at] += 1
                return scene
        return None


def _fits(match: Match, prompt: Prompt) -> bool:
    return (
        # The count of tokens is asked for beside the answer: a scene is for it only if it says so.
        (match.api == prompt.api or (match.api is None and prompt.api != "input_tokens"))
        and match.model in {None, prompt.model}
        and match.stream in {None, prompt.stream}
        and (match.user_contains is None or match.user_contains in prompt.user_text)
        and (match.system_contains is None or match.system_contains in prompt.system_text)
        and (match.tool_outputs is None or match.tool_outputs == bool(prompt.tool_outputs))
        and (match.tool is None or any(tool.name == match.tool for tool in prompt.tools))
        and (match.names_tool is None or match.names_tool == bool(prompt.named_tools))
    )
