import pytest

from onellm_async import ChatRequest, Message
from onellm_async.batch import LineError, ParsedEntry, RequestDefaults, entries_from


async def found(prompts, **options):
    return [entry async for entry in entries_from(prompts, **options)]


async def later(values):
    for value in values:
        yield value


PROMPTS = [
    "Hi",
    [{"role": "user", "content": "Hi"}],
    (Message.system("S"), Message.user("Hi")),
    ChatRequest("GPT-5", "Hi", max_tokens=3),
    ("a", "Hi"),
    ("b", ChatRequest("GPT-5", "Hi")),
]


@pytest.mark.parametrize("given", [list, iter, later])
async def test_every_kind_of_prompt_is_an_entry(given):
    items = [entry.item() for entry in await found(given(PROMPTS), defaults=RequestDefaults(max_tokens=9))]

    assert [(item.index, item.line) for item in items] == [(index, index + 1) for index in range(6)]
    assert [item.custom_id for item in items] == [None, None, None, None, "a", "b"]
    assert [item.request.max_tokens for item in items] == [9, 9, 9, 3, 9, None]
    assert items[2].request.messages == (Message.system("S"), Message.user("Hi"))


async def test_digests_are_stable_and_tell_apart_what_is_asked_and_how_it_is_called():
    entries = await found(PROMPTS)
    again = await found(PROMPTS)
    changed = await found(PROMPTS, defaults=RequestDefaults(max_tokens=9))

    assert [entry.digest for entry in entries] == [entry.digest for entry in again]
    assert entries[0].digest == entries[1].digest
    assert len({entry.digest for entry in entries}) == 5
    assert entries[0].digest != changed[0].digest
    assert entries[3].digest == changed[3].digest


async def test_what_cannot_be_asked_is_a_line_error_and_the_others_come():
    bad, good = [entry.item() for entry in await found([[], "Hi"], name="tickets")]

    assert str(bad).startswith("tickets:1: messages is []")
    assert isinstance(good, ParsedEntry)


async def test_an_id_used_twice_is_an_error_also_when_the_first_was_passed_over():
    source = entries_from([("a", "Hi"), ("a", "Ho"), ("b", "Hu")])
    source.reserve_custom_id("b")
    first, second, third = [entry async for entry in source]

    assert isinstance(first.item(), ParsedEntry)
    assert isinstance(first.item(), ParsedEntry)
    assert second.item() == LineError("prompts", 2, "custom_id 'a' was used by prompt 1 already.")
    assert third.item().message == "custom_id 'b' was used before, by a prompt that is done."
    assert third.source == "prompts"


async def test_a_request_digest_is_shared_by_items_that_ask_the_same():
    items = [entry.item() for entry in await found(PROMPTS)]

    assert items[0].request_digest == items[4].request_digest
    assert items[0].request_digest != items[5].request_digest
    assert len(items[0].request_digest) == 16


@pytest.mark.parametrize("prompt", ["", " \n"])
async def test_a_blank_prompt_is_a_bad_line(prompt):
    (entry,) = await found([prompt])

    assert str(entry.item()) == "prompts:1: The prompt is empty."
