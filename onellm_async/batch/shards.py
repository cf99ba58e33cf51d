"""A large input as shards, each of which is a durable run of its own: the unit of work on a cluster.

Engines such as Ray, Dask, Spark, Slurm and Kubernetes repeat a task whose process died, from its beginning. A shard is
repeated cheaply: its journal knows what was answered, so the repetition resumes it.

::

    prompts.jsonl → split_input → shards/shard-00000.jsonl, … → run_shard on any machine → merge_shards → answers.jsonl
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import islice
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from attrs import asdict, evolve, field, frozen

from onellm_async.batch.config import RunOptions
from onellm_async.batch.journal.file import journal_path
from onellm_async.batch.journal.lock import JournalInUseError, lock_owner
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.outputs.formats import OutputFormat, open_sink, output_format, output_format_named
from onellm_async.batch.run_report import RunReport
from onellm_async.batch.shard_split import read_manifest
from onellm_async.catalog import Model
from onellm_async.errors import BatchError, ConfigurationError
from onellm_async.files import describe_os_error
from onellm_async.formatting import pluralize
from onellm_async.validation import Checks

_POLL = 0.25
"""Seconds between two looks at a journal that another process writes."""
_ROWS = 1000
"""Records that are written at once."""
_check = Checks(ConfigurationError)


class ShardResult(TypedDict):
    """How one shard stands after `run_shard`: a flat row, for tables of any engine.

    Attributes:
        shard: Path of the shard.
        output: Path of its answers.
        complete: Whether every prompt in it has an outcome.
        answered: Prompts with an answer.
        failed: Prompts that failed for good.
        bad_lines: Lines without a usable prompt.
        possibly_billed: Attempts that may have been billed without an answer, over all sessions.
        cost: USD by list price.
        at_risk: USD that may have been spent beyond it at most; None if unknown.
        input_tokens: Of all answers.
        output_tokens: Of all answers.
        error: What stopped it early; "" if nothing did.
    """

    shard: str
    output: str
    complete: bool
    answered: int
    failed: int
    bad_lines: int
    possibly_billed: int
    cost: float
    at_risk: float | None
    input_tokens: int
    output_tokens: int
    error: str


@frozen
class ShardStatus:
    """How one shard stands.

    Attributes:
        name: File name of the shard.
        entries: Entries in it.
        state: ``"complete"``, ``"running"``, ``"interrupted"`` or ``"not started"``.
        counts: Totals of its journal.
        failures: Failed prompts by cause, the most frequent first.
        time_span: When it was first and last active, in Unix seconds; None if it never was.
        bad_lines: Lines without a usable prompt, as far as it was read.
        samples: How often each prompt is asked.
    """

    name: str
    entries: int
    state: str
    counts: RunCounts
    failures: Mapping[str, int] = field(factory=dict[str, int], hash=False)
    time_span: tuple[float, float] | None = None
    bad_lines: int = 0
    samples: int = 1

    @property
    def prompts(self) -> int:
        """Answers that it is to have if no line is bad: its entries, each as often as it is asked."""
        return self.entries * self.samples


class ShardClient(Protocol):
    """What a shard is run with; `onellm_async.AsyncOneLLM` has it."""

    async def run(
        self,
        source: str,
        output: str,
        *,
        model: Model | None = None,
        stop: asyncio.Event | None = None,
        **options: Unpack[RunOptions],
    ) -> RunReport:
        """See `onellm_async.AsyncOneLLM.run`."""


def default_output(shard: str | os.PathLike[str]) -> Path:
    """Where the answers of a shard are written by default: ``shard-00000.answers.jsonl`` beside it."""
    path = Path(shard)
    return path.with_name(f"{path.stem}.answers.jsonl")


async def run_shard(
    client: ShardClient,
    shard: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: Model | None = None,
    lock_wait: float = 600.0,
    stop: asyncio.Event | None = None,
    **options: Unpack[RunOptions],
) -> ShardResult:
    """Runs one shard as a durable run, or resumes it. Nothing that was answered is sent again.

    The earlier attempt at the shard may still be alive when an engine repeats it, so this waits until its journal is
    free. Prompts that fail, and errors that stop the run, are in the result, because engines end the whole job on an
    exception.

    Args:
        client: Sends the prompts. Give all workers of a key one ``quota``.
        shard: The shard.
        output: File for its answers; None puts it beside the shard, where `merge_shards` finds it.
        model: As in `onellm_async.AsyncOneLLM.run`.
        lock_wait: Seconds to wait for a journal that another process writes.
        stop: Set it to stop gracefully: nothing more is sent, requests in flight finish.
        **options: As in `onellm_async.AsyncOneLLM.run`.

    Raises:
        BatchError: If another process still writes the journal after `lock_wait`.
        ConfigurationError: If an option is out of range.

    Example:
        ::

            async with AsyncOneLLM(quota="redis://10.0.0.5:6379") as client:
                result = await run_shard(client, "shards/shard-00007.jsonl", model="GPT-5-Nano", max_tokens=300)
                print(result["complete"], result["answered"], result["cost"])
    """
    _check.check_number("lock_wait", lock_wait, 0)
    path, target = Path(shard), default_output(shard) if output is None else Path(output)
    if "input_format" not in options and (found := _format_of(path)) is not None:
        options["input_format"] = found  # type: ignore[typeddict-item]  # written by split_input
    journal = journal_path(options.get("journal") or target)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + lock_wait
    while True:
        try:
            report = await client.run(os.fspath(path), os.fspath(target), model=model, stop=stop, **options)
        except JournalInUseError as error:
            if stop is not None and stop.is_set():
                return _result(path, target, RunCounts(), complete=False, error=str(error))
            if loop.time() >= deadline:
                raise
            await _wait_until_free(journal, deadline, stop)
        except BatchError as error:
            return _result(path, target, RunCounts(), complete=False, error=str(error))
        else:
            stopped = "The time of the run is over (max_time)." if report.out_of_time else str(report.stopped_by or "")
            bad_lines = report.progress.bad_lines
            return _result(path, target, report.counts, bad_lines, complete=report.complete, error=stopped)


def run_shard_sync(
    make_client: Callable[[], AbstractAsyncContextManager[ShardClient]],
    shard: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: Model | None = None,
    lock_wait: float = 600.0,
    **options: Unpack[RunOptions],
) -> ShardResult:
    """Like `run_shard`, for engines that call plain functions, with a client and an event loop of its own.

    Args:
        make_client: Makes the client, for example `onellm_async.AsyncOneLLM` itself, which then takes its key, URL and
            quota from the environment.
        shard: As in `run_shard`, like all that follow.
        output: As in `run_shard`.
        model: As in `run_shard`.
        lock_wait: As in `run_shard`.
        **options: As in `run_shard`.

    Raises:
        ConfigurationError: If it is called in a running event loop, or an option is out of range.
        BatchError: As in `run_shard`.

    Example:
        ::

            run_shard_sync(AsyncOneLLM, "shards/shard-00007.jsonl", model="GPT-5-Nano", max_tokens=300)
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise ConfigurationError("An event loop runs in this thread.", advice="Await run_shard there.")

    async def run() -> ShardResult:
        async with make_client() as client:
            return await run_shard(client, shard, output, model=model, lock_wait=lock_wait, **options)

    return asyncio.run(run())


