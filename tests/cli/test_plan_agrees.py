"""`plan` and `run` agree on the same arguments."""

import contextlib
import io
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch.config import RunConfig
from onellm_async.cli import main
from onellm_async.cli.options import LimitFlags, RunRequestFlags
from onellm_async.cli.plan import AssumptionFlags, estimate, plan
from onellm_async.cli.reading import READING, SelectionFlags
from onellm_async.cli.run import GOING_ON, SESSION, SPENDING, WRITING, options_from
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport

LINES = st.lists(
    st.one_of(
        st.builds(
            lambda prompt, more: json.dumps({"prompt": prompt, **more}),
            st.sampled_from("abc"),
            st.dictionaries(st.sampled_from(["temperature", "max_tokens"]), st.sampled_from([0, 1]), max_size=2),
        ),
        st.sampled_from(["{", '{"prompt": 5}', '"text"']),
    ),
    min_size=1,
    max_size=9,
).map(lambda lines: ['{"prompt": "a"}', *lines])  # an input without any good line is refused by both
SELECTIONS = st.builds(
    SelectionFlags,
    limit=st.none() | st.integers(1, 14),
    samples=st.integers(1, 3),
    deduplicate=st.sampled_from([None, True, False]),
)
REQUESTS = st.builds(
    RunRequestFlags,
    model=st.sampled_from([None, "GPT-5", "DeepSeek-Chat"]),
    temperature=st.sampled_from([None, 0.0, 1.0]),
    max_tokens=st.sampled_from([None, 20]),
    system=st.sampled_from([None, "Be brief."]),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, selecting=SELECTIONS, asking=REQUESTS)
def test_plan_run_and_estimate_agree_on_what_is_sent(tmp_path_factory, lines, selecting, asking):
    directory = tmp_path_factory.mktemp("plan")
    path, output = directory / "in.jsonl", directory / "out.jsonl"
    path.write_text("\n".join(lines))
    assuming = AssumptionFlags(seeds=1)
    planned = printed(lambda: plan(str(path), selecting=selecting, asking=asking, expecting=assuming, json=True))
    options = options_from(READING, selecting, WRITING, SPENDING, GOING_ON, SESSION, asking)
    config = RunConfig.from_options(
        output, asking.model, options, limits=Limits(), base_url="local", dialect="documented", endpoints={}
    )
    assert planned == printed(
        lambda: estimate([str(path)], READING, asking, LimitFlags(), assuming, json=True, config=config)
    )
    service = FakeTransport("answer")

    async def run():
        async with AsyncOneLLM(transport=service, limits=Limits.unlimited(2)) as client:
            return await client.run(str(path), output, model=asking.model, **options)

    report = run_in_virtual_time(run())
    assert planned["prompts"] == len(service.prompts)
    assert planned["bad_lines"] == report.bad_lines
    assert planned["duplicates"] == report.counts.deduplicated
    assert planned["models"] == models_of(service)


def models_of(service):
    found = {}
    for request in service.requests:
        found[request.model] = found.get(request.model, 0) + 1
    return found


def printed(command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        command()
    return json.loads(out.getvalue())


ODD = {
    "a link": (0, None),
    "a pipe with a name": (0, None),
    "a link to nothing": (2, "gone.jsonl cannot be read: No such file"),
    "a directory": (2, "it is a directory. Its files are one input: '"),
    "a device": (2, "holds no prompts"),
    "a pattern": (2, "no file has such a name"),
    "a header alone": (2, "head.csv holds no prompts"),
    "an empty array": (2, "holds no prompts"),
    "a bad line": (1, "in.jsonl:2: Not JSON"),
}


def odd_input(case, tmp_path):
    line = '{"prompt": "a"}\n'
    (tmp_path / "there.jsonl").write_text(line)
    path = tmp_path / "in.jsonl"
    match case:
        case "a link":
            path.symlink_to("there.jsonl")
        case "a pipe with a name":
            os.mkfifo(path)
            threading.Thread(target=path.write_text, args=(line,), daemon=True).start()
        case "a link to nothing":
            path = tmp_path / "gone.jsonl"
            path.symlink_to("nowhere")
        case "a directory":
            path = tmp_path
        case "a device":
            path = Path(os.devnull)
        case "a pattern":
            path = tmp_path / "none-*.jsonl"
        case "a header alone":
            path = tmp_path / "head.csv"
            path.write_text("id,prompt\n")
        case "an empty array":
            path.write_text("[]")
        case "a bad line":
            path.write_text(line + "{\n")
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="pipes with names and links are POSIX's")
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("command", ["run", "plan", "estimate"])
def test_run_plan_and_estimate_end_alike_on_odd_inputs(tmp_path, capfd, case, command):
    code, message = ODD[case]
    path, output = odd_input(case, tmp_path), str(tmp_path / "out.jsonl")
    flags = {"run": [], "estimate": ["--estimate"]}.get(command)
    arguments = ["plan", path] if flags is None else ["run", path, "-o", output, "--local", "--rpm", "60000", *flags]
    ended, said = main(arguments), " ".join(capfd.readouterr().err.split())

    assert ended == code, said
    assert message is None or message in said
    assert (tmp_path / "out.jsonl").exists() == (command == "run" and code < 2)
