"""The command line in this very process, against a server in a thread: as fast as many small runs need it."""

import asyncio
import threading
from contextlib import contextmanager

from killing import KEY, quick_server

from onellm_async.cli.app import run_app


@contextmanager
def server_beside(**settings):
    """A running server whose loop is that of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = quick_server(**settings)

    def there(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    try:
        there(server.__aenter__())
        try:
            yield server
        finally:
            there(server.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run_again(source, output, server, monkeypatch, *flags):
    monkeypatch.setenv("ONELLM_API_KEY", KEY)
    limits = ("--rpm", "600000", "--burst", "10000", "--concurrency", "16")
    return run_app(["run", str(source), "-o", str(output), "--base-url", server.url, *limits, *flags])
