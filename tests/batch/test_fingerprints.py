import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.seen_keys import SeenKeys


@given(st.lists(st.binary(max_size=3), max_size=400))
def test_every_key_is_found_where_it_was_first_seen(keys: list[bytes]) -> None:
    seen, model = SeenKeys(), {}
    for position, key in enumerate(keys):
        assert seen.add(key, position) == model.get(key)
        model.setdefault(key, position)
    assert len(seen) == len(model)


def test_many_keys_are_told_apart_and_found_again() -> None:
    seen = SeenKeys()
    keys = [str(number).encode() for number in range(20_000)]
    assert all(seen.add(key, position) is None for position, key in enumerate(keys))
    assert [seen.add(key, -1) for key in keys] == list(range(20_000))


def test_a_key_takes_at_most_forty_bytes_on_average_while_they_grow() -> None:
    tracemalloc.start()
    seen, per_key = SeenKeys(), []
    for position in range(40_000):
        seen.add(str(position).encode(), position)
        if position % 500 == 499:
            per_key.append(tracemalloc.get_traced_memory()[0] / len(seen))
    tracemalloc.stop()
    assert sum(per_key) / len(per_key) < 40


def test_negative_and_large_positions_come_back() -> None:
    seen = SeenKeys()
    for key, position in ((b"a", -5), (b"b", 2**62)):
        seen.add(key, position)
        assert seen.add(key, 0) == position


def test_what_was_added_is_found_and_looking_adds_nothing() -> None:
    seen = SeenKeys()
    for number in range(5000):
        seen.add(b"%d" % number, number)

    assert [seen.find(b"%d" % number) for number in (0, 4999, 5000)] == [0, 4999, None]
    assert len(seen) == 5000
