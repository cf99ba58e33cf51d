"""Asyncio client for the OneLLM chat API: rate limiting, retries, resumable batch runs.

Start with `AsyncOneLLM`. Each part of the package is imported when one of its names is first used, because aiohttp
alone takes a fifth of a second. Importing the package imports neither the local server nor the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onellm_async.call import Attempt, AttemptHooks
    from onellm_async.catalog import CatalogEntry, Model
    from onellm_async.chat import ChatOutcome, ChatRequest, ChatResponse, Message, Prompt, Usage
    from onellm_async.client import AsyncOneLLM
    from onellm_async.conversation import Conversation
    from onellm_async.errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        BatchError,
        Billing,
        BudgetExceededError,
        CircuitOpenError,
        ClientClosedError,
        ConfigurationError,
        DeadlineExceededError,
        FailureKind,
        InsufficientBalanceError,
        InternalServerError,
        InvalidRequestError,
        MethodNotAllowedError,
        NotFoundError,
        OneLLMError,
        PermissionDeniedError,
        QueueFullError,
        RateLimitError,
        RequestCancelledError,
        ResponseDecodeError,
        StructureError,
        UnprocessableEntityError,
    )
    from onellm_async.events import Event, Hook
    from onellm_async.fanout import FanoutProgress
    from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis, analyze_bottlenecks
    from onellm_async.limits.permit import RequestGroup
    from onellm_async.limits.policy import Lane, Limits, Rate
    from onellm_async.limits.rate_state import RateState
    from onellm_async.limits.snapshot import Snapshot
    from onellm_async.retry import RetryPolicy
    from onellm_async.settings import ApiKey, Timeout
    from onellm_async.sync import OneLLM
    from onellm_async.wire import Dialect

from onellm_async.version import __version__

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "ApiKey",
    "AsyncOneLLM",
    "Attempt",
    "AttemptHooks",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
    "Billing",
    "BottleneckAnalysis",
    "BudgetExceededError",
    "CatalogEntry",
    "ChatOutcome",
    "ChatRequest",
    "ChatResponse",
    "CircuitOpenError",
    "ClientClosedError",
    "ConfigurationError",
    "Conversation",
    "DeadlineExceededError",
    "Dialect",
    "Event",
    "FailureKind",
    "FanoutProgress",
    "Hook",
    "InsufficientBalanceError",
    "InternalServerError",
    "InvalidRequestError",
    "Lane",
    "Limits",
    "Message",
    "MethodNotAllowedError",
    "Model",
    "NotFoundError",
    "OneLLM",
    "OneLLMError",
    "PermissionDeniedError",
    "Prompt",
    "QueueFullError",
    "Rate",
    "RateLimitError",
    "RateState",
    "RequestCancelledError",
    "RequestGroup",
    "ResponseDecodeError",
    "RetryPolicy",
    "Snapshot",
    "StructureError",
    "Timeout",
    "UnprocessableEntityError",
    "Usage",
    "__version__",
    "analyze_bottlenecks",
]

# The imports above as the interpreter makes them; a test holds the two together.
_ROOMS = {
    "call": ("Attempt", "AttemptHooks"),
    "catalog": ("CatalogEntry", "Model"),
    "chat": ("ChatOutcome", "ChatRequest", "ChatResponse", "Message", "Prompt", "Usage"),
    "client": ("AsyncOneLLM",),
    "conversation": ("Conversation",),
    "errors": (
        "APIConnectionError",
        "APIError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BatchError",
        "BudgetExceededError",
        "CircuitOpenError",
        "ClientClosedError",
        "ConfigurationError",
        "DeadlineExceededError",
        "FailureKind",
        "Billing",
        "InsufficientBalanceError",
        "InternalServerError",
        "InvalidRequestError",
        "MethodNotAllowedError",
        "NotFoundError",
        "OneLLMError",
        "PermissionDeniedError",
        "QueueFullError",
        "RateLimitError",
        "ResponseDecodeError",
        "UnprocessableEntityError",
        "RequestCancelledError",
        "StructureError",
    ),
    "events": ("Event", "Hook"),
    "fanout": ("FanoutProgress",),
    "limits.permit": ("RequestGroup",),
    "limits.policy": ("Lane", "Limits", "Rate"),
    "limits.rate_state": ("RateState",),
    "limits.snapshot": ("Snapshot",),
    "limits.bottleneck_analysis": ("BottleneckAnalysis", "analyze_bottlenecks"),
    "retry": ("RetryPolicy",),
    "settings": ("ApiKey", "Timeout"),
    "sync": ("OneLLM",),
    "wire": ("Dialect",),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}
_SHOWN = {room.partition(".")[0] for room in _ROOMS}

if not TYPE_CHECKING:  # to a type checker any name would then be there

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = getattr(import_module(f"onellm_async.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        if name in _SHOWN:
            return import_module(f"onellm_async.{name}")
        raise AttributeError(f"module 'onellm_async' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
