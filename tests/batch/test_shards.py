"""A large input as shards: split, run, waited for, merged."""

import asyncio
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onellm_async import AsyncOneLLM, BatchError, ConfigurationError, Limits
from onellm_async.batch import JournalReader, merge_shards, read_shard_statuses, run_shard, run_shard_sync, split_input
from onellm_async.batch.journal.lock import JournalInUseError, JournalLock
from onellm_async.batch.shard_split import MANIFEST, read_manifest
from onellm_async.batch.shards import default_output, sum_counts
from onellm_async.testing import FakeTransport, hang

FAST = Limits(requests_per_minute=600_000, burst=10_000)
HOW = {"model": "GPT-5-Nano", "deduplicate": False}


def client(transport=None):
    return AsyncOneLLM(transport=transport or FakeTransport(), limits=FAST)


def split(tmp_path, content, *, name="in.jsonl", prompts=4, **how):
    (tmp_path / name).write_bytes(content)
    return split_input(tmp_path / name, tmp_path / "shards", prompts=prompts, **how)


def lines(count):
    return b"".join(b'{"prompt": "p%d"}\n' % number for number in range(count))


def test_the_lines_of_an_input_are_dealt_out_as_they_are(tmp_path):
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\n\n   \nnot JSON\n"b"\n{"prompt": "caf\xc3\xa9"}\n\xff\n{"x": 1}'
    shards = split(tmp_path, content, prompts=2)
    assert [shard.name for shard in shards] == ["shard-00000.jsonl", "shard-00001.jsonl", "shard-00002.jsonl"]
    assert [shard.read_bytes() for shard in shards] == [
        b'{"prompt": "a"}\nnot JSON\n',
        b'"b"\n{"prompt": "caf\xc3\xa9"}\n',
        b'\xff\n{"x": 1}\n',
    ]
    assert read_manifest(tmp_path / "shards").entries == 6


def test_the_same_input_gives_the_same_shards_and_another_one_is_refused(tmp_path):
    shards = split(tmp_path, lines(9))
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert split(tmp_path, lines(9)) == shards
    assert {shard: shard.stat().st_mtime_ns for shard in shards} == before
    for changed, how in ((lines(10), {}), (lines(9), {"prompts": 5})):
        with pytest.raises(BatchError, match="shards of another input"):
            split(tmp_path, changed, **how)


def test_an_interrupted_split_is_repeated_and_foreign_files_are_kept(tmp_path):
    shards = split(tmp_path, lines(9))
    (tmp_path / "shards" / MANIFEST).unlink()
    shards[2].unlink()
    assert split(tmp_path, lines(9)) == shards
    (tmp_path / "shards" / MANIFEST).unlink()
    shards[0].write_text("mine")
    with pytest.raises(BatchError, match="is there already"):
        split(tmp_path, lines(9))
    assert shards[0].read_text() == "mine"
    assert not list((tmp_path / "shards").glob("*.partial"))


@pytest.mark.parametrize(("name", "delimiter"), [("in.csv", ";"), ("in.tsv", "\t"), ("in.csv", ",")])
async def test_a_table_stays_a_table(tmp_path, name, delimiter):
    rows = [["id", "prompt", "a;b,c"], ["1", 'say "hi"\r\nagain', ""], ["2", "x", "y"], ["3", f"a{delimiter}b", ""]]
    quoted = ['"' + f'"{delimiter}"'.join(field.replace('"', '""') for field in row) + '"\r\n' for row in rows]
    shards = split(tmp_path, "".join(quoted).encode(), name=name, prompts=2)
    assert [shard.suffix for shard in shards] == [name[-4:]] * 2
    transport = FakeTransport()
    async with client(transport) as asking:
        for shard in shards:
            assert (await run_shard(asking, shard, **HOW))["complete"]
    assert transport.prompts == [row[1] for row in rows[1:]]
    merged = tmp_path / "all.jsonl"
    assert await merge_shards(tmp_path / "shards", merged) == 3
    assert [json.loads(line)["custom_id"] for line in merged.read_text().splitlines()] == ["1", "2", "3"]