def read_shard_statuses(directory: str | os.PathLike[str]) -> list[ShardStatus]:
    """How each shard of a directory stands, from the journals beside them; also while they are written. Blocks.

    Raises:
        BatchError: If the directory has no shards, or a journal cannot be read.
    """
    found = read_manifest(directory)
    statuses, left = [], found.entries
    for name in found.names:
        entries = min(found.prompts, left)
        left -= entries
        output = default_output(Path(directory) / name)
        if not journal_path(output).exists():
            statuses.append(ShardStatus(name, entries, "not started", RunCounts()))
            continue
        with JournalReader.open(output) as journal:
            state = "complete" if journal.complete else "running" if journal.running else "interrupted"
            statuses.append(
                ShardStatus(
                    name,
                    entries,
                    state,
                    journal.counts(),
                    failures=dict(journal.failure_causes()),
                    time_span=journal.time_span(),
                    bad_lines=journal.bad_line_count(),
                    samples=journal.identity.samples or 1,
                )
            )
    return statuses


def sum_counts(statuses: Sequence[ShardStatus]) -> RunCounts:
    """The totals of all shards."""
    totals: dict[str, int | float] = {}
    for status in statuses:
        for name, value in asdict(status.counts).items():
            totals[name] = totals.get(name, 0) + value
    return RunCounts(**totals)  # type: ignore[arg-type]  # the sums have the types of their summands


def sum_failures(statuses: Sequence[ShardStatus]) -> dict[str, int]:
    """Failed prompts of all shards by cause, the most frequent first."""
    totals: Counter[str] = Counter()
    for status in statuses:
        totals.update(status.failures)
    return dict(totals.most_common())


