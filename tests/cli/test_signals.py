"""Signals: which end a run gracefully, which are left alone, and what counts as pressing Ctrl-C again."""

import asyncio
import json
import signal
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from onellm_async.batch import JournalReader
from onellm_async.cli.signals import ending_on_signals

FAST = ("--rpm", 60_000, "--burst", 1000)
RUN = ("run", "in.txt", "-o", "out.jsonl", *FAST)


@pytest.fixture
async def in_flight(start, at, backend, tmp_path):
    """Starts a run of 100 prompts and waits until 48 of them are in flight."""

    async def in_flight(**options):
        (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(100)))
        backend.held = {f"p{number}" for number in range(100)}
        command = await start(*RUN, **at, **options)
        await backend.until_asked(48)
        return command

    return in_flight


@pytest.fixture
def counted(tmp_path):
    def counted():
        with JournalReader.open(tmp_path / "out.jsonl") as journal:
            counts = journal.counts()
        return counts.answered, counts.in_flight, counts.possibly_billed

    return counted


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_each_signal_lets_what_is_in_flight_finish(in_flight, onellm, at, backend, counted, tmp_path, number):
    command = await in_flight()
    command.interrupt(number)
    await command.says("Stopping: nothing more is sent")
    await backend.release()
    ended = await command.ended()

    assert ended.code == 128 + number
    assert counted() == (48, 0, 0)
    assert (await onellm(*RUN, **at)).code == 0
    assert len(backend.asked) == len(set(backend.asked)) == 100
    assert len(list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))) == 100


@pytest.mark.parametrize(
    "following", [[signal.SIGHUP, signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP], [signal.SIGINT, signal.SIGHUP]]
)
async def test_a_hangup_never_hurries(in_flight, backend, counted, following):
    command = await in_flight()
    first, *others = following
    command.interrupt(first)
    await command.says("Stopping: nothing more is sent")
    for number in others:
        await asyncio.sleep(0.5)
        command.interrupt(number)
    await asyncio.sleep(0.2)
    await backend.release()
    ended = await command.ended()

    assert ended.code == 128 + first
    assert counted() == (48, 0, 0)


async def test_a_sigterm_that_timeout_sends_twice_is_one(in_flight, backend, counted):
    command = await in_flight(without=("timeout", "--preserve-status", "60"))
    command.interrupt(signal.SIGTERM)  # which `timeout` passes on to the run and to their group
    await command.says("Stopping: nothing more is sent")
    await asyncio.sleep(0.2)
    await backend.release()
    ended = await command.ended()

    assert ended.code == 143
    assert counted() == (48, 0, 0)


async def test_a_second_sigterm_ends_at_once(in_flight, counted):
    command = await in_flight()
    command.interrupt(signal.SIGTERM)
    await command.says("Stopping: nothing more is sent")
    await asyncio.sleep(0.3)  # sooner, it would be the same
    command.interrupt(signal.SIGTERM)
    ended = await command.ended()

    assert ended.code == 143
    assert "ended at once; requests in flight may be billed." in ended.err
    assert counted() == (0, 48, 0)


@pytest.mark.parametrize(
    ("ignored", "number"), [("HUP", signal.SIGHUP), ("INT", signal.SIGINT), ("TERM", signal.SIGTERM)]
)
async def test_a_signal_that_was_ignored_on_entry_stays_ignored(in_flight, backend, counted, ignored, number):
    command = await in_flight(without=("bash", "-c", f'trap "" {ignored}; exec "$@"', "bash"))
    command.interrupt(number)
    await asyncio.sleep(0.3)
    await backend.release()
    ended = await command.ended()

    assert ended.code == 0
    assert "Stopping" not in ended.err
    assert counted() == (100, 0, 0)


async def test_nohup_keeps_a_run_alive_when_its_terminal_is_closed(in_flight, backend, counted):
    command = await in_flight(without=("nohup",))
    command.interrupt(signal.SIGHUP)
    await asyncio.sleep(0.3)
    await backend.release()

    assert (await command.ended()).code == 0
    assert counted() == (100, 0, 0)


async def test_a_background_job_of_a_script_ignores_ctrl_c_and_obeys_sigterm(in_flight, backend, counted):
    command = await in_flight(without=("setsid", "bash", "-c", 'trap : INT TERM; "$@" & wait; wait; wait', "bash"))
    command.interrupt_group(signal.SIGINT)
    await asyncio.sleep(0.3)
    command.interrupt_group(signal.SIGTERM)
    await command.says("Stopping: nothing more is sent")
    await backend.release()
    await command.ended()

    assert counted() == (48, 0, 0)


def is_pending(number, pid):
    """Whether a signal was sent to a process that has not taken it yet."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(1 << number - 1 & (int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)))


async def test_after_a_hangup_one_sigterm_is_graceful_and_the_next_ends_at_once(in_flight, counted):
    command = await in_flight()
    command.interrupt(signal.SIGHUP)
    await command.says("Stopping: nothing more is sent")
    command.interrupt(signal.SIGTERM)
    while is_pending(signal.SIGTERM, command.process.pid):  # noqa: ASYNC110  # it says nothing, and may have to wait
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # sooner, the next would be the same
    assert command.process.returncode is None
    command.interrupt(signal.SIGTERM)
    ended = await command.ended()

    assert ended.code == 129
    assert counted() == (0, 48, 0)


async def test_the_handlers_of_before_are_back_after_the_block():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with ending_on_signals(asyncio.Event()):
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in before} == before


async def test_two_sigterms_at_once_are_one_although_the_first_was_handled_before_the_second():
    stop = asyncio.Event()
    with ending_on_signals(stop) as caught:
        signal.raise_signal(signal.SIGTERM)
        await stop.wait()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # a second one would cancel this task
    assert caught.number == signal.SIGTERM


async def test_where_there_is_no_sighup_the_others_are_handled(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    stop = asyncio.Event()
    with ending_on_signals(stop) as caught:
        signal.raise_signal(signal.SIGTERM)
        await stop.wait()
    assert caught.number == signal.SIGTERM


@pytest.fixture
async def overloaded():
    """Environment that leads to a service that answers 503 with ``Retry-After: 40``, and the queue of its requests."""
    got = asyncio.Queue()

    async def refuse(request):
        got.put_nowait(await request.read())
        return web.Response(status=503, headers={"Retry-After": "40"}, text="overloaded")

    service = web.Application()
    service.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(service) as server:
        yield {"ONELLM_BASE_URL": str(server.make_url("/api")), "ONELLM_API_KEY": "good"}, got


@pytest.mark.parametrize("prompts", [2, 100])
@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGHUP", "stop"])
async def test_a_run_that_waits_to_retry_ends_at_once(start, onellm, overloaded, tmp_path, prompts, end):
    there, got = overloaded
    (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(prompts)))
    command = await start(*RUN, **there)
    for _ in range(min(prompts, 5)):
        await got.get()
    await asyncio.sleep(0.5)  # all of them have their answer and wait
    if end == "stop":
        assert (await onellm("stop", "out.jsonl")).code == 0
    else:
        command.interrupt(getattr(signal, end))
    async with asyncio.timeout(20):  # half of what the service asked for; it takes about a second
        ended = await command.ended()

    assert ended.code == (130 if end == "stop" else 128 + getattr(signal, end)), ended.err
    assert f"not sent yet: {prompts} prompts." in ended.err
    with JournalReader.open(tmp_path / "out.jsonl") as journal:
        counts = journal.counts()
    assert (counts.answered, counts.failed, counts.in_flight, counts.possibly_billed) == (0, 0, 0, 0)
