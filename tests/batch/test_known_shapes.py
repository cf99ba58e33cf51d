"""Files in the shapes of well-known data sets run as their owners expect, or are refused unsent with the cure."""

import csv
import gzip
import io
import json
import zipfile

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.errors import OneLLMError
from onellm_async.testing import FakeTransport


def lines(*values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def document(value, **options):
    return json.dumps(value, ensure_ascii=False, **options).encode()


def sheet(*rows, delimiter=",", encoding="utf-8", end="\r\n"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue().encode(encoding)


def packed(content, name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def arrow(table, *, stream=False):
    pa = pytest.importorskip("pyarrow")
    file = io.BytesIO()
    made = pa.table(table)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, made.schema) as writer:
        writer.write_table(made)
    return file.getvalue()


def parquet(table):
    pa, module, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet"), io.BytesIO()
    module.write_table(pa.table(table), file)
    return file.getvalue()


TURN = {"role": "user", "content": "Why?"}
ALPACA = [
    {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
    {"instruction": "Why?", "input": "", "output": "So."},
]
WITH_INPUT = "{{ instruction }}{% if input %}\n{{ input }}{% endif %}"
CHOICE = "{{ question }}\nA. {{ A }}\nB. {{ B }}"
BATCH = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "GPT-5", "messages": [TURN]},
}

RUNS = {
    "instructions with optional input": (
        "alpaca.json",
        document(ALPACA, indent=2),
        {"template": WITH_INPUT},
        ["Translate.\nHallo", "Why?"],
    ),
    "instructions in lines": (
        "dolly.jsonl",
        lines({"instruction": "Why?", "context": "", "category": "qa"}),
        {"field": "instruction"},
        ["Why?"],
    ),
    "histories for tuning": (
        "train.jsonl",
        lines({"messages": [{"role": "system", "content": "S"}, TURN]}),
        {},
        ["Why?"],
    ),
    "questions with answers": (
        "gsm8k.jsonl",
        lines({"question": "1+1?", "answer": "#### 2"}),
        {"field": "question"},
        ["1+1?"],
    ),
    "multiple choice": (
        "mmlu.csv",
        sheet(["question", "A", "B", "answer"], ["Which?", "x", "y", "A"]),
        {"template": CHOICE},
        ["Which?\nA. x\nB. y"],
    ),
    "a sheet as Unicode text, and the user says so": (
        "sheet.txt",
        sheet(["id", "prompt"], ["1", "Why?"], delimiter="\t", encoding="utf-16"),
        {"input_format": "tsv"},
        ["Why?"],
    ),
    "capital headings": (
        "truthfulqa.csv",
        sheet(["Type", "Question"], ["Adv", "Is it?"]),
        {"field": "Question"},
        ["Is it?"],
    ),
    "endings to choose from": (
        "hellaswag.jsonl",
        lines({"ctx": "He", "endings": ["runs", "sits"]}),
        {"template": "{{ ctx }}: {{ endings | join(' or ') }}"},
        ["He: runs or sits"],
    ),
    "packed problems with ids": (
        "humaneval.jsonl.gz",
        gzip.compress(lines({"task_id": "HumanEval/0", "prompt": "def f():"})),
        {"id_field": "task_id"},
        ["def f():"],
    ),
    "numbers as ids": (
        "mbpp.jsonl",
        lines({"text": "Sort.", "task_id": 11}, {"text": "Sum.", "task_id": 12}),
        {"field": "text", "id_field": "task_id"},
        ["Sort.", "Sum."],
    ),
    "a German spreadsheet": (
        "fragen.csv",
        "\ufeffsep=;\r\nNr;Frage;temperature\r\n1;Wie hoch ist 2,5?;0,7\r\n2;Grüße;\r\n".encode(),
        {"field": "Frage"},
        ["Grüße", "Wie hoch ist 2,5?"],
    ),
    "a French spreadsheet": (
        "questions.csv",
        sheet(["identifiant", "question"], ["1", "Où ; quoi ?"], ["2", "Ça\nva ?"], delimiter=";"),
        {"field": "question"},
        ["Où ; quoi ?", "Ça\nva ?"],
    ),
    "a Japanese spreadsheet": (
        "質問.tsv",
        sheet(["番号", "質問"], ["1", "元気ですか"], delimiter="\t", encoding="utf-16"),
        {"field": "質問"},
        ["元気ですか"],
    ),
    "a Spanish spreadsheet of an old system": (
        "preguntas.csv",
        sheet(["pregunta"], ["¿Qué?"], ["¿Cómo?"], end="\r"),
        {"field": "pregunta"},
        ["¿Cómo?", "¿Qué?"],
    ),
    "a sheet with an index and a free row": ("frame.csv", b",prompt\n0,Hi\n,\n1,Ho\n", {}, ["Hi", "Ho"]),
    "a sheet with repeated ids": ("tickets.csv", sheet(["id", "prompt"], ["7", "a"], ["7", "b"]), {}, ["a", "b"]),
    "a batch of OpenAI": ("batch.jsonl", lines(BATCH), {}, ["Why?"]),
    "a batch of Azure": ("batch.jsonl", lines({**BATCH, "url": "/chat/completions"}), {}, ["Why?"]),
    "a batch of vLLM": (
        "batch.jsonl",
        lines({**BATCH, "body": {**BATCH["body"], "min_p": 0.1, "stream": False}}),
        {},
        ["Why?"],
    ),
    "a batch of Mistral": (
        "batch.jsonl",
        lines({"custom_id": "0", "body": {"max_tokens": 9, "messages": [TURN]}}),
        {},
        ["Why?"],
    ),
    "a batch of Anthropic": (
        "batch.jsonl",
        lines(
            {
                "custom_id": "a",
                "params": {
                    "model": "Sonnet-4",
                    "max_tokens": 9,
                    "system": "S",
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
                },
            }
        ),
        {},
        ["Why?"],
    ),
    "a batch in an array": ("batch.json", document([BATCH, {**BATCH, "custom_id": "b"}]), {}, ["Why?", "Why?"]),
    "a pretty batch in an array": ("batch.json", document([BATCH], indent=2), {}, ["Why?"]),
    "an array that is said to be a batch": (
        "requests",
        document([BATCH], indent=2),
        {"input_format": "openai-batch"},
        ["Why?"],
    ),
    "prompts beside their histories": (
        "ultrachat.jsonl",
        lines({"prompt": "Why?", "prompt_id": "x", "messages": [TURN, {"role": "assistant", "content": "So."}]}),
        {"field": "prompt", "id_field": "prompt_id"},
        ["Why?"],
    ),
    "passages with questions": (
        "squad.csv",
        sheet(["id", "context", "question", "answers"], ["1", "Oslo is, well, a city.", "What?", "{'text': ['city']}"]),
        {"template": "{{ context }}\n{{ question }}"},
        ["Oslo is, well, a city.\nWhat?"],
    ),
    "pairs of sentences": (
        "dev.tsv",
        sheet(["index", "sentence1", "sentence2", "label"], ["0", 'He said "no".', "No.", "1"], delimiter="\t"),
        {"template": "{{ sentence1 }} / {{ sentence2 }}"},
        ['He said "no". / No.'],
    ),
    "choices as a struct": (
        "arc.parquet",
        parquet({"question": ["Which?"], "choices": [{"text": ["x", "y"], "label": ["A", "B"]}]}),
        {"template": "{{ question }} {{ choices.text | join(', ') }}"},
        ["Which? x, y"],
    ),
    "requests of a well-known script": (
        "requests.jsonl",
        lines({"model": "GPT-5", "messages": [TURN], "metadata": {"row": 1}}),
        {},
        ["Why?"],
    ),
    "a chat channel": (
        "2026-01-01.json",
        document([{"type": "message", "user": "U1", "text": "Hi", "ts": "1.2"}]),
        {"field": "text"},
        ["Hi"],
    ),
    "conversations in Parquet": (
        "chats.parquet",
        parquet({"conversation_id": ["x"], "conversation": [[TURN]]}) if pytest.importorskip("pyarrow") else b"",
        {"field": "conversation"},
        ["Why?"],
    ),
    "a saved dataset": ("data-00000-of-00001.arrow", arrow({"prompt": ["Hi"], "label": [1]}, stream=True), {}, ["Hi"]),
    "pretty records one after another": (
        "dump.json",
        b'{\n  "prompt": "a"\n}\n{\n  "prompt": "b"\n}\n',
        {},
        ["a", "b"],
    ),
    "lines that end with commas": ("in.jsonl", b'{"prompt": "a"},\n{"prompt": "b"},\n', {}, ["a", "b"]),
    "a list of strings": ("list.json", document(["What is 2+2?", "Why?"], indent=1), {}, ["What is 2+2?", "Why?"]),
    "a list of strings in one line": ("list.jsonl", document(["What is 2+2?", "Why?"]), {}, ["What is 2+2?", "Why?"]),
    "lines of Windows with a mark": (
        "in.jsonl",
        b"\xef\xbb\xbf" + lines({"prompt": "Hi"}).replace(b"\n", b"\r\n"),
        {},
        ["Hi"],
    ),
    "a text of chat templates": (
        "in.txt",
        b"[INST] Hi [/INST]\n{name}, hello\n",
        {},
        ["[INST] Hi [/INST]", "{name}, hello"],
    ),
}

REFUSED = {
    "instructions without a prompt": (
        "alpaca.json",
        document(ALPACA),
        {},
        r"alpaca.json:1: .*fields: 'instruction', 'input', 'output'.*field=, or make the prompt with template=",
    ),
    "turns of another kind": (
        "sharegpt.json",
        document([{"id": "1", "conversations": [{"from": "human", "value": "Hi"}]}]),
        {"field": "conversations"},
        r"Rename from to role",
    ),
    "prompts beside their histories, unnamed": (
        "ultrachat.jsonl",
        lines({"prompt": "Why?", "prompt_id": "x", "messages": [TURN]}),
        {},
        r"It has both prompt and messages; name one of them with field=",
    ),
    "an array that is no batch": (
        "requests.json",
        document([{"prompt": "Hi"}]),
        {"input_format": "openai-batch"},
        r"requests.json:1: It has no custom_id",
    ),
    "several turns to ask in turn": (
        "mt_bench.jsonl",
        lines({"question_id": 81, "turns": ["Write.", "Again."]}),
        {"field": "turns"},
        r"'turns' is an array, not a string or messages",
    ),
    "a tree of messages": (
        "oasst.jsonl",
        lines({"message_tree_id": "x", "prompt": {"text": "Hi"}}),
        {},
        r"prompt is an object, not a string",
    ),
    "multiple choice without a header": (
        "mmlu.csv",
        sheet(["Which?", "x", "y", "A"], ["What?", "x", "y", "B"]),
        {},
        r"has no column 'prompt' \(columns: 'Which\?'",
    ),
    "records inside a document": (
        "squad.json",
        document({"version": "2", "data": [{"t": 1}, {"t": 2}]}, indent=1),
        {},
        r"jq -c '.data\[\]'",
    ),
    "an export of a chat program": (
        "conversations.json",
        document([{"title": "x", "mapping": {"a": {}}}]),
        {},
        r"fields: 'title', 'mapping'",
    ),
    "a batch of Gemini": (
        "batch.jsonl",
        lines({"key": "a", "request": {"contents": [{"parts": [{"text": "Why?"}]}]}}),
        {},
        r"fields: 'key', 'request'.*template=",
    ),
    "a batch of Bedrock": (
        "batch.jsonl",
        lines({"recordId": "a", "modelInput": {"messages": [TURN]}}),
        {},
        r"fields: 'recordId', 'modelInput'",
    ),
    "a conversation of another export": (
        "sharegpt.json",
        document([{"id": "x", "conversations": [{"from": "human", "value": "Hi"}]}]),
        {},
        r"If conversations is its conversation: field='conversations'",
    ),
    "the same, with its field": (
        "sharegpt.json",
        document([{"id": "x", "conversations": [{"from": "human", "value": "Hi"}]}]),
        {"field": "conversations"},
        r"Rename from to role",
    ),
    "a sheet as Unicode text": (
        "sheet.txt",
        sheet(["id", "prompt"], ["1", "Why?"], delimiter="\t", encoding="utf-16"),
        {},
        r"sheet.txt looks like a table whose columns are separated by tabs.*input_format='tsv'",
    ),
    "a table in Markdown": (
        "table.csv",
        b"| id | prompt |\n|----|--------|\n| 1 | Why? |\n",
        {},
        r"table.csv:1: it looks like a Markdown table, .*sed ",
    ),
    "a batch of embeddings": (
        "batch.jsonl",
        lines({**BATCH, "url": "/v1/embeddings"}),
        {},
        r"url is '/v1/embeddings'; only",
    ),
    "images in a batch": (
        "batch.jsonl",
        lines({**BATCH, "body": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}}),
        {},
        r"part of type 'image_url'; OneLLM takes text only",
    ),
    "a cut line in the middle of others": (
        "in.jsonl",
        b'{"prompt": "a"\n{"prompt": "b"\n',
        {},
        r"in.jsonl:1: Not JSON",
    ),
    "a workbook": ("in.xlsx", packed(b"<xml/>", "xl/workbook.xml"), {}, r"workbook|no input format is called .xlsx"),
    "a workbook called CSV": ("in.csv", packed(b"<xml/>", "xl/workbook.xml"), {}, r"Save a workbook's sheet as CSV"),
    "an archive of lines": (
        "in.jsonl.zip",
        packed(lines({"prompt": "a"}), "in.jsonl"),
        {},
        r"unzip -p \S+ \| onellm-async run - --format jsonl",
    ),
    "a configuration": ("prompts.yaml", b"- Hi\n- Ho\n", {}, r"no input format is called .yaml"),
    "a page": ("page.html", b"<!doctype html>\n<p>Hi</p>\n", {}, r"no input format is called .html"),
    "a program": ("prompts.py", b"PROMPTS = ['Hi']\n", {}, r"no input format is called .py"),
    "text of a Latin code page": (
        "in.csv",
        "question\nOù ?\nÇa ?\n".encode("cp1252"),
        {"field": "question"},
        r"in.csv:2: Not UTF-8: column 'question'. Save the file as UTF-8.",
    ),
    "weather in a column": (
        "w.csv",
        sheet(["prompt", "temperature"], ["Hi", "35"]),
        {},
        r"temperature is 35; it must be a number from 0 to 2",
    ),
}