async def test_a_parquet_file_is_cut_at_the_same_rows_whatever_its_row_groups(tmp_path):
    table = pa.table({"prompt": [f"p{number}" for number in range(11)], "image": [b"\x00"] * 11})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    shards = split_input(tmp_path / "in.parquet", tmp_path / "shards", prompts=4)
    assert [pq.read_table(shard).num_rows for shard in shards] == [4, 4, 3]
    assert pa.concat_tables([pq.read_table(shard) for shard in shards]).equals(table)
    assert split_input(tmp_path / "in.parquet", tmp_path / "shards", prompts=4) == shards


@pytest.mark.parametrize("name", ["in.arrow", "in.arrows"])
async def test_arrow_becomes_parquet(tmp_path, name):
    table = pa.table(
        {"prompt": [f"p{number}" for number in range(5)], "id": list(range(5)), "system": ["Be brief."] * 5}
    )
    with pa.OSFile(str(tmp_path / name), "wb") as file:
        new = pa.ipc.new_file if name == "in.arrow" else pa.ipc.new_stream
        with new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    shards = split_input(tmp_path / name, tmp_path / "shards", prompts=3)
    assert [shard.name for shard in shards] == ["shard-00000.parquet", "shard-00001.parquet"]
    transport = FakeTransport()
    async with client(transport) as asking:
        for shard in shards:
            assert (await run_shard(asking, shard, **HOW))["complete"]
    assert transport.prompts == [f"p{number}" for number in range(5)]
    assert transport.requests[0].fields["system"] == "Be brief."


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        (b"x" * (16 * 2**20 + 1), "in.txt", "in.txt:1: The line is longer"),
        (b'prompt\n"never closed\n', "in.csv", "in.csv:2: .*never closed"),
        (b"PAR1 but not", "in.parquet", "Parquet"),
        (b"\x1f\x8b\x08\x00" * 99, "in.txt", "cannot be unpacked"),
    ],
)
def test_what_cannot_be_split_is_refused_and_leaves_no_manifest(tmp_path, content, name, match):
    with pytest.raises(BatchError, match=match):
        split(tmp_path, content, name=name)
    assert not (tmp_path / "shards" / MANIFEST).exists()
    assert not list(tmp_path.glob("shards/*"))


async def test_the_elements_of_a_document_become_lines_and_several_files_one_input(tmp_path):
    for name, prompts in (("a.json", ["p0", "p1"]), ("b.json", ["p2"])):
        (tmp_path / name).write_text(
            json.dumps([{"prompt": prompt, "custom_id": prompt} for prompt in prompts], indent=1)
        )
    shards = split_input(tmp_path / "?.json", tmp_path / "shards", prompts=2)
    assert [shard.name for shard in shards] == ["shard-00000.jsonl", "shard-00001.jsonl"]
    assert [len(shard.read_text().splitlines()) for shard in shards] == [2, 1]
    (tmp_path / "c.csv").write_text("prompt\nx\n")
    (tmp_path / "d.csv").write_text("question\nx\n")
    with pytest.raises(BatchError, match="other columns"):
        split_input(tmp_path / "?.csv", tmp_path / "tables")
    with pytest.raises(BatchError, match="several formats"):
        split_input(tmp_path / "[ac].*", tmp_path / "mixed")


def test_an_empty_input_has_no_shards_and_a_size_must_be_one(tmp_path):
    assert split(tmp_path, b"") == []
    for wrong in (0, True, 2.5, "9"):
        with pytest.raises(ConfigurationError, match="prompts is"):
            split_input(tmp_path / "in.jsonl", tmp_path / "other", prompts=wrong)
    with pytest.raises(BatchError, match=r"no such file|No such file"):
        split_input(tmp_path / "none.jsonl", tmp_path / "other")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 2, "names": []}', None])
def test_a_directory_without_a_description_has_no_shards(tmp_path, text):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BatchError, match=MANIFEST.replace(".", r"\.")):
        read_manifest(tmp_path)


def test_a_description_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / MANIFEST).write_text(
        '{"version": 1, "format": "text", "digest": "", "prompts": 1, "entries": 1, "names": ["../x"]}'
    )
    with pytest.raises(BatchError, match="not the description"):
        read_manifest(tmp_path)


# Running.


TABLE = "id,prompt,label\r\n" + "".join(f'{number},p{number},"a, {number}"\r\n' for number in range(9))
BATCH = b"".join(
    b'{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "GPT-5-Nano", "messages": '
    b'[{"role": "user", "content": "p%d"}]}}\n' % (number, number)
    for number in range(6)
)
INPUTS = {
    "in.jsonl": lines(10) + b"not JSON\n" + lines(3),
    "in.csv": TABLE.encode(),
    "batch.jsonl": BATCH + b"not JSON\n" + BATCH.replace(b'custom_id": "', b'custom_id": "again-'),
}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("name", INPUTS)
async def test_merged_shards_are_byte_for_byte_what_one_run_writes(tmp_path, name, suffix, samples):
    shards = split(tmp_path, INPUTS[name], name=name)
    whole, merged = tmp_path / f"whole{suffix}", tmp_path / f"all{suffix}"
    how = {"deduplicate": False, "samples": samples} | ({} if name == "batch.jsonl" else HOW)
    async with client() as asking:
        for shard in reversed(shards):
            result = await run_shard(asking, shard, **how)
            assert (result["complete"], result["error"]) == (True, "")
        await asking.run(tmp_path / name, whole, **how)
    await merge_shards(tmp_path / "shards", merged)
    if suffix == ".parquet":
        assert pq.read_table(merged).equals(pq.read_table(whole))
    else:
        # When a request was answered, and where a bad line stands.
        differs = re.compile(rb'"created":\d+|"message":"[^"]*/(batch|shard-00001)\.jsonl:\d+: ')
        assert differs.sub(b"", merged.read_bytes()) == differs.sub(b"", whole.read_bytes())


async def test_a_shard_is_resumed_and_nothing_that_was_answered_is_sent_again(tmp_path):
    (shard,) = split(tmp_path, lines(4))
    transport = FakeTransport(lambda request: hang() if request.prompt == "p3" else request.prompt)
    async with client(transport) as asking:
        running = asyncio.create_task(run_shard(asking, shard, **HOW))
        async with asyncio.timeout(60):
            while len(transport.requests) < 4 or transport.in_flight != 1:  # noqa: ASYNC110  # of others
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait({running})
    second = FakeTransport()
    async with client(second) as asking:
        result = await run_shard(asking, shard, **HOW)
    assert second.prompts == ["p3"]
    assert (result["answered"], result["possibly_billed"], result["complete"]) == (4, 1, True)


async def test_errors_that_stop_a_shard_are_in_its_row(tmp_path):
    (shard,) = split(tmp_path, lines(4))
    async with client(FakeTransport(401)) as asking:
        result = await run_shard(asking, shard, **HOW)
    assert (result["complete"], result["answered"]) == (False, 0)
    assert result["error"]
    assert all(isinstance(value, str | int | float) for value in result.values())


async def test_a_repetition_waits_until_the_earlier_attempt_is_dead(tmp_path):
    (shard,) = split(tmp_path, lines(4))
    lock = JournalLock(default_output(shard).with_name(default_output(shard).name + ".journal"))
    async with client() as asking:
        waiting = asyncio.create_task(run_shard(asking, shard, lock_wait=30, **HOW))
        done, _ = await asyncio.wait({waiting}, timeout=0.6)
        assert not done
        lock.release(clean=False)
        assert (await waiting)["answered"] == 4


async def test_a_journal_that_stays_in_use_is_an_error_and_a_stop_ends_the_wait(tmp_path):
    (shard,) = split(tmp_path, lines(4))
    lock = JournalLock(default_output(shard).with_name(default_output(shard).name + ".journal"))
    stop = asyncio.Event()
    async with client() as asking:
        with pytest.raises(JournalInUseError, match="in use by"):
            await run_shard(asking, shard, lock_wait=0, **HOW)
        waiting = asyncio.create_task(run_shard(asking, shard, lock_wait=60, stop=stop, **HOW))
        await asyncio.sleep(0.3)
        stop.set()
        assert not (await asyncio.wait_for(waiting, 60))["complete"]
        with pytest.raises(ConfigurationError, match="lock_wait"):
            await run_shard(asking, shard, lock_wait=-1, **HOW)
    lock.release(clean=True)


def test_engines_that_call_plain_functions_get_the_same(tmp_path):
    first, second = split(tmp_path, lines(6))
    result = run_shard_sync(client, first, **HOW)
    assert (result["answered"], result["complete"]) == (4, True)
    other = tmp_path / "elsewhere.csv"
    assert run_shard_sync(client, second, other, **HOW)["output"] == str(other)
    assert other.read_text().count("\n") == 3


async def test_plain_functions_are_not_for_event_loops(tmp_path):
    with pytest.raises(ConfigurationError, match="Await run_shard"):
        run_shard_sync(client, tmp_path / "shard", **HOW)


async def test_the_first_line_of_a_shard_does_not_decide_how_it_is_read(tmp_path):
    batch = b"".join(
        b'{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "GPT-5-Nano", '
        b'"messages": [{"role": "user", "content": "p%d"}]}}\n' % (number, number)
        for number in range(3)
    )
    shards = split(tmp_path, batch[: batch.index(b"\n") + 1] + b"broken\n" + batch, prompts=1)
    async with client() as asking:
        results = [await run_shard(asking, shard, deduplicate=False) for shard in shards]
    assert [result["answered"] for result in results] == [1, 0, 1, 1, 1]
    assert "nothing was sent" in results[1]["error"]


async def test_the_status_of_all_shards_is_that_of_their_journals(tmp_path):
    shards = split(tmp_path, lines(10))
    async with client() as asking:
        await run_shard(asking, shards[0], **HOW)
        await run_shard(asking, shards[1], limit=2, **HOW)
    statuses = read_shard_statuses(tmp_path / "shards")
    assert [(each.state, each.entries) for each in statuses] == [
        ("complete", 4),
        ("interrupted", 4),
        ("not started", 2),
    ]
    totals = sum_counts(statuses)
    with JournalReader.open(default_output(shards[0])) as journal:
        assert totals.answered == journal.counts().answered + 2 == 6
    with pytest.raises(BatchError, match=r"2 of 3 shards are not complete; the first is shard-00001\.jsonl"):
        await merge_shards(tmp_path / "shards", tmp_path / "all.jsonl")
    assert await merge_shards(tmp_path / "shards", tmp_path / "all.jsonl", partial=True) == 6


async def test_shards_of_which_each_prompt_is_asked_several_times_are_resumed_counted_and_merged(tmp_path):
    shards = split(tmp_path, lines(6), prompts=4)
    async with client() as asking:
        assert (await run_shard(asking, shards[1], samples=3, **HOW))["answered"] == 6
        await run_shard(asking, shards[0], samples=3, limit=1, **HOW)
    first, second = read_shard_statuses(tmp_path / "shards")
    assert [(each.state, each.entries, each.prompts) for each in (first, second)] == [
        ("interrupted", 4, 12),
        ("complete", 2, 6),
    ]
    assert (first.counts.answered, second.counts.answered) == (3, 6)
    transport = FakeTransport()
    async with client(transport) as asking:
        assert (await run_shard(asking, shards[0], samples=3, **HOW))["answered"] == 12
    assert sorted(transport.prompts) == sorted(["p1", "p2", "p3"] * 3)
    assert await merge_shards(tmp_path / "shards", tmp_path / "all.jsonl") == 18
    merged = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(each["index"], each["sample"]) for each in merged] == [(n, s) for n in range(6) for s in (1, 2, 3)]


async def test_shards_with_different_numbers_of_samples_are_not_merged(tmp_path):
    shards = split(tmp_path, lines(6), prompts=3)
    async with client() as asking:
        for samples, shard in enumerate(shards, 1):
            await run_shard(asking, shard, samples=samples, **HOW)
    with pytest.raises(BatchError, match=r"different numbers of samples: 1 in .* and 2 in"):
        await merge_shards(tmp_path / "shards", tmp_path / "all.jsonl")
