"""From a `ChatRequest` to the bytes of a POST, in either dialect of the service."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import attrs
from cattrs.gen import make_dict_unstructure_fn
from cattrs.preconf.orjson import make_converter

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest, Message
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.settings import check_url
from onellm_async.validation import truncated_repr
from onellm_async.wire.json_codec import dump_json

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Dialect(StrEnum):
    """How requests are written. Replies are decoded by their shape, in any dialect."""

    DOCUMENTED = "documented"
    """As the OneLLM documentation says: only what the caller set is sent. The default."""
    BACKEND = "backend"
    """As the published backend demands: ``endpoint``, ``max_tokens`` and ``top_p`` are filled in, ids translated, and
    instructions stand where the model's provider reads them."""

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
    "google": "https://generativelanguage.googleapis.com/v1beta/models/{model}:generateContent",
}
"""Where the published backend forwards to, with its own provider keys: it takes the address from the request."""
_NO_ENDPOINTS: Mapping[str, str] = MappingProxyType({})

_FORWARDED_ALWAYS = frozenset(
    {"model", "messages", "endpoint", "max_tokens", "top_p", "temperature", "stop_sequences", "stream"}
)
_PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})
_FORWARDED = {
    "openai": _PENALTIES | {"tools", "tool_choice", "response_format", "seed", "n", "user"},
    "anthropic": frozenset({"system", "top_k"}),
    "deepseek": _PENALTIES | {"tools", "logprobs", "top_logprobs"},
    "google": frozenset({"tools", "contents", "safety_settings", "generation_config"}),
    "mistral": frozenset[str](),
}
"""What the published backend forwards to each provider beyond that; all other fields are read and dropped."""
_FORWARDED_IN_PART = {
    "response_format": frozenset({"type"}),
    "generation_config": frozenset({"top_k", "candidate_count"}),
}

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


def resolve_endpoints(endpoints: Mapping[str, str] | None) -> Mapping[str, str]:
    """The URLs to which the published backend forwards, by the catalog's name of the provider.

    Args:
        endpoints: From a provider's name, as the catalog or the backend's replies spell it, in any case, to a URL.
            ``{model}`` in a URL stands for the provider's own name of the model.

    Raises:
        ConfigurationError: If a provider is unknown or named twice, or a URL is not one.

    Example:
        >>> dict(resolve_endpoints({"OpenAI": "http://10.0.0.7/v1/chat/completions"}))
        {'openai': 'http://10.0.0.7/v1/chat/completions'}
    """
    if endpoints is not None and not isinstance(endpoints, Mapping):
        raise ConfigurationError(
            f"endpoints is {truncated_repr(endpoints)}; it must be a mapping from providers to URLs."
        )
    found: dict[str, str] = {}
    for name, url in (endpoints or {}).items():
        provider = catalog.provider_called(str(name))
        if provider is None:
            known = ", ".join(catalog.PROVIDERS.values())
            raise ConfigurationError(
                f"endpoints names the provider {truncated_repr(name)}; the known ones are {known}."
            )
        if provider in found:
            raise ConfigurationError(f"endpoints names the provider {catalog.PROVIDERS[provider]} twice.")
        check_url(f"The endpoint of {catalog.PROVIDERS[provider]}", url, advice="Its key belongs to the backend.")
        found[provider] = url
    return found


def encode_request(request: ChatRequest, dialect: Dialect, endpoints: Mapping[str, str] = _NO_ENDPOINTS) -> bytes:
    """The body of the POST.

    Args:
        request: What to ask.
        dialect: How to write it.
        endpoints: In the backend dialect, where the backend is to forward to instead of the provider's own URL, by the
            catalog's name of the provider. ``{model}`` stands for the provider's own name of the model. A single one
            is also that of the models which the catalog does not know. ``extra={"endpoint": …}`` takes precedence.

    Raises:
        InvalidRequestError: In the backend dialect, for a model whose provider is unknown and no ``endpoint`` given.
    """
    body = request_to_body(request)
    if dialect is Dialect.BACKEND:
        _write_for_backend(body, request.extra or {}, endpoints)
    return dump_json(body)


def fields_without_effect(request: ChatRequest, endpoints: Mapping[str, str] = _NO_ENDPOINTS) -> tuple[str, ...]:
    """Returns warnings about fields that the published backend does not forward to the model's provider.

    Args:
        request: What is asked.
        endpoints: As for `encode_request`.

    Example:
        >>> fields_without_effect(ChatRequest("Sonnet-4", "Hi", seed=7, top_k=3))
        ('The backend does not forward seed to Anthropic: it has no effect there.',)
    """
    body = request_to_body(request)
    provider = _provider(body, endpoints)
    if provider is None:
        return ()
    name, forwarded = catalog.PROVIDERS[provider], _FORWARDED_ALWAYS | _FORWARDED[provider]
    if "system" not in (request.extra or {}):
        body.pop("system", None)  # written where the provider reads it
    lost = [field for field in body if field not in forwarded and body[field] is not None]
    notices = [f"The backend does not forward {field} to {name}: it has no effect there." for field in lost]
    for field, parts in _FORWARDED_IN_PART.items():
        value = body.get(field)
        if field not in lost and isinstance(value, Mapping) and not value.keys() <= parts:
            known = " and ".join(sorted(parts))
            notices.append(f"Of {field}, the backend forwards {known} to {name}, and nothing else.")
    return tuple(notices)


