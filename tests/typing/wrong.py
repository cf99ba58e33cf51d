# ruff: noqa: B018  # what must not be written
"""What a user must not write; each error code below has to be reported, or mypy finds the comment unused."""

from onellm_async import AsyncOneLLM, ChatRequest, ChatResponse, Conversation, Limits, OneLLM, RetryPolicy, Timeout


async def main(client: AsyncOneLLM) -> None:
    await client.chat("x", model="GPT-5", temprature=1)  # type: ignore[call-arg]
    await client.chat("x", model="GPT-5", stream=True)  # type: ignore[call-arg]
    await client.chat("x", model="GPT-5", max_tokens="5")  # type: ignore[arg-type]
    await client.chat("x")  # type: ignore[call-arg]
    await client.chat("x", "GPT-5")  # type: ignore[call-arg]
    await client.chat(5, model="GPT-5")  # type: ignore[arg-type]
    await client.gather_chats(["x"], model="GPT-5", temprature=1)  # type: ignore[call-overload]
    await client.gather_chats(5, model="GPT-5")  # type: ignore[call-overload]
    answers: list[ChatResponse] = await client.gather_chats(["x"], model="GPT-5", return_exceptions=True)  # type: ignore[assignment]
    print(answers)
    async for outcome in client.iter_chats(["x"], model="GPT-5", tempo=1):  # type: ignore[call-arg]
        outcome.content  # type: ignore[attr-defined]
    response = await client.send(ChatRequest("GPT-5", "x"))
    response.cost + 1  # type: ignore[operator]
    response.content = "y"  # type: ignore[misc]
    await client.send("x")  # type: ignore[arg-type]
    AsyncOneLLM("key", retry=3)  # type: ignore[arg-type]
    AsyncOneLLM("key", "https://llm.example")  # type: ignore[call-arg]
    RetryPolicy(ambiguous="sometimes")  # type: ignore[arg-type]
    Limits(max_concurency=3)  # type: ignore[call-arg]
    Timeout(total="5")  # type: ignore[arg-type]
    Timeout(5)  # type: ignore[call-arg]
    Limits(rates=40)  # type: ignore[arg-type]
    Limits(max_concurrency="all")  # type: ignore[arg-type]
    Limits(40)  # type: ignore[call-arg]
    client.limits = Limits()  # type: ignore[misc]
    await client.chat("x", model="GPT-5", lane="fast")  # type: ignore[arg-type]
    AsyncOneLLM(lambda: 5)  # type: ignore[arg-type, return-value]
    OneLLM("key", session=None)  # type: ignore[call-arg]
    with OneLLM() as synchronous:
        synchronous.chat("x", model="GPT-5", temprature=1)  # type: ignore[call-arg]
    Conversation(client, model="GPT-5", max_tokens_history=3)  # type: ignore[call-arg]
    await client.send(ChatRequest("GPT-5", "x"), group=3)  # type: ignore[arg-type]
    await client.run("in.txt", "out.jsonl", response_model=5)  # type: ignore[arg-type]
    await client.run("in.txt", "out.jsonl", corrections="1")  # type: ignore[arg-type]
