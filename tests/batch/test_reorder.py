from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.outputs.reorder import ReorderBuffer


@given(st.permutations(range(12)))
def test_whatever_the_order_of_arrival_values_leave_in_order_and_as_early_as_possible(arrivals):
    order, left, seen = ReorderBuffer(), [], set()
    for position in arrivals:
        seen.add(position)
        left += order.put(position, position)
        assert left == list(range(len(left)))
        assert len(left) not in seen
        assert order.next_position == len(left)
        assert len(order) == len(seen) - len(left)
    assert left == list(range(12))


def test_what_is_left_at_the_end_comes_in_order_over_the_gaps():
    order = ReorderBuffer()
    order.put(5, "f")
    order.put(2, "c")

    assert order.drain() == ["c", "f"]
    assert len(order) == 0
