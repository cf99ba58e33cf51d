"""Prompts that are in memory, or come from a program, as the entries of a run."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeAlias

from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError, ParsedEntry
from onellm_async.batch.inputs.formats import InputFormat, input_format_named
from onellm_async.batch.inputs.notes import InputNotes
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.chat import Prompt
from onellm_async.errors import InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import Dialect, dump_json, encode_request

__all__ = ["InMemoryInput", "NamedPrompt", "entries_from"]

NamedPrompt: TypeAlias = tuple[str, Prompt]
"""A ``custom_id`` and what is asked."""


class InMemoryInput:
    """Prompts as entries; made by `entries_from`.

    Attributes:
        name: What it is called in messages.
        defaults: What is asked of every prompt that is no complete request.
        format: What the output follows where its name tells nothing: JSON lines.
        field: None, as in every source that is no file.
        template: Likewise.
        kept_columns: None of them.
        keep: None.
        notes: What is to be said once per run: nothing.
    """

    format: InputFormat = input_format_named("jsonl")
    field: None = None
    template: None = None
    kept_columns: tuple[str, ...] = ()
    keep: str | None = None

    def __init__(
        self,
        prompts: Iterable[Prompt | NamedPrompt] | AsyncIterable[Prompt | NamedPrompt],
        defaults: RequestDefaults,
        name: str,
    ) -> None:
        self.name: str = name
        self._prompts = prompts
        self.defaults: RequestDefaults = defaults
        self.notes: InputNotes = InputNotes()
        self._ids = SeenKeys()

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of the id of an entry that need not be parsed, so that no later one may use it again."""
        self._ids.add(custom_id.encode(errors="surrogatepass"), line)

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """The prompts in their order. ``line`` is the position from 1, and ``raw`` the request as it would be sent."""
        index = 0
        async for prompt in _each(self._prompts):
            yield self._entry(prompt, index)
            index += 1

    def _entry(self, prompt: Prompt | NamedPrompt, index: int) -> "_PromptEntry":
        custom_id = None
        if isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[0], str):
            custom_id, prompt = prompt
        try:
            if isinstance(prompt, str) and not prompt.strip():
                raise InvalidRequestError("The prompt is empty.")  # noqa: TRY301  # as a blank line of a file is
            request = self.defaults.request(prompt)
        except InvalidRequestError as error:
            return _PromptEntry(index, b"", self, custom_id, LineError(self.name, index + 1, str(error)))
        raw = encode_request(request, Dialect.DOCUMENTED)
        if custom_id is not None:
            raw = dump_json(custom_id) + raw
        return _PromptEntry(index, raw, self, custom_id, ParsedEntry(index, index + 1, request, custom_id))

    def claim(self, custom_id: str, line: int) -> LineError | None:
        """An error where `custom_id` belongs to another entry."""
        first = self._ids.add(custom_id.encode(errors="surrogatepass"), line)
        if first in {None, line}:
            return None
        where = f"by prompt {first} already" if first else "before, by a prompt that is done"
        return LineError(self.name, line, f"custom_id {truncated_repr(custom_id)} was used {where}.")


class _PromptEntry(Entry):
    __slots__ = ("_custom_id", "_item", "_prompts")

    def __init__(
        self, index: int, raw: bytes, prompts: InMemoryInput, custom_id: str | None, item: ParsedEntry | LineError
    ) -> None:
        self.index: int = index
        self.line: int = index + 1
        self.raw: bytes = raw
        self._prompts = prompts
        self._custom_id = custom_id
        self._item = item

    @property
    def source(self) -> str:
        return self._prompts.name

    def item(self) -> ParsedEntry | LineError:
        if self._custom_id is None or isinstance(self._item, LineError):
            return self._item
        return self._prompts.claim(self._custom_id, self.line) or self._item


def entries_from(
    prompts: Iterable[Prompt | NamedPrompt] | AsyncIterable[Prompt | NamedPrompt],
    *,
    defaults: RequestDefaults | None = None,
    name: str = "prompts",
) -> InMemoryInput:
    """Prompts as the source of a run that a journal can resume.

    The digest of an entry is that of the request, so that a prompt which has changed is noticed when the run is
    resumed, and one that is made anew and equal is not asked again.

    Args:
        prompts: Texts, messages, `onellm_async.ChatRequest` values, or pairs of a ``custom_id`` and one of these; from
            any iterable or async iterable, which is drawn from as the run goes on.
        defaults: What is asked of every prompt that is no complete request.
        name: What they are called in messages.

    Example:
        ::

            source = entries_from((f"ticket-{ticket.id}", ticket.text) for ticket in tickets)
    """
    return InMemoryInput(prompts, defaults or RequestDefaults(), name)


async def _each(
    prompts: Iterable[Prompt | NamedPrompt] | AsyncIterable[Prompt | NamedPrompt],
) -> AsyncIterator[Prompt | NamedPrompt]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt
