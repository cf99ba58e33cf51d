"""Prompts in memory: what is no prompt is refused or told, as it is for a file."""

import pytest

from onellm_async import AsyncOneLLM, InvalidRequestError, Limits
from onellm_async.testing import FakeTransport


async def run(source, output, **options):
    transport = FakeTransport()
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(4)) as client:
        report = await client.run(source, output, **options)
    return report, transport


@pytest.mark.parametrize("kind", [list, tuple, set, dict.fromkeys, lambda names: dict(enumerate(names)).values()])
@pytest.mark.parametrize("options", [{}, {"field": "text"}, {"template": "Say {{ text }}"}])
async def test_texts_that_all_name_files_are_refused_unsent(tmp_path, kind, options):
    paths = [tmp_path / f"part{number}.jsonl" for number in range(2)]
    for path in paths:
        path.write_text('{"prompt": "Hi", "text": "Ho"}\n')
    names = [str(path) for path in paths]
    source = kind(names)
    source = source.keys() if isinstance(source, dict) else source

    with pytest.raises(InvalidRequestError, match=r"all name files.*A list of Path is read as files"):
        await run(source, tmp_path / "out.jsonl", **options)
    assert not list(tmp_path.glob("out*"))

    report, transport = await run(paths, tmp_path / "out.jsonl")
    assert (report.counts.answered, {each.prompt for each in transport.requests}) == (2, {"Hi"})


async def test_a_column_of_file_names_is_refused_as_a_list_is(tmp_path):
    class Column:  # what a Series, an array and a column of a dataset have in common
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def __getitem__(self, index):
            return self.values[index]

        def __iter__(self):
            return iter(self.values)

    (tmp_path / "a.txt").write_text("Hi")
    with pytest.raises(InvalidRequestError, match="all name files"):
        await run(Column([str(tmp_path / "a.txt")]), tmp_path / "out.jsonl")
    report, _ = await run(Column(["Hi"]), tmp_path / "out.jsonl")
    assert report.complete


async def test_texts_of_which_one_names_a_file_are_prompts(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    report, _ = await run([str(file), "What is a file?", "x" * 9999, "\0"], tmp_path / "out.jsonl")

    assert report.counts.answered == 4
