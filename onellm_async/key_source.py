"""An API key that a function supplies, before the first request and again after a 401."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from onellm_async.errors import ClientClosedError, ConfigurationError
from onellm_async.settings import ApiKey

_log = logging.getLogger("onellm_async")

ApiKeyFunction: TypeAlias = Callable[[], str | ApiKey | Awaitable[str | ApiKey]]
"""Returns the API key, or an awaitable of it. It runs in the event loop, so one that waits should be ``async``."""


class KeySource:
    """Asks a function for the key, for all requests of a client at once.

    Safe to cancel: if the request that asks is cancelled, the next one asks.

    Args:
        function: Returns the key.
        on_change: Called with each key that differs from the one before.

    Attributes:
        generation: Number of different keys so far; 0 before the first.
    """

    def __init__(self, function: ApiKeyFunction, on_change: Callable[[ApiKey], None]) -> None:
        self.generation: int = 0
        self._function = function
        self._on_change = on_change
        self._authorization = ""
        self._asked = 0
        self._scopes: list[asyncio.Timeout] = []
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ensure(self) -> None:
        """Asks for the first key, if there is none yet.

        Raises:
            ConfigurationError: If the function raises, or returns no key.
        """
        if not self.generation:
            await self.renew(0)

    async def renew(self, generation: int) -> bool:
        """Asks for another key, unless that has happened since.

        Args:
            generation: That of the key that was not accepted.

        Returns:
            Whether there is another key now.

        Raises:
            ConfigurationError: If the function raises, or returns no key.
            ClientClosedError: If the client is closed before the function has returned.
        """
        asked, scope = self._asked, asyncio.timeout(None)
        try:
            lock = self._lock_of_loop()
            async with scope:
                self._scopes.append(scope)
                async with lock:
                    if self._asked == asked and self.generation == generation:
                        await self._ask()
        except TimeoutError:
            if not scope.expired():
                raise
            raise ClientClosedError("The client was closed before there was a key for this request.") from None
        finally:
            if scope in self._scopes:
                self._scopes.remove(scope)
        return self.generation != generation

    def close(self) -> None:
        """Ends the waits for a key with `ClientClosedError`."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            for scope in self._scopes:
                if not scope.expired():
                    scope.reschedule(loop.time())

    def _lock_of_loop(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop, self._scopes = asyncio.Lock(), loop, []
        return self._lock

    async def _ask(self) -> None:
        try:
            found = self._function()
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:
            raise ConfigurationError(
                f"The api_key function raised {type(error).__name__}.", advice="Nothing was sent without a key."
            ) from error
        if not isinstance(found, str | ApiKey):
            raise ConfigurationError(
                f"The api_key function returned a {type(found).__name__}; it must return a string."
            )
        self._asked += 1
        key = found if isinstance(found, ApiKey) else ApiKey(found)
        if key.authorization() == self._authorization:
            return
        if self.generation:
            _log.info("The api_key function returned another key after a 401.")
        self._authorization = key.authorization()
        self._on_change(key)
        self.generation += 1
