"""Files of prompts to files of answers: source → items → outcomes → sink."""

from onellm_async.batch.defaults import DEFAULT_MODEL, RequestDefaults
from onellm_async.batch.items import InputFormat, Item, LineError, LineReader, sniff_format
from onellm_async.batch.progress import RunProgress, Tally
from onellm_async.batch.records import RecordWriter
from onellm_async.batch.run import WINDOW, Asker, RunReport, run_prompts
from onellm_async.batch.sinks import FileSink, Sink, StreamSink
from onellm_async.batch.sources import LONGEST_LINE, Source, Survey, open_source

__all__ = [
    "DEFAULT_MODEL",
    "LONGEST_LINE",
    "WINDOW",
    "Asker",
    "FileSink",
    "InputFormat",
    "Item",
    "LineError",
    "LineReader",
    "RecordWriter",
    "RequestDefaults",
    "RunProgress",
    "RunReport",
    "Sink",
    "Source",
    "StreamSink",
    "Survey",
    "Tally",
    "open_source",
    "run_prompts",
    "sniff_format",
]
