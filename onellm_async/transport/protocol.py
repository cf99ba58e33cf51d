"""The interface of a transport, which posts a body to the service and returns the reply."""

from collections.abc import Mapping
from typing import Protocol

from attrs import frozen


@frozen
class RawReply:
    """An HTTP answer as it came, decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries a request body to the service."""

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
        """Posts `body` and reads the whole answer.

        Args:
            body: The encoded request.
            headers: Of this request alone. They are given only where `AsyncOneLLM` has telemetry.

        Raises:
            APIError: If no complete answer arrived; its ``billing`` says whether it may have been billed.
        """
        ...

    async def aclose(self) -> None:
        """Closes what it opened. It may be used again afterwards."""
        ...
