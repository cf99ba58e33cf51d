"""``onellm-async plan``: what a run will take, before anything is sent."""

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from attrs import frozen
from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.flag_words import arguments_in_flags
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import ASKING_EACH, LimitFlags, RunRequestFlags
from onellm_async.cli.reading import READING, SELECTING, InputFlags, SelectionFlags, open_input
from onellm_async.cli.terminal import print_error, put, say
from onellm_async.errors import BatchError, ConfigurationError

if TYPE_CHECKING:
    from onellm_async.batch import InputFile, LineError
    from onellm_async.batch.config import RunConfig
    from onellm_async.batch.work_list import WorkList
    from onellm_async.catalog import PriceList
    from onellm_async.limits.policy import Limits
    from onellm_async.simulation.plan import Plan
    from onellm_async.simulation.simulated_run import ExpectedService
    from onellm_async.simulation.workload import Workload

__all__ = ["plan", "plan_command"]

_EXAMPLES = """\
Examples:
  onellm-async plan questions.jsonl --field question --latency 6
  onellm-async plan prompts.txt --rpm 600 --burst 100 --latency 8
  onellm-async plan prompts.txt --max-tokens 300 --tpm 90000
  onellm-async plan prompts.txt --json | jq .duration.median
  onellm-async plan prompts.txt --rpm auto --service-rpm 40

Nothing is sent and no key is needed: the real client is run in virtual time
against a simulated service, several times. INPUT is read as `run` reads it.
Input tokens are estimated as one per four bytes; prices are OneLLM's list
prices. The least cost is that of the input alone, the highest that of answers
of --max-tokens each, with --schema all of them corrected.

It writes no file and has no -o. `onellm-async run ... -o OUTPUT --estimate`
makes the same plan of the run itself: it takes every flag of `run`, and what
the journal of OUTPUT already has is not counted again.
"""

_ERRORS_SHOWN = 10


@Parameter(name="*", group=groups.ASSUMPTIONS)
@frozen
class AssumptionFlags:
    """What the service is expected to do."""

    latency: Annotated[float, Parameter(help="Expected median latency in seconds.")] = 6.0
    latency_sigma: Annotated[
        float, Parameter(help="Spread of the latency: with 0.3 its 95th percentile is 1.6 times the median.")
    ] = 0.3
    failure_rate: Annotated[
        float, Parameter(help="Share of requests (0 to 0.5) answered with a 500, which is not billed.")
    ] = 0.0
    output_tokens: Annotated[
        int | None, Parameter(help="Expected tokens of an answer. [default: 512, or --max-tokens if that is less]")
    ] = None
    service_rpm: Annotated[
        float | None,
        Parameter(help="Requests per minute that the service allows. [default: --rpm; 40 with --rpm auto]"),
    ] = None
    seeds: Annotated[int, Parameter(help="Number of simulated runs.")] = 5


LIMITING = LimitFlags()
_AMPLE = 10
"""Rate of the expected service as a multiple of the highest of several declared rates, all of which it allows."""


def plan(
    source: Annotated[str, Parameter(name="INPUT")],
    /,
    *more: Annotated[str, Parameter(name="INPUT", show=False)],
    reading: InputFlags = READING,
    selecting: SelectionFlags = SELECTING,
    asking: RunRequestFlags = ASKING_EACH,
    limiting: LimitFlags = LIMITING,
    expecting: AssumptionFlags = AssumptionFlags(),
    general: GeneralFlags = GENERAL,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the plan as JSON.")] = False,
) -> int:
    """Runs ``onellm-async plan``.

    Args:
        source: File of prompts, or several as one run; `-` is standard input.
        more: Further files.
        reading: How it is read.
        selecting: Which prompts are sent, and how often.
        asking: What is asked of every prompt.
        limiting: How much of the service may be used.
        expecting: What the service is expected to do.
        general: The environment, and how much is said.
        json: Print the plan as JSON.
    """
    from onellm_async.batch.config import RunConfig, RunPolicy

    policy = RunPolicy(
        strict=reading.strict,
        first=selecting.limit,
        samples=selecting.samples,
        deduplicate=selecting.deduplicate,
    )
    config = RunConfig(output=None, caches=selecting.cache, policy=policy, corrections=asking.corrections)
    with general.applied():
        return estimate((source, *more), reading, asking, limiting, expecting, json=json, config=config)


