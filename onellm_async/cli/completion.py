"""``onellm-async --install-completion``: completion of commands and flags in the shell."""

from typing import Annotated, Literal

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.terminal import put
from onellm_async.errors import ConfigurationError

_EXAMPLES = """\
Examples:
  onellm-async --install-completion
  onellm-async --install-completion --shell zsh

It writes a script into your home directory, and for bash and zsh a line that
loads it into .bashrc or .zshrc. Run it again after an upgrade.
"""


def install_completion(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="Shell. [default: the one that runs it]")
    ] = (None),
) -> int:
    """Runs ``onellm-async --install-completion``.

    Args:
        shell: The shell; None detects it.
    """
    from cyclopts.completion.detect import ShellDetectionError

    from onellm_async.cli.app import app

    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError:
        raise ConfigurationError("The shell is not known.", advice="Name it: --shell bash, zsh or fish.") from None
    except OSError as error:
        raise ConfigurationError(f"The completion cannot be installed: {error}.") from None
    put(f"Installed in {path}. It works in shells that are started from now on.")
    return ExitCode.OK


completion_command: App = command(
    install_completion, _EXAMPLES, {ExitCode.OK: "the completion was installed"}, name="--install-completion"
)
