"""Lists of large items, read by a client with gRPC's own limit of 4 MiB."""

from famulus.v1.thread_service_pb2 import CreateMessageRequest, ListMessagesRequest, ListOrder
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
