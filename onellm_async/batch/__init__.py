"""Files of prompts to files of answers: source → items → outcomes → sink."""

from onellm_async.batch.defaults import DEFAULT_MODEL, RequestDefaults
from onellm_async.batch.formats import InputFormat, OutputFormat, output_format, sniff_format
from onellm_async.batch.items import Entry, Item, LineError
from onellm_async.batch.line_reader import LineReader
from onellm_async.batch.lines import LONGEST_LINE
from onellm_async.batch.outcome_records import OutcomeWriter
from onellm_async.batch.progress import RunProgress, Tally
from onellm_async.batch.records import RecordWriter
from onellm_async.batch.run import WINDOW, Asker, RunReport, run_prompts
from onellm_async.batch.sinks import FileSink, Sink, StreamSink, open_sink
from onellm_async.batch.sources import Source, Survey, open_source
from onellm_async.batch.template import PromptTemplate

__all__ = [
    "DEFAULT_MODEL",
    "LONGEST_LINE",
    "WINDOW",
    "Asker",
    "Entry",
    "FileSink",
    "InputFormat",
    "Item",
    "LineError",
    "LineReader",
    "OutcomeWriter",
    "OutputFormat",
    "PromptTemplate",
    "RecordWriter",
    "RequestDefaults",
    "RunProgress",
    "RunReport",
    "Sink",
    "Source",
    "StreamSink",
    "Survey",
    "Tally",
    "open_sink",
    "open_source",
    "output_format",
    "run_prompts",
    "sniff_format",
]
