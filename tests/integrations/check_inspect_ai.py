"""An evaluation of inspect_ai against the local server. Run by ``nox -s integrations``."""

import inspect_ai
import pytest
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageTool, GenerateConfig, get_model
from inspect_ai.scorer import includes

from onellm_async import InvalidRequestError
from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer


@pytest.fixture
def server(monkeypatch):
    with ThreadedServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server:
        monkeypatch.setenv("ONELLM_API_KEY", "local")
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        yield server


def test_an_evaluation_of_twenty_samples_counts_its_tokens(server, tmp_path):
    samples = [Sample(input=f"What is {n} squared?", target=f"{n}") for n in range(20)]
    task = inspect_ai.Task(dataset=samples, scorer=includes())
    (log,) = inspect_ai.eval(
        task,
        model="onellm/GPT-5-Nano",
        model_args={"requests_per_minute": 60_000},
        temperature=0.2,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    (usage,) = log.stats.model_usage.values()
    assert usage.output_tokens > 0
    assert server.ledger.received == 20


def test_a_wrong_key_ends_the_evaluation_with_its_reason(tmp_path):
    with ThreadedServer(ServerSettings(keys={"right": 1.0})) as server:
        (log,) = inspect_ai.eval(
            inspect_ai.Task(dataset=[Sample(input="x", target="x")], scorer=includes()),
            model=get_model("onellm/GPT-5-Nano", base_url=server.url, api_key="wrong"),
            log_dir=str(tmp_path),
            display="none",
        )
    assert log.status == "error"
    assert "401" in log.error.message


async def test_tools_are_refused_unsent(server):
    model = get_model("onellm/GPT-5-Nano")
    with pytest.raises(InvalidRequestError, match="tool"):
        await model.api.generate([ChatMessageTool(content="4")], [], "auto", GenerateConfig())
    await model.api.aclose()
    assert server.ledger.received == 0
