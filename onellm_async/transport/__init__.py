"""The way to the service: bytes out, (status, headers, bytes) back. The only room that knows aiohttp's client."""

from onellm_async.transport.failures import translated
from onellm_async.transport.posting import MOST_REPLY_BYTES, AiohttpTransport
from onellm_async.transport.protocol import RawReply, Transport

__all__ = ["MOST_REPLY_BYTES", "AiohttpTransport", "RawReply", "Transport", "translated"]
