"""A run that holds back sends nothing twice by itself, whatever the retry policy of its client."""

import asyncio
from time import monotonic

from onellm_async import AsyncOneLLM
from onellm_async.batch import FileRun, ProgressTracker, RunPolicy, RunWatch, open_source, run_file, survey
from onellm_async.errors import APIConnectionError
from onellm_async.testing import FakeTransport


async def test_a_run_from_python_that_holds_back_sends_nothing_twice_by_itself(tmp_path):
    (tmp_path / "one.txt").write_text("one prompt\n")
    run = FileRun(output=str(tmp_path / "hold.jsonl"), policy=RunPolicy(ambiguous="hold"))
    watch, service = (
        RunWatch(tracker=ProgressTracker(monotonic()), stop=asyncio.Event()),
        FakeTransport(APIConnectionError("reset")),
    )
    async with AsyncOneLLM(transport=service) as client, open_source(str(tmp_path / "one.txt")) as source:
        await run_file(client, source, await survey(source, strict=False), run, watch)
    assert len(service.requests) == 1
