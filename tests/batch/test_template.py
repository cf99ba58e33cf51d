import json
import subprocess
import sys
from pathlib import Path

import pytest

import onellm_async
from onellm_async import BatchError
from onellm_async.batch import EntryParser, PromptTemplate, input_format_named, open_source
from onellm_async.batch.inputs.entry_parser import ParserOptions
from onellm_async.batch.inputs.template import TemplateError

JSONL, OPENAI_BATCH, TEXT = map(input_format_named, ("jsonl", "openai-batch", "text"))


def read(value, template, shape=JSONL):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return EntryParser("in.jsonl", shape.parse, ParserOptions(template=PromptTemplate(template))).read(
        raw, line=7, index=3
    )


def text(item):
    return item.request.messages[0].content


def test_the_prompt_is_made_of_the_fields_and_the_id_is_kept():
    item = read(
        {"lang": "German", "text": "<Hi> & 'bye'", "custom_id": "a", "prompt": "no"}, "Into {{ lang }}: {{ text }}"
    )

    assert text(item) == "Into German: <Hi> & 'bye'"
    assert item.custom_id == "a"


def test_a_row_is_reached_as_a_whole_unless_it_has_such_a_field():
    assert text(read({"my key": "x"}, "{{ row['my key'] }}")) == "x"
    assert text(read({"row": "mine"}, "{{ row }}")) == "mine"


def test_lists_objects_and_conditions_are_there():
    value = {"facts": ["a", "b"], "who": {"name": "Ada"}, "note": None}

    assert (
        text(read(value, "{% for f in facts %}{{ f }};{% endfor %}{{ who.name }}{% if note %}!{% endif %}"))
        == "a;b;Ada"
    )


def test_a_line_of_text_and_a_json_string_are_called_prompt():
    assert text(read(b"Hi", "Say: {{ prompt }}", TEXT)) == "Say: Hi"
    assert text(read(b'"Hi"', "Say: {{ prompt }}")) == "Say: Hi"


@pytest.mark.parametrize(
    ("value", "template", "message"),
    [
        ({"a": 1}, "{{ question }}", "The template cannot be filled: 'question' is undefined (fields: 'a')."),
        ({}, "{{ question }}", "'question' is undefined (fields: none)."),
        ({"a": {}}, "{{ a.b }}", "has no attribute 'b'"),
        ({"a": 1, "note": None}, "{{ note }}", "The template inserts a null (null here: 'note')."),
        ({"a": [None]}, "{{ a[0] }}", "The template inserts a null (null here: something inside)."),
        ({"a": 0}, "{{ 1 / a }}", "The template cannot be filled: division by zero"),
        ({"a": "x"}, "{{ a.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ({"a": []}, "{{ a.append(1) }}", "access to attribute 'append' of 'list' object is unsafe (fields"),
        ({"a": 1}, "{% for i in range(10000000) %}x{% endfor %}", "Range too big"),
        ({"a": " "}, "{{ a }}", "The prompt is empty."),
        ([1], "{{ a }}", "It is an array, not an object or a string."),
        (b"{", "{{ a }}", "Not JSON"),
    ],
)
def test_a_line_that_cannot_fill_the_template_is_bad_and_says_why(value, template, message):
    error = read(value, template)

    assert str(error).startswith("in.jsonl:7: ")
    assert message in error.message


def test_one_line_cannot_change_what_the_next_one_sees():
    template = PromptTemplate("{% set x = a %}{{ x }}")

    assert [template.render({"a": 1}), template.render({"a": 2})] == ["1", "2"]
    with pytest.raises(TemplateError, match="'a' is undefined"):
        template.render({})


def test_a_template_is_a_file_or_the_text_itself(tmp_path):
    path = tmp_path / "ask.j2"
    path.write_text("\ufeffAsk {{ it }}\n")

    assert PromptTemplate.open(str(path)).render({"it": 1}) == "Ask 1"
    assert PromptTemplate.open("{{ it }}!").render({"it": 1}) == "1!"
    assert PromptTemplate.open("two\nlines").render({}) == "two\nlines"


def test_two_templates_are_told_apart_by_their_digests():
    assert PromptTemplate("{{ a }}").digest == PromptTemplate("{{ a }}", "other").digest
    assert PromptTemplate("{{ a }}").digest != PromptTemplate("{{ b }}").digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"The template .*ask\.j2 cannot be read: No such file or directory\. Name a file, or write the templ"),
        (b"{{ \xff }}", r"The template .*ask\.j2 is not UTF-8\."),
        (b"one\n{% if %}", r"ask\.j2 is not a template: line 2: "),
        (b"{{ a | nonesuch }}", r"ask\.j2 is not a template: .*nonesuch"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_batch_error(tmp_path, content, message):
    path = tmp_path / "ask.j2"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(BatchError, match=message):
        PromptTemplate.open(str(path))


def test_a_template_excludes_a_field_and_an_openai_batch(tmp_path):
    template = PromptTemplate("{{ a }}")
    with pytest.raises(BatchError, match=r"A field \('q'\) and a template exclude each other"):
        open_source("in.jsonl", field="q", template=template)
    with pytest.raises(BatchError, match="An OpenAI batch takes no template"):
        open_source("in.jsonl", forced_format=OPENAI_BATCH, template=template)
    path = tmp_path / "in.jsonl"
    path.write_text('{"custom_id": "a", "body": {"messages": "Hi"}}\n')
    with pytest.raises(BatchError, match="is an OpenAI batch, whose requests are whole: it takes no template"):
        open_source(str(path), template=template).scan()


def test_importing_batch_loads_neither_jinja2_nor_pyarrow_and_without_jinja2_the_message_names_the_extra():
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "import onellm_async.batch as batch\n"
        "late = {'pyarrow'}\n"
        "print(sorted(late & set(sys.modules)))\n"
        "try:\n"
        "    batch.PromptTemplate('{{ a }}')\n"
        "except batch.inputs.template.BatchError as error:\n"
        "    print(error)\n"
    )
    environment = {"PYTHONPATH": str(Path(onellm_async.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines() == [
        "[]",
        "Templates need Jinja2, which is not installed. pip install 'onellm-async[template]'",
    ]
