"""What became of a prompt in a run without a journal, as one line of output. Pure.

The plain shape::

    {"index": 0, "custom_id": "a", "response": {"content", "model", "provider", "usage", "finish_reason", "cost",
     "attempts"} or null, "error": null or {"type", "message", "status_code"}}

and, for an OpenAI-batch input, OpenAI's::

    {"id", "custom_id", "response": {"status_code", "request_id", "body"} or null, "error": null or {"code", "message"}}

where an HTTP error is a response, and ``error`` is for what never got an HTTP answer.
"""

from attrs import asdict, frozen

from onellm_async.batch.formats import InputFormat
from onellm_async.batch.items import Item
from onellm_async.chat import JSON, ChatOutcome, ChatResponse
from onellm_async.errors import APIStatusError, OneLLMError
from onellm_async.wire import dump_json

__all__ = ["OutcomeWriter"]


@frozen
class OutcomeWriter:
    """Writes outcomes as JSON lines, in the shape that belongs to an input format.

    Attributes:
        created: The time to write where OpenAI's shape wants one, in seconds since 1970.
    """

    created: int

    def line(self, item: Item, outcome: ChatOutcome, shape: InputFormat) -> bytes:
        """One line, with its line break."""
        record = self._openai(item, outcome) if shape is InputFormat.OPENAI_BATCH else _plain(item, outcome)
        return dump_json(record) + b"\n"

    def _openai(self, item: Item, outcome: ChatOutcome) -> dict[str, JSON]:
        name = f"batch_req_{item.index}"
        record: dict[str, JSON] = {"id": name, "custom_id": item.custom_id, "response": None, "error": None}
        error = outcome.error
        if outcome.response is not None:
            body = self._completion(item, outcome.response)
            record["response"] = {"status_code": 200, "request_id": name, "body": body}
        elif isinstance(error, APIStatusError):
            body = {"error": {"message": str(error), "type": type(error).__name__, "code": error.status_code}}
            record["response"] = {"status_code": error.status_code, "request_id": name, "body": body}
        elif error is not None:
            record["error"] = {"code": type(error).__name__, "message": str(error)}
        return record

    def _completion(self, item: Item, response: ChatResponse) -> dict[str, JSON]:
        usage = response.usage
        return {
            "id": f"chatcmpl-{item.index}",
            "object": "chat.completion",
            "created": self.created,
            "model": response.model or item.request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": response.role or "assistant", "content": response.content},
                    "finish_reason": response.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": None
            if usage is None
            else {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
            "onellm": {"provider": response.provider, "cost": response.cost, "attempts": response.attempts},
        }


def _plain(item: Item, outcome: ChatOutcome) -> dict[str, JSON]:
    record: dict[str, JSON] = {"index": item.index}
    if item.custom_id is not None:
        record["custom_id"] = item.custom_id
    record["response"] = None if outcome.response is None else _response(outcome.response)
    record["error"] = None if outcome.error is None else _error(outcome.error)
    return record


def _response(response: ChatResponse) -> dict[str, JSON]:
    return {
        "content": response.content,
        "model": response.model,
        "provider": response.provider,
        "usage": None if response.usage is None else asdict(response.usage),
        "finish_reason": response.finish_reason,
        "cost": response.cost,
        "attempts": response.attempts,
    }


def _error(error: OneLLMError) -> dict[str, JSON]:
    return {"type": type(error).__name__, "message": str(error), "status_code": getattr(error, "status_code", None)}
