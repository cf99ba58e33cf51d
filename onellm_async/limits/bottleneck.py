"""Bottlenecks: what a request, or a whole run, waits for. One vocabulary, its labels and its advice."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

Bottleneck: TypeAlias = Literal[
    "rate",
    "quota",
    "concurrency",
    "tokens",
    "retry_after",
    "backoff",
    "circuit_open",
    "paused",
    "lane",
    "service",
    "idle",
]
"""What keeps the next request from being sent:

- ``"rate"``: the requests per minute, declared or discovered
- ``"quota"``: another process that shares the rate is next
- ``"concurrency"``: `Limits.max_concurrency` requests are in flight, or as many as an overloaded service accepts
- ``"tokens"``: `Limits.tokens_per_minute`
- ``"retry_after"``: the service asked the client to wait
- ``"backoff"``: the client waits after a failure, or after a 429 where there is no rate to correct
- ``"circuit_open"``: the service failed several times in a row and is sent trial requests only
- ``"paused"``: the client is paused
- ``"lane"``: a request of another lane is next

Or no request is queued:

- ``"service"``: requests are in flight, and only their answers can advance the run
- ``"idle"``: nothing is queued or in flight
"""

BOTTLENECK_LABELS: Mapping[Bottleneck, str] = {
    "rate": "rate limit",
    "quota": "shared rate limit",
    "concurrency": "concurrency limit",
    "tokens": "token limit",
    "retry_after": "Retry-After",
    "backoff": "backoff after failures",
    "circuit_open": "open circuit",
    "paused": "pause",
    "lane": "another lane",
    "service": "answers of the service",
    "idle": "nothing to send",
}
"""A noun phrase for each, for tables and status lines."""

BOTTLENECK_ADVICE: Mapping[Bottleneck, str] = {
    "rate": "the rate limit of {rate:.1f} requests per minute was the bottleneck. More requests per minute would make"
    " this run shorter; more concurrency would not.",
    "quota": "other processes that share the rate limit of {rate:.1f} requests per minute were next. More requests per"
    " minute, or fewer of them beside, would make this run shorter; more concurrency would not.",
    "concurrency": "all {slots} slots were in use. A higher max_concurrency would make this run shorter; more requests"
    " per minute would not.",
    "tokens": "the limit of {tokens:,.0f} tokens per minute was the bottleneck. More tokens per minute, shorter prompts"
    " or a smaller max_tokens would make this run shorter; more requests per minute would not.",
    "retry_after": "the service asked the client to wait (Retry-After). Another client of this key, or a declared rate"
    " that is too high, makes this run longer.",
    "backoff": "the client waited to retry after failures. Fewer failures would make this run shorter; neither a higher"
    " rate nor more concurrency would.",
    "circuit_open": "the circuit was open: the service failed, and was sent trial requests only. Nothing but a service"
    " that answers again could make this run shorter.",
    "paused": "the client was paused. Resuming sooner would make this run shorter.",
    "lane": "requests of another lane were sent first. Fewer of them would make this run shorter.",
    "service": "all requests were in flight, and the service was busy answering. Faster answers would make this run"
    " shorter; neither a higher rate nor more concurrency would.",
    "idle": "there was nothing to send. A faster source of prompts, or a faster consumer of the answers, would make"
    " this run shorter.",
}
"""How each slowed a run, and what would make the run shorter; goes on after "92 % of the time ".

Fields: ``rate`` in requests per minute, ``slots`` as `Snapshot.concurrency`, ``tokens`` per minute.
"""

OVERLOAD_ADVICE = (
    "all {slots} slots that the service left were in use: it said that it was overloaded, so fewer than max_concurrency"
    " requests were sent at once. A service that accepts more would make this run shorter."
)
"""As ``"concurrency"``, where an overloaded service accepts less than `Limits.max_concurrency`."""
