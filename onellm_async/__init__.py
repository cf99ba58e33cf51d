"""An asyncio-first client for the OneLLM chat API that uses exactly the rate there is.

Start with `AsyncOneLLM`. Importing this package imports neither the local server nor the command line.
"""

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
    BudgetExceededError,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Fate,
    InsufficientBalanceError,
    InternalServerError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OneLLMError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
    WithdrawnError,
)
from onellm_async.events import Event, Hook
from onellm_async.fanout import FanoutProgress
from onellm_async.limits.adaptive import RateState
from onellm_async.limits.policy import Limits
from onellm_async.limits.saving import rate_state_from_dict, rate_state_to_dict
from onellm_async.limits.snapshot import Snapshot
from onellm_async.limits.timespent import TimeSpent, where_time_went
from onellm_async.retry import RetryPolicy
from onellm_async.settings import ApiKey, Timeout
from onellm_async.wire import Dialect

__version__ = "0.1.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "ApiKey",
    "AsyncOneLLM",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
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
    "FanoutProgress",
    "Fate",
    "Hook",
    "InsufficientBalanceError",
    "InternalServerError",
    "InvalidRequestError",
    "Limits",
    "Message",
    "MethodNotAllowedError",
    "Model",
    "NotFoundError",
    "OneLLMError",
    "PermissionDeniedError",
    "Prompt",
    "QueueFullError",
    "RateLimitError",
    "RateState",
    "ResponseDecodeError",
    "RetryPolicy",
    "Snapshot",
    "TimeSpent",
    "Timeout",
    "UnprocessableEntityError",
    "Usage",
    "WithdrawnError",
    "__version__",
    "rate_state_from_dict",
    "rate_state_to_dict",
    "where_time_went",
]
