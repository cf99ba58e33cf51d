"""Files of prompts to files of answers, through crashes and restarts, within a budget.

::

    source ─ entries → what the journal has not ─ intent → journal ─→ POST ─ result → journal ─→ order → sink
"""

from onellm_async.batch.answer_cache import AnswerCache
from onellm_async.batch.budget import Budget
from onellm_async.batch.config import RunOptions, RunPolicy
from onellm_async.batch.estimate import Interval, RunEstimate
from onellm_async.batch.health import HealthPolicy
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.defaults import DEFAULT_MODEL, RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError, ParsedEntry
from onellm_async.batch.inputs.entry_parser import EntryParser
from onellm_async.batch.inputs.formats import InputFormat, input_format_named, recognize_format
from onellm_async.batch.inputs.lines import LONGEST_LINE
from onellm_async.batch.inputs.memory import InMemoryInput, NamedPrompt, entries_from
from onellm_async.batch.inputs.sources import InputFile, InputScan, open_source
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.batch.journal.commands import Command, send_command
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.null_journal import NullJournal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts
from onellm_async.batch.outputs.formats import OutputFormat, open_sink, output_format, output_format_named
from onellm_async.batch.outputs.ordered_writer import LineSink
from onellm_async.batch.outputs.sinks import FileSink, StreamSink
from onellm_async.batch.progress import ProgressTracker, RunProgress
from onellm_async.batch.run_report import RunReport
from onellm_async.batch.shard_split import split_input
from onellm_async.batch.shards import (
    ShardResult,
    ShardStatus,
    merge_shards,
    read_shard_statuses,
    run_shard,
    run_shard_sync,
)

__all__ = [
    "DEFAULT_MODEL",
    "LONGEST_LINE",
    "AnswerCache",
    "Budget",
    "Command",
    "Entry",
    "EntryParser",
    "FileSink",
    "HealthPolicy",
    "InMemoryInput",
    "InputFile",
    "InputFormat",
    "InputScan",
    "Interval",
    "Journal",
    "JournalReader",
    "JournalRecord",
    "LineError",
    "LineSink",
    "NamedPrompt",
    "NullJournal",
    "OutputFormat",
    "ParsedEntry",
    "ProgressTracker",
    "PromptTemplate",
    "RecordState",
    "RequestDefaults",
    "RunCounts",
    "RunEstimate",
    "RunIdentity",
    "RunOptions",
    "RunPolicy",
    "RunProgress",
    "RunReport",
    "ShardResult",
    "ShardStatus",
    "StreamSink",
    "entries_from",
    "input_format_named",
    "merge_shards",
    "open_sink",
    "open_source",
    "output_format",
    "output_format_named",
    "read_shard_statuses",
    "recognize_format",
    "run_shard",
    "run_shard_sync",
    "send_command",
    "split_input",
]
