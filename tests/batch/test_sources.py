import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import BatchError
from onellm_async.batch import InputFile, LineError, ParsedEntry, input_format_named, open_source
from onellm_async.batch.inputs.lines import LineSplitter

OPENAI_BATCH, TEXT = map(input_format_named, ("openai-batch", "text"))


def split(pieces, longest=1000):
    splitter = LineSplitter(longest)
    return [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.finish())


async def entries(source):
    async with source:
        return [entry.item() async for entry in source]


def texts(found):
    return [entry.request.messages[0].content for entry in found]


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"\r"]), max_size=20), st.data())
def test_lines_do_not_depend_on_how_the_bytes_were_cut(parts, data):
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert split(pieces) == split([whole])


def test_lines_are_numbered_blank_ones_dropped_and_line_ends_and_byte_order_mark_removed():
    assert split([b"\xef\xbb\xbfone\r\n\n  \t\ntwo\nthree"]) == [(1, b"one"), (4, b"two"), (5, b"three")]


def test_an_overlong_line_comes_out_as_none_and_is_not_kept():
    splitter = LineSplitter(longest=5)

    assert list(splitter.feed(b"12345\n123456\n123")) == [(1, b"12345"), (2, None)]
    assert list(splitter.feed(b"456")) == []
    assert not splitter._tail
    assert list(splitter.feed(b"7\nok")) == [(3, None)]
    assert list(splitter.finish()) == [(4, b"ok")]
    assert split([b"1234567"], longest=5) == [(1, None)]


async def test_a_text_file_gives_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\n")
    found = await entries(open_source(str(path)))

    assert texts(found) == ["one", "two"]
    assert [(item.index, item.line) for item in found] == [(0, 1), (1, 3)]


