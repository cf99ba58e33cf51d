"""A local OneLLM server: for tests, for trials without a key, and in front of any OpenAI-compatible endpoint."""

from onellm_async.server.app import LocalServer, serve
from onellm_async.server.backends import Backend, BackendError, EchoBackend, echo
from onellm_async.server.jobs import Completion, Job
from onellm_async.server.ledger import Ledger, LedgerRow, Outcome
from onellm_async.server.service import Service
from onellm_async.server.settings import Fault, Faults, ServerSettings
from onellm_async.server.upstream import UpstreamBackend

__all__ = [
    "Backend",
    "BackendError",
    "Completion",
    "EchoBackend",
    "Fault",
    "Faults",
    "Job",
    "Ledger",
    "LedgerRow",
    "LocalServer",
    "Outcome",
    "ServerSettings",
    "Service",
    "UpstreamBackend",
    "echo",
    "serve",
]
