"""The usual latency of each model, and how soon a slot becomes free. Pure."""

from collections.abc import Mapping
from math import sqrt

_MIN_LATENCY = 1e-6
"""Minimum latency in seconds, so that nothing is divided by zero."""


class UsualLatency:
    """Moving averages of the latency, one for each model.

    An average expires without new answers. Otherwise a model that was slow once would shed every request with a
    deadline, and no answer could correct the average.
    """

    __slots__ = ("_known",)

    WEIGHT = 0.1
    """Weight of the newest answer in an average."""
    MAX_AGE = 60.0
    """Seconds after its last answer in which an average is valid; twice the average if that is longer."""
    MAX_MODELS = 256
    """Models that are remembered. Names are free text, so the one without an answer for longest is dropped."""

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[float, float]] = {}

    def observe(self, model: str | None, seconds: float, now: float) -> None:
        """Records an answer.

        Args:
            model: The model that was asked; None when the caller does not say.
            seconds: From sending to the answer.
            now: The current time.
        """
        known = self._known.pop(model, None)  # put back at the end: the first one is the one to forget
        if known is None:
            if len(self._known) >= self.MAX_MODELS:
                del self._known[next(iter(self._known))]
        elif now - known[1] <= self.MAX_AGE or now - known[1] <= 2 * known[0]:
            seconds = known[0] + self.WEIGHT * (seconds - known[0])
        self._known[model] = seconds, now

    def of(self, model: str | None, now: float) -> float | None:
        """Seconds that an answer of `model` usually takes; None when nothing recent is known."""
        known = self._known.get(model)
        if known is None or now - known[1] > max(self.MAX_AGE, 2 * known[0]):
            return None
        return known[0]

    def slot_wait(self, releases: int, in_flight: Mapping[str | None, int], slots: int, usual: float | None) -> float:
        """Seconds until slots have been released so many times, estimated low rather than high.

        What is in flight ends one by one as its models usually take. Each slot that it leaves is used by the requests
        ahead, which take as long as the one that asks: fast requests behind slow ones need only few of the slots.

        Args:
            releases: How many.
            in_flight: Requests in flight by model. One whose model is not known counts as the average of the others.
            slots: Requests that may be in flight.
            usual: Seconds that the requests ahead take; None when not known, and then none are assumed.
        """
        if usual is not None:
            usual = max(usual, _MIN_LATENCY)
        total = sum(in_flight.values())
        timed = [(number, self._known[model][0]) for model, number in in_flight.items() if model in self._known]
        free = max(0, slots - total)
        if releases <= 0 or (usual is None and (free or not timed)):
            return 0.0
        rate = total / (usual or 1.0)
        if timed:
            known = sum(number for number, _ in timed)
            rate = sum(number / max(took, _MIN_LATENCY) for number, took in timed) * total / known
        if usual is None:
            return 1 / rate
        # The free slots are taken at once by those ahead, so that all are in use.
        return 1 / (rate + free / usual) + _recycled(releases - 1, rate + free / usual, total + free, usual)

    def forget_times(self, now: float) -> None:
        """Continues with a clock that may have been set back."""
        self._known = {model: (took, min(at, now)) for model, (took, at) in self._known.items()}


def _recycled(releases: int, rate: float, slots: int, usual: float) -> float:
    """Seconds for so many releases of slots that become free at `rate`, and again and again after `usual` seconds."""
    rounds = releases / (rate * usual)
    full = int((sqrt(1 + 8 * rounds) - 1) / 2)
    wait = usual * (full + (rounds - full * (full + 1) / 2) / (full + 1))
    last_free = slots / rate
    if wait <= last_free:
        return wait
    full = int(last_free / usual)
    done = rate * ((full + 1) * last_free - usual * full * (full + 1) / 2)
    return last_free + (releases - done) * usual / slots
