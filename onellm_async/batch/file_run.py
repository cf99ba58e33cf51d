"""A run from a file to a file: what is opened before the first prompt, and what is left behind after the last.

::

    the input is surveyed      its digest and its lines make the identity of the run
    the journal is opened      a new one, or that of an earlier session of the same run
    the output is opened       OUTPUT.partial, which is written from its beginning
    RunEngine                  asks what is left
    complete                   OUTPUT.partial becomes OUTPUT; otherwise it stays, and the next session replaces it
"""

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Self

from attrs import evolve, field, frozen

from onellm_async.batch.answer_cache import AnswerCache
from onellm_async.batch.budget import Budget
from onellm_async.batch.callbacks import guarded
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.health import HealthPolicy
from onellm_async.batch.identity import RunIdentity, endpoints_text
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.inputs.memory import InMemoryInput
from onellm_async.batch.inputs.sources import InputFile, InputScan
from onellm_async.batch.journal.file import journal_path
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.null_journal import NullJournal, RunJournal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import JournalRecord, RunCounts
from onellm_async.batch.outputs.formats import OutputFormat, Sink, open_sink, output_format
from onellm_async.batch.outputs.ordered_writer import LineSink
from onellm_async.batch.outputs.output_place import demand_free
from onellm_async.batch.policy import RunPolicy
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.run_report import RunReport
from onellm_async.chat import JSON
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.errors import BatchError, ConfigurationError, InvalidRequestError
from onellm_async.limits.rate_state import RateState
from onellm_async.sender import Sender

__all__ = ["FileRun", "RunWatch", "learned_rate", "run_file", "survey"]


@frozen(kw_only=True)
class FileRun:
    """What is to be run, and how.

    Attributes:
        output: File for the answers; None for standard output, where nothing can be resumed.
        journal: Where to remember, named ``….journal``; None for ``OUTPUT.journal``.
        output_format: How answers are written; None to tell from the name and the input.
        base_url: Where the requests go; part of the run's identity.
        dialect: How they are written; likewise.
        endpoints: Where a self-hosted backend forwards them to, by provider; likewise.
        force: Begin anew, whatever is there.
        caches: Outputs or journals of earlier runs, whose answers are used instead of asking.
        policy: What is done with doubtful, failed and repeated prompts.
        budget: What all sessions together may spend.
        health: When a run that gets nowhere ends.
        settings: Of this session, kept in the journal for the report.

    Raises:
        ConfigurationError: If the journal is named otherwise.
    """

    output: str | None
    journal: str | None = field(default=None, validator=lambda _, attribute, value: _demand_suffix(value))
    output_format: OutputFormat | None = None
    base_url: str | None = None
    dialect: str | None = None
    endpoints: Mapping[str, str] = field(factory=dict)
    force: bool = False
    caches: tuple[str, ...] = ()
    policy: RunPolicy = field(factory=RunPolicy)
    budget: Budget = field(factory=Budget)
    health: HealthPolicy = field(factory=HealthPolicy)
    settings: JSON = None

    def identity(self, source: InputFile | InMemoryInput, surveyed: InputScan | None) -> RunIdentity:
        """What its answers depend on."""
        defaults, template = source.defaults, source.template
        return RunIdentity(
            input=source.name,
            input_digest=None if surveyed is None else surveyed.digest,
            lines=None if surveyed is None else surveyed.lines,
            format=None if surveyed is None else source.format.name,
            field=source.field,
            template_digest=None if template is None else template.digest,
            model=defaults.model,
            fallback_model=defaults.fallback_model,
            system_digest=None if defaults.system is None else _digest(defaults.system),
            max_tokens=defaults.max_tokens,
            temperature=defaults.temperature,
            base_url=self.base_url,
            dialect=self.dialect,
            endpoints=endpoints_text(self.endpoints),
        )


