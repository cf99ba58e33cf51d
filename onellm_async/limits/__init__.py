"""Admission: decides when each request may be sent. Knows numbers (cost, lane, deadline), never chats."""

from onellm_async.limits.bottleneck import BOTTLENECK_LABELS, Bottleneck
from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis, analyze_bottlenecks
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.permit import Permit, RequestGroup
from onellm_async.limits.policy import LANES, Lane, Limits, Mode, Rate
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot

__all__ = [
    "BOTTLENECK_LABELS",
    "LANES",
    "Bottleneck",
    "BottleneckAnalysis",
    "Lane",
    "Limiter",
    "Limits",
    "Mode",
    "Permit",
    "Rate",
    "RateState",
    "RequestGroup",
    "Snapshot",
    "TokenBucket",
    "analyze_bottlenecks",
]
