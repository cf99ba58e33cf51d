"""A scenario: one run and everything that happens in it, as values."""

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import field, frozen
from attrs.validators import in_

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Lane, Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.service_limits import BucketLimit, ServiceLimit
from onellm_async.server.settings import Faults, RateHeaders
from onellm_async.wire import Dialect


@frozen
class LimitChange:
    """The service changes its limits during the run.

    Attributes:
        at: Seconds since the start.
        requests_per_minute: Refill of the one bucket from then on. 0 also empties it.
        limits: All limits from then on, of any kind and number. Limits of the same kind keep what they have counted.

    Raises:
        ConfigurationError: If both are given, or neither.
    """

    at: float
    requests_per_minute: float | None = None
    limits: Sequence[ServiceLimit] | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.requests_per_minute is None) == (self.limits is None):
            raise ConfigurationError("A LimitChange needs requests_per_minute or limits, and not both.")

    def limits_after(self, burst: float) -> Sequence[ServiceLimit]:
        """All limits from `at` on.

        Args:
            burst: Bucket size of the scenario, which `requests_per_minute` leaves as it is.
        """
        if self.requests_per_minute is None:
            return self.limits or ()
        return (BucketLimit(self.requests_per_minute, burst, initial_level=None if self.requests_per_minute else 0.0),)


@frozen(kw_only=True)
class Pause:
    """A client is paused and resumed. The first resume ends all overlapping pauses.

    Attributes:
        at: Seconds since the start.
        seconds: Time until the resume.
        client: Index of the client; None for every client.
    """

    at: float
    seconds: float
    client: int | None = None


@frozen(kw_only=True)
class Retune:
    """A client gets other limits.

    Attributes:
        at: Seconds since the start.
        limits: The new limits.
        client: Index of the client; None for every client.
    """

    at: float
    limits: Limits
    client: int | None = None


Control = Pause | Retune


@frozen(kw_only=True)
class SingleChat:
    """One chat beside the fan-out of a client.

    Attributes:
        at: Seconds since the start.
        lane: Its lane.
        deadline: Seconds until its deadline; None for no deadline.
        cancelled_after: Seconds after which its caller cancels it; None for never.
    """

    at: float
    lane: Lane = "interactive"
    deadline: float | None = None
    cancelled_after: float | None = None


@frozen(kw_only=True)
class SourceGap:
    """The prompt source of a fan-out stalls.

    Attributes:
        before: Index of the prompt that comes late.
        seconds: How late it comes.
    """

    before: int
    seconds: float


@frozen
class Outage:
    """No request gets an answer for a while.

    Attributes:
        at: Beginning, in seconds since the start.
        until: End, in seconds since the start.
        kind: ``"unreachable"``: no connection can be made. ``"silent"``: requests are accepted and never answered.
    """

    at: float
    until: float
    kind: Literal["unreachable", "silent"] = field(default="unreachable", validator=in_(("unreachable", "silent")))


@frozen(kw_only=True)
class Network:
    """The network between a client and the service.

    Attributes:
        delay: Minimum seconds for each direction.
        jitter: Maximum additional seconds for each direction, uniformly distributed.
        stall_rate: Share of the requests that never arrive, without an error.
        timeout: Seconds after which the transport stops waiting for a reply; None for never.
        outages: Times in which no request gets an answer.
    """

    delay: float = 0.02
    jitter: float = 0.02
    stall_rate: float = 0.0
    timeout: float | None = None
    outages: Sequence[Outage] = ()

    def outage_at(self, now: float) -> Outage | None:
        """The outage at `now`; None if there is none."""
        return next((outage for outage in self.outages if outage.at <= now < outage.until), None)


@frozen(kw_only=True)
class Scenario:
    """One run against the simulated service, and everything that happens in it.

    Attributes:
        prompts: Number of prompts of each client.
        clients: Number of uncoordinated clients that share one key, as if each had a process of its own.
        limits: Limits of each client at the start.
        requests_per_minute: True refill rate of the service.
        burst: True bucket size of the service.
        initial_level: Tokens in the service's bucket at the start; None for a full bucket.
        service_limits: All limits of the service, in place of this one bucket: windows, concurrency, several at once.
        background_rate: Requests per second that other clients of the key send, at random times. The best makespan
            ignores them.
        rate_headers: Headers in which the service says what is left of its limits; None for no such headers.
        faults: Latency and faults of the service. `seed` replaces its seed.
        changes: Changes of the true rate limit.
        network_delay: Minimum seconds for each direction.
        network_jitter: Maximum additional seconds for each direction.
        retry: Retry policy of each client.
        dialect: Dialect of the service and its clients.
        lane: Lane of the prompts.
        deadline: Seconds for each prompt; None for no deadline.
        consumer_pause: Seconds that the consumer of the outcomes takes for each.
        chats: Single chats of each client beside its prompts.
        stall_rate: Share of the requests that never arrive, without an error.
        timeout: Seconds after which a client stops waiting for a reply; None for never.
        outages: Times in which no request gets an answer. The best makespan ignores them.
        controls: Pauses and retunes of running clients. The best makespan ignores them.
        source_gaps: Stalls of the prompt source. The best makespan ignores them.
        max_prompt_length: Characters up to which prompts are padded, each to a random length; 0 for no padding.
        shared_quota: Whether the clients share the rate through a quota.
        quota_latency: Seconds of a visit to its board.
        quota_outages: Times in which the board is out of reach, as (begin, end).
        deaths: Seconds after which a client dies without a word, by index.
        seed: Seed of every random value.
    """

    prompts: int = 400
    clients: int = 1
    limits: Limits = field(factory=lambda: Limits(requests_per_minute="auto"))
    requests_per_minute: float = 40.0
    burst: int = 40
    initial_level: float | None = None
    service_limits: Sequence[ServiceLimit] | None = None
    background_rate: float = 0.0
    rate_headers: RateHeaders | None = None
    faults: Faults = field(factory=lambda: Faults(latency=6.0, latency_sigma=0.3))
    changes: Sequence[LimitChange] = ()
    network_delay: float = 0.02
    network_jitter: float = 0.05
    retry: RetryPolicy = field(factory=RetryPolicy)
    dialect: Dialect = Dialect.DOCUMENTED
    lane: Lane = "batch"
    deadline: float | None = None
    consumer_pause: float = 0.0
    chats: Sequence[SingleChat] = ()
    stall_rate: float = 0.0
    timeout: float | None = None
    outages: Sequence[Outage] = ()
    controls: Sequence[Control] = ()
    source_gaps: Sequence[SourceGap] = ()
    max_prompt_length: int = 0
    shared_quota: bool = False
    quota_latency: float = 0.0
    quota_outages: Sequence[tuple[float, float]] = ()
    deaths: Mapping[int, float] = field(factory=dict)
    seed: int = 0

    @property
    def limits_at_start(self) -> Sequence[ServiceLimit]:
        """All limits of the service at the start."""
        if self.service_limits is not None:
            return self.service_limits
        return (BucketLimit(self.requests_per_minute, self.burst, initial_level=self.initial_level),)

    @property
    def network(self) -> Network:
        """The network between each client and the service."""
        return Network(
            delay=self.network_delay,
            jitter=self.network_jitter,
            stall_rate=self.stall_rate,
            timeout=self.timeout,
            outages=self.outages,
        )

    @property
    def all_limits(self) -> Sequence[Limits]:
        """The limits at the start, and those of each retune."""
        return [self.limits, *(control.limits for control in self.controls if isinstance(control, Retune))]
