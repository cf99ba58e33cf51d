"""SIGKILL in a session whose input has changed: what was answered before, or in that session, is not asked again."""

import json

from killing import at_rest, billed_by_prompt, finish, kill_after, quick_server, start_run

from onellm_async.batch import JournalReader

PROMPTS = 60


def write(path, numbers):
    path.write_text("".join(json.dumps({"id": f"n{n}", "prompt": f"prompt {n}"}) + "\n" for n in numbers))


async def test_a_killed_session_of_a_changed_input_loses_nothing(tmp_path):
    source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    write(source, range(PROMPTS))
    async with quick_server() as server:
        assert (await finish(await start_run(source, output, server)))[0] == 0
        changed = [*reversed(range(PROMPTS)), *range(PROMPTS, 2 * PROMPTS)]
        write(source, changed)
        process = await start_run(source, output, server)
        await kill_after(process, server, PROMPTS + 15, 0)
        await at_rest(server)
        with JournalReader.open(output) as journal:
            in_flight = journal.counts().in_flight
        code, told = await finish(await start_run(source, output, server))
        assert code == 0, told
        billed = billed_by_prompt(server)
        with JournalReader.open(output) as journal:
            assert (journal.counts().answered, journal.complete) == (2 * PROMPTS, True)

    assert {billed[f"prompt {n}"] for n in range(PROMPTS)} == {1}
    assert billed.total() - 2 * PROMPTS <= in_flight
    assert [json.loads(line)["custom_id"] for line in output.read_text().splitlines()] == [f"n{n}" for n in changed]
