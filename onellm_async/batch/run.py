"""One session of a run: what is opened before the first prompt, and what is left behind after the last.

::

    the input is scanned       its digest and its lines make the identity of the run
    the journal is opened      a new one, or that of an earlier session of the same run
    the output is opened       OUTPUT.partial, which is written from its beginning
    RunEngine                  sends what is left
    complete                   OUTPUT.partial becomes OUTPUT; otherwise it stays, and the next session replaces it
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import takewhile
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import cast

from attrs import evolve, frozen

from onellm_async.batch.answer_cache import AnswerCache
from onellm_async.batch.budget import Budget
from onellm_async.batch.callbacks import GuardedCallback, guarded
from onellm_async.batch.config import RunConfig, RunInput, RunOptions
from onellm_async.batch.earlier_sessions import following
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.estimate import Capacity, RunEstimate, estimate_run
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.inputs.entry_parser import ALL, ParserOptions, length_of
from onellm_async.batch.inputs.formats import input_format_named
from onellm_async.batch.inputs.memory import InMemoryInput, MemoryPrompts, can_be_read_twice, entries_from
from onellm_async.batch.inputs.notes import Complaints
from onellm_async.batch.inputs.sources import InputFile, InputScan, open_source
from onellm_async.batch.inputs.table import ArrowStream, TableInput, is_table
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.null_journal import NullJournal, RunJournal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.outputs.formats import OutputFormat, Sink, open_sink
from onellm_async.batch.outputs.ordered_writer import LineSink
from onellm_async.batch.outputs.output_place import demand_free, demand_own
from onellm_async.batch.progress import ProgressTracker, RunProgress
from onellm_async.batch.run_report import ENDED_AT_CAP, RunReport, resuming_text
from onellm_async.batch.work_list import WorkList
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.errors import BatchError, BudgetExceededError, ConfigurationError, InvalidRequestError
from onellm_async.fanout import check_source
from onellm_async.limits.rate_state import RateState
from onellm_async.sender import Sender
from onellm_async.validation import truncated_repr

Prompts = str | PathLike[str] | Sequence[PathLike[str]] | MemoryPrompts | ArrowStream
"""A path, several, a table, or prompts in memory: texts, messages, requests, pairs of a ``custom_id`` and one, or
mappings with the fields of JSON lines."""

_log = logging.getLogger("onellm_async")
_PROGRESS_INTERVAL = 0.25
"""Seconds between two calls of ``on_progress``."""


def _ignore(_: object) -> None: ...


def _log_warning(text: str) -> None:
    _log.warning("%s", text)


@frozen(kw_only=True)
class _Callbacks:
    """What a caller wants to hear. What its functions raise is logged and ends no run."""

    on_progress: GuardedCallback[RunProgress]
    on_bad_line: GuardedCallback[LineError]
    on_message: GuardedCallback[str]
    stop: asyncio.Event


async def run(
    sender: Sender,
    source: Prompts,
    config: RunConfig,
    options: RunOptions,
    *,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_bad_line: Callable[[LineError], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> RunReport:
    """Runs one session; see `onellm_async.AsyncOneLLM.run`.

    Args:
        sender: Sends, within its limits.
        source: The prompts.
        config: What is to be done.
        options: How a file is read.
        on_progress: Called several times a second, and at the end.
        on_bad_line: Called for each bad line; without it, they are told by `on_message`, or in the log.
        on_message: Called with what a user should know, in a sentence.
        stop: Set it to end the run gracefully.

    Raises:
        BatchError: If the input, the journal or the output cannot be used.
        ConfigurationError: If `stop` is no event of asyncio.
        InvalidRequestError: If no prompt can keep the cost cap.
    """
    saying = guarded(on_message or _ignore, "on_message")
    complaints, tell = Complaints(), _log_warning if on_message is None else saying

    def tell_bad_line(error: LineError) -> None:
        if (text := complaints.heard(error)) is not None:
            tell(f"Bad line, not sent: {text}")

    if stop is not None and not isinstance(stop, asyncio.Event):
        raise ConfigurationError(
            f"stop is {truncated_repr(stop)}; it must be an asyncio.Event. Texts that end an answer are stop_sequences."
        )
    callbacks = _Callbacks(
        on_progress=guarded(on_progress or _ignore, "on_progress"),
        on_bad_line=guarded(on_bad_line or tell_bad_line, "on_bad_line"),
        on_message=saying,
        stop=stop or asyncio.Event(),
    )
    try:
        report = await _run_session(sender, source, config, options, callbacks)
        callbacks.on_progress(report.progress)
    finally:
        for text in complaints.rest():
            tell(f"Bad lines, not sent: {text}")
        for callback in (callbacks.on_progress, callbacks.on_bad_line, callbacks.on_message):
            callback.log_count()
    return report


async def _run_session(
    sender: Sender, source: Prompts, config: RunConfig, options: RunOptions, callbacks: _Callbacks
) -> RunReport:
    rate = sender.limits.declared_rate
    tracker = ProgressTracker(monotonic(), ceiling=None if rate is None else rate / 60)
    async with AsyncExitStack() as stack:
        opened = await _open_unless_stopped(source, options, config, callbacks.stop)
        if opened is None:
            return RunReport(progress=tracker.snapshot(monotonic()), counts=RunCounts(), interrupted=True)
        if isinstance(opened, InputFile):
            await stack.enter_async_context(opened)
        scan = await _scan(opened, config)
        _check_budget(config.budget, opened, scan)
        known = scan.lines if scan is not None else None if isinstance(opened, InputFile) else opened.count
        tracker.expect(known, config.policy.samples)
        if (learned := await asyncio.to_thread(discovered_rate, config)) is not None:
            sender.restore_rate(learned)
        sender.add_hook(tracker)
        stack.callback(sender.remove_hook, tracker)
        report = await _Session(sender, opened, scan, config, tracker, callbacks).run()
    if report.limit_reached and isinstance(scan, InputScan):
        estimate = await _estimate_rest(sender, source, options, config)
        report = evolve(report, estimate=estimate)
    return report


# The input.


async def _open_unless_stopped(
    source: Prompts, options: RunOptions, config: RunConfig, stop: asyncio.Event
) -> RunInput | None:
    """Opens the input; None if the run is stopped meanwhile, as opening a named pipe waits for its writer."""
    if is_table(source):
        if options.get("input_format") is not None:
            raise InvalidRequestError("input_format says how a file is read, but the prompts are a table in memory.")
        table = TableInput(source, _parser_options(options, config))
        await table.begin(strict=config.policy.strict)
        return table
    paths = _paths(source)
    if paths is None:
        check_source(source)
        _refuse_file_names(source)
        _refuse_history(source, options)
        texts = isinstance(source, Sequence) and not any(isinstance(each, Mapping) for each in source)
        for option in ("input_format", "field", "template", "id_field", "keep"):
            if options.get(option) is not None and (texts or option == "input_format"):
                raise InvalidRequestError(
                    f"{option} says how a file is read, but the prompts are in memory.",
                    advice="" if option == "input_format" else f"{option} works for files, tables and lists of dicts.",
                )
        prompts = entries_from(cast("MemoryPrompts", source), options=_parser_options(options, config))
        await prompts.begin(strict=config.policy.strict)
        return prompts
    opening = asyncio.ensure_future(in_daemon_thread(lambda: _open_files(paths, options, config)))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait(
            {opening, stopping} if _waits_for_a_writer(paths) else {opening}, return_when=asyncio.FIRST_COMPLETED
        )
        return opening.result() if opening.done() else None
    finally:
        opening.cancel()
        stopping.cancel()


def _waits_for_a_writer(paths: Sequence[str | PathLike[str]]) -> bool:
    return any(Path(path).is_fifo() for path in paths)


def _open_files(paths: Sequence[str | PathLike[str]], options: RunOptions, config: RunConfig) -> InputFile:
    shape, reading = options.get("input_format"), _parser_options(options, config)
    opened = open_source(
        [os.fspath(each) for each in paths],
        forced_format=None if shape is None else input_format_named(shape),
        field=reading.prompt_field,
        template=reading.template,
        defaults=reading.defaults,
        id_field=reading.id_field,
        keep=reading.keep,
    )
    try:
        opened.begin()
    except BaseException:
        opened.close()
        raise
    return opened


def _parser_options(options: RunOptions, config: RunConfig) -> ParserOptions:
    template, keep = options.get("template"), options.get("keep")
    if isinstance(keep, str) and keep != ALL:
        raise InvalidRequestError(f"keep is {truncated_repr(keep)}; it must be 'all' or a list of names.")
    return ParserOptions(
        prompt_field=options.get("field"),
        template=None if template is None else PromptTemplate.open(template),
        defaults=config.defaults,
        id_field=options.get("id_field"),
        keep=keep if keep is None or isinstance(keep, str) else tuple(keep),
    )


def _paths(source: Prompts) -> Sequence[str | PathLike[str]] | None:
    """The files that `source` names; None where it is prompts. A list of texts is prompts, of paths it is files."""
    if isinstance(source, str | PathLike):
        return [source]
    if isinstance(source, Sequence) and source and all(isinstance(each, PathLike) for each in source):
        return source
    return None


def _refuse_file_names(source: object) -> None:
    """Refuses texts that all name files: they would be sent, and billed, as prompts.

    Raises:
        InvalidRequestError: With the first of them.
    """
    if not (can_be_read_twice(source) and isinstance(source, Iterable) and length_of(source)):
        return
    if all(isinstance(each, str) and _is_file_name(each) for each in source):
        first = truncated_repr(next(iter(source)))
        raise InvalidRequestError(
            f"The prompts are texts that all name files, such as {first}. Nothing was sent.",
            advice="A list of Path is read as files: [Path(name) for name in names]. So is a pattern: 'data/*.jsonl'.",
        )


def _refuse_history(source: object, options: RunOptions) -> None:
    """Refuses the messages of one history, which would be records without a prompt.

    Raises:
        InvalidRequestError: With the cure.
    """
    if not (isinstance(source, Sequence) and source) or options.get("field") or options.get("template"):
        return
    if all(isinstance(each, Mapping) and each.keys() == {"role", "content"} for each in source):
        raise InvalidRequestError(
            "The prompts are the messages of a single history. Nothing was sent.",
            advice="Pass a list of histories: [messages].",
        )


def _is_file_name(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


async def _scan(source: RunInput, config: RunConfig) -> InputScan | None:
    """Reads the whole input before anything is sent; None for a pipe, or prompts in memory.

    Raises:
        BatchError: If it cannot be read, is the output itself, or holds a bad line although the run is strict.
    """
    if not isinstance(source, InputFile):
        return None
    if config.output is not None and source.is_file(config.output):
        raise BatchError(f"{config.output} is the input itself.", advice="Name another output.")
    # A daemon thread: a second Ctrl-C need not wait until a large file is read.
    scan = await in_daemon_thread(lambda: source.scan(strict=config.policy.strict))
    if scan is not None and not scan.lines:
        raise BatchError(f"{source.name} holds no prompts.")
    if scan is not None and scan.first_error is not None:
        raise BatchError(str(scan.first_error), advice="Nothing was sent (strict=True).")
    return scan


def _check_budget(budget: Budget, source: RunInput, scan: InputScan | None) -> None:
    """Refuses a budget that no prompt can keep, before anything is sent.

    A line may name its own ``max_tokens``, so the first requests of a file decide. The content of a pipe is unknown.

    Raises:
        InvalidRequestError: If there is no upper bound for what a request can cost.
    """
    requests = scan.sample if scan is not None else source.sample if isinstance(source, InMemoryInput) else ()
    if not requests:
        if not isinstance(source, InMemoryInput) and (scan is None or scan.lines):
            return
        requests = (source.defaults.request("A budget that no prompt can keep is refused here, once."),)
    first: InvalidRequestError | None = None
    for request in requests:
        try:
            budget.worst_case(request)
        except InvalidRequestError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def discovered_rate(config: RunConfig) -> RateState | None:
    """The rate that an earlier session had discovered. Blocks for the disk.

    What cannot be read is not used: whether the journal can be used is found out later.
    """
    place = config.journal_place
    if place is None or not place.exists():
        return None
    try:
        with JournalReader.open(place) as journal:
            sample = journal.latest_sample()
        saved = sample.sample.get("rate_state") if sample is not None and isinstance(sample.sample, dict) else None
        return None if saved is None else RateState.from_dict(saved)
    except (BatchError, ConfigurationError):
        return None


# One session.


@frozen
class _Session:
    """One session and what it works with."""

    sender: Sender
    source: RunInput
    scan: InputScan | None
    config: RunConfig
    tracker: ProgressTracker
    callbacks: _Callbacks

    async def run(self) -> RunReport:
        config, place = self.config, self.config.journal_place
        if place is None:
            cache = await asyncio.to_thread(AnswerCache, config.caches, base_url=config.base_url)
            with cache:
                if config.sink is not None:
                    return await self._send(NullJournal(), config.sink, cache)
                async with open_sink(None, config.format_for(self.source), header=False) as stream:
                    return await self._send(NullJournal(), stream, cache)
        identity = config.identity(self.source, self.scan)
        if (finished := await asyncio.to_thread(_finished, place, identity, config)) is not None:
            self.tracker.found(finished.counts, finished.notable)
            progress = self.tracker.snapshot(self.tracker.started)
            return RunReport(
                progress=progress, counts=finished.counts, failures=finished.failures, already_complete=True
            )
        cache = await asyncio.to_thread(AnswerCache, config.caches, base_url=config.base_url)
        changes, report = list[str](), None
        journal, sink = await asyncio.to_thread(_open, place, identity, self.source, config, changes.append)
        try:
            async with journal:
                for text in changes:
                    self.callbacks.on_message(text)
                if journal.resumed:
                    self.callbacks.on_message(resuming_text(journal.counts(), self.tracker.total))
                with cache:
                    report = await self._send_and_publish(journal, sink, cache)
                size = _size_of(self.config.output) if report.input_ended else None
                journal.finish(_end_reason(report), report.complete, size)
        except BatchError as error:  # of the last record of a session, such as on a full disk
            if report is None:
                raise
            return evolve(report, stopped_by=report.stopped_by or error)
        return report

    async def _send_and_publish(self, journal: Journal, sink: Sink | None, cache: AnswerCache) -> RunReport:
        if sink is None:
            assert self.config.sink is not None  # noqa: S101  # `_open` makes a sink unless one is given
            return await self._send(journal, self.config.sink, cache)
        report = None
        try:
            async with sink:
                report = await self._send(journal, sink, cache)
                _check_published(report)
        except _UnfinishedError as unfinished:
            return unfinished.report
        except BatchError as error:
            if report is None or error.__cause__ is None:  # the output is another program's
                raise
            return evolve(report, stopped_by=error)  # the end of the output cannot be written, as to a full disk
        return report

    async def _send(self, journal: RunJournal, sink: LineSink, cache: AnswerCache) -> RunReport:
        shape, known = self.config.format_for(self.source), self.scan is not None

        def encoding() -> OutputFormat:
            nonlocal shape, known
            if not known:  # the first line of a pipe tells the format
                known, columns = True, shape.columns
                shape = self.config.format_for(self.source)
                if shape.columns != columns:  # the header was written before
                    shape = self.config.format_named(self.source).keeping(columns)
            return shape

        engine = RunEngine(
            self.sender,
            self.source,
            journal=journal,
            sink=sink,
            encode=lambda record: encoding().encode(record),
            header=shape.header(shape.columns),
            encode_bad_line=lambda index, raw, message: encoding().bad_line(index, raw, message),
            cache=cache if self.config.caches else None,
            budget=self.config.budget,
            policy=self.config.policy,
            health=self.config.health,
            shape=self.config.defaults.shape,
            corrections=self.config.corrections,
            stop=self.callbacks.stop,
            tracker=self.tracker,
            say=self.callbacks.on_message,
            on_bad_line=self.callbacks.on_bad_line,
        )
        reporting = asyncio.create_task(self._report_progress())
        try:
            report = await engine.run()
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})
        for sentence in self.source.notes.sentences():
            self.callbacks.on_message(sentence)
        if cache.hits:
            self.callbacks.on_message(f"{cache.hits:,} answered from a cache.")
        return report

    async def _report_progress(self) -> None:
        while True:
            self.callbacks.on_progress(self.tracker.snapshot(monotonic()))
            await asyncio.sleep(_PROGRESS_INTERVAL)


def _check_published(report: RunReport) -> None:
    if not report.input_ended:
        raise _UnfinishedError(report)  # the sink leaves its file as NAME.partial


class _UnfinishedError(Exception):
    """Inside this file only: something is left to do."""

    def __init__(self, report: RunReport) -> None:
        super().__init__()
        self.report = report


@frozen
class _Finished:
    """A run that is complete: what its journal has, what failed, and which answers want a look."""

    counts: RunCounts
    failures: dict[str, int]
    notable: dict[str, int]


def _finished(place: Path, identity: RunIdentity, config: RunConfig) -> _Finished | None:
    """What a run has that is complete and whose output is there, so that nothing is left to do; else None.

    The content of a pipe is unknown, so it is read and compared.
    """
    if config.force or identity.input_digest is None or not place.exists() or not Path(config.output or "").is_file():
        return None
    with JournalReader.open(place) as journal:
        counts, policy = journal.counts(), config.policy
        redo = (counts.in_flight and policy.ambiguous == "retry") or (counts.failed and policy.retry_failed)
        same = journal.complete and not journal.running and identity.has_input_of(journal.identity)
        same = same and not identity.changed_options(journal.identity)
        # One that was cut or emptied is written again; one that is longer was edited.
        if redo or not same or (_size_of(config.output) or 0) < journal.output_bytes:
            return None
        sample = journal.latest_sample()
        progress = sample.sample.get("progress") if sample is not None and isinstance(sample.sample, dict) else None
        notable = progress.get("notable") if isinstance(progress, dict) else None
        return _Finished(counts, dict(journal.failure_causes()), dict(notable or {}))


def _size_of(output: str | None) -> int | None:
    try:
        return None if output is None else Path(output).stat().st_size
    except OSError:
        return None


def _open(
    place: Path, identity: RunIdentity, source: RunInput, config: RunConfig, say: Callable[[str], None]
) -> tuple[Journal, Sink | None]:
    """The journal and the sink. Neither is touched before it is certain that it is ours.

    The journal's lock decides between two that start at once, so it comes first: the files of the output belong to
    the process that has it.
    """
    shape, output = config.format_for(source), None if config.output is None else Path(config.output)
    found = place.exists()
    if output is not None and not found and not config.force:
        try:
            demand_free(output)
        except BatchError:
            if not place.exists():  # otherwise it is taken by a run that began just now
                raise
    reconcile = following(source, identity, config, say)
    journal = Journal.open(place, identity, force=config.force, settings=config.settings, reconcile=reconcile)
    if output is None:
        return journal, None
    try:
        # A journal that was found but not resumed had no answers; the output is that of its run.
        replace = config.force or journal.wrote_output or (found and not journal.resumed)
        if journal.resumed and not replace and os.path.lexists(output):
            demand_own(output)
            replace = True  # the run was killed before it could record it
        if config.force and os.path.lexists(output):
            journal.claim_output()
        return journal, open_sink(output, shape, force=config.force, resume=True, replace=replace, header=False)
    except BaseException:
        journal.close(discard=not journal.resumed)
        raise


def _end_reason(report: RunReport) -> str:
    if report.input_ended and report.progress.held:
        return f"with {report.progress.held:,} held back, which may be billed"
    if report.complete:
        return "complete"
    if isinstance(report.stopped_by, BudgetExceededError):
        return f"{ENDED_AT_CAP}{report.stopped_by}"
    if report.stopped_by is not None:
        return f"stopped: {report.stopped_by}"
    if report.strict_error is not None:
        return f"stopped at a bad line: {report.strict_error}"
    if report.out_of_time:
        return "stopped when its time was over (max_time)"
    return "stopped by a signal or a command" if report.interrupted else "stopped after the first prompts, as requested"


# What is left.


async def _estimate_rest(sender: Sender, source: Prompts, options: RunOptions, config: RunConfig) -> RunEstimate | None:
    """What the rest of a limited run costs and takes, by what its first prompts did."""
    place, end, paths = config.journal_place, config.policy.end, _paths(source)
    if place is None or end is None or paths is None:
        return None
    snapshot = sender.snapshot()
    capacity = Capacity(
        requests=None if snapshot.rate is None else snapshot.rate / 60,
        tokens=None if snapshot.tokens_per_minute is None else snapshot.tokens_per_minute / 60,
        concurrency=snapshot.concurrency,
    )
    opened = await in_daemon_thread(lambda: _open_files(paths, options, config))
    async with opened:
        with JournalReader.open(place) as journal, AnswerCache(config.caches, base_url=config.base_url) as cache:
            sample = list(takewhile(lambda record: record.index < end, journal.records()))
            work = WorkList(opened, evolve(config.policy, first=None), earlier=journal, cache=cache)
            async for _ in work:
                pass
    return estimate_run(sample, work.requests, capacity, left=work.left)
