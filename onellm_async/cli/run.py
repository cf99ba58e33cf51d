"""``onellm-async run``: a file of prompts → a file of answers, through crashes and restarts."""

from typing import TYPE_CHECKING, Annotated

from attrs import evolve
from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.options import ASKING, CONNECTING, ConnectionFlags, RequestFlags
from onellm_async.cli.reading import READING, InputFlags, open_input
from onellm_async.cli.run_flags import GOING_ON, SPENDING, WRITING, BudgetFlags, OutputFlags, ResumeFlags
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import require_output
from onellm_async.errors import ConfigurationError

if TYPE_CHECKING:
    from onellm_async.batch import InputFile

__all__ = ["run", "run_command"]

_EXAMPLES = """\
Examples:
  onellm-async run prompts.txt -o answers.jsonl --local
  onellm-async run questions.jsonl -o answers.jsonl --field question
  onellm-async run people.csv -o letters.csv --template 'Write to {{ name }}.'
  onellm-async run prompts.txt -o answers.jsonl --max-cost 5 --max-tokens 300
  onellm-async run prompts.txt -o answers.jsonl --preflight 20
  onellm-async run openai-batch.jsonl -o results.jsonl --rpm 600 --burst 100
  generate-prompts | onellm-async run - | jq -r .response.content

Interrupted, killed, out of money? The same command again goes on from there:
what was answered is kept in OUTPUT.journal and not asked again.

Input: one prompt a line, blank lines are skipped.
  text          the line is the prompt
  jsonl         {"prompt": "..."}, {"messages": [...]}, with --field NAME
                {"NAME": "..."}, or a JSON string; a "custom_id" is kept
  json          an array of these
  openai-batch  {"custom_id", "method", "url", "body"}
  csv, tsv      a header, then a prompt a row, in column "prompt" or --field
  parquet       likewise
Files may be packed (.gz, .zst); several are one run. "model", "system",
"max_tokens", "temperature" and so on of a line or row are those of its request:
flags go before them, and $ONELLM_MODEL after them.

Output: one record per prompt in the order of the input, as the name of OUTPUT
says: .jsonl, .csv or .parquet. JSON lines are
  {"index", "custom_id"?, "response": {"content", ...}, "error"}
or OpenAI's batch output for openai-batch input. It is written to OUTPUT.partial
and renamed when every prompt has an answer or an error.

While it runs, another terminal may ask for `onellm-async status OUTPUT`, and
`pause`, `resume`, `retune` or `stop` it. `report` tells afterwards how it went.
"""


def run(
    source: Annotated[str, Parameter(name="INPUT")],
    /,
    *more: Annotated[str, Parameter(name="INPUT", show=False)],
    reading: InputFlags = READING,
    writing: OutputFlags = WRITING,
    spending: BudgetFlags = SPENDING,
    going_on: ResumeFlags = GOING_ON,
    asking: RequestFlags = ASKING,
    connecting: ConnectionFlags = CONNECTING,
) -> int:
    """Runs ``onellm-async run``.

    Args:
        source: File of prompts, or several as one run; `-` is standard input.
        more: Further files.
        reading: How it is read.
        writing: Where answers go.
        spending: What may be spent.
        going_on: What is done with doubtful, failed and repeated prompts.
        asking: What is asked of every prompt.
        connecting: Where the service is.
    """
    import asyncio

    if spending.estimate:
        from onellm_async.cli.plan import plan

        return plan(source, *more, reading=reading, asking=asking, limiting=connecting)
    writing = evolve(writing, output=None if writing.output in STREAM else writing.output)
    if writing.output is None and writing.journal is not None:
        raise ConfigurationError("A journal needs an output file (-o): what went into a stream cannot be resumed.")
    if writing.output is None:
        require_output()
    if spending.preflight is not None and (spending.preflight < 2 or writing.output is None or source in STREAM):
        raise ConfigurationError(
            f"preflight is {spending.preflight}; it needs at least 2 prompts, an input file and an output file (-o)."
        )

    from onellm_async.cli.run_settings import file_run

    def opened() -> "InputFile":
        return open_input((source, *more), reading, asking, capped=wanted.budget.capped)

    wanted = file_run(reading, writing, spending, going_on, connecting)
    first = opened()  # outside the event loop: opening a named pipe waits for its writer, and Ctrl-C must end that

    from onellm_async.cli.run_session import RunSession

    return asyncio.run(RunSession(wanted, connecting, preflight=spending.preflight).ended(first, opened))


run_command: App = command(run, _EXAMPLES)
