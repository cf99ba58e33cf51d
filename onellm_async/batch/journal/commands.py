"""Asking a run for something from another process, through its journal."""

import os
import time
from contextlib import closing

from onellm_async.batch.journal.file import connect, journal_path, translate_errors
from onellm_async.batch.journal.lock import lock_owner
from onellm_async.batch.journal.record import Command
from onellm_async.batch.journal.schema import VERSION, demand_version
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json, parse_json

__all__ = ["reply_to", "send_command"]

_COMMANDS = ("pause", "resume", "retune", "stop")


def send_command(path: str | os.PathLike[str], command: Command) -> int:
    """Asks a run that is at work for something; it looks about once a second.

    Args:
        path: Of its output or its journal.
        command: What is asked.

    Returns:
        The number of the command.

    Raises:
        BatchError: If there is no such command, no run is at work, or its journal cannot be written.
    """
    where = journal_path(path)
    if command.name not in _COMMANDS:
        raise BatchError(f"There is no command {command.name!r}; a run knows {', '.join(_COMMANDS)}.")
    with translate_errors(where), closing(connect(where)) as connection:
        demand_version(connection, str(where), least=VERSION)
        if lock_owner(where) is None:
            raise BatchError(f"No run is at work on {where}.", advice="Its own `run` command goes on with it.")
        inserted = connection.execute(
            "INSERT INTO commands (at, name, argument) VALUES (?, ?, ?)",
            (time.time(), command.name, dump_json(command.argument).decode()),
        )
        return inserted.lastrowid or 0


def reply_to(path: str | os.PathLike[str], number: int) -> str | None:
    """What a run says to a command: why it refused it, or an empty text if it obeyed; None before it has seen it.

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
