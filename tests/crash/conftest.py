import asyncio

import pytest
from killing import finish, prompts_file, quick_server, start_run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """What a run over so many prompts writes when nothing happens to it."""
    known = {}

    async def written(count):
        folder = tmp_path_factory.mktemp("undisturbed")
        output = folder / "answers.jsonl"
        async with quick_server() as server:
            code, told = await finish(await start_run(prompts_file(folder, count), output, server))
        assert code == 0, told
        return output.read_bytes()

    def undisturbed(count):
        if count not in known:
            known[count] = asyncio.run(written(count))
        return known[count]

    return undisturbed
