"""The commands, put together. Each of them imports what it works with only when it runs, so that help is fast."""

from cyclopts import App, CycloptsError

from onellm_async import __version__
from onellm_async.cli.chat import CHAT_EXAMPLES, chat
from onellm_async.cli.control import CONTROL_EXAMPLES, pause, resume, retune, stop
from onellm_async.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exit_code_of
from onellm_async.cli.export import EXPORT_EXAMPLES, export
from onellm_async.cli.models import MODELS_EXAMPLES, models
from onellm_async.cli.options import STREAM
from onellm_async.cli.plan import PLAN_EXAMPLES, plan
from onellm_async.cli.report import REPORT_EXAMPLES, report
from onellm_async.cli.run import RUN_EXAMPLES, run
from onellm_async.cli.serve import SERVE_EXAMPLES, serve
from onellm_async.cli.status import STATUS_EXAMPLES, status
from onellm_async.cli.terminal import complain
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
    help="Ask the OneLLM chat API, one prompt or a file of them, at exactly the rate there is.",
    help_format="plaintext",
    help_epilogue=f"{_EXAMPLES}\n{EXIT_CODES_HELP}",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
for _command, _examples in (
    (chat, CHAT_EXAMPLES),
    (run, RUN_EXAMPLES),
    (plan, PLAN_EXAMPLES),
    (status, STATUS_EXAMPLES),
    (pause, CONTROL_EXAMPLES["pause"]),
    (resume, CONTROL_EXAMPLES["resume"]),
    (retune, CONTROL_EXAMPLES["retune"]),
    (stop, CONTROL_EXAMPLES["stop"]),
    (export, EXPORT_EXAMPLES),
    (report, REPORT_EXAMPLES),
    (serve, SERVE_EXAMPLES),
    (models, MODELS_EXAMPLES),
):
    app.command(_command, help_epilogue=f"{_examples}\n{EXIT_CODES_HELP}")


def run_app(arguments: list[str]) -> int:
    """Runs the command that `arguments` name; every expected error becomes a message and an exit code."""
    dash, unlike_an_option = STREAM
    arguments = [unlike_an_option if argument == dash else argument for argument in arguments]
    try:
        code = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return ExitCode.USAGE
    except OneLLMError as error:
        complain(str(error))
        return exit_code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK
