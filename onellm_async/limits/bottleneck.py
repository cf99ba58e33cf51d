"""What a request can wait for, in one word."""

from typing import Literal, TypeAlias

__all__ = ["Bottleneck"]

Bottleneck: TypeAlias = Literal[
    "nothing", "rate", "slots", "tokens", "retry-after", "back-off", "service down", "paused", "its turn"
]
"""What a waiting request waits for:

- ``"rate"``: the requests per minute, declared or learned
- ``"slots"``: `Limits.max_concurrency` requests are under way, or as many as an overloaded service takes
- ``"tokens"``: `Limits.tokens_per_minute`
- ``"retry-after"``: the service asked everybody to wait
- ``"back-off"``: it refused, and there is no rate to correct
- ``"service down"``: it failed again and again, and is probed from time to time
- ``"paused"``: the client was paused
- ``"its turn"``: another lane's request is next
- ``"nothing"``: nobody waits
"""