def estimate(
    sources: Sequence[str],
    reading: InputFlags,
    asking: RunRequestFlags,
    limiting: LimitFlags,
    expecting: AssumptionFlags | None = None,
    *,
    json: bool = False,
    config: "RunConfig",
) -> int:
    """Estimates a run by simulation and prints the plan. Returns the exit code.

    Args:
        sources: Files of prompts; `-` is standard input.
        reading: How they are read.
        asking: What is asked of every prompt.
        limiting: How much of the service may be used.
        expecting: What the service is expected to do.
        json: Print the plan as JSON.
        config: The run, whose journal and caches have answers that it would not ask for.
    """
    import asyncio

    from onellm_async.catalog import PriceList
    from onellm_async.simulation.plan import plan as make_plan

    expecting = expecting or AssumptionFlags()
    limits, service = _settings(limiting, expecting)
    opened = open_input(sources, reading, asking, capped=config.budget.capped)
    work, workload = asyncio.run(
        _measured(opened, expecting, config, PriceList.of(limiting.prices), strict=reading.strict)
    )
    made = make_plan(workload, limits, service, seeds=expecting.seeds)
    _print(made, opened.name, work, json=json)
    return ExitCode.FAILED if work.bad_lines else ExitCode.OK


plan_command: App = command(
    plan,
    _EXAMPLES,
    {
        ExitCode.OK: "the plan was made",
        ExitCode.FAILED: "the plan was made, without lines of the input that were bad",
    },
)


def _settings(limiting: LimitFlags, expecting: AssumptionFlags) -> "tuple[Limits, ExpectedService]":
    from onellm_async.simulation.simulated_run import ExpectedService

    if expecting.seeds < 1:
        raise ConfigurationError(f"seeds is {expecting.seeds}; it must be an integer of at least 1.")
    if expecting.output_tokens is not None and expecting.output_tokens < 0:
        raise ConfigurationError(f"output_tokens is {expecting.output_tokens}; it must not be negative.")
    limits = limiting.limits()
    rate, burst = limits.declared_rate or 40.0, limits.burst
    if limits.rates:  # the service that is expected has one bucket: one that never is the limit
        rate = _AMPLE * max(rate.per_minute for rate in limits.declared_rates)
        burst = max(rate.capacity for rate in limits.declared_rates)
    service = ExpectedService(
        requests_per_minute=rate if expecting.service_rpm is None else expecting.service_rpm,
        burst=burst,
        latency=expecting.latency,
        latency_sigma=expecting.latency_sigma,
        failure_rate=expecting.failure_rate,
    )
    return limits, service


async def _measured(
    source: "InputFile", expecting: AssumptionFlags, config: "RunConfig", prices: "PriceList", *, strict: bool
) -> "tuple[WorkList, Workload]":
    """What the run would send, and its sizes."""
    from onellm_async.batch import AnswerCache
    from onellm_async.batch.earlier_sessions import earlier_sessions
    from onellm_async.batch.work_list import WorkList
    from onellm_async.simulation.workload import TYPICAL_OUTPUT, WorkloadMeter

    given = expecting.output_tokens
    meter = WorkloadMeter(
        output_tokens=TYPICAL_OUTPUT if given is None else given,
        corrections=0 if source.defaults.shape is None else config.corrections,
        prices=prices,
    )

    def on_bad_line(error: "LineError") -> None:
        if strict:
            raise BatchError(str(error), advice="Nothing was planned (--strict).")
        if work.bad_lines <= _ERRORS_SHOWN:
            say(arguments_in_flags(str(error)))

    async with source:
        with (
            earlier_sessions(source, config.identity(source, source.scan()), config, say) as earlier,
            AnswerCache(config.caches, base_url=config.base_url) as cache,
        ):
            work = WorkList(source, config.policy, earlier=earlier, cache=cache, on_bad_line=on_bad_line)
            async for request in work:
                meter.add(request)
    if not (work.left or work.completed or work.bad_lines):
        raise BatchError(f"{source.name} holds no prompts.")
    return work, meter.workload()


def _print(made: "Plan", name: str, work: "WorkList", *, json: bool) -> None:
    from onellm_async.cli.plan_text import plan_json, plan_text, progress_chart
    from onellm_async.wire import dump_json

    if work.bad_lines:
        more = f" ({work.bad_lines - _ERRORS_SHOWN:,} more than shown)" if work.bad_lines > _ERRORS_SHOWN else ""
        print_error(f"bad lines, which are not in the plan: {work.bad_lines:,}{more}")
    if json:
        put(dump_json(plan_json(made, work)).decode())
        return
    now = datetime.now().astimezone()
    put(plan_text(made, name, _end(now, made.duration.median), work))
    if sys.stdout.isatty() and made.progress:
        put("\n" + progress_chart(made.progress))


def _end(now: datetime, seconds: float) -> str:
    """The time of day, with the date where it is another day, and the year where it is not soon."""
    try:
        end = now + timedelta(seconds=seconds)
    except OverflowError:
        return "beyond the calendar"
    if end.date() == now.date():
        return f"at {end:%H:%M}"
    return f"on {end:%Y-%m-%d at %H:%M}"
