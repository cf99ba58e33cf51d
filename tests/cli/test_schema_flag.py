"""``--schema FILE`` and ``--corrections`` of ``run`` and ``plan``."""

import json

import pytest

from onellm_async.cli import main

SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("Oslo\nRome\n")
    (tmp_path / "city.json").write_text(SCHEMA)
    return tmp_path


@pytest.mark.parametrize("command", [["plan", "in.txt"], ["run", "in.txt", "-o", "out.jsonl", "--local"]])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "bad.json cannot be read: No such file"),
        ("{", "bad.json is no JSON Schema, because it is no JSON"),
        ("[]", "bad.json is no JSON Schema, because it holds no object"),
        ('{"type": 5}', "bad.json is no JSON Schema: $.type"),
        ('{"$ref": "#/nowhere"}', "bad.json refers to '#/nowhere', which is not in it"),
    ],
)
def test_a_file_that_is_no_schema_is_refused_by_its_name(command, content, text, folder, capsys):
    if content is not None:
        (folder / "bad.json").write_text(content)
    assert main([*command, "--schema", "bad.json"]) == 2
    assert text in capsys.readouterr().err
    assert not (folder / "out.jsonl.journal").exists()


@pytest.mark.parametrize("command", [["plan", "in.txt"], ["run", "in.txt", "-o", "out.jsonl", "--local"]])
def test_a_number_of_corrections_out_of_range_is_refused(command, folder, capsys):
    assert main([*command, "--schema", "city.json", "--corrections", "9"]) == 2
    assert "corrections is 9" in capsys.readouterr().err


def test_the_answers_of_a_run_have_the_value_beside_the_text(folder):
    assert main(["run", "in.txt", "-o", "out.jsonl", "--local", "--quiet", "--schema", "city.json"]) == 0
    lines = [json.loads(line)["response"] for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["parsed"] for line in lines] == [{"name": "Oslo"}, {"name": "Rome"}]


def test_a_plan_counts_the_schema_as_input_and_the_corrections_in_the_highest_cost(folder, capsys):
    def cost(*flags):
        assert main(["plan", "in.txt", "--max-tokens", "100", "--seeds", "1", "--json", *flags]) == 0
        plan = json.loads(capsys.readouterr().out)
        return plan["input_tokens"], plan["cost"]

    plain, once, twice = cost(), cost("--schema", "city.json", "--corrections", "0"), cost("--schema", "city.json")
    assert plain[0] < once[0] == twice[0]
    assert once[1]["low"] == twice[1]["low"]
    assert twice[1]["high"] > 2 * once[1]["high"]
