import csv
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import BatchError, Message
from onellm_async.batch import LineError, PromptTemplate, RequestDefaults, input_format_named, open_source
from onellm_async.batch.inputs.csv import CsvDialect, CsvSplitter, dialect_of
from onellm_async.batch.inputs.sources import InputFile

CSV = input_format_named("csv")


async def entries(path, **options):
    async with open_source(str(path), **options) as source:
        return [entry async for entry in source]


async def items(path, **options):
    return [entry.item() for entry in await entries(path, **options)]


def texts(found):
    return [item.request.messages[0].content if not isinstance(item, LineError) else str(item) for item in found]


@pytest.fixture
def table(tmp_path):
    def written(text, name="in.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def split(pieces, delimiter=None, longest=1000):
    splitter = CsvSplitter(delimiter, longest)
    return [row for piece in pieces for row in splitter.feed(piece)] + splitter.finish()


async def test_a_row_gives_its_prompt_its_id_and_its_instruction(table):
    one, two = await items(table("custom_id,system,prompt\na,Be brief,Why?\n,,How?\n"))

    assert (one.custom_id, one.request.system, one.request.messages) == ("a", "Be brief", (Message.user("Why?"),))
    assert (two.custom_id, two.request.system, two.line, two.index) == (None, None, 3, 1)


async def test_an_id_will_do_for_a_custom_id_and_a_flag_wins_over_a_rows_instruction(table):
    (item,) = await items(table("id;system;q\n7;Be brief;Why?\n"), field="q", defaults=RequestDefaults(system="Sing"))

    assert (item.custom_id, item.request.system) == ("7", "Sing")


async def test_a_row_is_numbered_by_the_line_in_which_it_begins(table):
    found = await items(table('custom_id,prompt\r\n1,"two\r\nlines"\r\n\r\n,\r\n1,again\r\n3,three'))

    assert [item.line for item in found] == [2, 6, 7]
    assert found[0].request.messages[0].content == "two\r\nlines"
    assert str(found[1]).endswith("in.csv:6: custom_id '1' was used in line 2 already.")
    assert found[2].custom_id == "3"


async def test_ragged_rows_are_bad_and_the_others_come(table):
    found = texts(await items(table("id,prompt\n1\n2,ok\n3,too,many\n4,fine\n")))

    assert found[0].endswith("in.csv:2: It has 1 field; the header names 2.")
    assert found[2].endswith("in.csv:4: It has 3 fields; the header names 2.")
    assert (found[1], found[3]) == ("ok", "fine")


async def test_what_is_not_utf_8_is_named_with_its_column(table):
    found = texts(await items(table(b"id,prompt\n1,caf\xe9\n2,caf\xc3\xa9\n")))

    assert found[0].endswith("in.csv:2: Not UTF-8: column 'prompt'. Save the file as UTF-8.")
    assert found[1] == "café"


async def test_a_byte_order_mark_does_no_harm(table):
    assert texts(await items(table(b'\xef\xbb\xbf"prompt"\nab\n'))) == ["ab"]


async def test_a_nul_far_down_makes_a_bad_row(table):
    rows = await items(table(b"id,prompt\n" + b"1,Why?\n" * 40_000 + b"2,a\0b\n3,ok\n"))

    assert str(rows[-2]).endswith("in.csv:40002: Column 'prompt' holds a NUL, which no text does.")
    assert texts(rows[-1:]) == ["ok"]


@pytest.mark.parametrize("text", ["", "\n\n", "id,prompt", "id,prompt\n", "id,prompt\r\n\r\n,\r\n"])
async def test_an_empty_table_has_no_entries(table, text):
    assert await items(table(text)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,question\n1,Why?\n",
            r"in\.csv has no column 'prompt' \(columns: 'id', 'question'\)\. .*field=.*template=",
        ),
        ("a,prompt,a\n", r"in\.csv:1: the header names the column 'a' twice"),
        ("\n\nprompt,caf\udce9\n".encode(errors="surrogateescape"), r"in\.csv:3: the header is not UTF-8 \(column 2\)"),
        (
            'prompt,"never closed\n1\n',
            r"in\.csv:1: the header cannot be read\. A quoted field begins here and",
        ),
        (b"prompt\na\0b\n", r"in\.csv is no text: it holds a NUL at byte 9\. UTF-16 without a byte order mark\? Save"),
        (b"PK\x03\x04", r"it is a ZIP archive or a workbook"),
        (b"\x1f\x8b\x08", r"in\.csv cannot be unpacked: it ends too early\."),
        (b"\x28\xb5\x2f\xfd", r"in\.csv cannot be unpacked: "),
        (b"PAR1", r"it is Parquet\. Say so with input_format='parquet'"),
    ],
)
async def test_a_table_that_cannot_be_read_at_all_is_a_batch_error(table, text, message):
    path = table(text)
    with pytest.raises(BatchError, match=message):
        await items(path)
    async with open_source(str(path)) as source:
        with pytest.raises(BatchError, match=message):
            source.scan()


async def test_a_missing_field_names_the_column_that_was_wanted(table):
    with pytest.raises(BatchError, match=r"has no column 'q' \(columns: 'prompt'\)"):
        await items(table("prompt\nHi\n"), field="q")


