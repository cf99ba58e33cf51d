"""What a set of prompts asks for: how many, how large, what they may cost. Pure, and in constant memory."""

from collections.abc import Sequence

from attrs import frozen

from onellm_async import catalog
from onellm_async.chat import ChatRequest
from onellm_async.limits.estimate import TokenEstimator
from onellm_async.wire import Dialect, encode_request

__all__ = ["Price", "RequestSize", "Workload", "WorkloadMeter"]

_SAMPLE = 4096
"""Prompts whose sizes are kept, at least, when there are more: enough for a mean within 2 % of sizes that vary as much
as their mean."""
TYPICAL_OUTPUT = 512
"""Tokens of an answer where nobody says better: what the client, too, expects before it has seen one."""


@frozen
class RequestSize:
    """The size of one request.

    Attributes:
        body_bytes: As it is sent.
        max_tokens: Most tokens of its answer; None when it does not say.
        output_tokens: Tokens that its answer probably has.
    """

    body_bytes: int
    max_tokens: int | None
    output_tokens: int

    @property
    def tokens(self) -> float:
        """Input and output together, as the client estimates them once it knows the usual answer."""
        return TokenEstimator().estimate("", self.body_bytes, self.output_tokens)


@frozen
class Price:
    """USD by list price, as far as prices are known.

    Attributes:
        low: The input alone, with empty answers.
        typical: With answers of the usual length.
        high: With every answer as long as its ``max_tokens``; None when a prompt has no such bound.
        unpriced: Prompts whose model has no known price; they are in none of the sums.
    """

    low: float = 0.0
    typical: float = 0.0
    high: float | None = 0.0
    unpriced: int = 0


@frozen
class Workload:
    """What is to be asked, summed up.

    Attributes:
        prompts: How many.
        input_tokens: Of all of them, by estimate: four bytes a token.
        price: What they cost.
        models: The models asked, with the number of prompts of each; at most a hundred of them.
        sample: Sizes of every prompt in order, or of evenly spaced ones where there are more than some thousands.
    """

    prompts: int
    input_tokens: int
    price: Price
    models: Sequence[tuple[str, int]]
    sample: Sequence[RequestSize]

    @classmethod
    def uniform(cls, prompts: int, *, body_bytes: int = 400, output_tokens: int = TYPICAL_OUTPUT) -> "Workload":
        """That many prompts of one size and of unknown price.

        Example:
            >>> Workload.uniform(1000, body_bytes=800).input_tokens
            200000
        """
        size = RequestSize(body_bytes, None, output_tokens)
        return cls(prompts, prompts * body_bytes // 4, Price(unpriced=prompts), (), (size,) if prompts else ())


class WorkloadMeter:
    """Sums requests up, one by one, and remembers the sizes of an evenly spaced sample.

    Args:
        output_tokens: Tokens of a usual answer; a request's own ``max_tokens`` bounds it.

    Example:
        >>> meter = WorkloadMeter(output_tokens=100)
        >>> meter.add(ChatRequest("GPT-5-Nano", "What is the capital of France?", max_tokens=50))
        >>> meter.workload().input_tokens
        8
    """

    _MOST_MODELS = 100

    def __init__(self, *, output_tokens: int = TYPICAL_OUTPUT) -> None:
        self._output_tokens = output_tokens
        self._estimator = TokenEstimator()
        self._prompts = 0
        self._input_tokens = 0.0
        self._sums = {"low": 0.0, "typical": 0.0, "high": 0.0}
        self._unbounded = self._unpriced = 0
        self._models: dict[str, int] = {}
        self._stride = 1
        self._sample: list[RequestSize] = []

    def add(self, request: ChatRequest) -> None:
        """Counts one request."""
        bound = request.max_tokens
        typical = self._output_tokens if bound is None else min(bound, self._output_tokens)
        read = self._estimator.estimate(request.model, _text_bytes(request), 0)
        self._input_tokens += read
        if request.model in self._models or len(self._models) < self._MOST_MODELS:
            self._models[request.model] = self._models.get(request.model, 0) + 1
        self._add_price(request, read, typical)
        if self._prompts % self._stride == 0:
            self._sample.append(RequestSize(len(encode_request(request, Dialect.DOCUMENTED)), bound, typical))
            if len(self._sample) >= 2 * _SAMPLE:
                del self._sample[1::2]
                self._stride *= 2
        self._prompts += 1

    def _add_price(self, request: ChatRequest, read: float, typical: int) -> None:
        entry = catalog.lookup(request.model)
        if entry is None or entry.input_price is None or entry.output_price is None:
            self._unpriced += 1
            return
        self._unbounded += request.max_tokens is None
        for name, written in (("low", 0), ("typical", typical), ("high", request.max_tokens or 0)):
            self._sums[name] += (read * entry.input_price + written * entry.output_price) / 1_000_000

    def workload(self) -> Workload:
        """Everything counted so far."""
        sums = self._sums
        high = None if self._unbounded else sums["high"]
        return Workload(
            self._prompts,
            round(self._input_tokens),
            Price(sums["low"], sums["typical"], high, self._unpriced),
            tuple(sorted(self._models.items(), key=lambda pair: -pair[1])),
            tuple(self._sample),
        )


def _text_bytes(request: ChatRequest) -> int:
    texts = [message.content for message in request.messages]
    if request.system is not None:
        texts.append(request.system)
    return sum(len(text.encode(errors="replace")) for text in texts)