async def run(tmp_path, name, content, options):
    (tmp_path / name).write_bytes(content)
    transport = FakeTransport()
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(4)) as client:
        try:
            return await client.run(tmp_path / name, tmp_path / "out.jsonl", **options), transport, None
        except OneLLMError as error:
            return None, transport, error


@pytest.mark.parametrize("case", RUNS)
async def test_it_runs_as_its_owner_expects(tmp_path, case):
    name, content, options, prompts = RUNS[case]
    report, transport, error = await run(tmp_path, name, content, options)

    assert error is None
    assert sorted(request.prompt for request in transport.requests) == prompts
    assert (report.complete, report.progress.bad_lines) == (True, 0)


@pytest.mark.parametrize("case", REFUSED)
async def test_it_is_refused_unsent_with_the_cure(tmp_path, case):
    name, content, options, message = REFUSED[case]
    _, transport, error = await run(tmp_path, name, content, options)

    assert not transport.requests
    assert error is not None
    with pytest.raises(OneLLMError, match=message):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_a_batch_in_an_array_is_answered_as_its_lines_are(tmp_path):
    bad = {"custom_id": "bad", "method": "POST", "url": "/v1/embeddings", "body": {}}
    written = {}
    for name, content in {"in.jsonl": lines(BATCH, bad), "in.json": document([BATCH, bad], indent=1)}.items():
        (tmp_path / name).mkdir()
        report, transport, _ = await run(tmp_path / name, name, content, {})
        assert [request.model for request in transport.requests] == ["GPT-5"]
        assert report.bad_lines == 1
        written[name] = [json.loads(line) for line in (tmp_path / name / "out.jsonl").read_text().splitlines()]
    for records in written.values():
        assert [record["custom_id"] for record in records] == ["a", "bad"]
        assert records[0]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
        assert "url is '/v1/embeddings'; only" in records[1]["error"]["message"]
