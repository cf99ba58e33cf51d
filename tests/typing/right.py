"""What a user writes, and what the type checker must know about it."""

from collections.abc import AsyncIterator
from typing import TypedDict, assert_type

from onellm_async import (
    APIStatusError,
    AsyncOneLLM,
    Attempt,
    ChatOutcome,
    ChatRequest,
    ChatResponse,
    Conversation,
    Dialect,
    Event,
    FanoutProgress,
    Lane,
    Limits,
    Message,
    OneLLM,
    OneLLMError,
    Prompt,
    Rate,
    RequestGroup,
    RetryPolicy,
    Timeout,
    Usage,
)
from onellm_async.events import Answered
from onellm_async.structured_output import structure
from onellm_async.testing import FakeRequest, FakeTransport, ThreadedServer, failure, run_in_virtual_time


def watch(event: Event) -> None:
    if isinstance(event, Answered):
        assert_type(event.cost, float | None)


async def reply_to(request: FakeRequest) -> str:
    return request.prompt


class City(TypedDict):
    name: str


async def cities(client: AsyncOneLLM) -> None:
    reply = await client.chat("Oslo", model="GPT-5", response_model=City)
    assert_type(reply, ChatResponse[City])
    assert_type(reply.parsed, City | None)
    assert_type((await client.chat("Oslo", model="GPT-5")).parsed, None)
    replies = await client.gather_chats(["Oslo"], model="GPT-5", response_model=list[City])
    assert_type(replies, list[ChatResponse[list[City]]])
    async for outcome in client.iter_chats(["Oslo"], model="GPT-5", response_model=City):
        assert_type(outcome, ChatOutcome[City])
    assert_type((await client.run("in.txt", "out.jsonl", response_model=City, corrections=0)).counts.corrections, int)
    await client.run("in.txt", "out.jsonl", response_model=list[City])
    await client.run("in.txt", "out.jsonl", response_model={"type": "object"})
    assert_type(structure("{}", City), City)


async def chat_on(transport: FakeTransport) -> ChatResponse:
    async with AsyncOneLLM(transport=transport) as client:
        return await client.chat("Hello", model="GPT-5")


class Ledger:
    async def before_sending(self, attempt: Attempt, /) -> None:
        assert_type(attempt.number, int)

    def after_failing(self, possibly_billed: int, /) -> None:
        pass


async def key_from_vault() -> str:
    return "sk-…"


async def groups_and_keys() -> None:
    async with AsyncOneLLM(key_from_vault, headers={"X-Team": "research"}) as client:
        group = RequestGroup(wait_for_ready=False)
        request = ChatRequest("GPT-5", "Hello")
        reply = await client.send(request, lane="batch", group=group, attempt_hooks=Ledger())
        assert_type(reply, ChatResponse)
        assert_type(ChatResponse.from_dict(reply.to_dict()), ChatResponse)
        conversation = Conversation(client, model="GPT-5", max_history_tokens=4000, system="Be brief.")
        assert_type(await conversation.say("Hello", temperature=0, model="GPT-5-Nano"), ChatResponse)
        assert_type(await conversation.retry(max_tokens=5), ChatResponse)
        assert_type(conversation.undo(), str | None)
        assert_type(Conversation.from_dict(client, conversation.to_dict()), Conversation)


def without_a_loop() -> None:
    with OneLLM(lambda: "sk-…", limits=Limits(requests_per_minute=600), timeout=30) as client:
        assert_type(client.chat("Hello", model="GPT-5", temperature=0), ChatResponse)
        assert_type(client.gather_chats(["a"], model="GPT-5"), list[ChatResponse])
        for outcome in client.iter_chats(["a"], model="GPT-5"):
            assert_type(outcome.error, OneLLMError | None)
        assert_type(client.run("prompts.csv", "answers.jsonl", max_cost=5, max_tokens=300).complete, bool)


def fakes() -> None:
    for transport in (FakeTransport(reply_to), FakeTransport([429, failure(500, delay=1.0), TimeoutError(), "Hi"])):
        assert_type(run_in_virtual_time(chat_on(transport)), ChatResponse)
    with ThreadedServer(answers={"Hello": "Hi"}) as server:
        assert_type(server.url, str)


def report(progress: FanoutProgress) -> None:
    assert_type(progress.total, int | None)


async def prompts() -> AsyncIterator[str]:
    yield "Hello"


async def main() -> None:
    several = Limits(max_concurrency="auto", requests_per_day=1000, rates=[Rate(40, per=60), Rate(9, 1, window=True)])
    assert_type(several.declared_rates, tuple[Rate, ...])
    lane: Lane = "batch"
    print(several, lane)
    client = AsyncOneLLM(
        "key",
        base_url="https://llm.example/api",
        limits=Limits(max_concurrency=4, requests_per_minute="auto"),
        retry=RetryPolicy(ambiguous="once"),
        timeout=Timeout(total=60),
        dialect=Dialect.BACKEND,
        hooks=[watch],
    )
    async with client as entered:
        assert_type(entered, AsyncOneLLM)
        response = await client.chat(
            "Hello", model="GPT-5-Mini", temperature=0.5, stop_sequences=["."], lane="interactive"
        )
        assert_type(response, ChatResponse)
        assert_type(response.content, str)
        assert_type(response.usage, Usage | None)
        assert_type(response.cost, float | None)

        await client.chat([{"role": "user", "content": "Hello"}], model="a model of mine", extra={"min_p": 0.1})
        await client.chat([Message.user("Hello")], model="GPT-5", deadline=5, response_format={"type": "json_object"})
        assert_type(await client.send(ChatRequest("GPT-5", "Hello", seed=1)), ChatResponse)

        assert_type(await client.gather_chats(["a", "b"], model="GPT-5"), list[ChatResponse])
        assert_type(
            await client.gather_chats(["a"], model="GPT-5", return_exceptions=True, on_progress=report),
            list[ChatResponse | OneLLMError],
        )
        requests = [ChatRequest("GPT-5", "Hello")]
        assert_type(await client.gather_chats(requests, return_exceptions=False), list[ChatResponse])
        histories = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
        assert_type(await client.gather_chats(histories, model="GPT-5"), list[ChatResponse])
        mixed: list[Prompt] = ["a", [Message.user("b")], ChatRequest("GPT-5", "c")]
        await client.gather_chats(mixed, model="GPT-5", max_tokens=5)

        async for outcome in client.iter_chats(prompts(), model="GPT-5", on_progress=report):
            assert_type(outcome, ChatOutcome)
            assert_type(outcome.unwrap(), ChatResponse)
            assert_type(outcome.error, OneLLMError | None)
        async for outcome in client.iter_chats((str(number) for number in range(9)), model="GPT-5", top_p=0.5):
            print(outcome.index)

        conversation = Conversation(client, model="GPT-5", system="Be brief.", max_messages=8)
        assert_type(await conversation.say("Hello"), ChatResponse)
        assert_type(conversation.messages, tuple[Message, ...])
        try:
            await client.chat("x", model="GPT-5")
        except APIStatusError as error:
            assert_type(error.status_code, int)
            assert_type(error.possibly_billed, int)
    await client.aclose()
