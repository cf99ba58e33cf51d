import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.causes import CauseCounts, cause_key, cause_of, flaw_of, outcome_lines, shortened
from onellm_async.batch.outcomes import failure_json
from onellm_async.errors import UnprocessableEntityError


def answer(content="Hello", reason="stop", **more):
    return json.dumps({"content": content, "finish_reason": reason, **more}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("texts", "causes"),
    [
        (["422 Unknown model 'gpt-5'.", "422 Unknown model 'gpt-4o'."], 2),
        (["500 boom.", "502 boom."], 2),
        (["400 Your prompt has 9,012 tokens.", "400 Your prompt has 8193 tokens."], 1),
        (["500 request req_011CXabcdefghijk failed", "500 request req_99ZYabcdefghijk1 failed"], 1),
        (["500 id 123e4567-e89b-12d3-a456-426614174000", "500 id 123e4567-e89b-12d3-a456-426614174999"], 1),
        (["No connection to 127.0.0.1:9: refused.", "No connection to 127.0.0.1:10: refused."], 1),
        (["500 too many clients", "500 pool timed out"], 2),
    ],
)
def test_failures_of_one_cause_are_counted_together_whatever_numbers_they_name(texts, causes):
    assert len({cause_key(text) for text in texts}) == causes


def test_a_cause_is_told_as_its_first_failure_says_it_the_most_frequent_first():
    counts = CauseCounts([("500 boom.", 1)])
    assert [counts.add(f"400 Prompt {number} is too long.") for number in range(3)] == [True, False, False]
    assert counts.ranked() == [("400 Prompt 0 is too long.", 3), ("500 boom.", 1)]


def test_where_every_failure_is_another_one_memory_stays_bounded():
    counts = CauseCounts((f"500 {''.join(chr(97 + int(digit)) for digit in str(number))}", 1) for number in range(3000))
    assert len(counts) == 1001
    assert counts.ranked()[0] == ("Other errors.", 2000)


def test_a_failure_in_the_journal_says_what_its_error_said():
    error = UnprocessableEntityError("422 Unknown\n model.", status_code=422, advice="Did you mean 'GPT-5'?")
    assert cause_of(failure_json(error)) == "422 Unknown model. Did you mean 'GPT-5'?"
    assert cause_of(b'{"type":"APIError","message":""}') == "APIError"
    assert cause_of(b"") == cause_of(b"[]") == "An error that cannot be read."


def test_long_texts_are_cut():
    assert shortened("a" * 1000) == "a" * 299 + "…"


@pytest.mark.parametrize(
    ("result", "flaw"),
    [
        (answer(), None),
        (answer(reason=None), None),
        (answer(reason="tool_calls", content="", tool_calls=[{"id": 1}]), None),
        (answer(reason="tool_calls", content="", extra={"tool_calls": [{"id": 1}]}), None),
        (answer(reason="length"), "cut off at --max-tokens"),
        (answer(reason="MAX_TOKENS"), "cut off at --max-tokens"),
        (answer(reason="content_filter"), "filtered (content_filter)"),
        (answer(reason="SAFETY"), "filtered (SAFETY)"),
        (answer(content="", reason="content_filter"), "empty (content_filter)"),
        (answer(content="", reason="length"), "empty (length)"),
        (answer(content=""), "empty (stop)"),
        (answer(content="", reason=None), "empty"),
        (answer(content='it said "finish_reason":"length"'), None),
        (b"not JSON", None),
    ],
)
def test_answers_that_were_cut_off_filtered_or_are_empty_are_told(result, flaw):
    assert flaw_of(result) == flaw


def test_at_the_end_three_causes_are_told_and_the_others_counted():
    failures = {"422 a.": 9, "500 b.": 2, "400 c.": 2, "503 d.": 1, "504 e.": 1}
    notable = {"empty (content_filter)": 3, "cut off at --max-tokens": 1010}
    assert outcome_lines(failures, notable) == [
        "15 failed: 9 × 422 a.",
        "  2 × 500 b.",
        "  2 × 400 c.",
        "  2 × other errors.",
        "Answers to check: 1,010 cut off at --max-tokens, 3 empty (content_filter).",
    ]
    assert outcome_lines({}, {}) == []


@given(
    st.permutations(["empty (stop)", "filtered (SAFETY)", "filtered (SAFETY)", "cut off at --max-tokens", "500 boom."])
)
def test_what_is_told_does_not_depend_on_the_order_in_which_outcomes_came(texts):
    counts = CauseCounts((text, 1) for text in texts)
    notable = {text: texts.count(text) for text in texts}
    assert [number for _, number in counts.ranked()] == [2, 1, 1, 1]
    assert counts.ranked()[1:] == sorted(counts.ranked()[1:])
    assert outcome_lines({}, notable) == [
        "Answers to check: 2 filtered (SAFETY), 1 500 boom., 1 cut off at --max-tokens, 1 empty (stop)."
    ]
