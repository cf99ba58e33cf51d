"""The wire, sans I/O: the only room that knows field names, the envelope, cattrs and orjson."""

from onellm_async.wire.error_replies import parse_retry_after
from onellm_async.wire.json_codec import dump_json, parse_json
from onellm_async.wire.notices import Notices
from onellm_async.wire.rate_headers import AdvertisedLimit, RateHeaderReader, parse_rate_headers
from onellm_async.wire.replies import decode_reply
from onellm_async.wire.requests import (
    JSON_HEADERS,
    Dialect,
    encode_request,
    fields_without_effect,
    request_from_body,
    request_to_body,
    resolve_endpoints,
)

__all__ = [
    "JSON_HEADERS",
    "AdvertisedLimit",
    "Dialect",
    "Notices",
    "RateHeaderReader",
    "decode_reply",
    "dump_json",
    "encode_request",
    "fields_without_effect",
    "parse_json",
    "parse_rate_headers",
    "parse_retry_after",
    "request_from_body",
    "request_to_body",
    "resolve_endpoints",
]
