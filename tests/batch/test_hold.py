"""A run that holds back sends nothing twice by itself, whatever the retry policy of its client."""

from onellm_async import AsyncOneLLM
from onellm_async.errors import APIConnectionError
from onellm_async.testing import FakeTransport


async def test_a_run_from_python_that_holds_back_sends_nothing_twice_by_itself(tmp_path):
    (tmp_path / "one.txt").write_text("one prompt\n")
    service = FakeTransport(APIConnectionError("reset"))
    async with AsyncOneLLM(transport=service) as client:
        await client.run(tmp_path / "one.txt", tmp_path / "hold.jsonl", ambiguous="hold")
    assert len(service.requests) == 1
