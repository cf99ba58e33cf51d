"""From a `ChatResponse` to chat completions and the events of a stream. Pure."""

from collections.abc import Iterator, Mapping

from attrs import frozen

from onellm_async.chat import JSON, ChatResponse
from onellm_async.wire import dump_json


@frozen
class ReplyHead:
    """What a completion says beside the answer.

    Attributes:
        id: Id of the completion.
        created: Seconds since 1970.
        model: The id that was asked for.
    """

    id: str
    created: int
    model: str


def to_completion(response: ChatResponse, head: ReplyHead) -> dict[str, JSON]:
    """The body of a complete reply.

    Args:
        response: The answer.
        head: Id, time and model.
    """
    message = {"role": "assistant", "content": response.content, "refusal": _text_or_none(response, "refusal")}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _object_or_none(response, "logprobs"),
        "finish_reason": response.finish_kind,
    }
    body = {**_head(head, "chat.completion"), "choices": [choice], "onellm": describe_response(response)}
    if (usage := _usage(response)) is not None:
        body["usage"] = usage
    return body


def completion_chunks(response: ChatResponse, head: ReplyHead, *, include_usage: bool) -> Iterator[bytes]:
    """The events of a stream: the whole answer, its end, the usage if wanted, ``[DONE]``.

    Args:
        response: The answer.
        head: Id, time and model.
        include_usage: Whether the client asked for the usage.
    """
    start = _head(head, "chat.completion.chunk") | ({"usage": None} if include_usage else {})

    def event(delta: Mapping[str, JSON], reason: str | None) -> bytes:
        logprobs = None if reason else _object_or_none(response, "logprobs")
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event({**start, "choices": [choice]} | ({"onellm": describe_response(response)} if reason else {}))

    delta: dict[str, JSON] = {"role": "assistant", "content": response.content}
    if (refusal := _text_or_none(response, "refusal")) is not None:
        delta["refusal"] = refusal
    yield event(delta, None)
    yield event({}, response.finish_kind)
    if include_usage:
        yield _event({**start, "choices": [], "usage": _usage(response)})
    yield b"data: [DONE]\n\n"


def describe_response(response: ChatResponse) -> dict[str, JSON]:
    """What OneLLM says beyond OpenAI's fields.

    Args:
        response: The answer.
    """
    return {
        "provider": response.provider,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "cost": response.cost,
        "attempts": response.attempts,
        "rate_limited": response.rate_limited,
        "possibly_billed": response.possibly_billed,
    }


def _head(head: ReplyHead, kind: str) -> dict[str, JSON]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


def _usage(response: ChatResponse) -> dict[str, JSON] | None:
    usage = response.usage
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    read, written = usage.input_tokens or 0, usage.output_tokens or 0
    total = read + written if usage.total_tokens is None else usage.total_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total}


def _text_or_none(response: ChatResponse, name: str) -> str | None:
    value = response.extra.get(name)
    return value if isinstance(value, str) else None


def _object_or_none(response: ChatResponse, name: str) -> JSON:
    value = response.extra.get(name)
    return value if isinstance(value, Mapping) else None


def _event(body: Mapping[str, JSON]) -> bytes:
    return b"data: " + dump_json(body) + b"\n\n"
