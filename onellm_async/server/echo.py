"""The deterministic answer: the last user message again, so that every answer can be checked. Pure."""

from math import ceil

from onellm_async.chat import ChatRequest, Usage
from onellm_async.server.jobs import MOST_TOKENS, Completion, Job

__all__ = ["asked_text", "echo", "input_tokens_of", "tokens_of"]

_CHARACTERS_PER_TOKEN = 4


def tokens_of(text: str) -> int:
    """The length of a text in the echo's tokens: four characters each, the last one possibly shorter.

    Example:
        >>> tokens_of("Hello"), tokens_of("")
        (2, 0)
    """
    return ceil(len(text) / _CHARACTERS_PER_TOKEN)


def input_tokens_of(request: ChatRequest) -> int:
    """The length of all messages and the system text, in the echo's tokens."""
    return sum(tokens_of(message.content) for message in request.messages) + tokens_of(request.system or "")


def asked_text(request: ChatRequest) -> str:
    """The last user message; the last message of all when no user has spoken."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return request.messages[-1].content


def echo(job: Job) -> Completion:
    """Says the last user message again, cut at the first stop sequence and at the token limit.

    ``finish_reason`` is ``"length"`` when the token limit cut it, else ``"stop"``. With ``n``, all answers are billed,
    and one is returned.
    """
    content = asked_text(job.request)
    cuts = [content.find(stop) for stop in job.request.stop_sequences or () if stop]
    content = content[: min((cut for cut in cuts if cut >= 0), default=len(content))]
    finish_reason = "stop"
    if job.max_tokens is not None and tokens_of(content) > job.max_tokens:
        content = content[: job.max_tokens * _CHARACTERS_PER_TOKEN]
        finish_reason = "length"
    read, written = input_tokens_of(job.request), min(tokens_of(content) * (job.request.n or 1), MOST_TOKENS)
    return Completion(content, Usage(read, written, min(read + written, MOST_TOKENS)), finish_reason)
