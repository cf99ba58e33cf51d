"""A flood of equal complaints ends after ten, with a count."""

import json

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import LineError
from onellm_async.batch.inputs.notes import Complaints
from onellm_async.cli import main
from onellm_async.testing import FakeTransport


def test_the_same_complaint_is_told_ten_times_and_then_counted():
    complaints = Complaints()
    told = [
        complaints.heard(LineError("in.jsonl", n, f"It has no field 'q' (fields: 'a{n}').")) for n in range(1, 1001)
    ]
    other = complaints.heard(LineError("in.jsonl", 1001, "The prompt is empty."))

    assert len([text for text in told if text]) == 10
    assert other == "in.jsonl:1001: The prompt is empty."
    assert complaints.rest() == ["990 further lines: It has no field 'q' (fields: 'a11')."]


def test_lines_that_are_read_once_more_are_told_once_and_files_are_told_apart():
    complaints = Complaints()
    errors = [LineError("a", 5, "x"), LineError("b", 3, "x"), LineError("a", 5, "x"), LineError("a", 6, "x")]

    assert [complaints.heard(error) for error in errors] == ["a:5: x", "b:3: x", None, "a:6: x"]


def test_complaints_of_many_kinds_do_not_fill_memory():
    complaints = Complaints(most=0)
    for number in range(5000):
        complaints.heard(LineError("in", number + 1, "x" * (number % 700 + 1)))

    assert len(complaints.rest()) == 101


def test_a_run_ends_its_flood_and_says_what_a_flag_replaces(tmp_path, capfd):
    lines = [{"prompt": "Hi", "model": "GPT-5", "team": 1}, *({"question": n} for n in range(60)), {"prompt": "Ho"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = main(["run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--local", "-m", "GPT-5-Mini"])
    said = " ".join(capfd.readouterr().err.split())

    assert code == 1
    assert said.count("neither prompt nor messages") == 11
    assert "50 further lines: It has neither prompt nor messages" in said
    assert "--model replaces the model of 1 line." in said
    assert "Ignored in all lines: team. --keep carries fields into the output." in said


def test_the_most_common_first_mistake_is_refused_unsent_and_locks_nothing(tmp_path, capfd):
    (tmp_path / "in.jsonl").write_text('{"question": "Why?"}\n' * 50)
    command = ["run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--local"]

    assert main(command) == 2
    assert "make the prompt with --template. The first 20 lines are all bad" in " ".join(capfd.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert main([*command, "--field", "question"]) == 0


async def test_many_bad_lines_of_one_kind_neither_pause_nor_end_a_run_as_they_cost_nothing(tmp_path):
    lines = [{"prompt": f"p{n}"} if n % 5 == 0 else {"question": f"p{n}"} for n in range(500)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    transport, said = FakeTransport(), []
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(8)) as client:
        report = await client.run(
            tmp_path / "in.jsonl", tmp_path / "out.jsonl", model="GPT-5-Nano", on_message=said.append
        )

    assert (report.complete, report.counts.answered, report.bad_lines) == (True, 100, 400)
    assert sorted(transport.prompts) == sorted(f"p{n}" for n in range(0, 500, 5))
    assert not [text for text in said if "Paused" in text or "alike" in text]
