"""Packed and odd encodings are read; what is no text is refused with the cure before anything is sent."""

import contextlib
import gzip
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import BatchError
from onellm_async.batch import InputFile, LineError, open_source
from onellm_async.batch.inputs.decoding import decoded_pieces
from onellm_async.batch.inputs.json_document import JsonSplitter


async def prompts(path, **options):
    async with open_source(path if isinstance(path, list) else str(path), **options) as source:
        source.scan()
        return [
            str(item) if isinstance(item, LineError) else item.request.messages[0].content
            for item in [entry.item() async for entry in source]
        ]


def zstd(content):
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


TEXTS = {
    "in.txt": "one\ntwo é\n",
    "in.jsonl": '{"prompt": "one"}\n{"prompt": "two é"}\n',
    "in.json": '[{"prompt": "one"},\n "two é"]',
    "in.csv": 'id,prompt\n1,one\n2,"two é"\n',
    "in.tsv": "id\tprompt\n1\tone\n2\ttwo é\n",
    "in": "one\ntwo é\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("suffixed", [True, False])
async def test_packed_files_are_told_by_their_ending_or_their_first_bytes(tmp_path, name, packed, suffixed):
    content = TEXTS[name].encode()
    packer = {"gzip": gzip.compress, "zstd": zstd, "plain": bytes}[packed]
    path = tmp_path / (name + {"gzip": ".gz", "zstd": ".zst", "plain": ""}[packed] * suffixed)
    path.write_bytes(packer(content))

    assert await prompts(path) == ["one", "two é"]


async def test_joined_and_padded_gzip_files_are_one(tmp_path):
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n") + b"\0" * 100)

    assert await prompts(path) == ["one", "two"]


async def test_a_large_packed_file_is_read_in_pieces(tmp_path):
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 999 + b"\n" + b"y\n" * 200_000))
    async with open_source(str(path)) as source:
        assert source.scan().lines == 200_001


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", TEXTS)
async def test_a_marked_encoding_is_understood(tmp_path, name, encoding):
    content = TEXTS[name].encode(encoding)
    (tmp_path / name).write_bytes(b"\xfe\xff" + content if encoding == "utf-16-be" else content)

    assert await prompts(tmp_path / name) == ["one", "two é"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.json", "in.csv", "in.tsv"])
async def test_every_line_end_is_one(tmp_path, name, end):
    (tmp_path / name).write_bytes(TEXTS[name].replace("\n", end).encode())

    assert await prompts(tmp_path / name) == ["one", "two é"]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
NO_TEXT = {
    "utf-16 without a mark": ("in.txt", "one\n".encode("utf-16-le"), "NUL at byte 2.*UTF-16 without a byte order mark"),
    "pdf": ("in.txt", b"%PDF-1.4\n1 0 obj\n", "it is PDF"),
    "workbook": ("in.csv", b"PK\x03\x04 and so on", "workbook.*Save a workbook's sheet as CSV"),
    "old workbook": ("in.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Save the sheet as CSV"),
    "bzip2": ("in.csv.bz2", b"BZh91AY", r"bunzip2 -c \S+in.csv.bz2 \| onellm-async run - --format csv"),
    "xz": ("in.jsonl.xz", b"\xfd7zXZ\x00", r"xz -dc \S+in.jsonl.xz \| onellm-async run - --format jsonl"),
    "7z": ("in.7z", b"7z\xbc\xaf\x27\x1c", "7z x -so"),
    "tar": ("in.tar", b"in.txt" + b"\0" * 251 + b"ustar", "tar -xOf"),
    "packed tar": ("in.tar.gz", gzip.compress(b"in.txt" + b"\0" * 251 + b"ustar"), "tar -xOf"),
    "packed twice": ("in.gz", gzip.compress(gzip.compress(b"one\n")), "it is packed twice"),
    "torn gzip": ("in.txt.gz", gzip.compress(os.urandom(9999).hex().encode())[:-9], "ends too early"),
    "broken gzip": ("in.txt.gz", gzip.compress(b"one\n")[:12] + b"\xff" * 20, "cannot be unpacked"),
    "sqlite": ("in.db", b"SQLite format 3\0", "sqlite3 -header -csv"),
    "image": ("in.txt", b"\x89PNG\r\n", "it is an image"),
    "rtf": ("in.txt", b"{\\rtf1 Hi}", "it is RTF"),
    "torn utf-16": ("in.txt", "\ufeffone".encode("utf-16-le") + b"x", "is marked as UTF-16 and is not"),
    "parquet called text": ("in.txt", b"PAR1...", "it is Parquet.*input_format='parquet'"),
    "pointer of git lfs": ("in.jsonl", LFS, "it is a pointer of Git LFS.*git lfs pull"),
    "pointer called parquet": ("in.parquet", LFS, "it is a pointer of Git LFS.*git lfs pull"),
    "unknown ending": ("in.yaml", b"- one\n", r"no input format is called .yaml \(known: .*input_format=…"),
    "cut document": ("in.json", b'[{"prompt": "one"},\n {"prompt": "tw', "in.json is cut off"),
    "document and more": ("in.json", b'["one"] "two"', "in.json:1: Not JSON: something follows the array"),
}


@pytest.mark.parametrize("case", NO_TEXT)
async def test_what_is_no_text_is_refused_with_the_cure(tmp_path, case):
    name, content, message = NO_TEXT[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BatchError, match=message):
        await prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (b"id,prompt\n1,Hi\n", "csv"),
        (b'"id";"question"\n1;Hi\n', "csv"),
        (b"id\tprompt\n1\tHi\n", "tsv"),
        (b"prompt\nHi\n", "csv"),
        (b"name,age,city\nAnn,3,Rome\n", "csv"),
        (b"city\tpeople\nRome\t3\n", "tsv"),
        (b'[\n  "What is 2+2?",\n', "json"),
        (b'[{"prompt": "Hi"},\n', "json"),
        (b'{\n  "prompt": "Hi"\n}\n', "json"),
    ],
)
async def test_a_pipe_that_looks_like_another_format_is_refused_and_told_which(content, shape):
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    async with InputFile("<stdin>", reading) as source:
        with pytest.raises(
            BatchError, match=rf"<stdin> looks like {shape.upper()}.*input_format='{shape}'; or input_format='text'"
        ):
            await anext(aiter(source))


