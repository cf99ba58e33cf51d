"""Who answers behind the local server: what a backend has to do, and the echo."""

from typing import Protocol

from onellm_async.failure_kinds import Billing
from onellm_async.server.echo import echo
from onellm_async.server.jobs import Completion, Job

__all__ = ["Backend", "BackendError", "EchoBackend", "echo"]


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
