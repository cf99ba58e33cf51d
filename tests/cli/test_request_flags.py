import json

import pytest

from onellm_async.cli.options import RequestFlags
from onellm_async.errors import ConfigurationError


def test_an_option_is_json_or_a_text():
    flags = RequestFlags(option=("top_k=40", "user=ada", 'safety_settings=[{"a": 1}]', "note=a=b"))
    assert flags.extra == {"top_k": 40, "user": "ada", "safety_settings": [{"a": 1}], "note": "a=b"}
    assert RequestFlags().further_fields() == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("top_k",), "is not KEY=JSON"),
        (("=4",), "is not KEY=JSON"),
        (("temperature=1",), "use --temperature"),
        (("stop_sequences=[]",), "use --stop"),
        (("top_k=1", "top_k=2"), "sets top_k twice"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(options, told):
    with pytest.raises(ConfigurationError, match=told):
        RequestFlags(option=options).further_fields()


async def test_flags_of_the_request_reach_the_service_and_go_before_those_of_a_line(onellm, at, backend, tmp_path):
    asked = []
    backend.complete = lambda job, complete=backend.complete: (asked.append(job.request), complete(job))[1]
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "a", "top_p": 0.9, "top_k": 3}))
    flags = ["--top-p", 0.5, "--stop", "END", "--seed", 7, "--response-format", "json_object", "--option", "top_k=40"]
    ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", *flags, "--rpm", 60_000, **at)
    assert ended.code == 0, ended.err
    assert "--top-p replaces the top_p of 1 line" in ended.err
    chat = await onellm("chat", "b", *flags, "--rpm", 60_000, **at)
    assert chat.code == 0, chat.err
    for request in asked:
        assert (request.top_p, request.stop_sequences, request.seed, request.top_k) == (0.5, ("END",), 7, 40)
        assert request.response_format == {"type": "json_object"}


async def test_another_option_is_another_run(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("a")
    first = await onellm("run", "in.txt", "-o", "out.jsonl", "--seed", 1, "--rpm", 60_000, **at)
    second = await onellm("run", "in.txt", "-o", "out.jsonl", "--seed", 2, "--rpm", 60_000, **at)
    assert (first.code, second.code) == (0, 2)
    assert 'the request options was {"seed": 1} and is now {"seed": 2}' in second.err