@pytest.mark.parametrize(
    "first",
    [
        "Hello, world",
        "[INST] Hi [/INST]",
        "Write about: id, name",
        "{name} is here",
        "Why?",
        "a;b",
        "Hello,world",
        "red, green, blue",
    ],
)
async def test_prose_in_a_pipe_is_text(first):
    reading, writing = os.pipe()
    os.write(writing, f"{first}\nmore\n".encode())
    os.close(writing)
    async with InputFile("<stdin>", reading) as source:
        assert [entry.raw.decode() async for entry in source] == [first, "more"]


async def test_several_files_and_patterns_are_one_input(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "three", "id": 1}\nbroken\n')
    (tmp_path / "c.csv").write_text("custom_id,prompt\nx,four\n")
    (tmp_path / "d.csv").write_text("prompt,custom_id\nfive,x\nsix,y\n")
    found = await prompts([str(tmp_path / "a.txt"), str(tmp_path / "b.*"), str(tmp_path / "[cd].csv")])

    assert [text for text in found if ":" not in text] == ["one", "two", "three", "four", "six"]
    assert any(text.startswith(f"{tmp_path}/b.jsonl:2: Not JSON") for text in found)
    assert f"{tmp_path}/d.csv:2: custom_id 'x' was used in {tmp_path}/c.csv:2 already." in found
    async with open_source([str(tmp_path / "a.txt"), str(tmp_path / "d.csv")]) as source:
        assert source.scan().lines == 4
        assert [entry.index async for entry in source] == [0, 1, 2, 3]
        assert source.is_file(str(tmp_path / "d.csv"))


