"""What of a provider's words gets into the log."""

from structlog.testing import capture_logs

from famulus_server.models.words import UnknownKinds


def test_model_that_makes_up_kinds_does_not_flood_the_log() -> None:
    unknown = UnknownKinds(model="m")
    with capture_logs() as told:
        for number in range(1_000):
            unknown.note(f"kind.{number}")
    assert sum(entry["log_level"] == "warning" for entry in told) == 100


def test_kind_that_is_no_name_is_told_without_it() -> None:
    with capture_logs() as told:
        UnknownKinds(model="m").note("what the user said")
        UnknownKinds(model="m").note({"no": "text"})
    assert [entry["kind"] for entry in told] == ["", ""]
