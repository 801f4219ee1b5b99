"""Lists of large items, read by a client with gRPC's own limit of 4 MiB."""

from famulus.v1.run_service_pb2 import CreateRunRequest, ListRunsRequest, WaitRunRequest
from famulus.v1.thread_service_pb2 import CreateMessageRequest, ListMessagesRequest, ListOrder
from famulus.v1.tool_pb2 import FunctionTool, Tool
from serving import Stubs, said


def test_messages_that_do_not_fit_into_one_answer_are_listed_over_several(stubs: Stubs) -> None:
    thread = stubs.new_thread()
    for number in range(20):
        large = said(f"{number:02}" * 125_000)
        stubs.threads.CreateMessage(CreateMessageRequest(thread_id=thread.id, message=large))
    for order in (ListOrder.LIST_ORDER_ASCENDING, ListOrder.LIST_ORDER_DESCENDING):
        request = ListMessagesRequest(thread_id=thread.id, order=order)
        shown: list[int] = []
        pages = 0
        while pages == 0 or request.page_token:
            answer = stubs.threads.ListMessages(request)
            shown += [message.sequence for message in answer.messages]
            request.page_token = answer.next_page_token
            pages += 1
        assert shown == sorted(range(1, 21), reverse=order == ListOrder.LIST_ORDER_DESCENDING)
        assert pages == 3


def test_run_of_the_largest_assistant_there_is_can_be_read(stubs: Stubs) -> None:
    tools = [Tool(function=FunctionTool(name=f"f{number}", description="d" * 16_300)) for number in range(32)]
    assistant = stubs.new_assistant(tools=tools, instructions="\u2603" * 256_000)
    create = CreateRunRequest(assistant_id=assistant.id, additional_instructions="\u2603" * 256_000)
    create.additional_messages.append(said("\u2603" * 256_000))
    create.new_thread.SetInParent()
    run = stubs.runs.CreateRun(create).run
    assert stubs.runs.WaitRun(WaitRunRequest(run_id=run.id)).run.id == run.id
    listed = stubs.runs.ListRuns(ListRunsRequest(assistant_id=assistant.id)).runs
    assert [one.id for one in listed] == [run.id]
