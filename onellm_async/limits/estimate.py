"""How many tokens a request will probably use, learned from what earlier ones did use. Pure."""

__all__ = ["TokenEstimator"]

_WEIGHT = 0.1
"""Of the newest observation in the moving averages."""
_BYTES_PER_TOKEN = 4.0
"""Until something is learned: about what English text has in common tokenisers."""
_OUTPUT_TOKENS = 512.0
"""Until something is learned, for requests without ``max_tokens``."""
_MOST_MODELS = 256
"""Models remembered; names are free text, so there could be any number."""
_MOST_TOKENS = 2**53
"""No answer is so long, and a larger integer may be beyond the floats."""


class TokenEstimator:
    """Estimates ``body bytes / k + output tokens``, with k and the usual output learned for each model."""

    __slots__ = ("_learned",)

    def __init__(self) -> None:
        self._learned: dict[str, tuple[float, float]] = {}

    def estimate(self, model: str, body_bytes: int, max_tokens: int | None) -> float:
        """Tokens that a request will probably use, input and output together.

        Args:
            model: The model asked.
            body_bytes: Size of the encoded request.
            max_tokens: The most the reply may have; None when the request does not say.
        """
        bytes_per_token, output = self._learned.get(model, (_BYTES_PER_TOKEN, _OUTPUT_TOKENS))
        if max_tokens is not None:
            output = min(max_tokens, _MOST_TOKENS)
        return body_bytes / bytes_per_token + output

    def learn(self, model: str, body_bytes: int, input_tokens: int | None, output_tokens: int | None) -> None:
        """Takes note of what a request of `body_bytes` did use."""
        if not input_tokens or output_tokens is None:
            return
        observed = body_bytes / input_tokens, float(output_tokens)
        known = self._learned.get(model)
        if known is not None:
            self._learned[model] = (
                known[0] + _WEIGHT * (observed[0] - known[0]),
                known[1] + _WEIGHT * (observed[1] - known[1]),
            )
        elif len(self._learned) < _MOST_MODELS:
            self._learned[model] = observed
