"""A local OneLLM server: for tests, for trials without a key, and in front of any OpenAI-compatible endpoint."""

from onellm_async.server.app import LocalServer, serve
from onellm_async.server.backends import Backend, BackendError, EchoBackend, echo
from onellm_async.server.jobs import Completion, Job
from onellm_async.server.ledger import Ledger, LedgerRow, Outcome
from onellm_async.server.service import Service
from onellm_async.server.service_limits import (
    BucketLimit,
    ClosedTimes,
    ConcurrencyLimit,
    RandomLimit,
    ServiceLimit,
    WindowLimit,
)
from onellm_async.server.settings import Fault, Faults, RateHeaders, RetryAfterForm, ServerSettings
from onellm_async.server.upstream import UpstreamBackend

__all__ = [
    "Backend",
    "BackendError",
    "BucketLimit",
    "ClosedTimes",
    "Completion",
    "ConcurrencyLimit",
    "EchoBackend",
    "Fault",
    "Faults",
    "Job",
    "Ledger",
    "LedgerRow",
    "LocalServer",
    "Outcome",
    "RandomLimit",
    "RateHeaders",
    "RetryAfterForm",
    "ServerSettings",
    "Service",
    "ServiceLimit",
    "UpstreamBackend",
    "WindowLimit",
    "echo",
    "serve",
]
