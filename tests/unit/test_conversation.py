# ruff: noqa: ASYNC110  # polling in turns of the loop
import asyncio
from collections.abc import Iterator

import pytest

from onellm_async import (
    AsyncOneLLM,
    ChatResponse,
    ConfigurationError,
    Conversation,
    DeadlineExceededError,
    Event,
    InvalidRequestError,
    Limits,
    Message,
    RetryPolicy,
)
from onellm_async.errors import FailureKind, InternalServerError
from onellm_async.events import Answered
from onellm_async.testing import FakeRequest, FakeTransport, Reply, failure, hang


def count_messages(request: FakeRequest) -> Reply:
    """Answers with how many messages it was sent; fails or hangs when the last one says so."""
    if any(not str(message["content"]).strip() for message in request.messages):
        return 400
    return {"hang": hang(), "fail": failure(500)}.get(request.prompt) or str(len(request.messages))


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    transport = FakeTransport(count_messages)
    yield transport
    assert transport.max_in_flight <= 1, "turns do not overlap"


@pytest.fixture
def client(transport: FakeTransport) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=RetryPolicy.none())


async def test_turns_build_on_each_other(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5", system="Be brief.", history=[{"role": "user", "content": "a"}])
    assert [(await conversation.say(text)).content for text in ("b", "c", "d")] == ["2", "4", "6"]
    assert conversation.messages[:3] == (Message.user("a"), Message.user("b"), Message.assistant("2"))
    assert {request.fields["system"] for request in transport.requests} == {"Be brief."}
    conversation.forget()
    assert conversation.messages == ()
    assert (await conversation.say("e")).content == "1"


async def test_a_failed_or_cancelled_turn_leaves_the_history_as_it_was(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=4)
    for text in "abc":
        await conversation.say(text)
    before = conversation.messages
    with pytest.raises(InternalServerError):
        await conversation.say("fail")
    assert conversation.messages == before
    turn = asyncio.create_task(conversation.say("hang"))
    while not transport.in_flight:
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
    client: AsyncOneLLM, transport: FakeTransport, most: int
) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=most)
    for number in range(8):
        await conversation.say(str(number))
        assert len(conversation.messages) <= most
        sent = transport.requests[-1].messages
        assert sent[0]["role"] == "user"
        assert sent[-1]["content"] == str(number)
        assert len(sent) < most or number == 0


@pytest.mark.parametrize(
    "reply",
    [
        {"content": ""},
        {"content": " \n"},
        {"content": None, "finish_reason": "content_filter"},
        {"content": None, "finish_reason": "length"},
        {"content": None, "tool_calls": [{"id": "c1"}]},
        {"content": None, "refusal": "No."},
        {"content": [{"type": "image_url"}]},
    ],
)
async def test_an_answer_without_text_joins_no_history_and_its_question_neither(
    client: AsyncOneLLM, transport: FakeTransport, reply: dict
) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=3)
    transport.set_replies(lambda request: reply if request.prompt == "hello" else count_messages(request))
    answer = await conversation.say("hello")
    assert answer.content.strip() == ""
    assert {**reply, **answer.extra} == {**answer.extra, **reply}, "it is returned as it is"
    assert conversation.messages == ()
    assert (await conversation.say("are you there?")).content == "1"
    before = conversation.messages
    await conversation.say("hello")
    assert conversation.messages == before == (Message.user("are you there?"), Message.assistant("1"))
    assert (await conversation.say("please?")).content == "1"


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
async def test_an_empty_text_is_refused_unsent(client: AsyncOneLLM, transport: FakeTransport, text: str) -> None:
    conversation = Conversation(client, model="GPT-5")
    with pytest.raises(InvalidRequestError, match="The text to say is empty"):
        await conversation.say(text)
    assert (transport.requests, conversation.messages) == ([], ())


@pytest.mark.parametrize("most", range(2, 8))
@pytest.mark.parametrize("begin", [1, 2])
async def test_the_instructions_that_a_history_begins_with_stay(
    client: AsyncOneLLM, transport: FakeTransport, most: int, begin: int
) -> None:
    instructions = [Message.system(f"rule {number}") for number in range(begin)]
    history = [*instructions, Message.user("a"), Message.assistant("b"), Message.system("later")]
    conversation = Conversation(client, model="GPT-5", max_messages=most, history=history)
    for number in range(6):
        await conversation.say(str(number))
        sent = [(message["role"], message["content"]) for message in transport.requests[-1].messages]
        assert sent[:begin] == [("system", message.content) for message in instructions]
        assert sent[-1] == ("user", str(number))
        assert sent[begin][0] != "assistant"
        assert len(conversation.messages) <= max(most, begin + 2)
    assert ("system", "later") not in sent
    assert len(conversation.messages) >= min(most, begin + 2) - 1


@pytest.mark.virtual_time
async def test_a_turn_that_gets_its_turn_too_late_has_exceeded_its_deadline() -> None:
    busy: list[float] = []

    def block(event: Event) -> None:
        if isinstance(event, Answered) and not busy:
            busy.append(1)
            loop._jumping.elapsed += 0.8  # type: ignore[attr-defined]  # the loop stands still meanwhile

    loop = asyncio.get_running_loop()
    client = AsyncOneLLM(transport=FakeTransport("Hi"), limits=Limits.unlimited(), hooks=[block])
    conversation = Conversation(client, model="GPT-5", deadline=0.5)
    first, second = await asyncio.gather(conversation.say("a"), conversation.say("b"), return_exceptions=True)
    assert isinstance(first, ChatResponse)
    assert type(second) is DeadlineExceededError
    assert second.kind is FailureKind.DEADLINE
    assert len(conversation.messages) == 2


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), "5", True])
def test_a_deadline_that_is_none_is_refused(client: AsyncOneLLM, deadline: object) -> None:
    with pytest.raises(ConfigurationError, match="deadline is"):
        Conversation(client, model="GPT-5", deadline=deadline)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 0, -5])
def test_a_memory_too_short_for_one_turn_is_refused(client: AsyncOneLLM, most: int) -> None:
    with pytest.raises(ConfigurationError, match=f"max_messages is {most}"):
        Conversation(client, model="GPT-5", max_messages=most)
