"""Commands to a run from another process, through its journal."""

import os
import time
from contextlib import closing

from attrs import frozen

from onellm_async.batch.journal.file import connect, journal_path, translate_errors
from onellm_async.batch.journal.lock import lock_owner
from onellm_async.batch.journal.schema import VERSION, check_version
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json, parse_json

_COMMANDS = ("pause", "resume", "retune", "stop")


@frozen
class Command:
    """A request of another terminal to a run.

    Attributes:
        name: ``pause``, ``resume``, ``retune`` or ``stop``.
        argument: For ``retune`` the settings to change.
        id: Its number in the journal; 0 before it is there.
        at: When it was sent, in Unix seconds; 0 before it was.
    """

    name: str
    argument: JSON = None
    id: int = 0
    at: float = 0.0


def send_command(path: str | os.PathLike[str], command: Command) -> int:
    """Sends a command to an active run, which looks for commands once a second.

    Args:
        path: Of its output or its journal.
        command: What it is to do.

    Returns:
        The number of the command.

    Raises:
        BatchError: If there is no such command, no run is active, or its journal cannot be written.
    """
    where = journal_path(path)
    if command.name not in _COMMANDS:
        raise BatchError(f"There is no command {command.name!r}; a run knows {', '.join(_COMMANDS)}.")
    with translate_errors(where), closing(connect(where)) as connection:
        check_version(connection, str(where), min_version=VERSION)
        if lock_owner(where) is None:
            raise BatchError(f"No active run for {where}.", advice="Start or resume it with its `run` command.")
        inserted = connection.execute(
            "INSERT INTO commands (at, name, argument) VALUES (?, ?, ?)",
            (time.time(), command.name, dump_json(command.argument).decode()),
        )
        return inserted.lastrowid or 0


def reply_to(path: str | os.PathLike[str], number: int) -> str | None:
    """Why a run rejected a command, or an empty text if it obeyed; None before it has read it.

    Args:
        path: Of its output or its journal.
        number: Of the command, as `send_command` returned it.

    Raises:
        BatchError: If its journal cannot be read.
    """
    where = journal_path(path)
    with translate_errors(where), closing(connect(where)) as connection:
        seen = "SELECT argument FROM commands WHERE id = ? AND received_at IS NOT NULL"
        found = connection.execute(seen, (number,)).fetchone()
    if found is None:
        return None
    argument = parse_json(found[0].encode())
    return str(argument.get("refused", "")) if isinstance(argument, dict) else ""
