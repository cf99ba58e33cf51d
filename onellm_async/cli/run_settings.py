"""From the flags of ``onellm-async run`` to what the library is told."""

from typing import TYPE_CHECKING

from attrs import asdict

from onellm_async.batch import Budget, FileRun, HealthPolicy, RunPolicy
from onellm_async.cli.options import ConnectionFlags
from onellm_async.settings import resolve_base_url
from onellm_async.wire import resolve_endpoints

if TYPE_CHECKING:
    from onellm_async.cli.reading import InputFlags
    from onellm_async.cli.run_flags import BudgetFlags, OutputFlags, ResumeFlags

__all__ = ["file_run"]


def file_run(
    reading: "InputFlags",
    writing: "OutputFlags",
    spending: "BudgetFlags",
    going_on: "ResumeFlags",
    connecting: ConnectionFlags,
) -> FileRun:
    """What is to be run, as the flags say.

    Raises:
        ConfigurationError: If a value is out of range.
    """
    budget = Budget(max_cost=spending.max_cost, max_tokens=spending.max_tokens_total)
    return FileRun(
        output=writing.output,
        journal=writing.journal,
        force=writing.force,
        caches=going_on.cache,
        base_url="local"
        if connecting.local
        else resolve_base_url(connecting.base_url, allow_insecure=connecting.allow_insecure),
        dialect=connecting.dialect_name,
        endpoints=resolve_endpoints(connecting.endpoints),
        policy=RunPolicy(
            ambiguous=going_on.ambiguous,
            retry_failed=going_on.retry_failed,
            deduplicate=going_on.deduplicate,
            strict=reading.strict,
        ),
        budget=budget,
        health=HealthPolicy(
            most_alike=1.0 if going_on.keep_going else HealthPolicy().most_alike,
            quiet_after=min(HealthPolicy().quiet_after, going_on.stall_after),
            stalled_after=going_on.stall_after,
        ),
        settings={"limits": asdict(connecting.limits()), "budget": asdict(budget)},
    )
