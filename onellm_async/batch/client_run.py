"""`AsyncOneLLM.run`: a durable run from Python, with the names and defaults of ``onellm-async run``."""

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from os import PathLike
from time import monotonic
from typing import Literal, TypedDict, cast

from attrs import asdict, evolve

from onellm_async.batch.budget import Budget
from onellm_async.batch.callbacks import guarded
from onellm_async.batch.file_run import FileRun, RunWatch, check_budget, run_file, survey
from onellm_async.batch.health import HealthPolicy
from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.inputs.formats import input_format_named
from onellm_async.batch.inputs.memory import InMemoryInput, NamedPrompt, entries_from
from onellm_async.batch.inputs.sources import InputFile, open_source
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.batch.outputs.formats import output_format_named
from onellm_async.batch.policy import RunPolicy
from onellm_async.batch.progress import ProgressTracker, RunProgress
from onellm_async.batch.run_report import RunReport
from onellm_async.chat import JSON, Prompt
from onellm_async.errors import BatchError, InvalidRequestError
from onellm_async.fanout import check_source
from onellm_async.sender import Sender
from onellm_async.validation import truncated_repr

__all__ = ["Prompts", "RunOptions", "run_with"]

InMemory = Iterable[Prompt | NamedPrompt] | AsyncIterable[Prompt | NamedPrompt]
Prompts = str | PathLike[str] | Sequence[PathLike[str]] | InMemory
"""A path, several, or prompts in memory: texts, messages, requests, or pairs of a ``custom_id`` and one of these."""

_PROGRESS_INTERVAL = 1.0
"""Seconds between two calls of ``on_progress``."""


class RunOptions(TypedDict, total=False):
    """The options of a run; each is the flag of ``onellm-async run`` of the same name, with the same default.

    Attributes:
        system: Instruction beside each prompt.
        max_tokens: Maximum number of tokens to generate.
        temperature: 0 to 2.
        field: Field of each JSON object, or column of each row, that holds the prompt.
        template: Jinja2 template that makes the prompt: a file, or the text itself.
        id_field: Field or column that holds the id of a prompt; None for ``custom_id``, or ``id`` where it is unique.
        input_format: How the input is written; None to tell from its name and its first line.
        strict: Send nothing if a line of the input is bad.
        limit: Ask only the first N entries.
        output_format: How answers are written; None to tell from the name of the output.
        journal: File that remembers what was sent; None for ``OUTPUT.journal``.
        force: Start over: drop an existing output and the answers in its journal.
        max_cost: Cost cap in USD over all sessions; needs ``max_tokens``.
        max_tokens_total: Cap on input and output tokens together over all sessions.
        ambiguous: Prompts that may have been billed without an answer: ``"retry"`` or ``"hold"``.
        retry_failed: Retry prompts that failed in an earlier session.
        deduplicate: Send identical requests once.
        cache: Outputs or journals of earlier runs, whose answers to the same requests are used.
        max_failure_share: Share of the last 50 prompts that may fail with the same error; 1 is ``--keep-going``.
        stall_after: Seconds of waiting for the service without an outcome after which the run stops.
    """

    system: str | None
    max_tokens: int | None
    temperature: float | None
    field: str | None
    template: str | None
    id_field: str | None
    input_format: Literal["text", "jsonl", "json", "openai-batch", "csv", "tsv", "parquet"] | None
    strict: bool
    limit: int | None
    output_format: Literal["jsonl", "openai-batch", "csv", "parquet"] | None
    journal: str | PathLike[str] | None
    force: bool
    max_cost: float | None
    max_tokens_total: int | None
    ambiguous: Literal["retry", "hold"]
    retry_failed: bool
    deduplicate: bool
    cache: Sequence[str | PathLike[str]]
    max_failure_share: float
    stall_after: float


