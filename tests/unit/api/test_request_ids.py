from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus_server.api.request_ids import repeat_key


def test_fingerprint_covers_all_but_the_request_id() -> None:
    first = repeat_key("CreateRun", CreateRunRequest(thread_id="t", request_id="r", metadata={"a": "1", "b": "2"}))
    again = repeat_key("CreateRun", CreateRunRequest(metadata={"b": "2", "a": "1"}, request_id="r", thread_id="t"))
    other = repeat_key("CreateRun", CreateRunRequest(thread_id="t2", request_id="r", metadata={"a": "1", "b": "2"}))
    assert first is not None
    assert other is not None
    assert first == again
    assert first.fingerprint != other.fingerprint


def test_request_without_id_has_no_key() -> None:
    assert repeat_key("CreateRun", CreateRunRequest(thread_id="t")) is None


def test_request_is_not_changed() -> None:
    request = CreateRunRequest(request_id="r")
    repeat_key("CreateRun", request)
    assert request.request_id == "r"
