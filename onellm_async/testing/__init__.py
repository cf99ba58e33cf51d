"""For tests of your own: a transport without a service, a local server for any kind of test, and virtual time.

Nothing is imported until a name is used, because pytest loads this package in every run.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onellm_async.simulation.clock import VirtualClockLoop, run_in_virtual_time
    from onellm_async.testing.fake_transport import (
        FakeReply,
        FakeRequest,
        FakeTransport,
        Handler,
        Reply,
        answer,
        failure,
        hang,
    )
    from onellm_async.testing.threaded_server import ThreadedServer

__all__ = [
    "FakeReply",
    "FakeRequest",
    "FakeTransport",
    "Handler",
    "Reply",
    "ThreadedServer",
    "VirtualClockLoop",
    "answer",
    "failure",
    "hang",
    "run_in_virtual_time",
]

_HOMES = {
    "ThreadedServer": "onellm_async.testing.threaded_server",
    "VirtualClockLoop": "onellm_async.simulation.clock",
    "run_in_virtual_time": "onellm_async.simulation.clock",
}
_FAKE_TRANSPORT = "onellm_async.testing.fake_transport"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, _FAKE_TRANSPORT)), name)


def __dir__() -> list[str]:
    return sorted(__all__)
