import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.outputs import ordered_writer
from onellm_async.batch.outputs.ordered_writer import OrderedWriter, ReorderBuffer
from onellm_async.errors import BatchError


def line(position):
    return b"%d;" % position if position % 3 else b""


def taken(buffer, limit=100):
    first, lines = buffer.take(limit)
    return list(enumerate(lines, first))


@given(st.permutations(range(12)), st.sampled_from([None, 0, 4, 8]))
def test_whatever_the_order_of_arrival_lines_are_taken_in_order_and_as_early_as_possible(arrivals, max_early):
    buffer, left, seen = ReorderBuffer(max_early), [], set()
    for position in arrivals:
        seen.add(position)
        buffer.put(position, line(position))
        left += taken(buffer)
        assert [position for position, _ in left] == list(range(len(left)))
        assert len(left) not in seen
        assert buffer.next_position == len(left)
    assert len(left) == 12
    assert all(found in {None, line(position)} for position, found in left)
    if max_early is None:
        assert None not in dict(left).values()
    assert (len(buffer), buffer.ready_bytes) == (0, 0)


def test_what_is_left_at_the_end_comes_in_order_over_the_gaps():
    buffer = ReorderBuffer()
    buffer.put(5, b"f")
    buffer.put(2, b"c")
    assert buffer.skip_gap()
    assert buffer.skip_gap()
    assert not buffer.skip_gap()
    assert b"".join(line for _, line in taken(buffer)) == b"cf"


def test_a_position_that_waits_costs_a_byte_and_those_that_were_taken_cost_nothing():
    buffer = ReorderBuffer(max_early=1000)
    for position in range(1, 500_000):
        buffer.put(position, b"x" * 100)
    assert len(buffer._lines) == 10
    assert len(buffer._states) < 501_000
    buffer.put(0, b"x")
    while len(buffer):
        buffer.take(500)
    assert len(buffer._states) < 70_000


class Sink:
    def __init__(self):
        self.text = b""

    async def write(self, lines):
        self.text += lines
        await asyncio.sleep(0)


@given(st.permutations(range(40)), st.integers(0, 40))
def test_lines_that_were_not_held_are_read_again_and_the_output_is_the_same(arrivals, put):
    async def main():
        sink, ranges = Sink(), []

        def read(first, last):
            ranges.append((first, last))
            return [line(position) for position in range(first, last + 1)]

        writer = OrderedWriter(sink, read=read)
        writer._buffer._max_early = 6
        writing = asyncio.create_task(writer.write_all())
        for position in arrivals[:put]:
            await writer.wait_for_space(position)
            writer.put(position, line(position))
            await asyncio.sleep(0)
        writer.close()
        await writing
        assert sink.text == b"".join(map(line, sorted(arrivals[:put])))
        assert all(first <= last for first, last in ranges)

    asyncio.run(main())


async def test_with_a_journal_no_position_is_too_far_ahead_and_without_one_a_window_bounds_it():
    with_journal = OrderedWriter(Sink(), window=10, read=lambda first, last: [])
    await asyncio.wait_for(with_journal.wait_for_space(1_000_000), 1)
    without = OrderedWriter(Sink(), window=10)
    waiting = asyncio.create_task(without.wait_for_space(10))
    await asyncio.sleep(0)
    assert without.is_waited_for
    without.put(0, b"x")
    await waiting
    assert not without.is_waited_for


async def test_a_slow_sink_holds_the_input_back(monkeypatch):
    monkeypatch.setattr(ordered_writer, "_MAX_READY", 100)
    writer = OrderedWriter(Sink(), read=lambda first, last: [])
    writer.put(0, b"x" * 200)
    waiting = asyncio.create_task(writer.wait_for_space(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert not writer.is_waited_for  # the input waits for the sink, and for no outcome
    writing = asyncio.create_task(writer.write_all())
    await waiting
    writer.close()
    await writing


async def test_a_line_that_cannot_be_read_again_ends_the_writing():
    def read(first, last):
        raise BatchError("The journal has gone.")

    writer = OrderedWriter(Sink(), read=read)
    writer._buffer._max_early = 0
    writer.put(1, b"b")
    writer.put(0, b"a")
    with pytest.raises(BatchError, match="has gone"):
        await writer.write_all()
