"""What is remembered up to so many bytes: the longest unused goes first, and what is needed last."""

from flowrl.policies.pipelines.encoding.store import Store


def filled(limit: int, *keys: str) -> Store[str]:
    store: Store[str] = Store()
    for key in keys:
        store.put(key, key.upper(), 1, limit)
    return store


def held(store: Store[str], keys: str) -> str:
    return "".join(key for key in keys if key in store)


def test_the_longest_unused_is_forgotten_first() -> None:
    store = filled(3, *"abc")
    assert store["a"] == "A"
    store.put("d", "D", 1, 3)
    assert held(store, "abcd") == "acd" and store.size == 3 and not store.full
    store.put("e", "E", 2, 3)
    assert held(store, "abcde") == "de" and store.size == 3


def test_what_is_needed_stays_and_what_finds_no_room_beside_it_is_not_kept() -> None:
    store = filled(3, *"abc")
    store.needed = {"a", "b"}
    with store.sparing():
        store.put("d", "D", 1, 3)  # in the place of c
        assert held(store, "abcd") == "abd" and not store.full
        store.needed.add("d")
        store.put("e", "E", 1, 3)
    assert held(store, "abcde") == "abd" and store.full and store.size == 3
    store.put("f", "F", 1, 3)  # it is needed now: the longest unused of the others gives way
    assert held(store, "abdf") == "bdf"


def test_a_value_that_is_larger_than_the_limit_is_kept_alone() -> None:
    store = filled(3, *"ab")
    store.put("c", "C", 5, 3)
    assert held(store, "abc") == "c" and store.size == 5


def test_what_was_used_is_told() -> None:
    store = filled(3, *"ab")
    store.used = set()
    store.put("c", "C", 1, 3)
    assert store["b"] == "B" and store.used == {"b", "c"}
