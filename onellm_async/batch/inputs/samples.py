"""Each entry of an input several times, as the entries of a run that asks each prompt more than once. Pure.

Sample 2 of entry 7 in a run of 5 samples has the position 7 × 5 + 1. The output has the entry's own index again.
"""

from collections.abc import AsyncIterator, Iterator

from attrs import evolve

from onellm_async.batch.inputs.entry import Entry, EntrySource, LineError, ParsedEntry, SecondLook
from onellm_async.fanout import close_iterator


def sampled(source: EntrySource, samples: int) -> EntrySource:
    """The entries of `source`, each as often as it is sampled."""
    return source if samples == 1 else _SampledSource(source, samples)


def sampled_look(look: SecondLook, samples: int) -> SecondLook:
    """The same of a second look at an input."""
    if samples == 1:
        return look
    reserved = list[str]()

    def entries() -> Iterator[Entry]:
        for entry in look.entries:
            once = _ParsedOnce(entry)
            for sample in range(1, samples + 1):
                yield _SampledEntry(once, entry.index * samples + sample - 1, sample)
            if reserved and not once.is_parsed:
                look.reserve_custom_id(reserved[-1])
            reserved.clear()

    return SecondLook(entries(), reserved.append)


class _SampledSource:
    def __init__(self, source: EntrySource, samples: int) -> None:
        self._source = source
        self._samples = samples
        self._reserved: str | None = None

    async def __aiter__(self) -> AsyncIterator[Entry]:
        entries = aiter(self._source)
        try:
            async for entry in entries:
                once = _ParsedOnce(entry)
                for sample in range(1, self._samples + 1):
                    yield _SampledEntry(once, entry.index * self._samples + sample - 1, sample)
                # The samples of an entry share its id, which parsing reserves by itself.
                if self._reserved is not None and not once.is_parsed:
                    self._source.reserve_custom_id(self._reserved)
                self._reserved = None
        finally:
            await close_iterator(entries)

    def reserve_custom_id(self, custom_id: str) -> None:
        self._reserved = custom_id


class _ParsedOnce:
    """An entry, and what is in it once that was wanted: parsed twice, its id would be one that was used before."""

    __slots__ = ("_item", "entry")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._item: ParsedEntry | LineError | None = None

    @property
    def is_parsed(self) -> bool:
        return self._item is not None

    def item(self) -> ParsedEntry | LineError:
        if self._item is None:
            self._item = self.entry.item()
        return self._item


class _SampledEntry(Entry):
    __slots__ = ("_once", "_sample")

    def __init__(self, once: _ParsedOnce, index: int, sample: int) -> None:
        self.index: int = index
        self.line: int = once.entry.line
        self.raw: bytes = once.entry.raw
        self._once = once
        self._sample = sample

    @property
    def source(self) -> str:
        return self._once.entry.source

    @property
    def sample(self) -> int | None:
        return self._sample

    def item(self) -> ParsedEntry | LineError:
        item = self._once.item()
        return item if isinstance(item, LineError) else evolve(item, index=self.index, sample=self._sample)
