import json

import pytest
from attrs import evolve, fields

from onellm_async.batch.identity import RunIdentity
from onellm_async.errors import BatchError

BEFORE = RunIdentity(
    input="in.jsonl",
    input_digest="aa",
    lines=1319,
    format="jsonl",
    field="question",
    template_digest="t1",
    model="GPT-5",
    fallback_model="GPT-5-Nano",
    system_digest="s1",
    max_tokens=100,
    temperature=0.5,
    base_url="https://host.example/",
    dialect="documented",
)


def test_the_same_run_has_no_differences() -> None:
    assert evolve(BEFORE).differences(BEFORE) == []


def test_an_identity_survives_json() -> None:
    assert RunIdentity.from_json(json.loads(json.dumps(BEFORE.as_json()))) == BEFORE


def test_parts_that_a_later_version_knows_are_left_out() -> None:
    assert RunIdentity.from_json({**BEFORE.as_json(), "seed": 3}) == BEFORE


@pytest.mark.parametrize("value", [None, [], {}, {"input": 3}])
def test_what_is_no_identity_is_refused(value: object) -> None:
    with pytest.raises(BatchError, match="not the identity"):
        RunIdentity.from_json(value)


def test_a_renamed_input_is_the_same_run() -> None:
    assert evolve(BEFORE, input="moved.jsonl").differences(BEFORE) == []


def test_every_part_but_the_name_of_a_known_input_makes_another_run() -> None:
    for attribute in fields(RunIdentity):
        if attribute.name in {"input", "lines"}:
            continue
        value = 7 if isinstance(getattr(BEFORE, attribute.name), int | float) else "other"
        assert len(evolve(BEFORE, **{attribute.name: value}).differences(BEFORE)) == 1, attribute.name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": 200}, "max_tokens was 100 and is now 200"),
        ({"max_tokens": None}, "max_tokens was 100 and is not given any more"),
        ({"input_digest": "bb"}, "the input has changed"),
        ({"input_digest": "bb", "lines": 1320}, "the input has changed (it had 1,319 lines and has 1,320)"),
        ({"input_digest": "bb", "input": "b"}, "the input was in.jsonl and is now b, which holds something else"),
        ({"input_digest": None}, "the input was in.jsonl and is now in.jsonl, but a file then and a pipe now"),
        ({"system_digest": "s2"}, "the system prompt has changed"),
        ({"template_digest": None}, "the template was given and is not any more"),
        ({"base_url": "https://b.example/"}, "the base URL was https://host.example/ and is now https://b.example/"),
    ],
)
def test_a_difference_is_told_in_words(changes: dict[str, object], words: str) -> None:
    assert evolve(BEFORE, **changes).differences(BEFORE) == [words]


def test_what_was_not_given_before_is_told_so() -> None:
    before = evolve(BEFORE, model=None, system_digest=None)
    assert BEFORE.differences(before) == [
        "the model was not given and is now GPT-5",
        "the system prompt was not given and is now",
    ]
