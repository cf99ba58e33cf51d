"""The real client against the pure service in virtual time: hours of rate limit in seconds, repeatable by a seed."""

from onellm_async.simulation.clock import DeadlockError, VirtualClockLoop, run_in_virtual_time
from onellm_async.simulation.plan import Plan, Spread, Suggestion, plan
from onellm_async.simulation.scenario import (
    Control,
    LimitChange,
    Network,
    Outage,
    Pause,
    Retune,
    Scenario,
    SingleChat,
    SourceGap,
)
from onellm_async.simulation.service_transport import ServiceTransport
from onellm_async.simulation.simulate import SimulationResult, best_makespan, simulate
from onellm_async.simulation.simulated_client import Observer
from onellm_async.simulation.simulated_run import ExpectedService
from onellm_async.simulation.workload import Price, RequestSize, Workload, WorkloadMeter

__all__ = [
    "Control",
    "DeadlockError",
    "ExpectedService",
    "LimitChange",
    "Network",
    "Observer",
    "Outage",
    "Pause",
    "Plan",
    "Price",
    "RequestSize",
    "Retune",
    "Scenario",
    "ServiceTransport",
    "SimulationResult",
    "SingleChat",
    "SourceGap",
    "Spread",
    "Suggestion",
    "VirtualClockLoop",
    "Workload",
    "WorkloadMeter",
    "best_makespan",
    "plan",
    "run_in_virtual_time",
    "simulate",
]