async def merge_shards(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002  # as in run
    partial: bool = False,
    force: bool = False,
) -> int:
    """Writes the answers of all shards into one file, in the order of the input, as one run over it would have.

    Args:
        directory: The shards.
        output: The file; its suffix says how it is written.
        format: How it is written; None to tell from its name.
        partial: Write what is there although shards are missing or not complete.
        force: Replace an existing file.

    Returns:
        The number of records.

    Raises:
        BatchError: If a shard is not complete, or the output cannot be written.
    """
    found, statuses = read_manifest(directory), read_shard_statuses(directory)
    open_shards = [status for status in statuses if status.state != "complete"]
    if open_shards and not partial:
        first = open_shards[0]
        raise BatchError(
            f"{len(open_shards)} of {pluralize(len(statuses), 'shard')} "
            f"{'is' if len(open_shards) == 1 else 'are'} not complete; "
            f"the first is {first.name} ({first.state}).",
            advice="Run them, or write what is there with partial=True (--partial).",
        )
    encoding = output_format(output, found.format) if format is None else output_format_named(format)
    started = [default_output(Path(directory) / each.name) for each in statuses if each.state != "not started"]
    samples = _samples(started)
    encoding = encoding.keeping(_kept_columns(started)).sampling(samples)
    written, offset = 0, 0
    async with open_sink(output, encoding, force=force) as sink:
        for status in statuses:
            if status.state != "not started":
                shard = Path(directory) / status.name
                with JournalReader.open(default_output(shard)) as journal:
                    for lines in _portions(_encoded(journal, shard, encoding, offset)):
                        await sink.write(b"".join(lines))
                        written += len(lines)
            offset += status.entries * samples
    return written


def _portions(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while some := list(islice(lines, _ROWS)):
        yield some


def _kept_columns(outputs: Sequence[Path]) -> tuple[str, ...]:
    """The columns for fields of the input, in the order in which the shards name them."""
    columns: dict[str, None] = {}
    for output in outputs:
        with JournalReader.open(output) as journal:
            columns.update(dict.fromkeys(journal.identity.columns or ()))
    return tuple(columns)


def _samples(outputs: Sequence[Path]) -> int:
    """How often each prompt of the shards was asked.

    Raises:
        BatchError: If that differs between shards.
    """
    found: dict[int, Path] = {}
    for output in outputs:
        with JournalReader.open(output) as journal:
            found.setdefault(journal.identity.samples or 1, output)
    if len(found) > 1:
        numbers = " and ".join(f"{number} in {output}" for number, output in found.items())
        raise BatchError(f"The shards have different numbers of samples: {numbers}.", advice="Run them with the same.")
    return next(iter(found), 1)


def _encoded(journal: JournalReader, shard: Path, encoding: OutputFormat, offset: int) -> Iterator[bytes]:
    bad_lines = deque(_bad_lines(journal, shard, encoding, offset))
    for record in journal.records():
        index, copy_of = record.index + offset, None if record.copy_of is None else record.copy_of + offset
        while bad_lines and bad_lines[0][0] < index:
            yield bad_lines.popleft()[1]
        yield encoding.encode(evolve(record, index=index, copy_of=copy_of))
    for _, line in bad_lines:
        yield line


def _bad_lines(journal: JournalReader, shard: Path, encoding: OutputFormat, offset: int) -> list[tuple[int, bytes]]:
    """The records of the bad lines of a shard with their indices, where bad lines have records; see `split_input`."""
    if encoding.encode_bad_line is None:
        return []
    errors = {error.line: error for error in journal.bad_lines(journal.bad_line_count())}
    if not errors:
        return []
    found, samples = [], encoding.samples
    try:
        with shard.open("rb") as lines:
            for number, raw in enumerate(lines, 1):  # a shard has no blank lines
                if number in errors:
                    index = offset + (number - 1) * samples
                    found.append((index, encoding.bad_line(index, raw.removesuffix(b"\n"), str(errors[number]))))
    except OSError as error:
        raise BatchError(f"{shard} cannot be read: {describe_os_error(error)}.") from None
    return found


async def _wait_until_free(journal: Path, deadline: float, stop: asyncio.Event | None) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < deadline and lock_owner(journal) is not None:
        if stop is None:
            await asyncio.sleep(min(_POLL, deadline - loop.time()))
            continue
        try:
            async with asyncio.timeout(min(_POLL, deadline - loop.time())):
                await stop.wait()
        except TimeoutError:
            continue
        return


def _result(
    shard: Path, output: Path, counts: RunCounts, bad_lines: int = 0, *, complete: bool, error: str
) -> ShardResult:
    return ShardResult(
        shard=str(shard),
        output=str(output),
        complete=complete,
        answered=counts.answered,
        failed=counts.failed,
        bad_lines=bad_lines,
        possibly_billed=counts.possibly_billed + counts.in_flight,
        cost=float(counts.cost),
        at_risk=counts.usd_at_risk,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        error=error,
    )


def _format_of(shard: Path) -> str | None:
    """How a shard is written, where the directory says so: its first line alone may be a bad one."""
    try:
        found = read_manifest(shard.parent)
    except BatchError:
        return None
    return found.format if shard.name in found.names else None
