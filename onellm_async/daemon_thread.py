"""A blocking call that the event loop awaits, and that need not be waited for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(call: Callable[[], _T]) -> _T:
    """Like `asyncio.to_thread`, but a read that never returns (a silent pipe) does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(found: list[_T], error: BaseException | None) -> None:
        if result.done():  # no caller waits any more
            return
        if error is None:
            result.set_result(found[0])
        else:
            result.set_exception(error)

    def read() -> None:
        found: list[_T] = []
        failure: BaseException | None = None
        try:
            found.append(call())
        except BaseException as error:  # handed to the caller that awaits the result
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, found, failure)

    threading.Thread(target=read, name="onellm-async-input", daemon=True).start()
    return await result
