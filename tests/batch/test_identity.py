import json

import pytest
from attrs import evolve, fields

from onellm_async.batch.identity import RunIdentity, endpoints_text, redact_url
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
        if attribute.name in {"input", "lines", "columns"}:  # columns follow from the others
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


SECRET = "http://127.0.0.1:8080/api?key=s3cret&s3cret"


def test_no_value_of_a_query_is_kept_but_another_value_is_another_run() -> None:
    identity = RunIdentity(input="in.jsonl", base_url=SECRET)
    assert "s3cret" not in str(identity.as_json())
    assert identity.base_url is not None
    assert identity.base_url.startswith("http://127.0.0.1:8080/api?key=~")
    assert RunIdentity.from_json(identity.as_json()) == identity
    other = RunIdentity(input="in.jsonl", base_url=SECRET.replace("s3cret", "other"))
    (difference,) = other.differences(identity)
    assert difference.startswith("the base URL was http://127.0.0.1:8080/api?key=~")
    assert "s3cret" not in difference
    assert "other" not in difference


def test_an_identity_that_kept_a_query_is_compared_and_shown_without_it() -> None:
    before = RunIdentity.from_json({"input": "in.jsonl", "base_url": SECRET})
    assert "s3cret" not in repr(before)
    assert RunIdentity(input="in.jsonl", base_url=SECRET).differences(before) == []


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://onellm.dev/api", "https://onellm.dev/api"),
        ("local", "local"),
        ("http://h/a?", "http://h/a?"),
        ("http://h/a?b=", "http://h/a?b="),
    ],
)
def test_a_url_without_secrets_stays_as_it_is(url: str, kept: str) -> None:
    assert redact_url(url) == kept


@pytest.mark.parametrize(
    "place", ["http://s3cret@h/a", "http://u:s3cret@h/a", "http://h/a?s3cret", "http://h/a?k=1#s3cret"]
)
def test_wherever_a_secret_stands_it_is_not_kept_and_stays_comparable(place: str) -> None:
    redacted = redact_url(place)
    assert "s3cret" not in redacted
    assert redact_url(redacted) == redacted
    assert redact_url(place.replace("s3cret", "other")) != redacted


def test_endpoints_are_kept_without_secrets_but_another_one_is_another_run() -> None:
    first, second = (endpoints_text({"OpenAI": f"http://10.0.0.7/v1?key={key}"}) for key in ("s3cret", "other"))
    assert first is not None
    assert first.startswith("OpenAI=http://10.0.0.7/v1?key=~")
    assert first != second