async def test_a_quote_that_is_never_closed_is_one_bad_line_and_sends_nothing_after_it(table):
    found = texts(await items(table('prompt\nok\n"open\nthree\nfour\n')))

    assert found[0] == "ok"
    assert found[1:] == [f"{found[1]}"]
    assert ":3: A quoted field begins here and is never closed" in found[1]


async def test_a_carriage_return_alone_is_a_bad_line_and_the_others_come(table):
    found = texts(await items(table("prompt\none\rtwo\nthree\n")))

    assert ":2: Not CSV: " in found[0]
    assert found[1] == "three"


async def test_tsv_is_separated_by_tabs_whatever_the_header_looks_like(table):
    (item,) = await items(table("a,b;c\tprompt\n1\tHi, you\n", "in.tsv"))

    assert item.request.messages[0].content == "Hi, you"


async def test_csv_from_a_pipe_comes_row_by_row():
    reading, writing = os.pipe()
    async with InputFile("<stdin>", reading, forced_format=CSV) as source:
        rows = aiter(source)
        os.write(writing, b"prompt\none\n")
        assert texts([(await anext(rows)).item()]) == ["one"]
        os.write(writing, b'"two\nli')
        os.write(writing, b'nes"\n')
        assert texts([(await anext(rows)).item()]) == ["two\nlines"]
        os.write(writing, b"three")
        os.close(writing)
        assert texts([(await anext(rows)).item()]) == ["three"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("prompt", CsvDialect(",")),
        ("a,b", CsvDialect(",")),
        ("a;b;c", CsvDialect(";")),
        ("a\tb", CsvDialect("\t")),
        ("a|b", CsvDialect("|")),
        ('"x, y, z";prompt', CsvDialect(";")),
        ('a, b, "c"', CsvDialect(",", spaced=True)),
        ("a, b,c", CsvDialect(",")),
    ],
)
def test_the_dialect_follows_from_the_header(header, expected):
    assert dialect_of(header) == expected


def test_a_spaced_table_may_quote_after_the_space():
    assert split([b'id, prompt\n1, "a, b"\n']) == [(1, ["id", "prompt"]), (2, ["1", "a, b"])]


def test_the_hint_that_excel_writes_is_taken_and_is_no_row():
    assert split([b"sep=|\r\nid|prompt\r\n1|a,b;c\r\n"]) == [(2, ["id", "prompt"]), (3, ["1", "a,b;c"])]


def test_an_overlong_row_is_reported_and_not_kept_and_the_others_come():
    long = b"x" * 60
    text = b'h,i\n1,"a\nb ' + long + b'\n"" , ' + long + b'\nend"\n2,c\n3,' + long * 2 + b"\n4,d\n"
    message = "The row is longer than 16 MiB."
    quoted = f"{message} A quoted field begins in it, and all lines to the next quote are in that."
    expected = [(1, ["h", "i"]), (2, quoted), (6, ["2", "c"]), (7, message), (8, ["4", "d"])]

    assert split([text], longest=100) == expected
    for size in (1, 7, 50):
        assert split([text[start : start + size] for start in range(0, len(text), size)], longest=100) == expected


def test_a_row_of_more_than_the_modules_own_limit_is_read():
    assert split([b"h\n" + b"x" * 200_000 + b"\n"], longest=2**24)[1] == (2, ["x" * 200_000])


rows = st.lists(
    st.lists(st.text(st.sampled_from('ab,";\n\r\t\0é\u2028'), max_size=6), min_size=2, max_size=2), max_size=8
)


@given(rows=rows, data=st.data())
def test_what_the_csv_module_writes_is_read_however_the_bytes_were_cut(rows, data):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["id", "prompt"], *rows])
    whole = out.getvalue().encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = split(pieces)

    assert [fields for _, fields in found] == [["id", "prompt"], *(row for row in rows if any(map(str.strip, row)))]
    assert found == split([whole])


@given(st.binary(max_size=60), st.data())
def test_any_bytes_are_rows_or_messages_and_do_not_depend_on_the_cut(whole, data):
    cut = data.draw(st.integers(0, len(whole)))

    assert split([whole[:cut], whole[cut:]], longest=20) == split([whole], longest=20)


async def test_a_survey_counts_rows_and_finds_the_first_bad_one(table):
    path = table('id,prompt\n1,"a\nb"\n2,\n3,c\n')
    async with open_source(str(path)) as source:
        counted, checked = source.scan(), source.scan(strict=True)
        again = [entry.index async for entry in source]

    assert counted.lines == checked.lines == len(again) == 3
    assert counted.first_error is None
    assert checked.first_error == LineError(str(path), 4, "The prompt is empty.")
    assert counted.digest == checked.digest
    assert len(counted.digest) == 32


async def test_a_digest_belongs_to_the_content_of_a_row_and_not_to_its_quotes(table):
    (plain,), (quoted,), (other,) = [
        await entries(table(text)) for text in ("prompt\nHi\n", 'prompt\r\n"Hi"\r\n', "prompt\nHo\n")
    ]

    assert plain.digest == quoted.digest != other.digest


async def test_a_template_is_filled_from_the_columns(table):
    template = PromptTemplate("{{ word }} in {{ row['the language'] }}")
    found = await items(table("word,the language,id\ncat,German,1\n"), template=template)

    assert texts(found) == ["cat in German"]
    assert found[0].custom_id == "1"
