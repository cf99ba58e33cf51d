"""``onellm-async report``: the report of a run, as one HTML file."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import put, say
from onellm_async.errors import ConfigurationError

_EXAMPLES = """\
Examples:
  onellm-async report answers.jsonl
  onellm-async report answers.jsonl -o monday.html
  onellm-async report answers.jsonl.journal -o - > monday.html
  onellm-async report shards

It works on an active run, too. The file needs no network. It has charts,
tables, and the errors and ids of failed prompts, but no prompts and no answers.
It replaces an earlier report, and no other file.
"""


def report(
    run: Annotated[str, Parameter(name="RUN", help="Output of the run, its journal, or a directory of shards.")],
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(name=["--output", "-o"], help="The HTML file; `-` is standard output. [default: RUN.report.html]"),
    ] = None,
) -> int:
    """Runs ``onellm-async report``.

    Args:
        run: Output of the run, its journal, or a directory of shards.
        output: The HTML file.
    """
    _check_jinja()
    from onellm_async.report import render_report, report_path, save_report

    page, journal = render_report(run)
    if output in STREAM:
        put(page)
        return ExitCode.OK
    path = report_path(journal) if output is None else Path(output)
    save_report(page, path)
    say(f"Written to {path} ({len(page.encode()) / 1000:.0f} kB).")
    return ExitCode.OK


report_command: App = command(
    report,
    _EXAMPLES,
    {
        ExitCode.OK: "the report was written, however the run went",
    },
)


def _check_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigurationError(
            "A report needs Jinja2, which is not installed.",
            advice="Install it with: pip install 'onellm-async[cli,report]'",
        ) from None
