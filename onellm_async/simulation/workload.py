"""The workload of a run: number, sizes and prices of its prompts. Pure, in constant memory."""

from collections.abc import Sequence

from attrs import frozen

from onellm_async.catalog import LIST_PRICES, PriceList
from onellm_async.chat import ChatRequest
from onellm_async.limits.token_estimator import TokenEstimator
from onellm_async.structured_output import MAX_CORRECTION
from onellm_async.wire import Dialect, encode_request

TYPICAL_OUTPUT = 512
"""Output tokens of an answer by default. The client assumes the same before its first answer."""
_MIN_SAMPLE = 4096
"""Sizes kept of a larger workload: enough for a mean within 2 % if sizes vary as much as their mean."""


@frozen
class RequestSize:
    """The size of one request.

    Attributes:
        body_bytes: Bytes of the encoded body.
        max_tokens: Maximum output tokens; None if the request has no such bound.
        output_tokens: Expected output tokens.
    """

    body_bytes: int
    max_tokens: int | None
    output_tokens: int

    @property
    def tokens(self) -> float:
        """Estimated input and output tokens, as the client counts them once it knows the model's usual answers."""
        return TokenEstimator().estimate("", self.body_bytes, self.output_tokens)


@frozen
class Price:
    """Cost of a workload by list price, in USD.

    Attributes:
        low: With empty answers.
        typical: With answers of the expected length.
        high: With answers of ``max_tokens`` each, all of them corrected as often as they may be; None if a request has
            no such bound.
        unpriced: Number of prompts whose model has no list price. They are in none of the sums.
    """

    low: float = 0.0
    typical: float = 0.0
    high: float | None = 0.0
    unpriced: int = 0


@frozen
class Workload:
    """Number, sizes and prices of a set of prompts.

    Attributes:
        prompts: Number of prompts.
        input_tokens: Estimated input tokens of all prompts, at four bytes per token.
        price: Cost of all prompts.
        models: Pairs of model and number of prompts, the most frequent first; at most a hundred.
        sample: Sizes of the prompts in their order. Of a large workload, those of evenly spaced prompts.
    """

    prompts: int
    input_tokens: int
    price: Price
    models: Sequence[tuple[str, int]]
    sample: Sequence[RequestSize]

    @classmethod
    def uniform(cls, prompts: int, *, body_bytes: int = 400, output_tokens: int = TYPICAL_OUTPUT) -> "Workload":
        """A workload of prompts of one size and unknown price.

        Example:
            >>> Workload.uniform(1000, body_bytes=800).input_tokens
            200000
        """
        size = RequestSize(body_bytes, None, output_tokens)
        return cls(prompts, prompts * body_bytes // 4, Price(unpriced=prompts), (), (size,) if prompts else ())


class WorkloadMeter:
    """Adds requests up one by one, and keeps the sizes of an evenly spaced sample.

    Args:
        output_tokens: Expected output tokens of an answer. A request's own ``max_tokens`` bounds it.
        corrections: Corrective turns that may follow an answer. They count in the highest price alone.

    Example:
        >>> meter = WorkloadMeter(output_tokens=100)
        >>> meter.add(ChatRequest("GPT-5-Nano", "What is the capital of France?", max_tokens=50))
        >>> meter.workload().input_tokens
        8
    """

    _MAX_MODELS = 100

    def __init__(
        self, *, output_tokens: int = TYPICAL_OUTPUT, corrections: int = 0, prices: PriceList = LIST_PRICES
    ) -> None:
        self._output_tokens = output_tokens
        self._corrections = corrections
        self._list = prices
        self._estimator = TokenEstimator()
        self._prompts = 0
        self._input_tokens = 0.0
        self._prices = {"low": 0.0, "typical": 0.0, "high": 0.0}
        self._unbounded = self._unpriced = 0
        self._models: dict[str, int] = {}
        self._stride = 1
        self._sample: list[RequestSize] = []

    def add(self, request: ChatRequest) -> None:
        """Adds one request."""
        max_tokens = request.max_tokens
        output_tokens = self._output_tokens if max_tokens is None else min(max_tokens, self._output_tokens)
        input_tokens = max(1.0, self._estimator.estimate(request.model, _text_bytes(request), 0))  # no prompt is empty
        self._input_tokens += input_tokens
        if request.model in self._models or len(self._models) < self._MAX_MODELS:
            self._models[request.model] = self._models.get(request.model, 0) + 1
        self._add_price(request, input_tokens, output_tokens)
        if self._prompts % self._stride == 0:
            body = encode_request(request, Dialect.DOCUMENTED)
            self._sample.append(RequestSize(len(body), max_tokens, output_tokens))
            if len(self._sample) >= 2 * _MIN_SAMPLE:
                del self._sample[1::2]
                self._stride *= 2
        self._prompts += 1

    def _add_price(self, request: ChatRequest, input_tokens: float, output_tokens: int) -> None:
        price = self._list.price(request.model)
        if price is None:
            self._unpriced += 1
            return
        self._unbounded += request.max_tokens is None
        for name, written in (("low", 0), ("typical", output_tokens), ("high", request.max_tokens or 0)):
            self._prices[name] += (input_tokens * price[0] + written * price[1]) / 1_000_000
        for turn in range(1, self._corrections + 1):
            written = request.max_tokens or 0
            read = input_tokens + turn * (written + self._estimator.estimate(request.model, MAX_CORRECTION, 0))
            self._prices["high"] += (read * price[0] + written * price[1]) / 1_000_000

    def workload(self) -> Workload:
        """The workload of all requests so far."""
        prices = self._prices
        high = None if self._unbounded else prices["high"]
        return Workload(
            self._prompts,
            round(self._input_tokens),
            Price(prices["low"], prices["typical"], high, self._unpriced),
            tuple(sorted(self._models.items(), key=lambda pair: -pair[1])),
            tuple(self._sample),
        )


def _text_bytes(request: ChatRequest) -> int:
    texts = [message.content for message in request.messages]
    if request.system is not None:
        texts.append(request.system)
    return sum(len(text.encode(errors="replace")) for text in texts)
