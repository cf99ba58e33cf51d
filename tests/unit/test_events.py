import logging

import attrs
import pytest

from onellm_async import AsyncOneLLM, events
from onellm_async.errors import ConfigurationError, OneLLMError
from onellm_async.events import Event, Granted, Queued, notify
from onellm_async.testing import FakeTransport

KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]


def test_every_kind_of_event_is_exported() -> None:
    assert {kind.__name__ for kind in KINDS} | {"Hook", "Telemetry", "notify"} == set(events.__all__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_events_are_frozen_and_begin_with_request_model_and_time(kind: type[Event]) -> None:
    names = [field.name for field in attrs.fields(kind)]
    assert names[:3] == ["request", "model", "at"]
    event = kind(*range(len(names)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.at = 5.0  # type: ignore[misc]


def test_each_hook_sees_the_event_in_order() -> None:
    seen: list[tuple[str, Event]] = []
    event = Queued(1, "GPT-5", 0.0, "batch")
    notify([lambda event: seen.append(("a", event)), lambda event: seen.append(("b", event))], event)
    assert seen == [("a", event), ("b", event)]


def test_a_hook_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise OneLLMError("hook trouble")

    event = Granted(1, "GPT-5", 0.0, 2.5)
    with caplog.at_level(logging.ERROR, "onellm_async"):
        notify([broken, seen.append], event)
    assert seen == [event]
    assert "A hook raised on Granted; the request goes on." in caplog.text
    assert "hook trouble" in caplog.text


def test_an_asynchronous_hook_is_refused() -> None:
    class Hook:
        async def __call__(self, event: object) -> None: ...

    async def function(event: object) -> None: ...

    client = AsyncOneLLM(transport=FakeTransport())
    for hook in (function, Hook()):
        with pytest.raises(ConfigurationError, match="asynchronous, and would never be awaited"):
            AsyncOneLLM(transport=FakeTransport(), hooks=[hook])
        with pytest.raises(ConfigurationError, match="asynchronous"):
            client.add_hook(hook)


def test_a_hook_may_stop_the_program() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        notify([interrupted], Queued(1, "GPT-5", 0.0, "batch"))
