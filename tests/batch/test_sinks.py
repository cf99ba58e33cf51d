import asyncio
import errno
import os
from pathlib import Path

import pytest

from onellm_async import BatchError, descriptors
from onellm_async.batch import FileSink, StreamSink


async def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "answers.jsonl"
    async with FileSink(path) as sink:
        await sink.write(b"one\n")
        assert not path.exists()
        assert (tmp_path / "answers.jsonl.partial").read_bytes() == b"one\n"
        await sink.write(b"two\n")

    assert path.read_bytes() == b"one\ntwo\n"
    assert list(tmp_path.iterdir()) == [path]


async def test_an_exception_leaves_the_partial_file(tmp_path):
    async def crash():
        async with FileSink(tmp_path / "answers.jsonl") as sink:
            await sink.write(b"one\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await crash()

    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl.partial"]


def test_an_existing_output_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("precious")

    with pytest.raises(BatchError, match=r"answers\.jsonl already exists\. .*force=True"):
        FileSink(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_partial_file_of_a_killed_run_is_refused(tmp_path):
    (tmp_path / "answers.jsonl.partial").write_text("paid for")

    with pytest.raises(BatchError, match=r"partial was left by a run that was killed; it holds answers"):
        FileSink(tmp_path / "answers.jsonl")


async def test_force_replaces_both(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("old")
    (tmp_path / "answers.jsonl.partial").write_text("older")
    async with FileSink(path, force=True) as sink:
        await sink.write(b"new")

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


async def test_a_run_that_goes_on_writes_its_partial_file_anew(tmp_path):
    path = tmp_path / "answers.jsonl"
    (tmp_path / "answers.jsonl.partial").write_text("half of it")
    async with FileSink(path, resume=True) as sink:
        await sink.write(b"all of it")

    assert path.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_goes_on_does_not_replace_an_output_that_is_not_its_own(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("precious")

    with pytest.raises(BatchError, match=r"answers\.jsonl already exists"):
        FileSink(path, resume=True)
    assert path.read_text() == "precious"


async def test_an_output_of_its_own_is_replaced_only_in_the_end(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("some")
    async with FileSink(path, resume=True, replace=True) as sink:
        await sink.write(b"more")
        assert path.read_text() == "some"

    assert path.read_text() == "more"


def test_replacing_its_own_output_says_nothing_of_a_partial_file(tmp_path):
    (tmp_path / "answers.jsonl").write_text("some")
    (tmp_path / "answers.jsonl.partial").write_text("whose?")

    with pytest.raises(BatchError, match="was left by a run that was killed"):
        FileSink(tmp_path / "answers.jsonl", replace=True)


async def test_a_header_that_cannot_be_written_is_a_batch_error_and_leaves_no_descriptor_open(tmp_path, monkeypatch):
    sink = FileSink(tmp_path / "answers.csv", header=b"index\r\n")
    monkeypatch.setattr(os, "write", refuse(errno.ENOSPC))
    with pytest.raises(BatchError, match=r"answers\.csv\.partial cannot be written: No space left"):
        await sink.__aenter__()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(sink._place.descriptor)


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    with pytest.raises(BatchError, match=r"answers\.jsonl cannot be written: Permission denied\."):
        FileSink(tmp_path / "answers.jsonl")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.partial"])
def test_a_symbolic_link_is_never_followed(tmp_path, force, name):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / name).symlink_to(target)

    with pytest.raises(BatchError, match="is a symbolic link"):
        FileSink(tmp_path / "answers.jsonl", force=force)
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}", "is a directory"),
        ("/dev/null", "not a regular file"),
        ("{tmp}/nowhere/answers.jsonl", "cannot be written: No such file or directory"),
        ("{tmp}/file/answers.jsonl", "cannot be written: Not a directory"),
        ("a\0b", "cannot be written: .*embedded null"),
        ("", "is a directory"),
    ],
)
def test_a_place_that_cannot_hold_the_output_is_refused_at_once(tmp_path, path, message):
    (tmp_path / "file").touch()

    with pytest.raises(BatchError, match=message):
        FileSink(path.format(tmp=tmp_path), force=True)


@pytest.mark.parametrize("links", [True, False])
async def test_an_output_that_somebody_else_made_meanwhile_is_not_replaced(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    path = tmp_path / "answers.jsonl"

    async def collide():
        async with FileSink(path) as sink:
            await sink.write(b"mine")
            path.write_text("theirs")

    with pytest.raises(BatchError, match=r"came into being during the run; the answers are in .*\.partial"):
        await collide()

    assert path.read_text() == "theirs"
    assert (tmp_path / "answers.jsonl.partial").read_text() == "mine"


async def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    async with FileSink(tmp_path / "answers.jsonl") as sink:
        await sink.write(b"mine")

    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


async def test_a_failure_to_finish_says_where_the_answers_are(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(BatchError, match=r"cannot be finished: .*The answers are in .*\.partial"):
        async with FileSink(tmp_path / "answers.jsonl") as sink:
            await sink.write(b"mine")

    assert (tmp_path / "answers.jsonl.partial").read_text() == "mine"


async def test_a_full_disk_is_a_batch_error():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        async with StreamSink(descriptor, "the output") as sink:
            with pytest.raises(BatchError, match="the output cannot be written: No space left"):
                await sink.write(b"x")
    finally:
        os.close(descriptor)


async def test_a_stream_takes_everything_however_small_its_pieces_are():
    reading, writing = os.pipe()
    text = b"x" * 300_000
    taken = bytearray()

    def drain():
        while piece := os.read(reading, 65536):
            taken.extend(piece)

    draining = asyncio.create_task(asyncio.to_thread(drain))
    async with StreamSink(writing) as sink:
        await sink.write(text)
    os.close(writing)
    await draining
    os.close(reading)

    assert taken == text


def refuse(number):
    def refused(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refused


async def test_an_output_that_another_program_holds_open_is_kept_beside_it_and_the_cure_is_told(tmp_path, monkeypatch):
    path = tmp_path / "answers.csv"
    path.write_text("open in a spreadsheet")

    def held_open(self, target):
        error = PermissionError(errno.EACCES, "Access is denied")
        error.winerror = 5
        raise error

    monkeypatch.setattr(Path, "replace", held_open)
    with pytest.raises(BatchError, match=r"cannot be finished: Access is denied\. If another program .*\.partial\.$"):
        async with FileSink(path, replace=True) as sink:
            await sink.write(b"one\n")

    assert path.read_text() == "open in a spreadsheet"
    assert (tmp_path / "answers.csv.partial").read_bytes() == b"one\n"


async def test_a_reader_that_has_left_is_the_cause_of_the_error():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with StreamSink(writing, "the output") as sink:
            with pytest.raises(BatchError, match="the output cannot be written: Broken pipe") as caught:
                await sink.write(b"x")
    finally:
        os.close(writing)
    assert isinstance(caught.value.__cause__, BrokenPipeError)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, pytest.param(errno.EINVAL, id="windows")])
def test_every_way_to_say_that_the_reader_left_is_a_broken_pipe(monkeypatch, number):
    if number == errno.EINVAL:  # what Windows says
        monkeypatch.setattr(descriptors, "READER_LEFT", descriptors.reader_left_errors("win32"))

    assert isinstance(descriptors.unwritable("the output", OSError(number, "?")).__cause__, BrokenPipeError)


def test_an_invalid_argument_means_no_reader_that_left_elsewhere():
    cause = OSError(errno.EINVAL, "Invalid argument")

    assert descriptors.unwritable("the output", cause).__cause__ is cause


async def test_a_closed_stream_is_told():
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(BatchError, match="the output is closed"):
        await StreamSink(writing, "the output").write(b"x")


async def test_a_pipe_that_does_not_block_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = b"x" * 300_000
    try:
        sink = StreamSink(writing)
        writer = asyncio.create_task(sink.write(text))
        taken = b""
        while len(taken) < len(text):
            await asyncio.sleep(0)
            taken += await asyncio.to_thread(os.read, reading, 50_000)
        await writer
    finally:
        os.close(reading)
        os.close(writing)
    assert taken == text


@pytest.mark.parametrize("failure", [OSError("not a socket"), ValueError("filedescriptor out of range in select()")])
def test_a_descriptor_that_cannot_be_waited_for_is_tried_again(monkeypatch, failure):
    def no_select(*arguments):
        os.read(reading, 65_536)  # there is room now
        raise failure

    monkeypatch.setattr(descriptors.select, "select", no_select)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        descriptors.write_all(writing, b"x" * 200_000)
    finally:
        os.close(reading)
        os.close(writing)