async def run_with(
    client: Sender,
    source: Prompts,
    output: str | PathLike[str],
    *,
    base_url: str | None,
    dialect: str,
    model: str | None,
    on_progress: Callable[[RunProgress], None] | None,
    on_bad_line: Callable[[LineError], None] | None,
    stop: asyncio.Event | None,
    options: RunOptions,
) -> RunReport:
    """Runs `source` through `client`; see `onellm_async.AsyncOneLLM.run`.

    Args:
        client: Sends, within its limits.
        source: The prompts.
        output: File for the answers; ``"-"`` is standard output.
        base_url: Part of the run's identity.
        dialect: Likewise.
        model: Asked where an entry names none.
        on_progress: Called once a second, and at the end.
        on_bad_line: Called for each bad line.
        stop: Set it to end the run gracefully.
        options: Everything else.
    """
    plan = _plan(output, options, base_url=base_url, dialect=dialect, client=client)
    defaults = RequestDefaults(
        model=model,
        system=options.get("system"),
        max_tokens=options.get("max_tokens"),
        temperature=options.get("temperature"),
        least_max_tokens=plan.budget.capped,
    )
    rate = client.limits.declared_rate
    tracker = ProgressTracker(monotonic(), ceiling=None if rate is None else rate / 60)
    watch = RunWatch(tracker=tracker, stop=stop or asyncio.Event())
    on_progress = None if on_progress is None else guarded(on_progress, "on_progress")
    if on_bad_line is not None:
        watch = evolve(watch, on_bad_line=on_bad_line)
    async with AsyncExitStack() as stack:
        entries = await _opened(source, options, defaults, stack)
        surveyed = None
        if isinstance(entries, InputFile):
            if plan.output is not None and entries.is_file(plan.output):
                raise BatchError(f"{plan.output} is the input itself.", advice="Name another output.")
            surveyed = await survey(entries, strict=plan.policy.strict)
        check_budget(plan.budget, entries, surveyed)
        tracker.total = None if surveyed is None else surveyed.lines
        client.add_hook(tracker)
        stack.callback(client.remove_hook, tracker)
        if on_progress is not None:
            reporting = asyncio.create_task(_report_progress(tracker, on_progress))
            stack.push_async_callback(_end, reporting)
        report = await run_file(client, entries, surveyed, plan, watch)
    if on_progress is not None:
        on_progress(report.progress)
    return report


def _plan(
    output: str | PathLike[str], options: RunOptions, *, base_url: str | None, dialect: str, client: Sender
) -> FileRun:
    unknown = sorted(options.keys() - RunOptions.__annotations__.keys())
    if unknown:
        raise InvalidRequestError(
            f"run has no option {truncated_repr(unknown[0])}.",
            advice=f"The options are {', '.join(RunOptions.__annotations__)}.",
        )
    journal, output_format, place = options.get("journal"), options.get("output_format"), os.fspath(output)
    budget = Budget(max_cost=options.get("max_cost"), max_tokens=options.get("max_tokens_total"))
    usual = HealthPolicy()
    stall_after = options.get("stall_after", usual.stalled_after)
    return FileRun(
        output=None if place == "-" else place,
        journal=None if journal is None else os.fspath(journal),
        output_format=None if output_format is None else output_format_named(output_format),
        force=options.get("force", False),
        caches=tuple(os.fspath(cache) for cache in options.get("cache", ())),
        base_url=base_url,
        dialect=dialect,
        policy=RunPolicy(
            ambiguous=options.get("ambiguous", "retry"),
            retry_failed=options.get("retry_failed", False),
            deduplicate=options.get("deduplicate", True),
            strict=options.get("strict", False),
            first=options.get("limit"),
        ),
        budget=budget,
        health=HealthPolicy(
            most_alike=options.get("max_failure_share", usual.most_alike),
            quiet_after=min(usual.quiet_after, stall_after),
            stalled_after=stall_after,
        ),
        settings=_settings(client, budget),
    )


def _settings(client: Sender, budget: Budget) -> JSON:
    return {"limits": asdict(client.limits), "budget": asdict(budget)}


async def _opened(
    source: Prompts, options: RunOptions, defaults: RequestDefaults, stack: AsyncExitStack
) -> InputFile | InMemoryInput:
    paths = _paths(source)
    if paths is None:
        check_source(source)
        given = sorted(options.keys() & {"field", "template", "input_format", "id_field"})
        if given:
            raise InvalidRequestError(f"{given[0]} says how a file is read, but the prompts are in memory.")
        return entries_from(cast("InMemory", source), defaults=defaults)
    template, input_format = options.get("template"), options.get("input_format")
    opened = open_source(
        [os.fspath(each) for each in paths],
        forced_format=None if input_format is None else input_format_named(input_format),
        field=options.get("field"),
        template=None if template is None else PromptTemplate.open(template),
        defaults=defaults,
        id_field=options.get("id_field"),
    )
    return await stack.enter_async_context(opened)


def _paths(source: Prompts) -> Sequence[str | PathLike[str]] | None:
    """The files that `source` names; None where it is prompts. A list of texts is prompts, of paths it is files."""
    if isinstance(source, str | PathLike):
        return [source]
    if isinstance(source, Sequence) and source and all(isinstance(each, PathLike) for each in source):
        return source
    return None


async def _report_progress(tracker: ProgressTracker, on_progress: Callable[[RunProgress], None]) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_INTERVAL)
        on_progress(tracker.snapshot(monotonic()))


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})
