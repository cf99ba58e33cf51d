"""Who answers behind the local server: what a backend has to do, and the echo."""

from math import ceil
from typing import Protocol

from onellm_async.chat import ChatRequest, Usage
from onellm_async.failure_kinds import Billing
from onellm_async.server.jobs import MAX_TOKEN_COUNT, Completion, Job

_CHARACTERS_PER_TOKEN = 4


class BackendError(Exception):
    """The backend could not answer. The client receives the status and the text.

    Args:
        text: What happened, for the client.
        status: 400 to 599. Default 500.
        retry_after: Seconds after which a retry makes sense; None says nothing about it.
        billing: What became of the bill of the attempt, for the ledger.

    Attributes:
        status: See above.
        retry_after: See above.
        billing: See above.

    Raises:
        ValueError: If the status is none of an error, or `retry_after` is negative.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int = 500,
        retry_after: float | None = None,
        billing: Billing = Billing.NOT_BILLED,
    ) -> None:
        super().__init__(text)
        if not 400 <= status <= 599:
            raise ValueError(f"status is {status}; it must be a status of an error, 400 to 599.")
        if retry_after is not None and not 0 <= retry_after < float("inf"):
            raise ValueError(f"retry_after is {retry_after}; it must be a finite number of seconds of at least 0.")
        self.status: int = status
        self.retry_after: float | None = retry_after
        self.billing: Billing = billing


class Backend(Protocol):
    """Turns an accepted job into a completion.

    A backend that asks another service may set an attribute ``forwards`` to True. The server then cancels `complete`
    when the client hangs up, counts what was cut off as possibly billed, and listens beyond this machine only with
    keys. Without it, the work goes on and is billed when the client has hung up, as the published service does.
    """

    async def complete(self, job: Job) -> Completion:
        """Answers `job`.

        Raises:
            BackendError: If it cannot.
        """
        ...

    async def aclose(self) -> None:
        """Frees what it holds."""
        ...


class EchoBackend:
    """Answers every chat with its own last user message: no model, no cost, and every answer can be checked."""

    async def complete(self, job: Job) -> Completion:
        """Says the last user message again."""
        return echo(job)

    async def aclose(self) -> None:
        """Holds nothing."""


def count_tokens(text: str) -> int:
    """The length of a text in the echo's tokens: four characters each, the last one possibly shorter.

    Example:
        >>> count_tokens("Hello"), count_tokens("")
        (2, 0)
    """
    return ceil(len(text) / _CHARACTERS_PER_TOKEN)


def count_input_tokens(request: ChatRequest) -> int:
    """The length of all messages and the system text, in the echo's tokens."""
    return sum(count_tokens(message.content) for message in request.messages) + count_tokens(request.system or "")


def last_user_message(request: ChatRequest) -> str:
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
    content = last_user_message(job.request)
    cuts = [content.find(stop) for stop in job.request.stop_sequences or () if stop]
    content = content[: min((cut for cut in cuts if cut >= 0), default=len(content))]
    finish_reason = "stop"
    if job.max_tokens is not None and count_tokens(content) > job.max_tokens:
        content = content[: job.max_tokens * _CHARACTERS_PER_TOKEN]
        finish_reason = "length"
    read, written = count_input_tokens(job.request), min(count_tokens(content) * (job.request.n or 1), MAX_TOKEN_COUNT)
    return Completion(content, Usage(read, written, min(read + written, MAX_TOKEN_COUNT)), finish_reason)
