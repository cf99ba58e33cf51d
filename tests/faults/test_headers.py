"""Further headers of each request."""

import aiohttp
import pytest
from fault_server import FaultServer, answers

from onellm_async import AsyncOneLLM, Limits
from onellm_async.errors import ConfigurationError


def client_at(url: str, **settings: object) -> AsyncOneLLM:
    return AsyncOneLLM("key", base_url=url, limits=Limits.unlimited(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
async def test_headers_go_with_each_request(given):
    headers = {"X-Team": "research", "user-agent": "mine/1.0", "X-Gateway-Token": "of-the-gateway-4711"}
    async with FaultServer(answers(b'{"content":"research of-the-gateway-4711"}')) as server:
        session = aiohttp.ClientSession(headers={"X-Team": "another"}) if given else None
        async with client_at(server.url, headers=headers, session=session) as client:
            for _ in range(2):
                reply = await client.chat("Hi", model="GPT-5")
            shown = f"{client!r}{vars(client._sender._transport)!r}"
        if session is not None:
            await session.close()
        for _, sent, _ in server.requests:
            assert sent["x-team"] == "research"
            assert sent["user-agent"] == "mine/1.0"
            assert sent["x-gateway-token"] == "of-the-gateway-4711"
            assert sent["authorization"] == "Bearer key"
    assert reply.content == "research ***"  # a token is hidden where it is echoed, an ordinary word is not
    assert "of-the-gateway" not in shown


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Authorization": "Bearer secret"}, "headers sets Authorization, which the client sets itself."),
        ({"content-length": "3"}, "headers sets content-length, which the client sets itself."),
        ({"X Y": "secret"}, "headers names 'X Y', which is not the name of a header."),
        ({"": "secret"}, "headers names '', which is not the name of a header."),
        ({3: "secret"}, "headers names 3, which is not the name of a header."),
        ({"X-A": "secret\r\nX-B: c"}, "The value of the header X-A cannot be sent."),
        ({"X-A": " secret"}, "The value of the header X-A cannot be sent."),
        ({"X-A": "sécret"}, "The value of the header X-A cannot be sent."),
        ({"X-A": 3}, "The value of the header X-A cannot be sent."),
        ({"X-A": "secret", "x-a": "secret"}, "headers names x-a twice."),
        ("X-A: secret", "headers is a str; it must be a mapping of names to values."),
        ([("X-A", "secret")], "headers is a list; it must be a mapping of names to values."),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(headers, message):
    with pytest.raises(ConfigurationError) as caught:
        client_at("http://127.0.0.1:9", headers=headers)
    assert caught.value.message == message
    assert "secret" not in str(caught.value)