async def test_a_bad_line_keeps_its_index_and_the_others_come(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": \n{"prompt": "three"}')
    first, second, third = await entries(open_source(str(path)))

    assert isinstance(second, LineError)
    assert str(second).startswith(f"{path}:2: Not JSON")
    assert (first.index, third.index) == (0, 2)


async def test_an_overlong_line_is_an_error_and_the_others_come(tmp_path, monkeypatch):
    monkeypatch.setattr(LineSplitter.__init__, "__defaults__", (10,))
    path = tmp_path / "prompts.txt"
    path.write_text("one\n" + "x" * 11 + "\nthree")
    first, second, third = await entries(open_source(str(path)))

    assert texts([first, third]) == ["one", "three"]
    assert second == LineError(str(path), 2, "The line is longer than 16 MiB.")


async def test_the_format_is_known_after_the_first_line(tmp_path):
    path = tmp_path / "batch.jsonl"
    path.write_text('{"custom_id": "a", "body": {"messages": "Hi"}}')
    source = open_source(str(path))
    assert source.format is TEXT
    (item,) = await entries(source)

    assert source.format is OPENAI_BATCH
    assert item.custom_id == "a"


async def test_a_forced_format_wins_over_the_name(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}')

    assert texts(await entries(open_source(str(path), forced_format=TEXT))) == ['{"prompt": "one"}']


async def test_a_field_implies_json_lines(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text('{"question": "one"}')

    assert texts(await entries(open_source(str(path), field="question"))) == ["one"]


def test_a_field_of_text_is_refused():
    with pytest.raises(
        BatchError, match=r"A field \('question'\) can be named only in JSON lines and tables, not in text"
    ):
        open_source("prompts.txt", field="question", forced_format=TEXT)


async def test_a_survey_counts_the_lines_and_leaves_the_input_as_it_was(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\nthree")
    source = open_source(str(path))
    survey = source.scan()

    assert (survey.lines, survey.first_error) == (3, None)
    assert texts(await entries(source)) == ["one", "two", "three"]


async def test_a_strict_survey_finds_the_first_bad_line_and_remembers_no_custom_id(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "custom_id": "a"}\n{"prompt": 2}\n{"prompt": 3}\n')
    source = open_source(str(path))
    survey = source.scan(strict=True)

    assert survey.lines == 3
    assert survey.first_error == LineError(str(path), 2, "prompt is a number, not a string.")
    assert isinstance((await entries(source))[0], ParsedEntry)


async def test_standard_input_is_read_where_it_stands_and_left_open(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("skipped\nread\n")
    descriptor = os.open(path, os.O_RDONLY)
    saved = os.dup(0)
    try:
        os.lseek(descriptor, len("skipped\n"), os.SEEK_SET)
        os.dup2(descriptor, 0)
        source = open_source("-")
        assert source.name == "<stdin>"
        assert source.scan().lines == 1
        assert texts(await entries(source)) == ["read"]
        os.fstat(0)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(descriptor)


async def test_a_prompt_from_a_pipe_is_there_before_the_next_is_written():
    reading, writing = os.pipe()
    async with InputFile("<pipe>", reading) as source:
        assert source.scan() is None
        items = aiter(source)
        os.write(writing, b"one\n")
        assert texts([(await anext(items)).item()]) == ["one"]
        os.write(writing, b"two")
        os.close(writing)
        assert texts([(await anext(items)).item()]) == ["two"]
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_waiting_for_a_silent_pipe_can_be_cancelled():
    reading, writing = os.pipe()
    async with InputFile("<pipe>", reading) as source:
        waiting = asyncio.ensure_future(anext(aiter(source)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        os.write(writing, b"late\n")
        os.close(writing)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/nowhere.txt", "nowhere.txt cannot be read: No such file or directory"),
        ("{tmp}", "cannot be read: it is a directory"),
        ("a\0b", "cannot be read: .*embedded null"),
    ],
)
def test_an_input_that_cannot_be_opened_is_a_batch_error(tmp_path, path, message):
    with pytest.raises(BatchError, match=message):
        open_source(path.format(tmp=tmp_path))


async def test_an_input_that_breaks_while_it_is_read_is_a_batch_error(tmp_path):
    descriptor = os.open(tmp_path / "unreadable", os.O_WRONLY | os.O_CREAT)
    async with InputFile("in", descriptor) as source:
        with pytest.raises(BatchError, match="in cannot be read: Bad file descriptor"):
            await anext(aiter(source))


def test_a_source_knows_its_own_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.touch()
    (tmp_path / "link").hardlink_to(path)
    source = open_source(str(path))

    assert source.is_file(str(tmp_path / "link"))
    assert not source.is_file(str(tmp_path / "other"))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t\r\n"])
async def test_an_input_in_which_nothing_stands_has_no_entries(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    source = open_source(str(path))

    assert source.scan(strict=True).lines == 0
    assert await entries(source) == []


async def test_odd_bytes_are_bad_lines_or_part_of_a_prompt_and_never_the_end(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "caf\xe9"}\n{"prompt": "a\x01b"}\n"four\\u0000"\n'
        b'{"prompt": "five", "custom_id": "x"}\n{"prompt": "six", "custom_id": "x"}\n\x0c\n"eight\xe2\x80\xa8."\n'
    )
    found = await entries(open_source(str(path)))

    assert [entry.line for entry in found] == [1, 2, 3, 4, 5, 6, 8]
    assert texts([found[0], found[3], found[4], found[6]]) == ["one", "four\0", "five", "eight\u2028."]
    assert [error.message for error in (found[1], found[5])] == [
        "Not UTF-8: invalid continuation byte at byte 16 of the line. Save the file as UTF-8.",
        "custom_id 'x' was used in line 5 already.",
    ]
    assert found[2].message.startswith("Not JSON: ")


async def test_a_line_of_more_than_16_mib_is_reported_and_the_others_come(tmp_path):
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        file.write(b"one\n")
        for _ in range(17):
            file.write(b"x" * 2**20)
        file.write(b"\nthree\n")
    source = open_source(str(path))
    survey = source.scan(strict=True)
    first, second, third = await entries(source)

    assert survey.first_error == second == LineError(str(path), 2, "The line is longer than 16 MiB.")
    assert (survey.lines, *texts([first, third])) == (3, "one", "three")


async def test_entries_are_told_apart_by_their_bytes_before_they_are_parsed(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\r\n{"prompt": "a"}\nbroken')
    async with open_source(str(path)) as source:
        one, two, broken = [entry async for entry in source]

    assert one.raw == b'{"prompt": "a"}'
    assert one.digest == two.digest != broken.digest
    assert all(-(2**63) <= entry.digest < 2**63 for entry in (one, broken))
    assert (broken.source, broken.line, broken.index) == (str(path), 3, 2)


async def test_the_id_of_an_entry_that_was_passed_over_cannot_be_used_again(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "custom_id": "x"}\n{"prompt": "b", "custom_id": "x"}\n"c"')
    async with open_source(str(path)) as source:
        rows = aiter(source)
        await anext(rows)
        source.reserve_custom_id("x")
        second = (await anext(rows)).item()
        await rows.aclose()

    assert second.message == "custom_id 'x' was used before, in a line that is done."


async def test_an_item_may_be_asked_for_again_without_being_its_own_double(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "custom_id": "x"}\n')
    async with open_source(str(path)) as source:
        (entry,) = [entry async for entry in source]

    assert entry.item() == entry.item()
    assert isinstance(entry.item(), ParsedEntry)


async def test_a_survey_tells_the_digest_of_all_bytes(tmp_path):
    path = tmp_path / "in.txt"
    digests = []
    for text in ("one\n", "one\n", "one \n"):
        path.write_text(text)
        async with open_source(str(path)) as source:
            digests.append(source.scan().digest)

    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 32


async def test_standard_input_that_does_not_block_is_waited_for(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        source = aiter(InputFile("pipe", reading))
        first = asyncio.create_task(anext(source))
        await asyncio.sleep(0.05)
        os.write(writing, b"one\n")
        assert (await first).item().request.messages[0].content == "one"
        os.close(writing)
        assert [entry async for entry in source] == []
    finally:
        os.close(reading)
