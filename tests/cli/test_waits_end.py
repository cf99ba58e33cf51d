"""What waits for a command in these tests fails at once when the command has ended, and tells its last words."""

import pytest


@pytest.fixture
async def failing(start, at):
    """A command that ends without asking for anything, and one before it that ended, too."""
    await (await start("models", **at)).ended()
    return await start("run", "nowhere.txt", "-o", "out.jsonl", **at)


@pytest.mark.usefixtures("failing")
async def test_a_backend_that_nobody_will_ask_is_not_waited_for(backend):
    with pytest.raises(AssertionError, match=r"asked 0 of 1 times: (.|\n)*ended with 2: .*nowhere\.txt cannot be read"):
        await backend.until_asked(1)
    assert not backend.changed.locked()


@pytest.mark.usefixtures("failing")
async def test_a_journal_that_nobody_writes_is_not_waited_for(journal_has):
    with pytest.raises(AssertionError, match=r"ended with 2: .*nowhere\.txt cannot be read"):
        await journal_has("out.jsonl", lambda journal: journal.complete)
