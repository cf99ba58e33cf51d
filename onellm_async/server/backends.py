"""The interface of a backend, which answers the chats of the local server, and the echo."""

from math import ceil
from typing import Protocol

from onellm_async.chat import ChatRequest, Usage
from onellm_async.failure_kinds import Billing
from onellm_async.server.jobs import MAX_TOKEN_COUNT, Completion, Job
from onellm_async.server.json_answers import conforming_text
from onellm_async.structured_output import schema_in

_CHARACTERS_PER_TOKEN = 4


class BackendError(Exception):
    """The backend could not answer. The client receives the status and the text.

    Args:
        text: What happened, for the client.
        status: HTTP status, 400 to 599. Default 500.
        retry_after: Seconds after which a retry makes sense; None sends no ``Retry-After``.
        billing: What became of the backend's own bill, for the ledger.

    Attributes:
        status: See above.
        retry_after: See above.
        billing: See above.

    Raises:
        ValueError: If `status` is not 400 to 599, or `retry_after` is negative or infinite.
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
            raise ValueError(f"status is {status}; it must be the status of an error, 400 to 599.")
        if retry_after is not None and not 0 <= retry_after < float("inf"):
            raise ValueError(f"retry_after is {retry_after}; it must be a finite number of seconds of at least 0.")
        self.status: int = status
        self.retry_after: float | None = retry_after
        self.billing: Billing = billing


class Backend(Protocol):
    """Turns an accepted job into a completion.

    By default a request continues and is billed after the client has disconnected, as with the published service.
    A backend that forwards to another service may set an attribute ``forwards`` to True. The server then:

    - cancels `complete` when the client disconnects,
    - counts a cancelled request as possibly billed,
    - requires keys before it listens beyond this machine.
    """

    async def complete(self, job: Job) -> Completion:
        """Answers `job`.

        Raises:
            BackendError: If it cannot.
        """
        ...

    async def aclose(self) -> None:
        """Releases all resources."""
        ...


class EchoBackend:
    """Answers every chat with its last user message. It needs no model, and a test knows each answer beforehand.

    A request with the schema of a ``response_model`` gets a JSON value that conforms, with the first user message in
    its strings.
    """

    async def complete(self, job: Job) -> Completion:
        """Returns the last user message, or a value of the schema."""
        return echo(job)

    async def aclose(self) -> None:
        """Does nothing."""


def echo(job: Job) -> Completion:
    """Returns the last user message, or a value of the schema, cut at the first stop sequence and at the token limit.

    ``finish_reason`` is ``"length"`` if the token limit cut the message, else ``"stop"``. With ``n``, all answers are
    billed, and one is returned.
    """
    schema = schema_in(job.request)
    content = last_user_message(job.request) if schema is None else conforming_text(schema, _first_user(job.request))
    cuts = [content.find(stop) for stop in job.request.stop_sequences or () if stop]
    content = content[: min((cut for cut in cuts if cut >= 0), default=len(content))]
    finish_reason = "stop"
    if job.max_tokens is not None and count_tokens(content) > job.max_tokens:
        content = content[: job.max_tokens * _CHARACTERS_PER_TOKEN]
        finish_reason = "length"
    read = count_input_tokens(job.request)
    written = min(count_tokens(content) * (job.request.n or 1), MAX_TOKEN_COUNT)
    return Completion(content, Usage(read, written, min(read + written, MAX_TOKEN_COUNT)), finish_reason)


def last_user_message(request: ChatRequest) -> str:
    """Returns the last user message, or the last message if there is no user message."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return request.messages[-1].content


def _first_user(request: ChatRequest) -> str:
    return next((message.content for message in request.messages if message.role == "user"), "")


def count_input_tokens(request: ChatRequest) -> int:
    """Returns the length of all messages and the system text, in the echo's tokens."""
    return sum(count_tokens(message.content) for message in request.messages) + count_tokens(request.system or "")


def count_tokens(text: str) -> int:
    """Returns the length of `text` in the echo's tokens: four characters each, rounded up.

    Example:
        >>> count_tokens("Hello"), count_tokens("")
        (2, 0)
    """
    return ceil(len(text) / _CHARACTERS_PER_TOKEN)
