"""Prompts that are in memory, or come from a program, as the entries of a run."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import TypeAlias

from attrs import evolve

from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError, ParsedEntry, SecondLook
from onellm_async.batch.inputs.entry_parser import WHOLE, EntryParser, FirstEntries, ParserOptions, SeenIds, length_of
from onellm_async.batch.inputs.formats import InputFormat, input_format_named
from onellm_async.batch.inputs.notes import InputNotes
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.chat import JSON, ChatRequest, Message, Prompt
from onellm_async.errors import BatchError, InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import Dialect, dump_json, encode_request

__all__ = ["InMemoryInput", "NamedPrompt", "entries_from"]

NamedPrompt: TypeAlias = tuple[str, Prompt]
"""A ``custom_id`` and what is asked."""

MemoryPrompts: TypeAlias = (
    Iterable[Prompt | NamedPrompt | Mapping[str, object]] | AsyncIterable[Prompt | NamedPrompt | Mapping[str, object]]
)
"""Prompts, named ones, and mappings, which are records as in JSON lines."""

_AT_ONCE = 1000
"""Prompts that are checked before other tasks of the loop have their turn."""


class InMemoryInput:
    """Prompts as entries; made by `entries_from`.

    Attributes:
        name: What it is called in messages.
        defaults: What is asked of every prompt that is no complete request.
        format: What the output follows where its name tells nothing: JSON lines.
        options: How mappings are read, which are records as in JSON lines.
        field: The field of a mapping that holds the prompt; None for ``prompt`` or ``messages``.
        template: Makes the prompt of a mapping instead.
        kept_columns: The fields of mappings that go beside the answers.
        keep: What is kept, as a text that tells two runs apart; None for what is usual.
        notes: What is to be said once per run.
        count: Number of the prompts; None if the source has no length.
        sample: The first request, once `begin` has found it.
    """

    format: InputFormat = input_format_named("jsonl")

    def __init__(self, prompts: "MemoryPrompts", options: ParserOptions, name: str) -> None:
        self.name: str = name
        self._given = self._prompts = prompts
        self.options: ParserOptions = options
        self.defaults: RequestDefaults = options.defaults
        self.field: str | None = options.prompt_field
        self.template: PromptTemplate | None = options.template
        self.keep: str | None = options.kept_text
        kept = options.keep
        self.kept_columns: tuple[str, ...] = kept if isinstance(kept, tuple) else () if kept is None else WHOLE
        self.count: int | None = length_of(prompts)
        self.notes: InputNotes = InputNotes()
        self._ids = SeenKeys()
        self.sample: tuple[ChatRequest, ...] = ()
        self._first: FirstEntries | None = None
        self._parser = EntryParser(name, EntryParser.parse_record, options, notes=self.notes, ids=SeenIds(self._ids))

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of the id of an entry that need not be parsed, so that no later one may use it again."""
        self._ids.add(custom_id.encode(errors="surrogatepass"), line)

    async def begin(self, *, strict: bool = False) -> None:
        """Refuses prompts of which none of the first can be sent; with `strict`, any bad one of a list.

        Nothing is read beyond the first usable prompt, except a list with `strict`. An async source is checked while
        the run reads it. What the source raises is raised when the run comes to it.

        Raises:
            BatchError: Naming the first bad prompt, or if there are none.
        """
        first = FirstEntries(self.name, "prompt")
        if isinstance(self._prompts, AsyncIterable):
            self._first = first
            return
        whole = strict and self.count is not None and not isinstance(self._prompts, Iterator)
        scratch, read = InMemoryInput((), self.options, self.name), list[Prompt | NamedPrompt | Mapping[str, object]]()
        prompts = iter(self._prompts)
        while whole or not first.usable:
            try:
                prompt = next(prompts)
            except StopIteration:
                first.end()
                break
            except Exception as error:
                prompts = _raising(error)
                break
            read.append(prompt)
            item = scratch.entry_of(prompt, len(read) - 1).item()
            if whole and isinstance(item, LineError):
                raise BatchError(str(item), advice="Nothing was sent (strict).")
            first.add(item)
            if not self.sample and isinstance(item, ParsedEntry):
                self.sample = (item.request,)
            if len(read) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self._prompts = chain(read, prompts)

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """The prompts in their order. ``line`` is the position from 1.

        ``raw`` is the request as it would be sent; of a mapping, the JSON object.

        Raises:
            BatchError: After `begin`, if none of the first prompts of an async source can be sent.
        """
        index, first = 0, self._first
        scratch = None if first is None else InMemoryInput((), self.options, self.name)
        async for prompt in _each(self._prompts):
            if first is not None and scratch is not None and not first.usable:
                first.add(scratch.entry_of(prompt, index).item())
            yield self.entry_of(prompt, index)
            index += 1
        if first is not None:
            first.end()

    def look_through(self) -> SecondLook | None:
        """Its entries, made once more; None for what can be read only once, such as a generator."""
        given = self._given
        if not (isinstance(given, Iterable) and can_be_read_twice(given)):
            return None
        again = InMemoryInput((), self.options, self.name)
        return SecondLook(
            (again.entry_of(prompt, index) for index, prompt in enumerate(given)), again.reserve_custom_id
        )

    def entry_of(self, prompt: Prompt | NamedPrompt | Mapping[str, object], index: int) -> Entry:
        """The entry of the prompt at `index`."""
        if isinstance(prompt, Mapping):
            try:
                return Entry(index, index + 1, dump_json(_plain(prompt)), self._parser)
            except (TypeError, ValueError, RecursionError) as error:
                bad = LineError(self.name, index + 1, f"It cannot be written as JSON: {error}.")
                return _PromptEntry(index, b"", self, None, bad)
        if self.field is not None or self.template is not None:
            option = "field" if self.template is None else "template"
            message = f"It is {truncated_repr(prompt)}, not a mapping, of whose fields {option} makes the prompt."
            return _PromptEntry(index, b"", self, None, LineError(self.name, index + 1, message))
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
    prompts: MemoryPrompts,
    *,
    defaults: RequestDefaults | None = None,
    options: ParserOptions | None = None,
    name: str = "prompts",
) -> InMemoryInput:
    """Prompts as the source of a run that a journal can resume.

    The digest of an entry is that of the request, so that a prompt which has changed is noticed when the run is
    resumed, and one that is made anew and equal is not asked again.

    Args:
        prompts: Texts, messages, `onellm_async.ChatRequest` values, or pairs of a ``custom_id`` and one of these; or
            mappings, which are read like the objects of JSON lines; from any iterable or async iterable, which is
            drawn from as the run goes on.
        defaults: What is asked of every prompt that is no complete request.
        options: How mappings are read; its defaults hold unless `defaults` is given.
        name: What they are called in messages.

    Example:
        ::

            source = entries_from((f"ticket-{ticket.id}", ticket.text) for ticket in tickets)
    """
    options = options or ParserOptions()
    return InMemoryInput(prompts, options if defaults is None else evolve(options, defaults=defaults), name)


def can_be_read_twice(prompts: object) -> bool:
    """Whether prompts are a collection, and no stream that is used up."""
    return isinstance(prompts, AbstractSet | ValuesView) or hasattr(prompts, "__getitem__")


def _plain(value: object) -> JSON:
    """`value` as JSON has it: what JSON has no type for as text, as in tables; bytes are left out.

    Raises:
        TypeError: If a name is no text.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("its names are not all texts")
        return {name: _plain(each) for name, each in value.items() if not isinstance(each, bytes | bytearray)}
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if type(value).__name__ in {"NAType", "NaTType"}:  # what pandas has for a missing value
        return None
    if callable(tolist := getattr(value, "tolist", None)):  # a scalar or an array of numpy
        return _plain(tolist())
    return str(value)


def _raising(error: Exception) -> Iterator[Prompt]:
    raise error
    yield  # makes it a generator


async def _each(prompts: MemoryPrompts) -> AsyncIterator[Prompt | NamedPrompt | Mapping[str, object]]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt
