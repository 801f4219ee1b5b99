"""Keys at hand: so many, and for so long."""

from famulus_server.store.key_cache import KEPT_SECONDS, Recent


class Watch:
    """Stands still until somebody moves it."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_was_put_is_there_until_its_time_is_over_however_often_it_is_used() -> None:
    watch = Watch()
    recent = Recent[str, int](now=watch)
    recent.put("a", 1)
    watch.seconds = KEPT_SECONDS - 1
    assert recent.get("a") == 1
    watch.seconds = KEPT_SECONDS
    assert recent.get("a") is None


def test_what_was_used_longest_ago_goes_first() -> None:
    recent = Recent[str, int](now=Watch(), most=2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_what_was_dropped_is_gone() -> None:
    recent = Recent[str, int](now=Watch())
    recent.put("a", 1)
    recent.put("b", 2)
    recent.drop("a")
    assert (recent.get("a"), recent.get("b")) == (None, 2)
    recent.clear()
    assert recent.get("b") is None
