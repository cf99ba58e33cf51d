"""How a run meets the journal of its earlier sessions, if its input has changed meanwhile.

Which record belongs to which entry is the subject of `onellm_async.batch.journal.changed_input`. Here is what is said
of it, and when it is refused: an input that lost prompts replaces no output unless the user insists.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onellm_async.batch.config import RunConfig, RunInput
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.samples import sampled_look
from onellm_async.batch.journal.changed_input import ChangedInput, InputChanges
from onellm_async.batch.journal.file import Reconcile, write_identity
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.errors import BatchError
from onellm_async.formatting import pluralize

_INSIST = "If this is meant, add accept_removed=True: their answers leave the output and stay in the journal."


def following(source: RunInput, identity: RunIdentity, config: RunConfig, say: Callable[[str], None]) -> Reconcile:
    """Has the records of a journal follow an input that has changed, in one transaction.

    What can be read only once, such as a pipe, is compared while it is read.

    Args:
        source: The input.
        identity: Of the run now.
        config: Of the run.
        say: Called with what has changed, in a sentence.
    """

    def reconcile(connection: sqlite3.Connection, earlier: RunIdentity) -> None:
        changed = _matched(connection, source, earlier, config, say)
        connection.execute("BEGIN IMMEDIATE")
        try:
            if changed is not None:
                changed.apply()
            write_identity(connection, identity)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    return reconcile


def _matched(
    connection: sqlite3.Connection,
    source: RunInput,
    earlier: RunIdentity,
    config: RunConfig,
    say: Callable[[str], None],
) -> ChangedInput | None:
    """The records matched with the input, after saying what has changed; None for what can be read only once."""
    look = source.look_through()
    if look is None:
        return None
    look = sampled_look(look, config.policy.samples)
    changed = ChangedInput(connection, config.policy.deduplicates)
    changed.stage(look.entries, look.reserve_custom_id)
    changes = changed.match(before=earlier.answers)
    check_removed(changes, source, config)
    if changes.changed:
        say(changes_text(changes))
    return changed


def check_removed(changes: InputChanges, source: RunInput, config: RunConfig) -> None:
    """Refuses an input that lost prompts, or is another one altogether, unless the user insists.

    Raises:
        BatchError: With what is missing, and how to insist.
    """
    if config.accept_removed or not (changes.kept or changes.gone):
        return

    before, now = changes.before // config.policy.samples, changes.entries // config.policy.samples
    if changes.gone > changes.kept:
        answered = changes.gone + changes.kept
        raise BatchError(
            f"{config.journal_place} belongs to another run: the input has changed (it had "
            f"{pluralize(before, 'line')} and has {now:,}), and lacks {changes.gone:,} of the "
            f"{pluralize(answered, 'prompt')} that {'was' if answered == 1 else 'were'} answered.",
            advice="Give the same input to resume that run. Or use another output, or force=True to discard its "
            "answers. " + _INSIST,
        )
    if changes.entries < changes.before:
        raise BatchError(
            f"{source.name} is shorter than in the last session (it had {pluralize(before, 'line')} and has "
            f"{now:,}). Nothing was sent, and the output was not touched.",
            advice=f"If lines were lost, restore them and run the same command again. {_INSIST}",
        )


def changes_text(changes: InputChanges) -> str:
    """What has changed, in a sentence with counts."""
    new, kept, gone = changes.new, changes.kept, changes.gone
    are = "is new" if new == 1 else "are new"
    if not changes.complete:
        are += " or was not sent yet" if new == 1 else " or were not sent yet"
    text = (
        f"The input has changed: {new:,} of {pluralize(changes.entries, 'prompt')} {are}; "
        f"{kept:,} {'keeps its answer' if kept == 1 else 'keep their answers'}."
    )
    if gone == 1:
        text += " 1 answer leaves the output and stays in the journal, as its prompt is gone."
    elif gone:
        text += f" {gone:,} answers leave the output and stay in the journal, as their prompts are gone."
    return text


@contextmanager
def earlier_sessions(
    source: RunInput, identity: RunIdentity, config: RunConfig, say: Callable[[str], None]
) -> Iterator[JournalReader | ChangedInput | None]:
    """The records that a run would find, matched with its input as it is now; None where there are none.

    Nothing is changed. Blocks for the disk; use it in one thread.

    Args:
        source: The input; it is not consumed.
        identity: Of the run now.
        config: Of the run.
        say: Called with what has changed, in a sentence.

    Raises:
        BatchError: If the journal cannot be read, is of another run, or the input lost prompts.
    """
    place = config.journal_place
    if config.force or place is None or not place.exists():
        yield None
        return
    with JournalReader.open(place) as journal:
        if differences := identity.changed_options(journal.identity):
            if journal.counts().holds_value:
                raise BatchError(f"{journal.path} belongs to another run: {'; '.join(differences)}.")
            yield None
        elif identity.has_input_of(journal.identity):
            yield journal
        else:
            yield _matched(journal.scratch(), source, journal.identity, config, say) or journal
