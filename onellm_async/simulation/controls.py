"""What somebody does to a running client: pauses it for a while, or goes on with other limits."""

import asyncio
from collections.abc import Callable, Sequence

from attrs import frozen

from onellm_async.limits.policy import Limits
from onellm_async.live_control import LiveControl
from onellm_async.simulation.recorder import Recorder
from onellm_async.simulation.trace import Paused, Resumed, Retuned

__all__ = ["Control", "Pause", "Retune", "schedule"]


@frozen(kw_only=True)
class Pause:
    """The client is paused `at` that moment and resumed `seconds` later. A resume ends whatever pauses there are.

    `client` is its number; None: every client.
    """

    at: float
    seconds: float
    client: int | None = None


@frozen(kw_only=True)
class Retune:
    """The client goes on with `limits` from `at` on. `client` is its number; None: every client."""

    at: float
    limits: Limits
    client: int | None = None


Control = Pause | Retune


def schedule(controls: Sequence[Control], client: LiveControl, recorder: Recorder) -> list[asyncio.TimerHandle]:
    """Has `controls` done to `client` in time, and `recorder` told of each. The caller cancels what is left of them."""
    loop = asyncio.get_running_loop()

    def pause() -> None:
        client.pause()
        recorder.note(Paused(0, "", loop.time()))

    def resume() -> None:
        recorder.note(Resumed(0, "", loop.time()))
        client.resume()

    def retuning(limits: Limits) -> Callable[[], None]:
        def retune() -> None:
            recorder.note(Retuned(0, "", loop.time(), limits))
            client.retune(limits)

        return retune

    timers = []
    for control in controls:
        if isinstance(control, Pause):
            timers += [loop.call_at(control.at, pause), loop.call_at(control.at + control.seconds, resume)]
        else:
            timers.append(loop.call_at(control.at, retuning(control.limits)))
    return timers
