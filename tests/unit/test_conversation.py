# ruff: noqa: ASYNC110  # polling in turns of the loop
import asyncio

import pytest

from onellm_async import (
    AsyncOneLLM,
    ConfigurationError,
    Conversation,
    InvalidRequestError,
    Limits,
    Message,
    RetryPolicy,
)
from onellm_async.errors import InternalServerError
from onellm_async.transport import RawReply
from onellm_async.wire import dump_json, parse_json


class Counting:
    """Answers with how many messages it was sent; fails or hangs when told so by the last."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.under_way = 0

    async def post(self, body: bytes) -> RawReply:
        sent = parse_json(body)
        self.bodies.append(sent)
        self.under_way += 1
        assert self.under_way == 1, "turns overlap"
        try:
            await asyncio.sleep(0)
            last = sent["messages"][-1]["content"]
            if last == "hang":
                await asyncio.get_running_loop().create_future()
            status = 500 if last == "fail" else 200
            return RawReply(status, {}, dump_json({"content": str(len(sent["messages"]))}))
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        return None


@pytest.fixture
def transport() -> Counting:
    return Counting()


@pytest.fixture
def client(transport: Counting) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=RetryPolicy.none())


async def test_turns_build_on_each_other(client: AsyncOneLLM, transport: Counting) -> None:
    conversation = Conversation(client, model="GPT-5", system="Be brief.", history=[{"role": "user", "content": "a"}])
    assert [(await conversation.say(text)).content for text in ("b", "c", "d")] == ["2", "4", "6"]
    assert conversation.messages[:3] == (Message.user("a"), Message.user("b"), Message.assistant("2"))
    assert {body["system"] for body in transport.bodies} == {"Be brief."}
    conversation.forget()
    assert conversation.messages == ()
    assert (await conversation.say("e")).content == "1"


async def test_a_failed_or_cancelled_turn_leaves_the_history_as_it_was(
    client: AsyncOneLLM, transport: Counting
) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=4)
    for text in "abc":
        await conversation.say(text)
    before = conversation.messages
    with pytest.raises(InternalServerError):
        await conversation.say("fail")
    assert conversation.messages == before
    turn = asyncio.create_task(conversation.say("hang"))
    while not transport.under_way:
        await asyncio.sleep(0)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    with pytest.raises(InvalidRequestError):
        await conversation.say(5)  # type: ignore[arg-type]
    assert conversation.messages == before
    assert (await conversation.say("d")).content


async def test_turns_said_at_once_are_taken_one_after_the_other(client: AsyncOneLLM) -> None:
    conversation = Conversation(client, model="GPT-5")
    replies = await asyncio.gather(*(conversation.say(text) for text in "abcde"))
    assert [reply.content for reply in replies] == ["1", "3", "5", "7", "9"]
    assert [message.content for message in conversation.messages[::2]] == list("abcde")


@pytest.mark.parametrize("most", range(2, 9))
async def test_no_more_is_kept_or_sent_than_allowed_and_no_answer_leads(
    client: AsyncOneLLM, transport: Counting, most: int
) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=most)
    for number in range(8):
        await conversation.say(str(number))
        assert len(conversation.messages) <= most
        sent = transport.bodies[-1]["messages"]
        assert sent[0]["role"] == "user"
        assert sent[-1]["content"] == str(number)
        assert len(sent) < most or number == 0


@pytest.mark.parametrize("most", [1, 0, -5])
def test_a_memory_too_short_for_one_turn_is_refused(client: AsyncOneLLM, most: int) -> None:
    with pytest.raises(ConfigurationError, match=f"max_messages is {most}"):
        Conversation(client, model="GPT-5", max_messages=most)
