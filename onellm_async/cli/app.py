"""The commands, put together, each with its line in the list of them.

Help has to be fast: a command's file is imported only when the command is asked for, and imports what it works with
only when it runs.
"""

import sys

from cyclopts import App, CycloptsError

from onellm_async import __version__
from onellm_async.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exit_code_of
from onellm_async.cli.flag_words import told_in_flags
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import print_error
from onellm_async.errors import OneLLMError

__all__ = ["app", "run_app"]

_EXAMPLES = """\
Examples:
  onellm-async chat "Say hello" --local
  onellm-async run questions.jsonl -o answers.jsonl --field question
  onellm-async COMMAND --help
"""


app: App = App(
    name="onellm-async",
    help="Asyncio client for the OneLLM chat API: rate limiting, retries, resumable batch runs.",
    help_format="plaintext",
    help_epilogue=f"{_EXAMPLES}\n{EXIT_CODES_HELP}",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command(
    "onellm_async.cli.chat:chat_command",
    name="chat",
    help="Send one prompt and print the answer, or hold a conversation.",
)
app.command(
    "onellm_async.cli.run:run_command",
    name="run",
    help="Send every prompt of a file and write the answers in input order. Run the same command again to resume.",
)
app.command(
    "onellm_async.cli.plan:plan_command",
    name="plan",
    help="Estimate duration, load and cost of a run by simulation. Sends nothing.",
)
app.command(
    "onellm_async.cli.status:status_command",
    name="status",
    help="Show the progress, cost and remaining work of a run.",
)
app.command(
    "onellm_async.cli.control:pause_command",
    name="pause",
    help="Pause a run. Requests in flight finish.",
)
app.command("onellm_async.cli.control:resume_command", name="resume", help="Resume a paused run.")
app.command("onellm_async.cli.control:retune_command", name="retune", help="Change the limits of an active run.")
app.command(
    "onellm_async.cli.control:stop_command",
    name="stop",
    help="Stop a run gracefully: send nothing more, wait for requests in flight.",
)
app.command(
    "onellm_async.cli.export:export_command",
    name="export",
    help="Write the answers that a run has so far, from its journal.",
)
app.command(
    "onellm_async.cli.report:report_command",
    name="report",
    help="Write an HTML report of a run: charts, tables and time by bottleneck.",
)
app.command(
    "onellm_async.cli.quota:quota_command",
    name="quota",
    help="Show the board on which the processes of a key share its rate.",
)
app.command(
    "onellm_async.cli.shard:shard_command",
    name="shard",
    help="Split an input into shards for many machines; run, show and merge them.",
)
app.command(
    "onellm_async.cli.gateway:gateway_command",
    name="gateway",
    help="Serve an OpenAI-compatible API in front of one key, for clients in any language.",
)
app.command(
    "onellm_async.cli.serve:serve_command",
    name="serve",
    help="Run a local OneLLM server for testing, with optional faults.",
)
app.command(
    "onellm_async.cli.doctor:doctor_command",
    name="doctor",
    help="Check key, URL, network and limits, and say what to do.",
)
app.command(
    "onellm_async.cli.models:models_command",
    name="models",
    help="List the documented models with their prices. Other models can be requested, too.",
)


app.command(
    "onellm_async.cli.completion:completion_command",
    name="--install-completion",
    help="Install completion of commands and flags in your shell: bash, zsh or fish.",
)


def run_app(arguments: list[str]) -> int:
    """Runs the command that `arguments` name; every expected error becomes a message and an exit code."""
    dash, unlike_an_option = STREAM
    arguments = [unlike_an_option if argument == dash else argument for argument in arguments]
    try:
        code = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:
        return ExitCode.USAGE
    except OneLLMError as error:
        exit_code = exit_code_of(error)
        if exit_code is not ExitCode.BROKEN_PIPE:  # who pipes into `head` wants no more words
            print_error(told_in_flags(error))
        return exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK
