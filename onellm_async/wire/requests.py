"""From a `ChatRequest` to the bytes of a POST, in either dialect of the service."""

from collections.abc import Mapping
from enum import StrEnum

import attrs
from cattrs.gen import make_dict_unstructure_fn
from cattrs.preconf.orjson import make_converter

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest, Message
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.wire.json_text import dump_json

__all__ = ["JSON_HEADERS", "Dialect", "encode_request", "request_from_body", "request_to_body"]

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Dialect(StrEnum):
    """How requests are written. Replies are understood by their shape, whatever the dialect."""

    DOCUMENTED = "documented"
    """As the OneLLM documentation says: only what the caller set is sent. The default."""
    BACKEND = "backend"
    """As the published backend demands: ``endpoint``, ``max_tokens`` and ``top_p`` are filled in, ids translated."""

    @classmethod
    def _missing_(cls, value: object) -> "Dialect":
        raise ConfigurationError(f"dialect is {value!r}; it must be 'documented' or 'backend'.")


_BACKEND_MAX_TOKENS = 1024
_BACKEND_TOP_P = 1.0
_PROVIDER_ENDPOINTS = {
    "openai": "https://api.openai.com/v1/chat/completions",
    "anthropic": "https://api.anthropic.com/v1/messages",
    "deepseek": "https://api.deepseek.com/chat/completions",
    "mistral": "https://api.mistral.ai/v1/chat/completions",
    "google": "https://generativelanguage.googleapis.com/v1beta/models/gemini-{model}:generateContent",
}
"""Where the published backend forwards to, with its own provider keys: it takes the address from the request."""

_converter = make_converter()
_converter.register_unstructure_hook(Message, make_dict_unstructure_fn(Message, _converter))
_unstructure = make_dict_unstructure_fn(ChatRequest, _converter, _cattrs_omit_if_default=True)
_FIELDS = frozenset(field.name for field in attrs.fields(ChatRequest)) - {"extra"}


def request_to_body(request: ChatRequest) -> dict[str, JSON]:
    """The fields that `request` sets, as the documented API names them, with ``extra`` merged last."""
    body = _unstructure(request)
    extra = body.pop("extra", None)
    if extra:
        body.update(extra)
    return body


def request_from_body(body: Mapping[str, JSON]) -> ChatRequest:
    """The request that a JSON object describes: known fields are checked, all others go into ``extra``.

    Raises:
        InvalidRequestError: If model or messages are missing or a value is refused; the message names it.
    """
    missing = [name for name in ("model", "messages") if name not in body]
    if missing:
        raise InvalidRequestError(f"The request has no {' and no '.join(missing)}.")
    known = {name: value for name, value in body.items() if name in _FIELDS}
    # OpenAI batch files often say "stream": false, which is what happens anyway.
    extra = {
        name: value
        for name, value in body.items()
        if name not in _FIELDS and not (name == "stream" and value in (False, None))
    }
    return ChatRequest(**known, extra=extra or None)


def encode_request(request: ChatRequest, dialect: Dialect) -> bytes:
    """The body of the POST.

    Raises:
        InvalidRequestError: In the backend dialect, for a model whose provider is unknown and no ``endpoint`` given.
    """
    body = request_to_body(request)
    if dialect is Dialect.BACKEND:
        _fill_for_backend(body)
    return dump_json(body)


def _fill_for_backend(body: dict[str, JSON]) -> None:
    model = body["model"]  # of any type: extra may have replaced it
    entry = catalog.lookup(model) if isinstance(model, str) else None
    if entry is not None and entry.backend_name is not None:
        body["model"] = model = entry.backend_name
    if "endpoint" not in body:
        if entry is None:
            near = catalog.nearest(model) if isinstance(model, str) else None
            raise InvalidRequestError(
                f"The backend dialect needs to know the provider of model {model!r}, which is not in the catalogue.",
                advice=(f"Did you mean {near!r}? " if near else "")
                + 'Otherwise pass extra={"endpoint": "https://…"} with the provider\'s URL.',
            )
        body["endpoint"] = _PROVIDER_ENDPOINTS[entry.provider].format(model=model.lower())
    body.setdefault("max_tokens", _BACKEND_MAX_TOKENS)
    body.setdefault("top_p", _BACKEND_TOP_P)
