# ruff: noqa: ASYNC110  # polling in turns of the loop
import asyncio
import json
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
    RequestCancelledError,
    RetryPolicy,
    Usage,
)
from onellm_async.errors import FailureKind, InternalServerError
from onellm_async.events import Answered
from onellm_async.testing import FakeRequest, FakeTransport, Reply, answer, failure, hang


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


async def test_options_of_a_turn_replace_those_of_the_conversation_for_that_turn(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5", system="Be brief.", temperature=1)
    await conversation.say("a", model="GPT-5-Nano", temperature=0, system=None, max_tokens=5)
    await conversation.say("b")
    first, second = (request.fields for request in transport.requests)
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("GPT-5-Nano", 0, 5)
    assert "system" not in first
    assert (second["model"], second["temperature"], second["system"]) == ("GPT-5", 1, "Be brief.")
    with pytest.raises(InvalidRequestError, match="temperature is 3"):
        await conversation.say("c", temperature=3)
    assert len(conversation.messages) == 4


@pytest.mark.parametrize("most", [None, 4])
async def test_undo_restores_the_history_before_the_last_turn(client: AsyncOneLLM, most: int | None) -> None:
    conversation = Conversation(client, model="GPT-5", max_messages=most)
    for text in ("a", "b", "c"):
        await conversation.say(text)
    history = conversation.messages
    await conversation.say("d")
    assert conversation.undo() == "d"
    assert conversation.messages == history
    assert conversation.undo() == "c"
    assert conversation.messages == history[:-2]


async def test_undo_without_a_turn_changes_nothing(client: AsyncOneLLM) -> None:
    history = [Message.system("rule"), Message.user("a question of others")]
    conversation = Conversation(client, model="GPT-5", history=history)
    assert conversation.undo() is None
    assert conversation.messages == tuple(history)


@pytest.mark.parametrize("change", ["undo", "forget"])
async def test_a_turn_that_is_undone_or_forgotten_while_it_is_answered_does_not_join_the_history(
    client: AsyncOneLLM, transport: FakeTransport, change: str
) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    before = conversation.messages if change == "undo" else ()
    turn = asyncio.create_task(conversation.say("b"))
    while not transport.in_flight:
        await asyncio.sleep(0)
    assert getattr(conversation, change)() == ("b" if change == "undo" else None)
    assert (await turn).content == "3"
    assert conversation.messages == before


async def test_retry_says_a_text_again_that_failed(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    transport.set_replies(failure(500))
    with pytest.raises(InternalServerError):
        await conversation.say("b")
    transport.set_replies("there")
    assert (await conversation.retry()).content == "there"
    assert [message.content for message in conversation.messages] == ["a", "1", "b", "there"]


async def test_retry_replaces_an_answer_only_by_another_answer(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5")
    for text in "ab":
        await conversation.say(text)
    transport.set_replies("better")
    await conversation.retry(temperature=1)
    assert [message.content for message in conversation.messages] == ["a", "1", "b", "better"]
    assert transport.requests[-1].prompt == "b"
    transport.set_replies([500, ""])
    before = conversation.messages
    with pytest.raises(InternalServerError):
        await conversation.retry()
    await conversation.retry()
    assert conversation.messages == before
    with pytest.raises(InvalidRequestError, match="There is no turn to retry"):
        await Conversation(client, model="GPT-5").retry()


async def test_cancelling_ends_the_turn_in_flight_and_those_that_wait(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    before = conversation.messages
    turns = [asyncio.create_task(conversation.say(text)) for text in ("hang", "b")]
    while not transport.in_flight:
        await asyncio.sleep(0)
    conversation.cancel()
    ended = await asyncio.gather(*turns, return_exceptions=True)
    assert [type(error) for error in ended] == [RequestCancelledError] * 2
    assert (transport.in_flight, conversation.messages) == (0, before)
    conversation.cancel()
    transport.set_replies("there")
    assert (await conversation.retry()).content == "there"
    assert [message.content for message in conversation.messages] == ["a", "1", "b", "there"], "b was said last"


async def test_cancelling_the_task_of_a_turn_is_a_cancellation(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5")
    turn = asyncio.create_task(conversation.say("hang"))
    while not transport.in_flight:
        await asyncio.sleep(0)
    conversation.cancel()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn


async def test_the_oldest_turns_are_forgotten_when_the_history_has_too_many_tokens(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5", system="Be brief.", max_history_tokens=100)
    for number in range(12):
        await conversation.say(f"{number} " + "word " * 12)
        sent = transport.requests[-1].messages
        assert sent[0]["role"] == "user"
        assert sent[-1]["content"].startswith(f"{number} ")
        assert sum(len(message["content"]) for message in sent) <= 4 * 100
    assert 3 <= len(sent) < 12


async def test_the_estimate_of_tokens_follows_the_usage_of_the_answers(transport: FakeTransport) -> None:
    def one_token_per_byte(request: FakeRequest) -> Reply:
        size = sum(len(message["content"]) for message in request.messages)
        return answer("yes", usage=Usage(size, 1, size + 1))

    transport.set_replies(one_token_per_byte)
    client = AsyncOneLLM(transport=transport, limits=Limits.unlimited())
    conversation = Conversation(client, model="GPT-5", max_history_tokens=1000)
    for _ in range(30):
        await conversation.say("x" * 100)
    sent = sum(len(message["content"]) for message in transport.requests[-1].messages)
    assert 500 < sent <= 1000


async def test_a_text_that_is_longer_than_the_budget_is_refused_unsent(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5", max_history_tokens=100)
    await conversation.say("a")
    before = conversation.messages
    with pytest.raises(InvalidRequestError, match=r"about 1,254 tokens with the instructions.* is 100\."):
        await conversation.say("word " * 1000)
    assert (len(transport.requests), conversation.messages) == (1, before)


async def test_a_conversation_is_saved_as_json_and_continues_where_it_was(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(
        client,
        model="GPT-5",
        max_messages=6,
        max_history_tokens=5000,
        history=[Message.system("rule")],
        lane="default",
        deadline=30,
        system="Be brief.",
        stop_sequences=["."],
        temperature=None,
    )
    for text in "ab":
        await conversation.say(text)
    saved = json.loads(json.dumps(conversation.to_dict(), allow_nan=False))
    assert saved["options"] == {"system": "Be brief.", "stop_sequences": ["."]}
    restored = Conversation.from_dict(client, saved)
    assert restored.to_dict() == conversation.to_dict()
    for each in (restored, conversation):
        await each.say("c")
    assert restored.messages == conversation.messages
    assert transport.requests[-1].fields == transport.requests[-2].fields
    assert Conversation.from_dict(client, {"model": "GPT-5"}).to_dict() == {"model": "GPT-5", "lane": "interactive"} | {
        "messages": []
    }


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([], "conversation is of type list; it must be what to_dict returned."),
        ({}, "conversation.model is missing."),
        ({"model": ""}, "conversation cannot be read: model is ''; it must be the name of a model."),
        ({"model": "m", "mesages": []}, "conversation has the unknown field 'mesages'."),
        ({"model": "m", "messages": [{"role": "user", "content": ""}]}, "history[0] is empty, and many services"),
        ({"model": "m", "messages": [{"role": "user"}]}, "conversation.messages[0].content is missing."),
        (
            {"model": "m", "messages": [{"role": "robot", "content": "x"}]},
            "conversation.messages[0] cannot be",
        ),
        ({"model": "m", "max_messages": 1}, "max_messages is 1; it must be at least 2"),
        ({"model": "m", "max_history_tokens": 0}, "max_history_tokens is 0; it must be an integer of at least 1."),
        ({"model": "m", "lane": "fast"}, "lane is 'fast'; it must be one of interactive, default, batch."),
        ({"model": "m", "deadline": -1}, "deadline is -1; it must be a finite number above 0."),
        ({"model": "m", "options": {"temperature": 3}}, "conversation cannot be read: temperature is 3; it must be"),
        ({"model": "m", "options": {"tmperature": 1}}, "conversation cannot be read: There is no request field called"),
        ({"model": "m", "options": 3}, "conversation.options cannot be read"),
    ],
)
async def test_what_is_no_saved_conversation_is_refused_by_name(client: AsyncOneLLM, saved: dict, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conversation.from_dict(client, saved)
    assert caught.value.message.startswith(message)


async def test_a_history_with_an_empty_message_is_refused(client: AsyncOneLLM) -> None:
    with pytest.raises(ConfigurationError, match=r"history\[1\] is empty"):
        Conversation(client, model="GPT-5", history=[Message.user("a"), Message.assistant(" ")])


async def in_flight(transport: FakeTransport) -> None:
    while not transport.in_flight:
        await asyncio.sleep(0)


def contents(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


@pytest.mark.parametrize("end", ["failed", "cancelled", "in flight"])
async def test_a_text_without_answer_is_saved_and_retry_says_it_after_a_restart(
    client: AsyncOneLLM, transport: FakeTransport, end: str
) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    turn = asyncio.create_task(conversation.say("fail" if end == "failed" else "hang"))
    await in_flight(transport)
    saved = conversation.to_dict()
    conversation.cancel() if end == "cancelled" else None
    if end != "in flight":
        await asyncio.gather(turn, return_exceptions=True)
        saved = conversation.to_dict()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    restored = Conversation.from_dict(client, json.loads(json.dumps(saved)))
    assert restored.to_dict() == saved
    transport.set_replies("there")
    await restored.retry()
    assert contents(restored) == ["a", "1", "fail" if end == "failed" else "hang", "there"]
    assert "unanswered" not in restored.to_dict()


@pytest.mark.parametrize("text", ["", " ", 5, "word " * 1000])
async def test_retry_after_a_rejected_text_never_replaces_the_answer_of_another(
    client: AsyncOneLLM, transport: FakeTransport, text: str
) -> None:
    conversation = Conversation(client, model="GPT-5", max_history_tokens=100)
    await conversation.say("a")
    before = conversation.messages
    for attempt in (lambda: conversation.say(text), conversation.retry, conversation.retry):
        with pytest.raises(InvalidRequestError, match=r"text|must be a string"):
            await attempt()
    restored = Conversation.from_dict(client, json.loads(json.dumps(conversation.to_dict())))
    with pytest.raises(InvalidRequestError, match="text"):
        await restored.retry()
    assert (conversation.messages, len(transport.requests)) == (before, 1)
    assert conversation.undo() == ("a" if len(str(text)) < 5 else text)
    conversation.forget()
    with pytest.raises(InvalidRequestError, match="no turn"):
        await conversation.retry()


async def test_retry_says_a_text_whose_options_or_deadline_were_rejected(client: AsyncOneLLM) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    with pytest.raises(InvalidRequestError):
        await conversation.say("b", temperature=3)
    await conversation.retry(temperature=1)
    with pytest.raises(ConfigurationError):
        await conversation.say("c", deadline=-1)
    await conversation.retry()
    assert contents(conversation) == ["a", "1", "b", "3", "c", "5"]


async def test_a_failed_retry_is_retried_in_place_of_the_first_answer(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    transport.set_replies([500, "better"])
    with pytest.raises(InternalServerError):
        await conversation.retry()
    await conversation.retry()
    assert contents(conversation) == ["a", "better"]


async def test_undo_takes_back_each_text_once_the_latest_first(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5")
    for text in "ab":
        await conversation.say(text)
    with pytest.raises(InternalServerError):
        await conversation.say("fail")
    transport.set_replies(lambda request: answer("late", delay=0.001))
    flying, waiting = (asyncio.create_task(conversation.say(text)) for text in ("c", "d"))
    await in_flight(transport)
    assert [conversation.undo() for _ in range(7)] == ["d", "c", "fail", "b", "a", None, None]
    with pytest.raises(RequestCancelledError, match="taken back before it was sent"):
        await waiting
    assert (await flying).content == "late"
    assert (conversation.messages, len(transport.requests)) == ((), 4)


async def test_a_text_that_is_taken_back_while_it_waits_leaves_the_one_in_flight(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5")
    turns = [asyncio.create_task(conversation.say(text)) for text in ("a", "b")]
    await in_flight(transport)
    assert conversation.undo() == "b"
    await asyncio.gather(*turns, return_exceptions=True)
    assert contents(conversation) == ["a", "1"]
    await conversation.say("c")
    again = asyncio.create_task(conversation.retry())
    await in_flight(transport)
    assert conversation.undo() == "c"
    await again
    assert contents(conversation) == ["a", "1"]


async def test_a_retry_that_waits_for_a_text_ends_when_the_text_is_taken_back(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5")
    await conversation.say("a")
    turns = [asyncio.create_task(turn) for turn in (conversation.say("b"), conversation.retry())]
    await in_flight(transport)
    assert conversation.undo() == "b"
    _, retried = await asyncio.gather(*turns, return_exceptions=True)
    assert isinstance(retried, RequestCancelledError)
    assert contents(conversation) == ["a", "1"]


async def test_forget_ends_the_turns_that_wait(client: AsyncOneLLM, transport: FakeTransport) -> None:
    conversation = Conversation(client, model="GPT-5")
    turns = [asyncio.create_task(conversation.say(text)) for text in "ab"]
    await in_flight(transport)
    conversation.forget()
    _, waiting = await asyncio.gather(*turns, return_exceptions=True)
    assert isinstance(waiting, RequestCancelledError)
    assert (conversation.messages, conversation.undo()) == ((), None)


async def test_an_outage_keeps_only_the_latest_failed_texts(client: AsyncOneLLM, transport: FakeTransport) -> None:
    transport.set_replies(500)
    conversation = Conversation(client, model="GPT-5")
    for number in range(30):
        with pytest.raises(InternalServerError):
            await conversation.say(str(number))
    assert conversation.to_dict()["unanswered"] == [str(number) for number in range(20, 30)]
    transport.set_replies("there")
    await conversation.retry()
    assert contents(conversation) == ["29", "there"]
    assert conversation.undo() == "29"
    assert conversation.undo() is None


async def test_a_restored_conversation_takes_another_model_and_other_options(
    client: AsyncOneLLM, transport: FakeTransport
) -> None:
    conversation = Conversation(client, model="GPT-5", system="Be brief.", temperature=1, seed=3)
    await conversation.say("a")
    saved = json.loads(json.dumps(conversation.to_dict()))
    restored = Conversation.from_dict(client, saved, model="GPT-5-Nano", system="Be long.", temperature=None)
    await restored.say("b")
    sent = transport.requests[-1].fields
    assert (sent["model"], sent["system"], sent["seed"], "temperature" in sent) == ("GPT-5-Nano", "Be long.", 3, False)
    assert len(sent["messages"]) == 3
    again = restored.to_dict()
    assert (again["model"], again["options"]) == ("GPT-5-Nano", {"system": "Be long.", "seed": 3})


@pytest.mark.parametrize("options", [{"temperature": 3}, {"model": ""}, {"sytem": "a"}, {"model": 5}])
async def test_options_for_a_restored_conversation_are_checked_as_those_of_a_new_one(
    client: AsyncOneLLM, options: dict
) -> None:
    saved = Conversation(client, model="GPT-5").to_dict()
    with pytest.raises(InvalidRequestError) as caught:
        Conversation.from_dict(client, saved, **options)
    assert "conversation" not in caught.value.message


@pytest.mark.parametrize("change", ["undo", "forget"])
def test_texts_are_taken_back_also_while_no_loop_runs(change: str) -> None:
    async def begin() -> tuple[Conversation, list[asyncio.Task[ChatResponse]]]:
        transport = FakeTransport(answer("there", delay=0.01))
        client = AsyncOneLLM(transport=transport, limits=Limits.unlimited())
        conversation = Conversation(client, model="GPT-5")
        turns = [asyncio.create_task(conversation.say(text)) for text in "ab"]
        await in_flight(transport)
        return conversation, turns

    async def end(turns: list[asyncio.Task[ChatResponse]]) -> list[ChatResponse | BaseException]:
        return await asyncio.gather(*turns, return_exceptions=True)

    with asyncio.Runner() as runner:
        conversation, turns = runner.run(begin())
        assert getattr(conversation, change)() == ("b" if change == "undo" else None)
        first, second = runner.run(end(turns))
    assert isinstance(first, ChatResponse)
    assert isinstance(second, RequestCancelledError)
    assert contents(conversation) == (["a", "there"] if change == "undo" else [])