@frozen(kw_only=True)
class RunWatch:
    """Who looks on. What its callbacks raise is logged and ends no run.

    Attributes:
        tracker: Counts; a hook of the client, too.
        stop: Set it to end the session gracefully.
        began: Told what earlier sessions left, None where there were none, before the first prompt is asked.
        nothing_left: Told instead what earlier sessions left, where that is everything.
        say: Told what a user should know while the run goes on, in a sentence.
        on_bad_line: Told of each bad line.
    """

    tracker: ProgressTracker
    stop: asyncio.Event
    began: Callable[[RunCounts | None], None] = lambda counts: None
    nothing_left: Callable[[RunCounts], None] = lambda counts: None
    say: Callable[[str], None] = lambda text: None
    on_bad_line: Callable[[LineError], None] = lambda error: None

    def guarded(self) -> Self:
        """The same with callbacks that never raise."""
        return evolve(
            self,
            began=guarded(self.began, "began"),
            nothing_left=guarded(self.nothing_left, "nothing_left"),
            say=guarded(self.say, "say"),
            on_bad_line=guarded(self.on_bad_line, "on_bad_line"),
        )


async def survey(source: InputFile, *, strict: bool) -> InputScan | None:
    """A look through the whole input before anything is sent; None for a pipe.

    Raises:
        BatchError: If it cannot be read, or with `strict` holds a bad line.
    """
    # A daemon thread: a second Ctrl-C need not wait until a large file is read.
    surveyed = await in_daemon_thread(lambda: source.scan(strict=strict))
    if surveyed is not None and surveyed.first_error is not None:
        raise BatchError(str(surveyed.first_error), advice="Nothing was sent (--strict).")
    return surveyed


def check_budget(budget: Budget, source: InputFile | InMemoryInput, surveyed: InputScan | None) -> None:
    """Refuses a budget that no prompt can keep, before anything is sent.

    A line may name its own ``max_tokens``, so the first requests of a file decide. The content of a pipe is unknown.

    Raises:
        InvalidRequestError: If there is no upper bound for what a request can cost.
    """
    requests = surveyed.sample if surveyed is not None else ()
    if not requests:
        if isinstance(source, InputFile) and (surveyed is None or surveyed.lines):
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


def learned_rate(run: FileRun) -> RateState | None:
    """What the client of an earlier session had learned about the rate, so that the next does not start blind.

    Blocks for the disk. What cannot be read is not learned: whether the journal can be used is found out later.
    """
    place = _place(run)
    if place is None or not place.exists():
        return None
    try:
        with JournalReader.open(place) as journal:
            sample = journal.latest_sample()
        saved = sample.sample.get("rate_state") if sample is not None and isinstance(sample.sample, dict) else None
        return None if saved is None else RateState.from_dict(saved)
    except (BatchError, ConfigurationError):
        return None


def _place(run: FileRun) -> Path | None:
    if run.journal is not None:
        return Path(run.journal)
    return None if run.output is None else journal_path(run.output)


async def run_file(
    client: Sender, source: InputFile | InMemoryInput, surveyed: InputScan | None, run: FileRun, watch: RunWatch
) -> RunReport:
    """One session of `run`: asks what is left of `source` and writes all there is then.

    Safe to cancel: requests in flight are then possibly billed, and the journal knows them.

    Args:
        client: Asks, within its limits.
        source: The input.
        surveyed: What `survey` found in it.
        run: What is to be done.
        watch: Who looks on.

    Raises:
        BatchError: If the journal or the output cannot be opened or finished.
    """
    watch, place = watch.guarded(), _place(run)
    if place is None:
        with await asyncio.to_thread(AnswerCache, run.caches, base_url=run.base_url) as cache:
            async with open_sink(None, _shape(source, run)) as sink:
                watch.began(None)
                return await _ask(client, source, run, watch, NullJournal(), sink, cache)
    identity = run.identity(source, surveyed)
    if (there := await asyncio.to_thread(_finished, place, identity, run)) is not None:
        watch.nothing_left(there.counts)
        watch.tracker.found(there.counts, there.notable)
        progress = watch.tracker.snapshot(watch.tracker.started)
        return RunReport(progress=progress, counts=there.counts, failures=there.failures)
    cache = await asyncio.to_thread(AnswerCache, run.caches, base_url=run.base_url)
    journal, sink = await asyncio.to_thread(_opened, place, identity, source, run)
    async with journal:
        watch.began(journal.counts() if journal.resumed else None)
        try:
            with cache:
                async with sink:
                    report = await _ask(client, source, run, watch, journal, sink, cache)
                    _demand_the_end(report)  # the sink leaves its file as NAME.partial otherwise
        except _UnfinishedError as unfinished:
            report = unfinished.report
        journal.finish(_how(report), report.complete)
    return report


