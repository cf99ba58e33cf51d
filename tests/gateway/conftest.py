"""A gateway on a real socket, in front of a client whose transport is scripted."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from visitors import FAST, Visitor

from onellm_async import AsyncOneLLM, Limits
from onellm_async.gateway import GatewaySettings, gateway_app
from onellm_async.gateway.keys import InboundKey, hash_key, render_key
from onellm_async.testing import FakeTransport

Serving = Callable[..., AbstractAsyncContextManager[Visitor]]


@pytest.fixture
def serving() -> Serving:
    @asynccontextmanager
    async def serve(
        transport: FakeTransport | None = None, *, limits: Limits = FAST, settings: GatewaySettings | None = None
    ) -> AsyncIterator[Visitor]:
        async with AsyncOneLLM(transport=transport or FakeTransport(), limits=limits) as client:
            runner = web.AppRunner(gateway_app(client, settings), access_log=None, handler_cancellation=True)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host, port = runner.addresses[0][:2]
                async with aiohttp.ClientSession() as session:
                    yield Visitor(f"http://{host}:{port}", session, client)
            finally:
                await runner.cleanup()

    return serve


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a key file; the key of each name is ``key-of-NAME``."""

    def write(**keys: dict[str, object]) -> Path:
        path = tmp_path / "keys.toml"
        tables = [
            render_key(InboundKey(name=name, sha256=hash_key(f"key-of-{name}"), **settings))  # type: ignore[arg-type]
            for name, settings in keys.items()
        ]
        path.write_text("\n".join(tables))
        path.chmod(0o600)
        return path

    return write
