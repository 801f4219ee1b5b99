"""Tools, and which of them a model calls."""

import re
from collections.abc import Sequence

from famulus.v1.tool_pb2 import FileSearchTool, FunctionTool, Tool, ToolChoice, ToolChoiceMode, ToolResources
from famulus_server.api.validation import schemas
from famulus_server.api.validation.fields import Fields

MOST_TOOLS = 128
MOST_EXPLANATION = 16_384  # of a description that models read
# Each run holds them, and answers and events hold runs: those must fit what gRPC's clients accept, 4 MiB.
_MOST_BYTES = 512 * 1024
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME_RULE = "must be 1 to 64 letters, digits, `_` and `-`"
_MOST_FILES = 20
_MOST_STORES = 1


def check_tools(fields: Fields, tools: Sequence[Tool]) -> None:
    """The field `tools` of an assistant or a run."""
    if not fields.few("tools", tools, MOST_TOOLS):
        return
    if sum(tool.ByteSize() for tool in tools) > _MOST_BYTES:
        fields.wrong("tools", f"must have at most {_MOST_BYTES:,} bytes in all")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        at = fields.at("tools", index)
        match tool.WhichOneof("tool"):
            case "function":
                _check_function(at.at("function"), tool.function)
                if tool.function.name in names:
                    at.wrong("function.name", "is the name of another of the tools")
                names.add(tool.function.name)
            case "file_search":
                _check_file_search(at.at("file_search"), tool.file_search)
            case None:
                at.wrong("tool", "is required, of a kind that this server knows")


def check_tool_choice(fields: Fields, choice: ToolChoice, tools: Sequence[Tool] | None) -> None:
    """Which tool a model calls. `tools` are None where only the assistant knows them."""
    match choice.WhichOneof("choice"):
        case "mode":
            fields.known("mode", choice.mode, ToolChoiceMode)
        case "function_name":
            if not NAME.fullmatch(choice.function_name):
                fields.wrong("function_name", NAME_RULE)
            elif tools is not None and choice.function_name not in {tool.function.name for tool in tools}:
                fields.wrong("function_name", "is not the name of a function among the tools")


def check_tool_resources(fields: Fields, resources: ToolResources) -> None:
    """Files and vector stores of the provider."""
    _check_ids(fields, "code_interpreter_file_ids", resources.code_interpreter_file_ids, _MOST_FILES)
    _check_ids(fields, "file_search_vector_store_ids", resources.file_search_vector_store_ids, _MOST_STORES)


def _check_ids(fields: Fields, name: str, ids: Sequence[str], most: int) -> None:
    if fields.few(name, ids, most):
        for index, value in enumerate(ids):
            fields.id(f"{name}[{index}]", value)


def _check_function(fields: Fields, function: FunctionTool) -> None:
    if not NAME.fullmatch(function.name):
        fields.wrong("name", NAME_RULE)
    fields.text("description", function.description, most=MOST_EXPLANATION)
    if function.parameters_json and (problem := schemas.problem(function.parameters_json)):
        fields.wrong("parameters_json", problem)


def _check_file_search(fields: Fields, search: FileSearchTool) -> None:
    if search.HasField("max_num_results"):
        fields.within("max_num_results", search.max_num_results, 1, 50)
    if search.HasField("score_threshold"):
        fields.within("score_threshold", search.score_threshold, 0, 1)
