"""The transport: sends bytes, returns (status, headers, bytes). The only room that knows aiohttp's client."""

from onellm_async.transport.aiohttp_transport import MAX_REPLY_BYTES, AiohttpTransport
from onellm_async.transport.exceptions import translate_exception
from onellm_async.transport.protocol import RawReply, Transport

__all__ = ["MAX_REPLY_BYTES", "AiohttpTransport", "RawReply", "Transport", "translate_exception"]
