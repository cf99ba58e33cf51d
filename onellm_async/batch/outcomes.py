"""What the journal keeps of an outcome, as JSON: everything an output needs, nothing that differs between attempts."""

from onellm_async.batch.inputs.items import Item
from onellm_async.chat import ChatResponse
from onellm_async.errors import OneLLMError
from onellm_async.wire import dump_json

__all__ = ["answer_json", "failure_json"]


def answer_json(response: ChatResponse, item: Item) -> bytes:
    """An answer."""
    usage = response.usage
    return dump_json(
        {
            "content": response.content,
            "role": response.role,
            "model": response.model or item.request.model,
            "provider": response.provider,
            "usage": None
            if usage is None
            else {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
            "finish_reason": response.finish_reason,
            "cost": response.cost,
        }
    )


def failure_json(error: OneLLMError) -> bytes:
    """A failure; its message without the figures of this attempt, which another would not share."""
    message = f"{error.message} {error.advice}".strip()
    return dump_json(
        {"type": type(error).__name__, "message": message, "status_code": getattr(error, "status_code", None)}
    )