def forwarded_by_backend(request: ChatRequest) -> ChatRequest:
    """What reaches the model's provider of a request to the published backend, which silently drops the rest.

    A model that the catalog does not know loses nothing, because its provider is unknown.

    Example:
        >>> forwarded = forwarded_by_backend(ChatRequest("Sonnet-4", "Hi", seed=7, top_k=3))
        >>> forwarded.seed, forwarded.top_k
        (None, 3)
    """
    body = request_to_body(request)
    provider = _provider(body, _NO_ENDPOINTS)
    if provider is None:
        return request
    forwarded = _FORWARDED_ALWAYS | _FORWARDED[provider]
    kept = {name: value for name, value in body.items() if name in forwarded}
    for name, parts in _FORWARDED_IN_PART.items():
        if isinstance(kept.get(name), Mapping):
            kept[name] = {part: value for part, value in kept[name].items() if part in parts}
    return request_from_body(kept)


def _provider(body: Mapping[str, JSON], endpoints: Mapping[str, str]) -> str | None:
    """Returns the provider of the model by the catalog, a provider's own ``endpoint`` or a single endpoint."""
    model, endpoint = body["model"], body.get("endpoint")  # of any type: extra may have replaced them
    entry = catalog.lookup(model) if isinstance(model, str) else None
    if entry is not None:
        return entry.provider
    if isinstance(endpoint, str):
        hosts = ((provider, url.split("/")[2]) for provider, url in _PROVIDER_ENDPOINTS.items())
        return next((provider for provider, host in hosts if f"//{host}/" in endpoint), None)
    return next(iter(endpoints)) if len(endpoints) == 1 and "endpoint" not in body else None


def _write_for_backend(body: dict[str, JSON], extra: Mapping[str, JSON], endpoints: Mapping[str, str]) -> None:
    model = body["model"]
    entry = catalog.lookup(model) if isinstance(model, str) else None
    if entry is not None and entry.backend_name is not None:
        body["model"] = model = entry.backend_name
    provider = _provider(body, endpoints)
    if "endpoint" not in body:
        if provider is None or not isinstance(model, str):
            near = catalog.closest_name(model) if isinstance(model, str) else None
            raise InvalidRequestError(
                f"The backend dialect needs to know the provider of model {model!r}, which is not in the catalog.",
                advice=(f"Did you mean {near!r}? " if near else "")
                + 'Otherwise give its URL, and no other: endpoints={"OpenAI":"https://…"} (--endpoint '
                'OpenAI=https://…), or extra={"endpoint": "https://…"} for a single request.',
            )
        name = f"gemini-{model.lower()}" if provider == "google" else model.lower()
        url = endpoints.get(provider) or _PROVIDER_ENDPOINTS[provider]
        body["endpoint"] = url.replace("{model}", name)
    body.setdefault("max_tokens", _BACKEND_MAX_TOKENS)
    body.setdefault("top_p", _BACKEND_TOP_P)
    if "messages" not in extra:  # what stands in extra is sent as it is
        _place_instructions(body, provider, own_system="system" in extra)


def _place_instructions(body: dict[str, JSON], provider: str | None, *, own_system: bool) -> None:
    """Puts ``system`` and system messages where the provider reads them.

    The backend forwards ``system`` to Anthropic only. OpenAI, DeepSeek and Mistral read system messages. Gemini has
    none, calls the assistant ``model``, and reads an instruction as the beginning of what the user says.
    """
    messages: list[dict[str, str]] = body["messages"]
    field = "" if own_system else body.pop("system", "")
    if provider == "google" or (provider == "anthropic" and not own_system):
        said = [message["content"] for message in messages if message["role"] == "system"]
        instruction = "\n\n".join(text for text in (field, *said) if text)
        turns = [message for message in messages if message["role"] != "system"]
        if provider == "google":
            turns = [turn | {"role": "model"} if turn["role"] == "assistant" else turn for turn in turns]
        if instruction and (provider == "google" or not turns):
            _begin_with(turns, instruction)
        elif instruction:
            body["system"] = instruction
        body["messages"] = turns or [{"role": "user", "content": ""}]
    elif field:
        body["messages"] = [{"role": "system", "content": field}, *messages]


def _begin_with(turns: list[dict[str, str]], instruction: str) -> None:
    """Puts `instruction` at the beginning of the first turn of the user."""
    for position, turn in enumerate(turns):
        if turn["role"] == "user":
            content = f"{instruction}\n\n{turn['content']}" if turn["content"] else instruction
            turns[position] = turn | {"content": content}
            return
    turns.insert(0, {"role": "user", "content": instruction})
