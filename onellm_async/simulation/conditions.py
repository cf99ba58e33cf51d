"""What is simulated, as values."""

from collections.abc import Sequence

from attrs import field, frozen

from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.settings import Faults
from onellm_async.simulation.controls import Control, Retune
from onellm_async.simulation.participant import Silence, SingleChat
from onellm_async.simulation.service_transport import Outage
from onellm_async.wire import Dialect

__all__ = ["LimitChange", "Scenario"]


@frozen
class LimitChange:
    """The service's limit becomes `requests_per_minute` at `at` seconds; 0 also empties its bucket."""

    at: float
    requests_per_minute: float


@frozen(kw_only=True)
class Scenario:
    """What is simulated.

    Attributes:
        prompts: How many each client asks.
        clients: Uncoordinated clients, each as in a process of its own, on one key.
        limits: What the clients are told.
        requests_per_minute: The service's true refill.
        burst: The service's true capacity.
        initial_level: Tokens in the service's bucket at the start; None: full.
        faults: What goes wrong; its seed is replaced by `seed`.
        changes: When the true limit changes.
        travel: Seconds on the way, each way.
        travel_jitter: Seconds by which a way may be longer.
        retry: The clients' policy.
        dialect: Of the service and its clients.
        lane: Where the prompts wait.
        deadline: Seconds for each prompt; None for no end.
        consumer_pause: Seconds that whoever reads the outcomes takes for each.
        chats: Asked of each client beside its prompts.
        stall_rate: Share of the requests that get lost on the way, without a word.
        timeout: Seconds after which a client stops waiting for a reply; None: never.
        outages: When nothing gets through. The best makespan does not count them.
        controls: Pauses of running clients, and limits that they go on with. Nor are these counted.
        silences: When the prompts are long in coming. Nor are these.
        longest_prompt: Characters to which prompts are filled up, each to a random length between its own and this
            one; 0: none is.
        seed: Decides on every random value.
    """

    prompts: int = 400
    clients: int = 1
    limits: Limits = field(factory=lambda: Limits(requests_per_minute=None))
    requests_per_minute: float = 40.0
    burst: int = 40
    initial_level: float | None = None
    faults: Faults = field(factory=lambda: Faults(latency=6.0, latency_sigma=0.3))
    changes: Sequence[LimitChange] = ()
    travel: float = 0.02
    travel_jitter: float = 0.05
    retry: RetryPolicy = field(factory=RetryPolicy)
    dialect: Dialect = Dialect.DOCUMENTED
    lane: str = "batch"
    deadline: float | None = None
    consumer_pause: float = 0.0
    chats: Sequence[SingleChat] = ()
    stall_rate: float = 0.0
    timeout: float | None = None
    outages: Sequence[Outage] = ()
    controls: Sequence[Control] = ()
    silences: Sequence[Silence] = ()
    longest_prompt: int = 0
    seed: int = 0

    @property
    def limits_in_turn(self) -> Sequence[Limits]:
        """What the clients are told at the start and later."""
        return [self.limits, *(control.limits for control in self.controls if isinstance(control, Retune))]
