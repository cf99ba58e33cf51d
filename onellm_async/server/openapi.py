"""The OpenAPI document of the local server, complete with every status. Pure."""

from onellm_async import catalog
from onellm_async.chat import JSON, ROLES
from onellm_async.wire import Dialect

_TEXT: dict[str, JSON] = {"type": "string"}
_COUNT: dict[str, JSON] = {"type": ["integer", "null"], "minimum": 0}
_USAGE: dict[str, JSON] = {
    "type": ["object", "null"],
    "properties": {"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT},
}
_REPLY: dict[str, JSON] = {
    "type": "object",
    "required": ["provider", "model", "role", "content", "usage", "finish_reason"],
    "properties": {
        "provider": {"type": ["string", "null"]},
        "model": _TEXT,
        "role": {"type": ["string", "null"]},
        "content": _TEXT,
        "usage": _USAGE,
        "finish_reason": {"type": ["string", "null"]},
    },
}
_ERROR: dict[str, JSON] = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_FAILURE: dict[str, JSON] = {"type": "object", "required": ["output"], "properties": {"output": _TEXT}}


def _enveloped(codes: list[int], output: dict[str, JSON]) -> dict[str, JSON]:
    properties: dict[str, JSON] = {"code": {"enum": codes}, "output": output}
    return {"type": "object", "required": ["code", "output"], "properties": properties}


def _envelope(*, any_model: bool) -> dict[str, JSON]:
    codes = [code for code in range(400, 600) if code != 500] if any_model else [401, 429]  # of any upstream
    return {"oneOf": [_enveloped([200], _REPLY), _enveloped(codes, _ERROR), _enveloped([500], _FAILURE)]}


def _nullable(schema: dict[str, JSON]) -> dict[str, JSON]:
    return {"anyOf": [schema, {"type": "null"}]}


def _request_schema(dialect: Dialect, *, any_model: bool) -> dict[str, JSON]:
    backend = dialect is Dialect.BACKEND
    names = [entry.backend_name if backend else entry.name for entry in catalog.entries()]
    model = {"type": "string", "pattern": r"\S"} if any_model else {"enum": [name for name in names if name]}
    message = {
        "type": "object",
        "required": ["role", "content"],
        "additionalProperties": False,
        "properties": {"role": {"enum": list(ROLES)}, "content": _TEXT},
    }
    at_least_one: dict[str, JSON] = {"type": "integer", "minimum": 1}
    properties: dict[str, JSON] = {
        "model": model,
        "messages": {"type": "array", "minItems": 1, "items": message},
        "temperature": _nullable({"type": "number", "minimum": 0, "maximum": 2}),
        "max_tokens": {**at_least_one, "maximum": 2**32 - 1} if backend else _nullable(at_least_one),
        "top_p": _nullable({"type": "number", "minimum": 0, "maximum": 1}),
        "stop_sequences": _nullable({"type": "array", "items": _TEXT}),
        "system": _nullable(_TEXT),
        "tools": _nullable({"type": "array", "items": {"type": "object"}}),
        "tool_choice": _nullable(_TEXT),
        "response_format": _nullable({"type": "object"}),
        "seed": _nullable({"type": "integer"}),
        "n": _nullable(at_least_one),
        "user": _nullable(_TEXT),
        "frequency_penalty": _nullable({"type": "number", "minimum": -2, "maximum": 2}),
        "presence_penalty": _nullable({"type": "number", "minimum": -2, "maximum": 2}),
        "logprobs": _nullable({"type": "boolean"}),
        "top_logprobs": _nullable({"type": "integer", "minimum": 0}),
        "top_k": _nullable(at_least_one),
        "stream": {"enum": [False, None]},
    }
    required = ["model", "messages"]
    if backend:
        properties |= {"endpoint": _TEXT, "top_p": {"type": "number", "minimum": 0, "maximum": 1}}
        required += ["endpoint", "max_tokens", "top_p"]
    return {"type": "object", "required": required, "properties": properties}


def _response(text: str, schema: dict[str, JSON], media: str = "application/json") -> dict[str, JSON]:
    return {"description": text, "content": {media: {"schema": schema}}}


def _responses(dialect: Dialect, *, any_model: bool) -> dict[str, JSON]:
    gateway = _response("Error page of a gateway; only as a fault", _TEXT, "text/html")
    if dialect is Dialect.BACKEND:
        return {
            "200": _response("An answer or an error, in an envelope", _envelope(any_model=any_model)),
            "400": _response("Not JSON", _TEXT, "text/plain"),
            "413": _response("Longer than 32 MiB", _TEXT, "text/plain"),
            "415": _response("Not application/json", _TEXT, "text/plain"),
            "422": _response("A field is missing, unknown or of the wrong type", _TEXT, "text/plain"),
            "502": gateway,
        }
    upstream = _response("The upstream failed, or returned no answer", _ERROR)
    return {
        "200": _response("An answer", _REPLY),
        "400": _response("Not JSON", _ERROR),
        "401": _response("Key missing or unknown", _ERROR),
        "403": _response("Key without access, or balance below $0.10", _ERROR),
        "413": _response("Longer than 32 MiB", _ERROR),
        "415": _response("Not application/json", _ERROR),
        "422": _response("A field is missing, unknown or of the wrong type", _ERROR),
        "429": {
            **_response("Rate-limited, or the balance is reserved", _ERROR),
            "headers": {
                "Retry-After": {
                    "schema": {"type": "number"},
                    "description": "Configured, or sent by the upstream",
                }
            },
        },
        "500": _response("The service failed; not billed", _ERROR),
        "502": {**upstream, "content": {**upstream["content"], **gateway["content"]}},
        "504": _response("The upstream did not answer in time", _ERROR),
        **({"4XX": _response("Status of the upstream", _ERROR)} if any_model else {}),
    }


def _page(operation: str, summary: str, schema: dict[str, JSON]) -> dict[str, JSON]:
    return {"get": {"operationId": operation, "summary": summary, "responses": {"200": _response(summary, schema)}}}


def openapi_document(dialect: Dialect, *, any_model: bool = False) -> dict[str, JSON]:
    """Returns the document of a server in `dialect`.

    Args:
        dialect: Dialect of the requests and replies.
        any_model: Whether models beyond the catalog are accepted, too.
    """
    body = {"application/json": {"schema": _request_schema(dialect, any_model=any_model)}}
    chat: dict[str, JSON] = {
        "operationId": "chat",
        "summary": "Send one chat request",
        "security": [{"key": []}],
        "requestBody": {"required": True, "content": body},
        "responses": _responses(dialect, any_model=any_model),
    }
    healthy: dict[str, JSON] = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
    counters: dict[str, JSON] = {"type": "object", "additionalProperties": {"type": "number"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"A local OneLLM, {dialect} dialect", "version": "1"},
        "paths": {
            "/api": {"post": chat},
            "/healthz": _page("health", "Health check", healthy),
            "/ledger": _page("ledger", "Counters of requests, outcomes and billing", counters),
            "/openapi.json": _page("document", "This document", {"type": "object"}),
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
