"""Estimates the tokens of a request, learned for each model from the usage of earlier replies. Pure."""

_WEIGHT = 0.1
"""Weight of the newest observation in the moving averages."""
_BYTES_PER_TOKEN = 4.0
"""Initial bytes per token: about right for English text in common tokenizers."""
_OUTPUT_TOKENS = 512.0
"""Initial output tokens of a request without ``max_tokens``."""
_MAX_MODELS = 256
"""Models that are remembered. Names are free text, so there could be any number."""
_MAX_TOKENS = 2**53
"""Maximum number of output tokens. No answer is longer, and a larger integer may be beyond the floats."""


class TokenEstimator:
    """Estimates ``body bytes / k + output tokens``, with k and the usual output learned for each model."""

    __slots__ = ("_learned",)

    def __init__(self) -> None:
        self._learned: dict[str, tuple[float, float]] = {}

    def estimate(self, model: str, body_bytes: int, max_tokens: int | None) -> float:
        """Returns the tokens that a request will probably use, input and output together.

        Args:
            model: The model of the request.
            body_bytes: Size of the encoded request.
            max_tokens: Maximum number of output tokens; None if the request does not say.
        """
        bytes_per_token, output = self._learned.get(model, (_BYTES_PER_TOKEN, _OUTPUT_TOKENS))
        if max_tokens is not None:
            output = min(max_tokens, _MAX_TOKENS)
        return body_bytes / bytes_per_token + output

    def learn(self, model: str, body_bytes: int, input_tokens: int | None, output_tokens: int | None) -> None:
        """Records the tokens that a request of `body_bytes` used."""
        if not input_tokens or output_tokens is None:
            return
        observed = body_bytes / input_tokens, float(output_tokens)
        known = self._learned.get(model)
        if known is not None:
            self._learned[model] = (
                known[0] + _WEIGHT * (observed[0] - known[0]),
                known[1] + _WEIGHT * (observed[1] - known[1]),
            )
        elif len(self._learned) < _MAX_MODELS:
            self._learned[model] = observed