class _UnfinishedError(Exception):
    """Inside this file only: something is left to do."""

    def __init__(self, report: RunReport) -> None:
        super().__init__()
        self.report = report


def _demand_the_end(report: RunReport) -> None:
    if not report.input_ended:
        raise _UnfinishedError(report)


@frozen
class _Finished:
    """A run that is complete: what its journal has, what failed, and which answers want a look."""

    counts: RunCounts
    failures: dict[str, int]
    notable: dict[str, int]


def _finished(place: Path, identity: RunIdentity, run: FileRun) -> _Finished | None:
    """What a run has that is complete and whose output is there, so that nothing is left to do; else None.

    The content of a pipe is unknown, so it is read and compared.
    """
    if run.force or identity.input_digest is None or not place.exists() or not Path(run.output or "").is_file():
        return None
    with JournalReader.open(place) as journal:
        counts, policy = journal.counts(), run.policy
        redo = (counts.in_flight and policy.ambiguous == "retry") or (counts.failed and policy.retry_failed)
        same = journal.complete and not journal.running and not identity.differences(journal.identity)
        if redo or not same:
            return None
        sample = journal.latest_sample()
        progress = sample.sample.get("progress") if sample is not None and isinstance(sample.sample, dict) else None
        notable = progress.get("notable") if isinstance(progress, dict) else None
        return _Finished(counts, dict(journal.failure_causes()), dict(notable or {}))


def _opened(
    place: Path, identity: RunIdentity, source: InputFile | InMemoryInput, run: FileRun
) -> tuple[Journal, Sink]:
    """The journal and the sink. Neither is touched before it is certain that it is ours.

    The journal's lock decides between two that start at once, so it comes first: the files of the output belong to
    the process that has it.
    """
    shape, output = _shape(source, run), Path(run.output or "")
    if not place.exists() and not run.force:
        try:
            demand_free(output)
        except BatchError:
            if not place.exists():  # otherwise it is taken by a run that began just now
                raise
    journal = Journal.open(place, identity, force=run.force, settings=run.settings)
    try:
        return journal, open_sink(output, shape, force=run.force, resume=True, replace=run.force or journal.resumed)
    except BaseException:
        journal.close(discard=not journal.resumed)
        raise


async def _ask(
    client: Sender,
    source: InputFile | InMemoryInput,
    run: FileRun,
    watch: RunWatch,
    journal: RunJournal,
    sink: LineSink,
    cache: AnswerCache,
) -> RunReport:
    shape: OutputFormat | None = None

    def encode(row: JournalRecord) -> bytes:
        nonlocal shape
        if shape is None:  # the first line of a pipe may have told the format
            shape = _shape(source, run)
        return shape.encode(row)

    report = await RunEngine(
        client,
        source,
        journal=journal,
        sink=sink,
        encode=encode,
        cache=cache if run.caches else None,
        budget=run.budget,
        policy=run.policy,
        health=run.health,
        stop=watch.stop,
        tracker=watch.tracker,
        say=watch.say,
        on_bad_line=watch.on_bad_line,
    ).run()
    for note in source.notes.sentences():
        watch.say(note)
    if cache.hits:
        watch.say(f"{cache.hits:,} answered from a cache.")
    return report


def _shape(source: InputFile | InMemoryInput, run: FileRun) -> OutputFormat:
    return run.output_format or output_format(run.output, source.format.name)


def _demand_suffix(journal: str | None) -> None:
    """Other commands are given the output or the journal, and tell them by their names."""
    if journal is not None and journal_path(journal) != Path(journal):
        raise ConfigurationError(
            f"journal is {journal!r}; its name must end with .journal, by which other commands know it."
        )


def _how(report: RunReport) -> str:
    if report.input_ended and report.progress.held:
        return f"with {report.progress.held:,} held back, which may be billed"
    if report.complete:
        return "complete"
    if report.stopped_by is not None:
        return f"stopped: {report.stopped_by}"
    if report.strict_error is not None:
        return f"stopped at a bad line: {report.strict_error}"
    return "stopped by a signal or a command" if report.interrupted else "stopped after the first prompts, as asked"


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