async def test_a_pattern_that_no_file_has_is_refused(tmp_path):
    with pytest.raises(BatchError, match=r"\*.jsonl cannot be read: no file has such a name"):
        open_source(str(tmp_path / "*.jsonl"))


async def test_an_input_of_bad_lines_alone_is_refused_before_anything_is_sent(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "Hi"}\n' * 5000)
    async with open_source(str(path)) as source:
        with pytest.raises(BatchError, match=r"in.jsonl:1: .*template=. The first 20 lines are all bad, so nothing"):
            source.scan()
    async with open_source(str(path)) as source:
        with pytest.raises(BatchError, match="The first 20 lines are all bad"):
            [entry.item() async for entry in source]


async def test_bad_lines_behind_what_an_earlier_session_completed_are_not_hopeless(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "Hi"}\n' + "broken\n" * 50 + '{"prompt": "Ho"}\n')
    async with open_source(str(path)) as source:
        source.scan()
        items = [entry.item() async for entry in source if entry.index > 0]

    assert isinstance(items[0], LineError)
    assert items[-1].request.messages[0].content == "Ho"


async def test_a_nul_far_down_a_text_makes_a_bad_line(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"H" * 300_000 + b"\na\0b\n")
    async with open_source(str(path)) as source:
        *_, last = [entry.item() async for entry in source]

    assert str(last).endswith("in.txt:2: It holds a NUL, which no text does.")


async def test_a_document_around_the_records_says_how_to_take_them_out(tmp_path):
    path = tmp_path / "in.json"
    path.write_text('{\n "version": 1,\n "data": [{"q": 1}, {"q": 2}]\n}\n')
    with pytest.raises(BatchError, match=r"jq -c '.data\[\]' FILE \| onellm-async run - --format jsonl"):
        await prompts(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_a_document_is_its_records_however_it_is_cut(values, indent, array, data):
    import json

    text = json.dumps(values, indent=indent, ensure_ascii=False)
    if not array:
        text = "\n".join(json.dumps(value, indent=indent, ensure_ascii=False) for value in [{}, *values])
        values = [{}, *values]
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    splitter = JsonSplitter()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += splitter.feed(whole[start:end])
    found += splitter.finish()

    assert [json.loads(raw) for _, raw in found] == values
    lines = whole.split(b"\n")
    assert all(raw.split(b"\n")[0] in lines[line - 1] for line, raw in found)


@given(st.binary(max_size=300), st.sampled_from(["in.txt", "in.jsonl", "in.json", "in.csv", "in.gz", "in"]), st.data())
def test_no_bytes_whatsoever_end_in_a_traceback(content, name, data):
    import asyncio
    import tempfile
    from pathlib import Path

    packed = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(gzip.compress(content) if packed else content)
        found = []
        with contextlib.suppress(BatchError):
            found = asyncio.run(prompts(path))

    assert all("\0" not in text or b"\\u0000" in content for text in found)


def test_zstd_without_a_decoder_names_what_to_install(tmp_path):
    if sys.version_info >= (3, 14):
        pytest.skip("part of the standard library")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from onellm_async.batch.inputs.decoding import decoded_pieces\n"
        "try:\n    list(decoded_pieces('in.zst', iter([bytes.fromhex('28b52ffd')])))\n"
        "except Exception as error:\n    print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.startswith("in.zst is compressed with zstd, which needs Python 3.14 or pyarrow.")


def test_pieces_of_one_byte_are_read_as_any_others():
    content = "\ufeffone\r\ntwo\r\n".encode("utf-16-le")
    pieces = (content[i : i + 1] for i in range(len(content)))

    assert b"".join(decoded_pieces("in", pieces)) == b"\xef\xbb\xbfone\r\ntwo\r\n"
