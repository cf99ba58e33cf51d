"""One synchronous client for all adapters of a process that use the same key: the limit is the key's."""

import threading
from collections.abc import Callable

from onellm_async import OneLLM

__all__ = ["shared_client"]

_clients: dict[tuple[object, ...], OneLLM] = {}
_lock = threading.Lock()


def shared_client(settings: tuple[object, ...], make: Callable[[], OneLLM]) -> OneLLM:
    """Returns the client of these settings; the first call makes it. It lives as long as the process.

    Args:
        settings: All that tells one client from another: the URL, the key, the limits. It is hashed, and kept.
        make: Makes the client.
    """
    with _lock:
        client = _clients.get(settings)
        if client is None:
            client = _clients[settings] = make()
        return client
